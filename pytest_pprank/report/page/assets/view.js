// The timeline of one test: search, filters, lanes, panel and list, kept in step.
class TimelineView {
  constructor(data, box) {
    this.data = data;
    this.search = element("input", { type: "search", placeholder: "Search events", "aria-label": "Search events", oninput: () => this._find() });
    this.found = element("span", { class: "quiet", role: "status" });
    const laneBox = element("div", { class: "lanes" }), panelBox = element("aside", { class: "panel", "aria-live": "polite", tabindex: "0" });
    const listBox = element("div", { class: "list", tabindex: "0", "aria-label": "Events" });
    const choose = (number, reveal) => this.select(number, reveal);
    box.replaceChildren(this._bar(), this._kinds(), ...this._unmet(), element("div", { class: "split" }, laneBox, panelBox), listBox);
    this.lanes = new Lanes(data, laneBox, choose);
    this.panel = new Panel(data, this.lanes, panelBox, choose);
    this.list = new EventList(data, listBox, choose);
    this.found.textContent = `${data.events.length} events`;
    this._begin();
  }

  _bar() {
    const act = (name, label, action) => element("button", { type: "button", "aria-label": label, title: label, onclick: action }, name);
    this.even = element("button", { type: "button", title: "Give each event the same room, or each second", onclick: () => this._toggleEven() }, "axis: events");
    return element("div", { class: "bar" }, this.search, this.found,
      act("‹", "Previous match", () => this.next(-1)), act("›", "Next match", () => this.next(1)),
      act("+", "Zoom in", () => this.lanes.zoom(0.5)), act("−", "Zoom out", () => this.lanes.zoom(2)),
      act("all", "Show all", () => this.lanes.showAll()), act("call", "Show the call of the test", () => this._showCall()), this.even);
  }

  _kinds() {
    const counts = new Map();
    for (const event of this.data.events) counts.set(event.kind, (counts.get(event.kind) || 0) + 1);
    const order = Object.values(this.data.bands).flat().filter((kind) => counts.has(kind));
    return element("div", { class: "kinds", role: "group", "aria-label": "Kinds of events" }, ...order.map((kind) => {
      const made = element("button", { type: "button", "aria-pressed": "true", onclick: () => this._toggle(kind, made) }, `${kind} ${counts.get(kind)}`);
      made.style.setProperty("--kind", `var(--k-${kind})`);
      return made;
    }));
  }

  _unmet() {
    if (!this.data.unmet.length) return [];
    const lines = this.data.unmet.map((each) => element("li", {}, element("button", { type: "button", onclick: () => this.select(each.event, true) }, `rank ${this.data.events[each.event].lane}: ${each.text}, which ${each.lack}`)));
    const count = lines.length, head = count === 1 ? "1 operation never met its partner" : `${count} operations never met their partners`;
    return [element("details", { class: "unmet", open: count < 4 }, element("summary", {}, head), element("ul", {}, ...lines))];
  }

  // begin with the call of the test, where there is one: the setup of a group can be most of the time
  _begin() { this._showCall(); }

  _showCall() {
    const calls = this.data.events.filter((event) => event.kind === "phase" && event.name === "call");
    if (!calls.length) { this.lanes.showAll(); return; }
    const start = Math.min(...calls.map((event) => event.start)), ends = calls.map((event) => this.lanes.end(event));
    this.lanes.showRange(start, Math.max(...ends));
  }

  _toggleEven() {
    const even = !this.lanes.axis.even;
    this.even.textContent = even ? "axis: events" : "axis: time";
    this.lanes.setEven(even);
  }

  _toggle(kind, button) {
    const hidden = this.lanes.hidden;
    if (hidden.has(kind)) hidden.delete(kind); else hidden.add(kind);
    button.setAttribute("aria-pressed", String(!hidden.has(kind)));
    this.lanes.layOut();
    this._find();
  }

  _find() {
    this.lanes.matches = this.list.find(this.search.value, this.lanes.hidden);
    this.found.textContent = this.lanes.matches ? `${this.lanes.matches.size} of ${this.data.events.length} events` : `${this.data.events.length} events`;
    this.lanes.draw();
  }

  select(number, reveal) {
    this.lanes.select(number, reveal);
    this.list.select(number);
    this.panel.show(number);
  }

  next(step) {
    const number = this.list.next(step);
    if (number >= 0) this.select(number, true);
  }

  // the next event of the lane; without a selection, the first one in view
  move(step) {
    const shown = (event) => !this.lanes.hidden.has(event.kind), events = this.data.events, selected = this.lanes.selected;
    if (selected < 0) {
      const begin = this.lanes.axis.time(this.lanes.first);
      this.select(events.findIndex((event) => shown(event) && event.start >= begin), true);
      return;
    }
    for (let at = selected + step; at >= 0 && at < events.length; at += step) {
      if (events[at].lane === events[selected].lane && shown(events[at])) { this.select(at, true); return; }
    }
  }

  // the event of a neighbouring lane that is closest in time, of the same kind if there is one
  cross(step) {
    const selected = this.lanes.selected, events = this.data.events;
    if (selected < 0) { this.move(1); return; }
    const ranks = this.data.lanes.map((lane) => lane.rank), to = ranks[ranks.indexOf(events[selected].lane) + step];
    let best = -1, least = Infinity;
    events.forEach((event, number) => {
      if (event.lane !== to || this.lanes.hidden.has(event.kind)) return;
      const far = Math.abs(event.start - events[selected].start) + (event.kind === events[selected].kind ? 0 : this.data.seconds);
      if (far < least) { best = number; least = far; }
    });
    if (best >= 0) this.select(best, true);
  }

  follow() {
    const link = (this.lanes.linksOf.get(this.lanes.selected) || [])[0];
    if (link) this.select(link.source === this.lanes.selected ? link.target : link.source, true);
  }

  zoomToSelected() {
    if (this.lanes.selected < 0) return;
    const event = this.data.events[this.lanes.selected];
    this.lanes.showRange(event.start, this.lanes.end(event));
  }
}
