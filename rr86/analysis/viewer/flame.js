"use strict";
// A flame graph that hangs from the top: whoever is below was called by what is above, and is as wide as the
// instructions that it and its callees executed.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROW = 19;
const FONT = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const CHARACTER = 6.4;
const $ = (id) => document.getElementById(id);
const main = $("main");
const context = main.getContext("2d");

// Each node knows where it is: its first instruction of the whole, and its depth.
const NODES = [];
const place = ([name, total, callees], start, depth, parent) => {
  const node = { name: DATA.names[name], total, start, depth, parent, callees: [], own: total };
  NODES.push(node);
  const largest = [...callees].sort((a, b) => b[1] - a[1] || DATA.names[a[0]].localeCompare(DATA.names[b[0]]));
  for (const each of largest) {
    node.callees.push(place(each, start, depth + 1, node));
    start += each[1];
    node.own -= each[1];
  }
  return node;
};
const ROOT = place(DATA.root, 0, 0, null);
const DEEPEST = Math.max(...NODES.map((node) => node.depth));

const state = { zoomed: ROOT, wanted: "", pointed: null };
let INK = {};

const count = (number) => number.toLocaleString("en");
const share = (number) => `${(100 * number / ROOT.total).toFixed(number < ROOT.total / 1000 ? 3 : 1)} %`;
const matches = (node) => state.wanted !== "" && node.name.toLowerCase().includes(state.wanted);

const readInk = () => {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  for (const name of ["bg", "fg", "muted", "found", "accent", "on-light", "on-dark", "idle"]) INK[name] = get(name);
  INK.hues = Array.from({ length: 10 }, (_, n) => get(`task-${n}`));
};

const colour = (node) => {
  if (node.name.startsWith("[") || node.depth === 0) return INK.idle;
  let hash = 7;
  for (const letter of node.name) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return INK.hues[hash % INK.hues.length];
};

// Where a node is in the window. What is above the one that is zoomed to is as wide as the window.
const spot = (node) => {
  const { zoomed } = state;
  const scale = main.clientWidth / zoomed.total;
  const above = node.start <= zoomed.start && node.start + node.total >= zoomed.start + zoomed.total
    && node.depth < zoomed.depth;
  if (above) return { x: 0, width: main.clientWidth, y: node.depth * ROW, above };
  return { x: (node.start - zoomed.start) * scale, width: node.total * scale, y: node.depth * ROW, above };
};

const draw = () => {
  const scale = window.devicePixelRatio || 1;
  const width = main.clientWidth, height = (DEEPEST + 1) * ROW + 2;
  main.style.height = `${height}px`;
  main.width = Math.round(width * scale);
  main.height = Math.round(height * scale);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.font = FONT;
  context.textBaseline = "middle";
  for (const node of NODES) {
    const { x, width: wide, y, above } = spot(node);
    if (wide < 0.4 || x > width || x + wide < 0) continue;
    const left = Math.max(x, 0), room = Math.min(x + wide, width) - left;
    context.globalAlpha = above || (state.wanted && !matches(node)) ? 0.45 : 1;
    context.fillStyle = matches(node) ? INK.found : colour(node);
    context.fillRect(left, y, Math.max(room - 0.7, 0.4), ROW - 1);
    const letters = Math.floor((room - 8) / CHARACTER);
    if (letters >= 3) {
      context.fillStyle = matches(node) ? INK["on-dark"] : node.name.startsWith("[") || !node.depth ? INK.fg : INK["on-light"];
      context.fillText(node.name.length <= letters ? node.name : `${node.name.slice(0, letters - 1)}…`, left + 4, y + ROW / 2);
    }
    context.globalAlpha = 1;
    if (node === state.pointed) {
      context.strokeStyle = INK.fg;
      context.strokeRect(left + 0.5, y + 0.5, Math.max(room - 1.7, 1), ROW - 2);
    }
  }
};

const at = (x, y) => {
  const depth = Math.floor(y / ROW);
  return NODES.find((node) => {
    if (node.depth !== depth) return false;
    const where = spot(node);
    return x >= where.x && x < where.x + where.width;
  }) ?? null;
};

const words = (node) => [`${count(node.total)} instructions, ${share(node.total)}`, `own ${count(node.own)}, ${share(node.own)}`];

const zoom = (node) => { state.zoomed = node; draw(); };

// Instructions in or below what matches, each counted once.
const find = (text) => {
  state.wanted = text.trim().toLowerCase();
  let total = 0, frames = 0;
  const walk = (node, inside) => {
    const hit = matches(node);
    frames += hit;
    if (hit && !inside) total += node.total;
    node.callees.forEach((each) => walk(each, inside || hit));
  };
  walk(ROOT, false);
  $("found").textContent = state.wanted ? `${share(total)} in ${count(frames)} frames` : "";
  draw();
};

const placeOf = (event) => {
  const box = main.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

main.addEventListener("pointermove", (event) => {
  const node = at(...placeOf(event));
  const tip = $("tip");
  tip.hidden = !node;
  main.style.cursor = node ? "pointer" : "default";
  if (node !== state.pointed) { state.pointed = node; draw(); }
  if (!node) return;
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  tip.replaceChildren(make("b", node.name), ...words(node).map((text) => make("small", text)));
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 18, window.innerHeight - tip.offsetHeight - 8)}px`;
});
main.addEventListener("pointerleave", () => { state.pointed = null; $("tip").hidden = true; draw(); });
main.addEventListener("click", (event) => {
  const node = at(...placeOf(event));
  if (!node) return;
  zoom(node);
  $("status").textContent = [node.name, ...words(node)].join(" · ");
});

$("query").addEventListener("input", () => find($("query").value));
$("all").onclick = () => zoom(ROOT);
window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { $("query").value = ""; find(""); $("query").blur(); zoom(ROOT); }
  if (event.target === $("query")) return;
  if (event.key === "/") { event.preventDefault(); $("query").focus(); $("query").select(); }
  if (event.key === "0") zoom(ROOT);
  if (event.key === "Backspace" && state.zoomed.parent) zoom(state.zoomed.parent);
});

$("facts").textContent = DATA.facts.join(" · ");
readInk();
draw();
new ResizeObserver(draw).observe($("graph"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readInk(); draw(); });
window.rr86 = { DATA, NODES, ROOT, state, find, zoom, spot };
