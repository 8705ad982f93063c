// Drawing the lanes that a view shows. Where there is more than one thing to a pixel, the pixel shows the
// one with the most time, and counts become the height of a bar.

const GUTTER = 112;
const RULER = 26;
const FONT = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const SMALL = '11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
// So many arrows are drawn one by one.
const FEW_ARROWS = 350;
const CHARACTER = 6.3;
// Below so many, they have names.
const NAMED_ARROWS = 40;
const MOST_STRETCH = 1.5;

let INK = {};
const readInk = () => {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["bg", "fg", "muted", "grid", "lane", "edge", "accent", "found", "band", "runs", "read", "write", "ipi",
    "mark", "stale", "console", "on-light", "on-dark", "off", "guest", "boot", "idle", "halted"];
  INK = Object.fromEntries(names.map((name) => [name, get(name)]));
  INK.kinds = MODEL.kinds.map((kind) => get(kind.replaceAll(" ", "-")));
  INK.darkKinds = MODEL.kinds.map((kind) =>
    ["system call", "interrupt", "nmi", "exception", "software interrupt"].includes(kind));
  const tasks = Array.from({ length: 10 }, (_, n) => get(`task-${n}`));
  INK.tasks = tasks;
  INK.names = MODEL.names.map((name) => {
    let hash = 7;
    for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
    return tasks[hash % tasks.length];
  });
};

const TASK = MODEL.kinds.indexOf("task");
const fillOf = (lane, i) => (lane.kind[i] === TASK ? INK.names[lane.name[i]] : INK.kinds[lane.kind[i]]);

// -- rows ----------------------------------------------------------------------------------------------

// What is below what. Rows have their heights times `stretch`.
const layOut = (stretch) => {
  const rows = [];
  let y = 0;
  const add = (row) => {
    const height = row.what === "ruler" ? row.height : Math.round(row.height * stretch);
    rows.push({ ...row, y, height });
    y += height;
  };
  add({ what: "ruler", height: RULER });
  if (MODEL.marks.time.length) add({ what: "console", height: 19, label: "console" });
  add({ what: "gap", height: 8 });
  const devices = MODEL.arrows.source.includes(-1) || MODEL.arrows.to.includes(-1);
  for (let vcpu = 0; vcpu < MODEL.vcpus; vcpu++) {
    MODEL.lanes[vcpu].forEach((lane, depth) => {
      add({ what: "spans", vcpu, depth, lane, height: depth ? 17 : 23, label: depth ? "" : `vCPU ${vcpu}`, strong: true });
    });
    add({ what: "runs", vcpu, height: 20, label: "runs" });
    add({ what: "memory", vcpu, height: 15, label: "memory" });
    add({ what: "blocks", vcpu, height: 12, label: "blocks" });
    add({ what: "gap", height: 12 });
  }
  if (devices) add({ what: "memory", vcpu: -1, height: 15, label: "devices" });
  return { rows, height: y };
};

// -- the painter -----------------------------------------------------------------------------------------

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  // Sets the canvas to its size on the page; true if it has any.
  fit(height) {
    const scale = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    if (height) this.canvas.style.height = `${height}px`;
    this.width = width;
    this.height = height || this.canvas.clientHeight;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(this.height * scale);
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    return width > 0;
  }

  rect(color, x, y, width, height) {
    this.context.fillStyle = color;
    this.context.fillRect(x, y, width, height);
  }

  text(text, x, y, color, font = FONT) {
    this.context.font = font;
    this.context.fillStyle = color;
    this.context.textBaseline = "middle";
    this.context.fillText(text, x, y);
  }

  // As much of a text as fits, with an ellipsis; nothing if that is next to nothing.
  fitted(text, x, y, width, color, font = FONT) {
    const room = Math.floor(width / CHARACTER);
    if (room < 3) return;
    this.text(text.length <= room ? text : `${text.slice(0, room - 1)}…`, x, y, color, font);
  }

  hatch(x, y, width, height, color) {
    const c = this.context;
    c.save();
    c.beginPath();
    c.rect(x, y, width, height);
    c.clip();
    c.strokeStyle = color;
    c.lineWidth = 1;
    c.beginPath();
    for (let at = x - height - ((x - height) % 6); at < x + width; at += 6) {
      c.moveTo(at, y + height);
      c.lineTo(at + height, y);
    }
    c.stroke();
    c.restore();
  }
}

class Lanes extends Painter {
  draw(state) {
    const room = this.canvas.parentElement.clientHeight;
    const stretch = Math.min(Math.max((room - RULER) / (layOut(1).height - RULER), 1), MOST_STRETCH);
    this.layout = layOut(stretch - 0.02 * (stretch > 1));
    if (!this.fit(this.layout.height)) return;
    this.state = state;
    this.from = state.from;
    this.scale = (this.width - GUTTER) / (state.to - state.from);
    this.hits = [];
    this.rect(INK.bg, 0, 0, this.width, this.height);
    this.grid();
    this.skips();
    for (const row of this.layout.rows) {
      if (row.what in this) this[row.what](row);
    }
    this.arrows();
    this.labels();
    this.cursor();
  }

  x(time) { return GUTTER + (time - this.from) * this.scale; }
  time(x) { return this.from + (x - GUTTER) / this.scale; }

  step() {
    const wanted = 110 / this.scale;
    const power = 10 ** Math.floor(Math.log10(wanted));
    return Math.max(1, [1, 2, 5, 10].find((n) => n * power >= wanted) * power);
  }

  grid() {
    const step = this.step();
    const begin = MODEL.begin;
    const first = Math.ceil((this.from + begin) / step) * step - begin;
    for (let time = first; time < this.state.to; time += step) {
      const x = Math.round(this.x(time)) + 0.5;
      this.rect(INK.grid, x, RULER - 6, 1, this.height);
      this.text(timeText(time, step), x + 4, 10, INK.muted, SMALL);
    }
  }

  ruler() { this.rect(INK.edge, GUTTER, RULER - 1, this.width, 1); }

  skips() {
    for (const [start, end] of MODEL.skips) {
      const [from, to] = [this.x(start - MODEL.begin), this.x(end - MODEL.begin)];
      if (to < GUTTER || from > this.width || to - from < 1) continue;
      const left = Math.max(from, GUTTER);
      this.hatch(left, RULER, Math.min(to, this.width) - left, this.height - RULER, INK.edge);
      this.fitted(`jump of ${durationText(end - start)}`, left + 6, RULER + 9, to - left, INK.muted, SMALL);
    }
  }

  labels() {
    this.rect(INK.bg, 0, 0, GUTTER, this.height);
    this.rect(INK.edge, GUTTER - 1, 0, 1, this.height);
    for (const row of this.layout.rows) {
      if (!row.label) continue;
      const bold = row.what === "spans";
      this.text(row.label, bold ? 12 : 24, row.y + row.height / 2, bold ? INK.fg : INK.muted,
        bold ? `600 ${FONT}` : SMALL);
    }
  }

  // Spans, one after the other. Those narrower than a pixel share it.
  spans({ lane, y, height, depth }) {
    const { start, end } = lane;
    const found = this.state.found;
    let i = MODEL.lowerBound(end, this.from);
    const last = this.state.to;
    const top = y + 1, tall = height - 2;
    let pixel = -1, best = -1, most = 0, hit = false;
    const flush = () => {
      if (best >= 0) this.piece(lane, best, pixel, 1, top, tall, found, hit);
      best = -1;
      most = 0;
      hit = false;
    };
    for (; i < start.length && start[i] < last; i++) {
      const from = Math.max(this.x(start[i]), GUTTER), to = Math.min(this.x(end[i]), this.width);
      if (to - from >= 1.5) {
        flush();
        this.piece(lane, i, from, to - from, top, tall, found, false);
        pixel = Math.floor(to);
      } else {
        if (Math.floor(from) !== pixel) {
          flush();
          pixel = Math.floor(from);
        }
        if (found?.names[lane.name[i]]) hit = true;
        if (end[i] - start[i] >= most) {
          most = end[i] - start[i];
          best = i;
        }
      }
    }
    flush();
    if (depth === 0) this.hits.push({ y, height, lane });
    else this.hits.unshift({ y, height, lane });
  }

  piece(lane, i, x, width, y, height, found, hit) {
    const name = MODEL.names[lane.name[i]];
    const kind = MODEL.kinds[lane.kind[i]];
    if (kind === "off") {
      this.hatch(x, y, width, height, INK.edge);
      if (width > 30) this.fitted("off", x + 5, y + height / 2, width, INK.muted);
      return;
    }
    const matches = hit || (found && (found.names[lane.name[i]] || found.names[lane.detail[i]]));
    const c = this.context;
    if (found && !matches) c.globalAlpha = 0.3;
    const wide = width > 3;
    this.rect(fillOf(lane, i), x, y, wide ? width - 0.6 : width, height);
    if (wide && width > 24) {
      const quiet = kind === "idle" || kind === "halted";
      const color = INK.darkKinds[lane.kind[i]] ? INK["on-dark"] : quiet ? INK.muted : INK["on-light"];
      this.fitted(lane.pid[i] < 0 ? name : MODEL.title(lane, i), x + 4, y + height / 2 + 0.5, width - 7, color,
        lane.depth ? SMALL : FONT);
    }
    c.globalAlpha = 1;
    if (matches) this.rect(INK.found, x, y + height - 2, Math.max(width - 0.6, 1), 3);
    const chosen = this.state.chosen;
    if (chosen?.what === "span" && chosen.lane === lane && chosen.index === i) this.frame(x, y, width, height);
  }

  frame(x, y, width, height) {
    this.context.strokeStyle = INK.fg;
    this.context.lineWidth = 2;
    this.context.strokeRect(x, y, Math.max(width, 3), height);
  }

  // How much of each pixel's time the vCPU ran.
  runs({ vcpu, y, height }) {
    this.rect(INK.lane, GUTTER, y + 2, this.width - GUTTER, height - 4);
    const bottom = y + height - 2, tall = height - 4;
    const slices = MODEL.slices[vcpu];
    const first = MODEL.lowerBound(slices.end, this.from), past = MODEL.lowerBound(slices.start, this.state.to);
    this.context.fillStyle = INK.runs;
    if (past - first < (this.width - GUTTER) / 4) {
      for (let i = first; i < past; i++) {
        const from = Math.max(this.x(slices.start[i]), GUTTER);
        this.context.fillRect(from, y + 2, Math.max(this.x(slices.end[i]) - from, 0.7), tall);
      }
      return;
    }
    let before = MODEL.ranUpTo(vcpu, this.time(GUTTER));
    for (let x = GUTTER; x < this.width; x++) {
      const after = MODEL.ranUpTo(vcpu, this.time(x + 1));
      const share = Math.min(1, (after - before) * this.scale);
      if (share > 0) this.context.fillRect(x, bottom - share * tall, 1, Math.max(share * tall, 0.6));
      before = after;
    }
  }

  // Indices of what lies in the view, of times in order.
  visible(times) {
    return [MODEL.lowerBound(times, this.from), MODEL.lowerBound(times, this.state.to)];
  }

  // Pages that came to an agent: how many to a pixel, or ticks.
  memory({ vcpu, y, height }) {
    this.rect(INK.lane, GUTTER, y + 1, this.width - GUTTER, height - 2);
    const { time, to, write } = MODEL.arrows;
    const [first, past] = this.visible(time);
    const reads = new Uint16Array(this.width + 2), writes = new Uint16Array(this.width + 2);
    for (let i = first; i < past; i++) {
      if (to[i] === vcpu) (write[i] ? writes : reads)[Math.floor(this.x(time[i]))]++;
    }
    const tall = (n) => Math.min(height - 2, 4 + 2.4 * Math.log2(n));
    for (let x = GUTTER; x < this.width; x++) {
      const both = reads[x] + writes[x];
      if (!both) continue;
      const all = tall(both);
      this.rect(INK.read, x, y + height - 1 - all, 1, all);
      if (writes[x]) this.rect(INK.write, x, y + height - 1 - all * writes[x] / both, 1, all * writes[x] / both);
    }
  }

  // Invalidations, and above all stale executions.
  blocks({ vcpu, y, height }) {
    const { time, vcpu: by, kind } = MODEL.marks;
    const [first, past] = this.visible(time);
    const counts = new Uint16Array(this.width + 2);
    for (let i = first; i < past; i++) {
      const name = MODEL.markKinds[kind[i]];
      if (by[i] !== vcpu || name === "console" || name === "input") continue;
      const x = this.x(time[i]);
      if (name.startsWith("stale")) this.stale(x, y, height);
      else counts[Math.floor(x)]++;
    }
    for (let x = GUTTER; x < this.width; x++) {
      if (!counts[x]) continue;
      const tall = Math.min(height - 2, 3 + 1.6 * Math.log2(counts[x]));
      this.rect(INK.mark, x, y + height - 1 - tall, 1, tall);
    }
  }

  stale(x, y, height) {
    const c = this.context;
    c.fillStyle = INK.stale;
    c.beginPath();
    c.moveTo(x, y - 1);
    c.lineTo(x + 5, y + height);
    c.lineTo(x - 5, y + height);
    c.fill();
  }

  // Lines of output where they begin, as far as there is room up to the next.
  console({ y, height }) {
    const { time, kind, text } = MODEL.marks;
    const [first, past] = this.visible(time);
    const spoken = [];
    for (let i = first; i < past; i++) {
      const name = MODEL.markKinds[kind[i]];
      if (name === "console" || name === "input") spoken.push(i);
    }
    spoken.forEach((i, n) => {
      const x = this.x(time[i]);
      const next = n + 1 < spoken.length ? this.x(time[spoken[n + 1]]) : this.width;
      const found = this.state.found?.names[text[i]];
      this.rect(found ? INK.found : INK.console, x, y + 3, 2, height - 6);
      this.fitted(MODEL.names[text[i]], x + 5, y + height / 2, next - x - 10, found ? INK.found : INK.console, SMALL);
    });
  }

  row(what, vcpu) { return this.layout.rows.find((row) => row.what === what && row.vcpu === vcpu); }

  arrows() {
    const few = (times, mode) => {
      const [first, past] = this.visible(times);
      const draws = mode === "always" || (mode === "few" && past - first <= FEW_ARROWS);
      return draws ? [first, Math.min(past, first + 20000)] : [0, 0];
    };
    const { time, source, to, write, name } = MODEL.arrows;
    const [first, past] = few(time, this.state.handOffs);
    for (let i = first; i < past; i++) {
      const from = this.row("memory", source[i]), into = this.row("memory", to[i]);
      if (!from || !into) continue;
      this.arrow(this.x(time[i]), from, this.x(time[i]), into, write[i] ? INK.write : INK.read, 1);
      if (past - first <= NAMED_ARROWS && name[i]) this.nameArrow(i, past, into);
    }
    const ipis = MODEL.ipis;
    const [one, end] = few(ipis.time, this.state.ipis);
    for (let i = one; i < end; i++) {
      const from = this.row("spans", ipis.source[i]), into = this.row("spans", ipis.to[i]);
      if (from && into) {
        this.arrow(this.x(ipis.time[i]), from, this.x(ipis.time[i] + Math.max(0, ipis.taken[i])), into, INK.ipi, 1.4);
      }
    }
    const chosen = this.state.chosen;
    if (chosen?.what === "arrow") {
      const i = chosen.index;
      this.arrow(this.x(time[i]), this.row("memory", source[i]), this.x(time[i]), this.row("memory", to[i]), INK.fg, 2.5);
    } else if (chosen?.what === "ipi") {
      const i = chosen.index;
      this.arrow(this.x(ipis.time[i]), this.row("spans", ipis.source[i]),
        this.x(ipis.time[i] + Math.max(0, ipis.taken[i])), this.row("spans", ipis.to[i]), INK.fg, 2.5);
    } else if (chosen?.what === "mark") {
      this.rect(INK.fg, this.x(chosen.start) - 0.5, RULER, 1, this.height);
    }
  }

  // The variable in a page, beside the arrow's head, as far as there is room up to the next one.
  nameArrow(i, past, into) {
    const { time, to, name, write } = MODEL.arrows;
    let next = i + 1;
    while (next < past && to[next] !== to[i]) next++;
    const x = this.x(time[i]), end = next < past ? this.x(time[next]) : this.width;
    this.fitted(MODEL.names[name[i]], x + 5, into.y + into.height / 2 - 1, end - x - 6, write[i] ? INK.write : INK.read,
      SMALL);
  }

  arrow(x1, from, x2, into, color, width) {
    if (!from || !into || from === into) return;
    const c = this.context;
    const down = into.y > from.y;
    const y1 = down ? from.y + from.height - 1 : from.y + 1, y2 = down ? into.y + 1 : into.y + into.height - 1;
    c.strokeStyle = c.fillStyle = color;
    c.lineWidth = width;
    c.globalAlpha = width > 2 ? 1 : 0.75;
    c.beginPath();
    c.moveTo(x1, y1);
    const bow = Math.min(14, Math.abs(y2 - y1) / 6) * (x1 === x2 ? 1 : 0);
    c.bezierCurveTo(x1 + bow, y1 + (y2 - y1) * 0.3, x2 + bow, y1 + (y2 - y1) * 0.7, x2, y2);
    c.stroke();
    const head = down ? -5 : 5;
    c.beginPath();
    c.moveTo(x2, y2);
    c.lineTo(x2 - 3 + bow / 4, y2 + head);
    c.lineTo(x2 + 3 + bow / 4, y2 + head);
    c.fill();
    c.globalAlpha = 1;
  }

  cursor() {
    const { pointer, band } = this.state;
    if (band) {
      const [from, to] = [this.x(band[0]), this.x(band[1])];
      this.rect(INK.band, Math.min(from, to), RULER, Math.abs(to - from), this.height);
      const text = durationText(Math.abs(band[1] - band[0]));
      this.text(text, Math.min(from, to) + 4, RULER + 8, INK.accent, `600 ${FONT}`);
    } else if (pointer && pointer.x > GUTTER) {
      this.rect(INK.accent, pointer.x, 0, 0.6, this.height);
    }
  }

  // What is at a place: the nearest arrow or mark within reach, else the span.
  at(x, y) {
    if (x < GUTTER) return null;
    const row = this.layout.rows.find((each) => y >= each.y && y < each.y + each.height);
    if (!row) return null;
    const time = this.time(x);
    if (row.what === "spans") {
      const i = this.spanAt(row.lane, time);
      return i < 0 ? null : ITEMS.span(row.lane, i);
    }
    const near = (times, wanted) => {
      const reach = 4 / this.scale;
      let best = -1;
      for (let i = MODEL.lowerBound(times, time - reach); i < times.length && times[i] <= time + reach; i++) {
        if (wanted(i) && (best < 0 || Math.abs(times[i] - time) < Math.abs(times[best] - time))) best = i;
      }
      return best;
    };
    const { arrows, marks } = MODEL;
    if (row.what === "memory") {
      const i = near(arrows.time, (n) => arrows.to[n] === row.vcpu);
      return i < 0 ? null : ITEMS.arrow(i);
    }
    const speaks = (n) => ["console", "input"].includes(MODEL.markKinds[marks.kind[n]]);
    if (row.what === "blocks") {
      const i = near(marks.time, (n) => marks.vcpu[n] === row.vcpu && !speaks(n));
      return i < 0 ? null : ITEMS.mark(i);
    }
    if (row.what === "console") {
      // The text stands behind where it begins.
      for (let i = MODEL.lowerBound(marks.time, time + 2 / this.scale) - 1; i >= 0; i--) {
        if (speaks(i)) return ITEMS.mark(i);
      }
    }
    return null;
  }

  spanAt(lane, time) {
    const i = MODEL.lowerBound(lane.end, time);
    // A pixel's worth, so that narrow ones can be met.
    const reach = 1 / this.scale;
    return i < lane.start.length && lane.start[i] <= time + reach ? i : -1;
  }
}

class Overview extends Painter {
  draw(state) {
    if (!this.fit(0)) return;
    this.rect(INK.bg, 0, 0, this.width, this.height);
    const tall = Math.max(3, (this.height - 6) / MODEL.vcpus);
    const scale = (this.width - GUTTER) / MODEL.length;
    for (let vcpu = 0; vcpu < MODEL.vcpus; vcpu++) {
      const y = 3 + vcpu * tall;
      const lane = MODEL.lanes[vcpu][0];
      for (let i = 0; i < lane.start.length; i++) {
        const x = GUTTER + lane.start[i] * scale, width = (lane.end[i] - lane.start[i]) * scale;
        if (width > 0.3 && MODEL.kinds[lane.kind[i]] !== "off") this.rect(fillOf(lane, i), x, y, Math.max(width, 0.7), tall - 1.5);
      }
    }
    for (const { start } of state.found?.list ?? []) this.rect(INK.found, GUTTER + start * scale, 0, 1, this.height);
    const { kind, time } = MODEL.marks;
    for (let i = 0; i < time.length; i++) {
      if (MODEL.markKinds[kind[i]].startsWith("stale")) this.rect(INK.stale, GUTTER + time[i] * scale - 1, 0, 2, this.height);
    }
    const from = GUTTER + state.from * scale, to = GUTTER + state.to * scale;
    this.context.strokeStyle = INK.accent;
    this.context.lineWidth = 1.5;
    this.rect(INK.band, from, 0, Math.max(to - from, 1), this.height);
    this.context.strokeRect(from, 1, Math.max(to - from, 2), this.height - 2);
    this.text("whole run", 12, this.height / 2, INK.muted, SMALL);
  }

  time(x) { return (x - GUTTER) / (this.width - GUTTER) * MODEL.length; }
}
