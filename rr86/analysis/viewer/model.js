"use strict";
// The run, as the page holds it. Times are nanoseconds of virtual time from the timeline's begin.

const MODEL = (() => {
  const raw = JSON.parse(document.getElementById("data").textContent);

  // Ascending numbers are stored as the steps between them.
  const ascending = (steps) => {
    const out = new Float64Array(steps.length);
    let at = 0;
    for (let i = 0; i < steps.length; i++) out[i] = at += steps[i];
    return out;
  };

  // Index of the first element that is not below a value.
  const lowerBound = (list, value) => {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] < value) low = middle + 1; else high = middle;
    }
    return low;
  };

  const depths = [];
  // Spans by vCPU and depth; within one, they follow each other.
  const lanes = raw.spans.map((spans, vcpu) => {
    const starts = ascending(spans.start);
    const byDepth = [];
    for (let i = 0; i < starts.length; i++) {
      const lane = byDepth[spans.depth[i]] ||= { start: [], end: [], kind: [], name: [], pid: [], detail: [] };
      lane.start.push(starts[i]);
      lane.end.push(starts[i] + spans.length[i]);
      lane.kind.push(spans.kind[i]);
      lane.name.push(spans.name[i]);
      lane.pid.push(spans.pid[i]);
      lane.detail.push(spans.detail[i]);
    }
    depths[vcpu] = byDepth.length;
    for (let depth = 0; depth < byDepth.length; depth++) {
      const lane = byDepth[depth] ||= { start: [], end: [], kind: [], name: [], pid: [], detail: [] };
      lane.vcpu = vcpu;
      lane.depth = depth;
      lane.start = Float64Array.from(lane.start);
      lane.end = Float64Array.from(lane.end);
    }
    return byDepth;
  });

  // When each vCPU ran, with the sum of all before each slice.
  const slices = raw.slices.map((flat) => {
    const count = flat.length / 2;
    const start = new Float64Array(count), end = new Float64Array(count), sum = new Float64Array(count + 1);
    let at = 0;
    for (let i = 0; i < count; i++) {
      start[i] = at += flat[2 * i];
      end[i] = at += flat[2 * i + 1];
      sum[i + 1] = sum[i] + end[i] - start[i];
    }
    return { start, end, sum };
  });

  const arrows = { ...raw.arrows, time: ascending(raw.arrows.time) };
  const ipis = { ...raw.ipis, time: ascending(raw.ipis.time) };
  const marks = { ...raw.marks, time: ascending(raw.marks.time) };

  // Instructions that a vCPU has retired up to a time.
  const ranUpTo = (vcpu, time) => {
    const { start, end, sum } = slices[vcpu];
    const next = lowerBound(start, time);
    if (next === 0) return 0;
    return sum[next - 1] + Math.min(time, end[next - 1]) - start[next - 1];
  };

  const icountAt = (time) => {
    let skipped = raw.skippedBefore;
    const absolute = time + raw.begin;
    for (const [start, end, icount] of raw.skips) {
      if (absolute < start) break;
      if (absolute < end) return icount;
      skipped += end - start;
    }
    return absolute - skipped;
  };

  const title = (lane, i) => {
    const name = raw.names[lane.name[i]];
    return lane.pid[i] < 0 ? name : `${name} (${lane.pid[i]})`;
  };

  return {
    ...raw, length: raw.end - raw.begin, lanes, depths, slices, arrows, ipis, marks,
    lowerBound, ranUpTo, icountAt, title,
  };
})();

// -- words -----------------------------------------------------------------------------------------

const count = (number) => Math.round(number).toLocaleString("en");

// A time with as many digits as `step` needs.
const timeText = (time, step = 1) => {
  const absolute = time + MODEL.begin;
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (absolute >= unit || unit === 1e3) {
      const digits = Math.max(0, Math.ceil(Math.log10(unit / Math.max(step, 1))));
      return `${(absolute / unit).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${name}`;
    }
  }
  return "";
};

const durationText = (time) => {
  if (time >= 1e9) return `${(time / 1e9).toFixed(3)} s`;
  if (time >= 1e6) return `${(time / 1e6).toFixed(3)} ms`;
  if (time >= 1e3) return `${(time / 1e3).toFixed(3)} µs`;
  return `${Math.round(time)} ns`;
};

const agentText = (agent) => (agent < 0 ? "a device" : `vCPU ${agent}`);

// -- items: what can be pointed at ---------------------------------------------------------------------

// Each has a time, a length, a lane to be found on, and words for it.
const ITEMS = {
  span: (lane, index) => {
    const [start, end] = [lane.start[index], lane.end[index]];
    const ran = MODEL.ranUpTo(lane.vcpu, end) - MODEL.ranUpTo(lane.vcpu, start);
    const fields = [["", MODEL.kinds[lane.kind[index]]], ["on", `vCPU ${lane.vcpu}`], ["for", durationText(end - start)],
      ["retired", `${count(ran)} instructions`]];
    if (MODEL.names[lane.detail[index]]) fields.push(["", MODEL.names[lane.detail[index]]]);
    return { what: "span", lane, index, vcpu: lane.vcpu, start, end, title: MODEL.title(lane, index), fields };
  },
  arrow: (index) => {
    const { time, source, to, page, write, name } = MODEL.arrows;
    const fields = [["from", agentText(source[index])], ["to", agentText(to[index])],
      ["", write[index] ? "which is about to write it" : "which reads it"], ["page", `0x${page[index].toString(16)}`]];
    const variable = MODEL.names[name[index]];
    return { what: "arrow", index, vcpu: to[index], start: time[index], end: time[index],
      title: `Hand-off of a page${variable ? ` with ${variable}` : ""}`, fields };
  },
  ipi: (index) => {
    const { time, source, to, name, taken } = MODEL.ipis;
    const fields = [["from", agentText(source[index])], ["to", agentText(to[index])],
      ["", taken[index] < 0 ? "taken together with a later one, or never" : `taken ${durationText(taken[index])} later`]];
    return { what: "ipi", index, vcpu: source[index], start: time[index], end: time[index] + Math.max(0, taken[index]),
      title: `IPI: ${MODEL.names[name[index]]}`, fields };
  },
  mark: (index) => {
    const { time, vcpu, kind, text } = MODEL.marks;
    const name = MODEL.markKinds[kind[index]];
    return { what: "mark", index, vcpu: vcpu[index], start: time[index], end: time[index],
      title: name === "console" ? MODEL.names[text[index]] : `${name[0].toUpperCase()}${name.slice(1)}`,
      fields: [["", name === "console" ? "console" : MODEL.names[text[index]]], ["by", agentText(vcpu[index])]] };
  },
};

// -- search ------------------------------------------------------------------------------------------

// Everything whose words have the text in them, in the order of time; no more than so many.
const MOST_FOUND = 20000;
const search = (text) => {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return null;
  const has = MODEL.names.map((name) => name.toLowerCase().includes(wanted));
  const pid = /^\d+$/.test(wanted) ? Number(wanted) : null;
  const found = [];
  const add = (start, make) => { if (found.length < MOST_FOUND) found.push({ start, make }); };
  for (const lane of MODEL.lanes.flat()) {
    const kinds = MODEL.kinds.map((kind) => kind.includes(wanted));
    for (let i = 0; i < lane.start.length; i++) {
      if (has[lane.name[i]] || has[lane.detail[i]] || kinds[lane.kind[i]] || (pid !== null && lane.pid[i] === pid)) {
        add(lane.start[i], () => ITEMS.span(lane, i));
      }
    }
  }
  const { marks, arrows, ipis } = MODEL;
  const markKinds = MODEL.markKinds.map((kind) => kind.includes(wanted));
  for (let i = 0; i < marks.time.length; i++) {
    if (has[marks.text[i]] || markKinds[marks.kind[i]]) add(marks.time[i], () => ITEMS.mark(i));
  }
  for (let i = 0; i < arrows.time.length; i++) {
    if (arrows.name[i] && has[arrows.name[i]]) add(arrows.time[i], () => ITEMS.arrow(i));
  }
  for (let i = 0; i < ipis.time.length; i++) {
    if (has[ipis.name[i]]) add(ipis.time[i], () => ITEMS.ipi(i));
  }
  found.sort((a, b) => a.start - b.start);
  return { names: has, list: found, all: found.length < MOST_FOUND };
};
