// Draws the lanes of all ranks on a canvas that is as large as the window on them, whatever their size.
const ROW = 16, GAP = 3, TITLE = 20, RULER = 22, MOST_ROWS = 8;
const LEAST = 3;  // pixels between two events of a row that are drawn
const MOST_LINKS = 600;
const MOMENTS = new Set(["finding", "fault", "error"]);

// black or white, whichever can be read on a colour (#rrggbb)
function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#10151b" : "#ffffff";
}

class Lanes {
  constructor(data, box, choose) {
    this.data = data;
    this.box = box;
    this.choose = choose;
    this.events = data.events;
    this.axis = new Axis(data.events, data.seconds);
    this.hidden = new Set();
    this.matches = null;
    this.selected = -1;
    this.canvas = element("canvas", { tabindex: "0", role: "application", "aria-label": "Timeline of all ranks; arrow keys move between events" });
    this.spacer = element("div");
    box.append(this.canvas, this.spacer);
    this.context = this.canvas.getContext("2d");
    this.linksOf = new Map();
    data.links.forEach((link) => {
      for (const end of [link.source, link.target]) {
        if (!this.linksOf.has(end)) this.linksOf.set(end, []);
        this.linksOf.get(end).push(link);
      }
    });
    this.unmet = new Map(data.unmet.map((each) => [each.event, each]));
    this.first = 0;
    this.last = this.axis.size;
    this.pending = 0;
    this.drawn = { events: 0, links: 0 };
    this.colours = {};
    this.layOut();
    this._listen();
    new ResizeObserver(() => this.draw()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.colours = {}; this.draw(); });
  }

  // which row of which band is where; a band that no rank uses takes no room
  layOut() {
    const bandOf = {};
    for (const [band, kinds] of Object.entries(this.data.bands)) for (const kind of kinds) bandOf[kind] = band;
    const rows = new Map();  // lane -> band -> row -> numbers of events
    this.events.forEach((event, number) => {
      if (this.hidden.has(event.kind)) return;
      const band = bandOf[event.kind], row = Math.min(event.row, MOST_ROWS - 1);
      if (!rows.has(event.lane)) rows.set(event.lane, {});
      const lane = rows.get(event.lane);
      lane[band] = lane[band] || [];
      while (lane[band].length <= row) lane[band].push([]);
      lane[band][row].push(number);
    });
    this.rows = [];
    this.laneAt = [];
    let y = RULER;
    for (const lane of this.data.lanes) {
      const top = y;
      y += TITLE;
      for (const band of Object.keys(this.data.bands)) {
        for (const numbers of (rows.get(lane.rank) || {})[band] || []) {
          // rows of the ring are in order of their beginnings; the last one may overlap itself
          this.rows.push({ lane: lane.rank, band, y, numbers });
          y += ROW;
        }
        if ((rows.get(lane.rank) || {})[band]) y += GAP;
      }
      y += 6;
      this.laneAt.push({ lane, top, bottom: y });
    }
    this.height = y;
    this.rowOf = new Map();
    this.rows.forEach((row) => row.numbers.forEach((number) => this.rowOf.set(number, row)));
    this.draw();
  }

  colour(name) {
    if (!(name in this.colours)) this.colours[name] = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    return this.colours[name];
  }

  x(time) { return ((this.axis.place(time) - this.first) / (this.last - this.first)) * this.width; }
  end(event) { return event.end === null ? this.data.seconds : event.end; }

  draw() {
    if (!this.pending) this.pending = requestAnimationFrame(() => { this.pending = 0; this._draw(); });
  }

  _draw() {
    const width = this.box.clientWidth, tallest = Math.round(window.innerHeight * 0.72);
    const height = Math.min(this.height, tallest), ratio = window.devicePixelRatio || 1;
    if (!width) return;
    this.width = width;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.height = `${height}px`;
    }
    this.spacer.style.height = `${Math.max(0, this.height - height)}px`;
    this.top = this.box.scrollTop;
    const draw = this.context;
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, height);
    draw.font = "11px system-ui, sans-serif";
    draw.textBaseline = "middle";
    this.drawn = { events: 0, links: 0 };
    draw.save();
    draw.translate(0, -this.top);
    this._backgrounds(width);
    for (const row of this.rows) {
      if (row.y + ROW >= this.top && row.y <= this.top + height) this._row(row);
    }
    this._links();
    this._unmet();
    this._selection(height);
    this._titles();
    draw.restore();
    this._ruler(width);
    this.canvas.dataset.drawn = this.drawn.events + this.drawn.links;
  }

  _backgrounds(width) {
    const draw = this.context;
    this.laneAt.forEach(({ top, bottom }, number) => {
      if (number % 2) { draw.fillStyle = this.colour("raised"); draw.fillRect(0, top, width, bottom - top); }
      draw.fillStyle = this.colour("line");
      draw.fillRect(0, top, width, 1);
    });
  }

  _titles() {
    const draw = this.context;
    this.laneAt.forEach(({ lane, top }) => {
      draw.fillStyle = this.colour("ink");
      draw.font = "600 12px system-ui, sans-serif";
      draw.fillText(lane.title, 8, top + TITLE / 2 + 1);
      if (lane.note) {
        const after = 16 + draw.measureText(lane.title).width;
        draw.font = "11px system-ui, sans-serif";
        draw.fillStyle = this.colour("amber");
        draw.fillText(lane.note, after, top + TITLE / 2 + 1);
      }
      draw.font = "11px system-ui, sans-serif";
    });
  }

  // the first of a row's events that may be in the window
  _from(row) {
    const begin = this.axis.time(this.first), numbers = row.numbers;
    let low = 0, high = numbers.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.events[numbers[middle]].start < begin) low = middle + 1; else high = middle;
    }
    // a span that began before; in the last row several may overlap
    const crowded = this.events[numbers[0]].row >= MOST_ROWS - 1;
    return crowded ? 0 : Math.max(0, low - 1);
  }

  _row(row) {
    const numbers = row.numbers, stop = this.axis.time(this.last);
    let covered = -Infinity;
    for (let at = this._from(row); at < numbers.length; at++) {
      const number = numbers[at], event = this.events[number];
      if (event.start > stop) break;
      const left = this.x(event.start), right = this.x(this.end(event));
      if (right < 0) continue;
      const important = number === this.selected || MOMENTS.has(event.kind);
      if (right < covered + LEAST && !important) continue;
      covered = Math.max(covered, Math.max(right, left + LEAST));
      this._event(event, number, row, left, right);
    }
  }

  _event(event, number, row, left, right) {
    const draw = this.context, moment = event.end === event.start, y = row.y + 1, height = ROW - 2;
    const dim = this.matches && !this.matches.has(number);
    draw.globalAlpha = dim ? 0.25 : 1;
    draw.fillStyle = this.colour(`k-${event.kind}`);
    this.drawn.events++;
    if (moment) {
      this._moment(event, left, y + height / 2);
    } else {
      const from = Math.max(left, -4), to = Math.min(Math.max(right, left + 2), this.width + 4);
      draw.fillRect(from, y, to - from, height);
      if (event.end === null) this._neverEnded(from, to, y, height);
      if (to - from > 26) {
        draw.save();
        draw.beginPath();
        draw.rect(from, y, to - from - 2, height);
        draw.clip();
        draw.fillStyle = inkOn(this.colour(`k-${event.kind}`));
        draw.fillText(event.name, Math.max(from, 0) + 4, y + height / 2 + 0.5);
        draw.restore();
      }
    }
    if (this.matches && !dim) {
      draw.strokeStyle = this.colour("mark");
      draw.lineWidth = 2;
      draw.strokeRect(Math.max(left, -4) - 1, y - 1, Math.max(right - Math.max(left, -4), 6) + 2, height + 2);
    }
    draw.globalAlpha = 1;
  }

  _moment(event, x, y) {
    const draw = this.context, size = MOMENTS.has(event.kind) ? 6 : 4;
    draw.beginPath();
    if (event.kind === "finding" || event.kind === "error") {
      draw.arc(x, y, size, 0, 7);
    } else {
      draw.moveTo(x, y - size); draw.lineTo(x + size, y); draw.lineTo(x, y + size); draw.lineTo(x - size, y);
    }
    draw.fill();
    if (MOMENTS.has(event.kind)) {
      const text = event.name.length > 60 ? `${event.name.slice(0, 58)}…` : event.name;
      // to the left of a pin at the right border
      draw.textAlign = x > this.width * 0.7 ? "right" : "left";
      draw.fillText(text, x + (draw.textAlign === "right" ? -9 : 9), y + 0.5);
      draw.textAlign = "left";
    }
  }

  // hatched, and with an open end
  _neverEnded(from, to, y, height) {
    const draw = this.context;
    draw.save();
    draw.beginPath();
    draw.rect(from, y, to - from, height);
    draw.clip();
    draw.strokeStyle = this.colour("red");
    draw.lineWidth = 1.5;
    draw.beginPath();
    for (let x = from - height; x < to; x += 9) { draw.moveTo(x, y + height); draw.lineTo(x + height, y); }
    draw.globalAlpha *= 0.55;
    draw.stroke();
    draw.restore();
    draw.strokeStyle = this.colour("red");
    draw.lineWidth = 1;
    draw.strokeRect(from + 0.5, y + 0.5, to - from - 1, height - 1);
  }

  _ends(link) {
    const source = this.rowOf.get(link.source), target = this.rowOf.get(link.target);
    if (!source || !target) return null;
    const from = this.events[link.source], to = this.events[link.target];
    const arrives = link.kind === "message" ? (to.end === null ? to.start : to.end) : to.start;
    const x1 = this.x(from.start), x2 = this.x(arrives);
    if (Math.max(x1, x2) < 0 || Math.min(x1, x2) > this.width) return null;
    return { x1, y1: source.y + ROW / 2, x2, y2: target.y + ROW / 2 };
  }

  _links() {
    const seen = new Set(), draw = this.context, bold = [];
    for (const link of this.data.links) {
      const chosen = link.source === this.selected || link.target === this.selected;
      if (!chosen && this.drawn.links >= MOST_LINKS) continue;
      const ends = this._ends(link);
      if (!ends) continue;
      if (chosen) { bold.push([link, ends]); continue; }
      const key = `${ends.x1 >> 2},${ends.y1},${ends.x2 >> 2},${ends.y2}`;
      if (seen.has(key)) continue;
      seen.add(key);
      this._arrow(link, ends, 0.5, 1);
    }
    for (const [link, ends] of bold) this._arrow(link, ends, 1, 2.2);
  }

  _arrow(link, { x1, y1, x2, y2 }, alpha, width) {
    const draw = this.context, down = y2 > y1 ? 1 : -1;
    this.drawn.links++;
    draw.globalAlpha = alpha;
    draw.strokeStyle = draw.fillStyle = this.colour(link.kind === "kv" ? "k-transfer" : `k-${link.kind}`);
    draw.lineWidth = width;
    draw.beginPath();
    draw.moveTo(x1, y1);
    const middle = (y1 + y2) / 2;
    draw.bezierCurveTo(x1, middle, x2, middle, x2, y2 - down * 5);
    draw.stroke();
    if (link.kind !== "collective") {
      draw.beginPath();
      draw.moveTo(x2, y2); draw.lineTo(x2 - 4, y2 - down * 7); draw.lineTo(x2 + 4, y2 - down * 7);
      draw.fill();
    }
    draw.globalAlpha = 1;
  }

  // an arrow that leads nowhere, towards the rank that never came
  _unmet() {
    const draw = this.context;
    for (const missing of this.data.unmet) {
      const row = this.rowOf.get(missing.event);
      if (!row) continue;
      const x = this.x(this.events[missing.event].start);
      if (x < -20 || x > this.width + 20) continue;
      for (const rank of missing.ranks) {
        const down = rank > row.lane ? 1 : -1, y = row.y + ROW / 2;
        this.drawn.links++;
        draw.strokeStyle = this.colour("red");
        draw.lineWidth = 1.8;
        draw.setLineDash([4, 3]);
        draw.beginPath();
        draw.moveTo(x, y); draw.lineTo(x + 12, y + down * 26);
        draw.stroke();
        draw.setLineDash([]);
        draw.beginPath();
        for (const turn of [-1, 1]) { draw.moveTo(x + 8, y + down * 26 - 4 * turn); draw.lineTo(x + 16, y + down * 26 + 4 * turn); }
        draw.stroke();
      }
    }
  }

  _selection(height) {
    if (this.selected < 0) return;
    const event = this.events[this.selected], row = this.rowOf.get(this.selected), draw = this.context;
    const x = this.x(event.start);
    draw.fillStyle = this.colour("accent");
    draw.globalAlpha = 0.35;
    draw.fillRect(x, this.top, 1, height);
    draw.globalAlpha = 1;
    if (!row) return;
    draw.strokeStyle = this.colour("accent");
    draw.lineWidth = 2;
    const left = Math.max(x, -4), right = Math.min(this.x(this.end(event)), this.width + 4);
    draw.strokeRect(left - 3, row.y - 0.5, Math.max(right - left, 2) + 6, ROW + 1);
  }

  _ruler(width) {
    const draw = this.context, step = Math.max(90, width / 10);
    draw.fillStyle = this.colour("raised");
    draw.fillRect(0, 0, width, RULER);
    draw.fillStyle = this.colour("line");
    draw.fillRect(0, RULER - 1, width, 1);
    for (let x = 0; x < width - 40; x += step) {
      const time = this.axis.time(this.first + (x / width) * (this.last - this.first));
      draw.fillStyle = this.colour("line");
      draw.fillRect(x, 0, 1, RULER);
      draw.fillStyle = this.colour("quiet");
      draw.fillText(secondsText(time), x + 4, RULER / 2);
    }
  }

  // the event at a point of the canvas; -1 for none
  at(x, y) {
    const row = this.rows.find((it) => y + this.top >= it.y && y + this.top < it.y + ROW);
    if (!row || y < RULER) return -1;
    let best = -1, closest = 7;
    for (const number of row.numbers) {
      const event = this.events[number];
      const left = this.x(event.start), right = Math.max(this.x(this.end(event)), left);
      const distance = x < left ? left - x : x > right ? x - right : 0;
      if (distance < closest || (distance === 0 && closest === 0)) { best = number; closest = distance; }
    }
    return best;
  }

  _listen() {
    const pointers = new Map();
    let moved = 0, spread = 0;
    const tip = element("div", { class: "tip-box", hidden: true });
    this.box.append(tip);
    this.box.addEventListener("scroll", () => this.draw());
    this.canvas.addEventListener("wheel", (event) => {
      const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        this.zoom(Math.exp(event.deltaY * 0.003), event.offsetX);
      } else if (sideways || event.shiftKey) {
        event.preventDefault();
        this.pan((sideways ? event.deltaX : event.deltaY) / this.width);
      }
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, event);
      moved = 0;
      spread = this._spread(pointers);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) { this._hover(event, tip); return; }
      const before = pointers.get(event.pointerId), by = event.clientX - before.clientX;
      pointers.set(event.pointerId, event);
      moved += Math.abs(by) + Math.abs(event.clientY - before.clientY);
      if (moved < 4) return;
      if (!this.canvas.hasPointerCapture(event.pointerId)) this.canvas.setPointerCapture(event.pointerId);
      tip.hidden = true;
      this.box.classList.add("dragging");
      if (pointers.size === 2) {
        const now = this._spread(pointers);
        if (spread > 10 && now > 10) this.zoom(spread / now, event.offsetX);
        spread = now;
      } else {
        this.pan(-by / this.width);
      }
    });
    const release = (event) => {
      const clicked = pointers.delete(event.pointerId) && moved < 4 && event.type === "pointerup";
      this.box.classList.remove("dragging");
      if (clicked) this.choose(this.at(event.offsetX, event.offsetY), false);
    };
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, release);
    this.canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    this.canvas.addEventListener("dblclick", (event) => this.zoom(0.4, event.offsetX));
  }

  _spread(pointers) {
    const [one, other] = [...pointers.values()];
    return other ? Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) : 0;
  }

  _hover(event, tip) {
    const number = event.pointerType === "mouse" ? this.at(event.offsetX, event.offsetY) : -1;
    tip.hidden = number < 0;
    if (number < 0) return;
    const it = this.events[number];
    const lasts = it.end === null ? "never ended" : it.end > it.start ? secondsText(it.end - it.start) : "";
    tip.textContent = [it.name, it.kind, lasts].filter(Boolean).join(" · ");
    tip.style.left = `${Math.min(event.clientX + 12, window.innerWidth - 300)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  }

  zoom(factor, x = this.width / 2) {
    const least = this.axis.even ? 4 : Math.max(this.axis.seconds * 1e-6, 1e-6);
    const middle = this.first + (x / this.width) * (this.last - this.first);
    const size = Math.min(Math.max((this.last - this.first) * factor, Math.min(least, this.axis.size)), this.axis.size);
    this._show(middle - (x / this.width) * size, size);
  }

  pan(share) { this._show(this.first + share * (this.last - this.first), this.last - this.first); }

  _show(first, size) {
    this.first = Math.max(0, Math.min(first, this.axis.size - size));
    this.last = this.first + size;
    this.draw();
  }

  showAll() { this._show(0, this.axis.size); }

  showRange(start, end) {
    const from = this.axis.place(start), to = this.axis.place(end), size = Math.max((to - from) * 1.2, Math.min(4, this.axis.size));
    this._show((from + to) / 2 - size / 2, Math.min(size, this.axis.size));
  }

  setEven(even) {
    const start = this.axis.time(this.first), end = this.axis.time(this.last);
    this.axis.even = even;
    const from = this.axis.place(start), to = this.axis.place(end);
    this._show(from, Math.max(to - from, even ? 1 : 1e-6));
  }

  select(number, reveal) {
    this.selected = number;
    if (number >= 0 && reveal) this._reveal(number);
    this.draw();
  }

  _reveal(number) {
    const event = this.events[number], place = this.axis.place(event.start), size = this.last - this.first;
    if (place < this.first + size * 0.05 || place > this.last - size * 0.05) this._show(place - size / 2, size);
    const row = this.rowOf.get(number);
    if (row && (row.y < this.box.scrollTop + RULER || row.y + ROW > this.box.scrollTop + this.box.clientHeight)) {
      this.box.scrollTop = row.y - this.box.clientHeight / 2;
    }
  }
}
