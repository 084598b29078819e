// What is known of the selected event: its facts, its partners, the stage before and after it, and logs.
class Panel {
  constructor(data, lanes, box, choose) {
    this.data = data;
    this.lanes = lanes;
    this.box = box;
    this.choose = choose;
    this.states = this._ofKinds(["state"]);
    this.logs = this._ofKinds(["log", "output", "error", "finding"]);
    this.show(-1);
  }

  _ofKinds(kinds) {
    const found = new Map(this.data.lanes.map((lane) => [lane.rank, []]));
    this.data.events.forEach((event, number) => { if (kinds.includes(event.kind)) found.get(event.lane).push(number); });
    return found;
  }

  show(number) {
    if (number < 0) {
      this.box.replaceChildren(element("p", { class: "quiet" }, "Click an event, or use the arrow keys: its details, the state of the stage before and after it, its stack and the logs of that moment are shown here."));
      return;
    }
    const event = this.data.events[number], lane = this.data.lanes.find((it) => it.rank === event.lane);
    this.box.replaceChildren(
      element("h3", {}, event.name),
      element("div", { class: "quiet" }, `${event.kind} · ${lane.title}`),
      this._facts(event, number),
      ...this._links(number),
      ...this._stack(event),
      ...this._state(event, number),
      ...this._logs(event, number),
    );
    this.box.scrollTop = 0;
  }

  _facts(event, number) {
    const rows = [["at", secondsText(event.start)]];
    if (event.end === null) rows.push(["ended", "never"]);
    else if (event.end > event.start) rows.push(["lasted", secondsText(event.end - event.start)]);
    if (event.iteration !== null) rows.push(["iteration", String(event.iteration)]);
    if (event.kind !== "state") {
      for (const [name, value] of Object.entries(event.details)) {
        if (value !== null && value !== "" && !(Array.isArray(value) && !value.length)) rows.push([name, value]);
      }
    }
    const missing = this.lanes.unmet.get(number);
    if (missing) rows.push(["never met", missing.lack]);
    if (event.thread && event.thread !== "MainThread") rows.push(["thread", event.thread]);
    return element("table", {}, ...rows.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), this._cell(value))));
  }

  _cell(value) {
    if (Array.isArray(value)) return element("td", {}, ...value.flatMap((text) => [text, element("br")]).slice(0, -1));
    const text = String(value);
    return text.includes("\n") ? element("td", {}, element("pre", {}, text)) : element("td", {}, text);
  }

  _links(number) {
    const links = this.lanes.linksOf.get(number) || [];
    if (!links.length) return [];
    const buttons = links.map((link) => {
      const away = link.source === number, other = away ? link.target : link.source, event = this.data.events[other];
      const how = link.kind === "collective" ? "together with" : away ? "arrives at" : "comes from";
      return element("button", { type: "button", onclick: () => this.choose(other, true) }, `${how} rank ${event.lane}: ${event.name} (${secondsText(event.start)})`);
    });
    return [element("h4", {}, "Partners"), element("div", { class: "links" }, ...buttons)];
  }

  _stack(event) {
    if (!event.stack.length) return [];
    return [element("h4", {}, "Stack, innermost first"), element("ol", {}, ...event.stack.map((line) => element("li", {}, element("code", {}, line))))];
  }

  _state(event, number) {
    const states = this.states.get(event.lane);
    const until = event.end === null ? Infinity : event.end;
    let before = -1, after = -1;
    for (const other of states) {
      if (other === number) { after = other; break; }
      if (this.data.events[other].start <= event.start) before = other;
      else if (this.data.events[other].start >= until) { after = other; break; }
    }
    if (before < 0 && after < 0) return [];
    const [old, now] = [before, after].map((it) => (it < 0 ? {} : this.data.events[it].details));
    const names = [...new Set([...Object.keys(old), ...Object.keys(now)])];
    const rows = names.map((name) => {
      const changed = before >= 0 && after >= 0 && JSON.stringify(old[name]) !== JSON.stringify(now[name]);
      return element("tr", { class: changed ? "changed" : "" }, element("th", { scope: "row" }, name), this._value(old, name, before), this._value(now, name, after));
    });
    const head = element("tr", {}, element("th", {}, ""), ...[before, after].map((it, place) => element("th", {}, it < 0 ? (place ? "after: not known" : "before: not known") : this.data.events[it].name)));
    return [element("h4", {}, "State of this stage before and after"), element("table", { class: "state" }, head, ...rows)];
  }

  _value(state, name, known) {
    if (known < 0) return element("td", { class: "quiet" }, "");
    const value = state[name];
    if (value === null || value === undefined || (Array.isArray(value) && !value.length)) return element("td", { class: "quiet" }, "none");
    return this._cell(value);
  }

  _logs(event, number) {
    const logs = this.logs.get(event.lane), until = event.end === null ? Infinity : event.end;
    let at = logs.findIndex((other) => this.data.events[other].start > until);
    at = at < 0 ? logs.length : at;
    const shown = logs.slice(Math.max(0, at - 6), at + 3);
    if (!shown.length) return [];
    const lines = shown.map((other) => {
      const it = this.data.events[other], inside = it.start >= event.start && it.start <= until;
      return element("li", { class: other === number || inside ? "now" : "" }, element("button", { type: "button", onclick: () => this.choose(other, true) }, `${secondsText(it.start)}  ${it.name}`));
    });
    return [element("h4", {}, "Logs and output around it"), element("ul", { class: "logs" }, ...lines)];
  }
}
