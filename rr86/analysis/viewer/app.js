// The page: what is shown, what the keys and the pointer do.

const $ = (id) => document.getElementById(id);
const lanes = new Lanes($("main"));
const overview = new Overview($("overview"));
const SHORTEST = 20;
const state = { from: 0, to: MODEL.length, pointer: null, chosen: null, found: null, place: -1, band: null,
  handOffs: "few", ipis: "few" };
const before = [];
let scheduled = false;

const draw = () => {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    lanes.draw(state);
    overview.draw(state);
    say();
  });
};

// -- the view --------------------------------------------------------------------------------------------

const remember = () => {
  before.push([state.from, state.to]);
  if (before.length > 200) before.shift();
};

const show = (from, to) => {
  const length = Math.min(Math.max(to - from, SHORTEST), MODEL.length);
  const start = Math.min(Math.max(from, 0), MODEL.length - length);
  state.from = start;
  state.to = start + length;
  draw();
  keepAddress();
};

const zoom = (factor, around) => {
  const middle = around ?? (state.from + state.to) / 2;
  const length = Math.min(Math.max((state.to - state.from) * factor, SHORTEST), MODEL.length);
  const share = (middle - state.from) / (state.to - state.from);
  show(middle - share * length, middle + (1 - share) * length);
};

const pan = (share) => {
  const by = (state.to - state.from) * share;
  show(state.from + by, state.to + by);
};

const showAll = () => { remember(); show(0, MODEL.length); };
const goBack = () => { const view = before.pop(); if (view) show(...view); };

// The address says what is shown, for a bookmark or a link. Absolute times.
let addressTimer = 0;
const keepAddress = () => {
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => {
    const parts = [`from=${Math.round(state.from + MODEL.begin)}`, `to=${Math.round(state.to + MODEL.begin)}`];
    if ($("query").value) parts.push(`q=${encodeURIComponent($("query").value)}`);
    try { history.replaceState(null, "", `#${parts.join("&")}`); } catch { /* Some browsers forbid it for files. */ }
  }, 200);
};

const readAddress = () => {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has("q")) { $("query").value = wanted.get("q"); find(); }
  const [from, to] = ["from", "to"].map((name) => Number(wanted.get(name)) - MODEL.begin);
  if (wanted.has("from") && to > from) show(from, to);
};

// -- words below -------------------------------------------------------------------------------------------

const make = (tag, text, attributes = {}) => Object.assign(document.createElement(tag), { textContent: text }, attributes);

const describe = (item) => {
  const box = $("details");
  box.replaceChildren();
  if (!item) {
    box.append(make("span", "Point at something to see what it is, click to keep it here. ? shows the keys.", { className: "key" }));
    return;
  }
  const line = (parts) => { const div = document.createElement("div"); div.append(...parts); box.append(div); };
  const field = (name, value) => {
    const span = make("span", "", { className: "field" });
    if (name) span.append(make("span", `${name} `, { className: "key" }));
    span.append(value);
    return span;
  };
  const icount = MODEL.icountAt(item.start);
  line([make("b", item.title), " \u00a0 ", ...item.fields.map(([name, value]) => field(name, value))]);
  line([field("at", timeText(item.start, 1)), field("moment", count(icount)),
    field("go there:", make("code", `rr86 replay --until icount=${icount} ${MODEL.title_}`))]);
};

const say = () => {
  const length = state.to - state.from;
  const parts = [`${timeText(state.from, length / 1000)} to ${timeText(state.to, length / 1000)}: ${durationText(length)}`];
  if (state.pointer && state.pointer.x > GUTTER) {
    const time = lanes.time(state.pointer.x);
    parts.push(`pointer at ${timeText(time, length / 1000)}, moment ${count(MODEL.icountAt(time))}`);
  }
  const arrows = lanes.visible(MODEL.arrows.time);
  parts.push(`${count(arrows[1] - arrows[0])} hand-offs in view`);
  for (const text of MODEL.leftOut) parts.push(`left out: ${text}`);
  $("status").textContent = parts.join(" · ");
};

const legend = () => {
  const box = $("legend");
  box.replaceChildren();
  const used = new Set(MODEL.lanes.flat().flatMap((lane) => Array.from(new Set(lane.kind))));
  const entry = (color, text) => {
    const span = document.createElement("span");
    const swatch = document.createElement("i");
    swatch.style.background = color;
    span.append(swatch, text);
    box.append(span);
  };
  MODEL.kinds.forEach((kind, n) => {
    if (used.has(n) && n !== TASK && kind !== "off") entry(INK.kinds[n], kind);
  });
  if (used.has(TASK)) entry(`linear-gradient(90deg, ${INK.tasks.slice(0, 4).join(",")})`, "tasks, a colour each");
  entry(INK.read, "page to read");
  entry(INK.write, "page to write");
  entry(INK.ipi, "IPI");
  entry(INK.mark, "invalidation");
  if (MODEL.marks.kind.some((kind) => MODEL.markKinds[kind].startsWith("stale"))) entry(INK.stale, "stale execution");
  for (const [name, text] of [["handOffs", "hand-off arrows"], ["ipis", "IPI arrows"]]) {
    const button = make("button", `${text}: ${state[name] === "few" ? "where few" : state[name]}`, { type: "button" });
    button.onclick = () => cycle(name);
    box.append(button);
  }
};

const cycle = (name) => {
  const modes = ["few", "always", "never"];
  state[name] = modes[(modes.indexOf(state[name]) + 1) % modes.length];
  legend();
  draw();
};

// -- choosing and finding ------------------------------------------------------------------------------------

const choose = (item) => {
  state.chosen = item;
  describe(item);
  draw();
};

// Shows an item with room around it, unless it is well in view.
const bring = (item, close = false) => {
  const width = Math.max(item.end - item.start, SHORTEST);
  const view = state.to - state.from;
  const inside = item.start >= state.from && item.end <= state.to;
  const visible = width / view > 0.004;
  if (close || !inside || !visible) {
    remember();
    const length = close ? width * 1.1 : Math.min(Math.max(width * 12, Math.min(view, 2e5)), MODEL.length);
    const middle = (item.start + item.end) / 2;
    show(middle - length / 2, middle + length / 2);
  }
  const row = lanes.layout?.rows.find((each) => each.vcpu === item.vcpu);
  const box = $("lanes");
  if (row && (row.y < box.scrollTop || row.y + 100 > box.scrollTop + box.clientHeight)) box.scrollTop = row.y - 60;
  choose(item);
};

const find = () => {
  state.found = search($("query").value);
  state.place = -1;
  const list = state.found?.list;
  $("found").textContent = list ? `${list.length}${state.found.all ? "" : "+"} found` : "";
  draw();
  keepAddress();
};

const go = (step) => {
  const list = state.found?.list;
  if (!list?.length) return;
  if (state.place < 0 && step > 0) {
    // From what is in view on.
    const next = list.findIndex((each) => each.start >= state.from);
    state.place = next < 0 ? 0 : next;
  } else {
    state.place = (state.place + step + list.length) % list.length;
  }
  $("found").textContent = `${state.place + 1} of ${list.length}${state.found.all ? "" : "+"}`;
  bring(list[state.place].make());
};

const neighbour = (step) => {
  const item = state.chosen;
  if (!item) return;
  const next = item.index + step;
  if (item.what === "span") {
    if (next >= 0 && next < item.lane.start.length) bring(ITEMS.span(item.lane, next));
    return;
  }
  const times = { arrow: MODEL.arrows, ipi: MODEL.ipis, mark: MODEL.marks }[item.what].time;
  if (next >= 0 && next < times.length) bring(ITEMS[item.what](next));
};

// -- the pointer -----------------------------------------------------------------------------------------------

const main = $("main");
let drag = null;

const placeOf = (event) => {
  const box = main.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
};

const tip = (item, event) => {
  const box = $("tip");
  box.hidden = !item;
  if (!item) return;
  box.replaceChildren(make("b", item.title),
    make("small", item.fields.map(([name, value]) => `${name} ${value}`.trim()).join(" · ")),
    make("small", `at ${timeText(item.start, 1)}, moment ${count(MODEL.icountAt(item.start))}`));
  const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
  const below = event.clientY + 18;
  box.style.left = `${left}px`;
  box.style.top = `${below + box.offsetHeight < window.innerHeight ? below : event.clientY - box.offsetHeight - 10}px`;
};

main.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  const place = placeOf(event);
  main.setPointerCapture(event.pointerId);
  main.focus({ preventScroll: true });
  drag = { ...place, from: state.from, to: state.to, moved: false, band: event.shiftKey };
  if (drag.band) state.band = [lanes.time(place.x), lanes.time(place.x)];
});

main.addEventListener("pointermove", (event) => {
  const place = placeOf(event);
  state.pointer = place;
  if (drag) {
    if (Math.abs(place.x - drag.x) > 3) {
      if (!drag.moved) remember();
      drag.moved = true;
    }
    if (drag.band) {
      state.band[1] = lanes.time(place.x);
    } else if (drag.moved) {
      const by = (drag.x - place.x) / lanes.scale;
      show(drag.from + by, drag.to + by);
    }
    tip(null);
  } else {
    const item = lanes.at(place.x, place.y);
    main.style.cursor = item ? "pointer" : "default";
    tip(item, event);
  }
  draw();
});

main.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { moved, band } = drag;
  drag = null;
  if (band) {
    const [from, to] = state.band.sort((a, b) => a - b);
    state.band = null;
    if (moved) show(from, to); else draw();
  } else if (!moved) {
    const place = placeOf(event);
    choose(lanes.at(place.x, place.y));
  }
});

main.addEventListener("pointerleave", () => { state.pointer = null; tip(null); draw(); });

main.addEventListener("wheel", (event) => {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 30 : 1;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    pan((event.deltaX || event.deltaY) * lines / 900);
  } else {
    zoom(Math.exp(event.deltaY * lines / 400), lanes.time(placeOf(event).x));
  }
}, { passive: false });

main.addEventListener("dblclick", (event) => {
  const item = lanes.at(placeOf(event).x, placeOf(event).y);
  if (item) bring(item, true);
});

// On the overview: a click moves the view there, dragging chooses a stretch.
const whole = $("overview");
let choice = null;
whole.addEventListener("pointerdown", (event) => {
  whole.setPointerCapture(event.pointerId);
  remember();
  choice = { start: overview.time(event.offsetX), x: event.offsetX };
});
whole.addEventListener("pointermove", (event) => {
  if (!choice || Math.abs(event.offsetX - choice.x) < 4) return;
  const now = overview.time(event.offsetX);
  show(Math.min(choice.start, now), Math.max(choice.start, now));
  choice.moved = true;
});
whole.addEventListener("pointerup", () => {
  if (choice && !choice.moved) {
    const half = (state.to - state.from) / 2;
    show(choice.start - half, choice.start + half);
  }
  choice = null;
});

// -- keys ------------------------------------------------------------------------------------------------------

const pointed = () => (state.pointer && state.pointer.x > GUTTER ? lanes.time(state.pointer.x) : undefined);
const KEYS = {
  w: () => zoom(0.7, pointed()), s: () => zoom(1 / 0.7, pointed()), "+": () => zoom(0.7), "=": () => zoom(0.7),
  "-": () => zoom(1 / 0.7), a: () => pan(-0.15), d: () => pan(0.15), arrowleft: () => pan(-0.15), arrowright: () => pan(0.15),
  home: () => show(0, state.to - state.from), end: () => show(MODEL.length - (state.to - state.from), MODEL.length),
  0: showAll, backspace: goBack, f: () => state.chosen && bring(state.chosen, true),
  ",": () => neighbour(-1), ".": () => neighbour(1), m: () => cycle("handOffs"), i: () => cycle("ipis"),
  "/": () => { $("query").focus(); $("query").select(); }, "?": () => $("keys").showModal(),
  n: (event) => go(event.shiftKey ? -1 : 1),
  escape: () => { $("query").value = ""; find(); choose(null); },
};

window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.target === $("query")) {
    if (event.key === "Escape") { $("query").value = ""; find(); main.focus(); }
    return;
  }
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  const action = KEYS[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action(event);
});

let findTimer = 0;
$("query").addEventListener("input", () => { clearTimeout(findTimer); findTimer = setTimeout(find, 120); });
$("query").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  clearTimeout(findTimer);
  if (!state.found || state.place < 0) find();
  go(event.shiftKey ? -1 : 1);
});
$("search").addEventListener("submit", (event) => event.preventDefault());
$("next").onclick = () => go(1);
$("previous").onclick = () => go(-1);
$("in").onclick = () => { remember(); zoom(0.5); };
$("out").onclick = () => { remember(); zoom(2); };
$("all").onclick = showAll;
$("back").onclick = goBack;
$("help").onclick = () => $("keys").showModal();

// -- begin --------------------------------------------------------------------------------------------------------

const facts = Object.entries(MODEL.facts).map(([name, value]) => `${name}: ${value}`);
$("facts").textContent = [`${count(MODEL.icountAt(MODEL.length) - MODEL.icountAt(0))} instructions`,
  `${durationText(MODEL.length)} of virtual time`, `${count(MODEL.handOffs)} hand-offs`, ...facts].join(" · ");
const begin = () => { readInk(); legend(); draw(); };
begin();
describe(null);
lanes.draw(state);
readAddress();
window.addEventListener("hashchange", readAddress);
new ResizeObserver(draw).observe($("lanes"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", begin);
window.rr86 = { MODEL, state, show, find, go, choose, lanes, ITEMS, search };
