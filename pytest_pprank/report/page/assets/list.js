// All events, or those that match the search, in a list of which only the rows in view exist.
const LINE = 22;

class EventList {
  constructor(data, box, choose) {
    this.data = data;
    this.box = box;
    this.choose = choose;
    this.rows = element("div", { class: "rows" });
    box.append(this.rows);
    this.numbers = [];
    this.selected = -1;
    this.texts = null;
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
    this.find("", new Set());
  }

  _text(number) {
    if (!this.texts) {
      this.texts = this.data.events.map((event) => `${event.kind} ${event.name} ${JSON.stringify(event.details)} ${event.stack.join(" ")} rank ${event.lane}`.toLowerCase());
    }
    return this.texts[number];
  }

  // all words must occur; returns the matching events, or null for an empty search
  find(query, hidden) {
    const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
    this.numbers = [];
    this.data.events.forEach((event, number) => {
      if (!hidden.has(event.kind) && wanted.every((word) => this._text(number).includes(word))) this.numbers.push(number);
    });
    this.rows.style.height = `${this.numbers.length * LINE}px`;
    this.draw();
    return wanted.length ? new Set(this.numbers) : null;
  }

  next(step) {
    if (!this.numbers.length) return -1;
    const after = this.numbers.findIndex((number) => number > this.selected);
    const here = this.numbers.indexOf(this.selected);
    let at;
    if (here >= 0) at = here + step;
    else if (step > 0) at = after < 0 ? 0 : after;
    else at = (after < 0 ? this.numbers.length : after) - 1;
    return this.numbers[(at + this.numbers.length) % this.numbers.length];
  }

  select(number) {
    this.selected = number;
    const at = this.numbers.indexOf(number);
    if (at >= 0) {
      const top = at * LINE;
      if (top < this.box.scrollTop || top + LINE > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top - this.box.clientHeight / 2;
    }
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / LINE) - 4);
    const last = Math.min(this.numbers.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / LINE) + 4);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this._row(at));
    this.rows.replaceChildren(...rows);
  }

  _row(at) {
    const number = this.numbers[at], event = this.data.events[number];
    const made = element("div", { class: `row${number === this.selected ? " selected" : ""}`, onclick: () => this.choose(number, true) },
      element("span", { class: "quiet" }, secondsText(event.start)),
      element("span", {}, `r${event.lane}${event.iteration === null ? "" : ` #${event.iteration}`}`),
      element("span", { class: "kind quiet" }, event.kind),
      element("span", { title: event.name }, event.name));
    made.style.top = `${at * LINE}px`;
    return made;
  }
}
