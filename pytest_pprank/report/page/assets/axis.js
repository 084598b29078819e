"use strict";
// The horizontal axis. In time, a second is everywhere as wide; evenly, each beginning and each end of
// an event gets the same room, so that milliseconds of work beside seconds of waiting can be seen.
class Axis {
  constructor(events, seconds) {
    this.seconds = Math.max(seconds, 1e-6);
    const times = [0, this.seconds];
    for (const event of events) {
      times.push(event.start);
      if (event.end !== null) times.push(event.end);
    }
    const ticks = Float64Array.from(new Set(times)).sort();
    this.ticks = ticks;
    // what never ended lasts from the last event to the end: it gets more room than one event
    if (ticks.length > 2 && events.some((event) => event.end === null)) {
      const from = ticks[ticks.length - 2], count = Math.max(3, Math.round(ticks.length * 0.08));
      const more = Array.from({ length: count }, (_, n) => from + ((n + 1) / (count + 1)) * (this.seconds - from));
      this.ticks = Float64Array.from([...ticks, ...more]).sort();
    }
    this.even = true;
  }
  get size() { return this.even ? this.ticks.length - 1 : this.seconds; }
  // the place of a time on the axis, from 0 to `size`
  place(time) {
    if (!this.even) return time;
    const at = this._before(time), ticks = this.ticks;
    if (at >= ticks.length - 1) return ticks.length - 1;
    return at + (time - ticks[at]) / (ticks[at + 1] - ticks[at]);
  }
  time(place) {
    if (!this.even) return place;
    const ticks = this.ticks, at = Math.max(0, Math.min(Math.floor(place), ticks.length - 2));
    return ticks[at] + (place - at) * (ticks[at + 1] - ticks[at]);
  }
  _before(time) {
    let low = 0, high = this.ticks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.ticks[middle] <= time) low = middle; else high = middle - 1;
    }
    return low;
  }
}

function secondsText(seconds) {
  const size = Math.abs(seconds);
  if (size >= 1) return `${seconds.toFixed(3)} s`;
  if (size >= 1e-3) return `${(seconds * 1e3).toFixed(2)} ms`;
  return `${(seconds * 1e6).toFixed(0)} µs`;
}

function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  // texts become text nodes: nothing that a test has printed is ever read as HTML
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
