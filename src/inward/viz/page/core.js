// Small things that all pictures use: elements, numbers as text, measured text, items to select.
// Everything is drawn as SVG in the size it is shown in, so that a picture can leave the page.

const SVG = "http://www.w3.org/2000/svg";

function element(kind, namespace, attributes, children) {
  const made = namespace ? document.createElementNS(SVG, kind) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}
const h = (kind, attributes, ...children) => element(kind, false, attributes, children);
const s = (kind, attributes, ...children) => element(kind, true, attributes, children);

// -- numbers

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const percent = (p) => (p > 0 && p < 0.005 ? "<1 %" : p < 1 && p > 0.995 ? ">99 %" : Math.round(100 * p) + " %");
const sigmoid = (x) => 0.5 * (1 + Math.tanh(x / 2));
const plural = (n, word) => n + " " + word + (n === 1 ? "" : "s");

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace("e", "e");
  return String(Number(value.toPrecision(size >= 100 ? 3 : 2)));
}

function withUnit(value, unit) {
  if (unit === "flops") {
    for (const [size, name] of [[1e12, "TFLOP"], [1e9, "GFLOP"], [1e6, "MFLOP"], [1e3, "kFLOP"]])
      if (value >= size) return Number((value / size).toPrecision(3)) + " " + name;
    return Math.round(value) + " FLOP";
  }
  if (unit === "seconds") return value >= 1 ? value.toFixed(2) + " s" : Number((1000 * value).toPrecision(3)) + " ms";
  return Number(value.toPrecision(3)) + " " + unit;
}

// -- text

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace';
const measuring = document.createElement("canvas").getContext("2d");

function widthOf(text, size, weight) {
  measuring.font = (weight || 400) + " " + size + "px " + FONT;
  return measuring.measureText(text).width;
}

// A token as something to be seen: line ends as a sign, a lone blank as a low line.
function visible(piece) {
  const shown = piece.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥").trim();
  return shown === "" ? "␣" : shown;
}

function clipped(text, most, size) {
  if (widthOf(text, size) <= most) return text;
  let end = text.length;
  while (end > 1 && widthOf(text.slice(0, end) + "…", size) > most) end -= 1;
  return text.slice(0, end) + "…";
}

function label(x, y, text, attributes) {
  return s("text", { x, y, ...attributes, text });
}

// Where boxes of these widths go in lines: [{x, y}], and the height of all. An item with `line`
// begins a new one; `gap` is what stands before it.
function flow(items, width, lineHeight, left) {
  let x = left, y = 0;
  const places = [];
  items.forEach((item, i) => {
    const gap = x === left ? 0 : item.gap;
    if ((item.line && i > 0) || (x > left && x + gap + item.width > width)) {
      x = left;
      y += lineHeight;
    }
    x += x === left ? 0 : gap;
    places.push({ x, y });
    x += item.width;
  });
  return { places, height: items.length ? y + lineHeight : 0 };
}

// -- things to select

// A transparent button over a part of a picture. Arrow keys walk to the nearest one (player.js).
function item(ui, key, name, x, y, width, height) {
  const button = s("rect", {
    x, y, width, height, rx: 4, class: "item" + (ui.selected === key ? " chosen" : ""),
    role: "button", tabindex: "-1", "aria-label": name, "data-key": key,
    "aria-pressed": ui.selected === key ? "true" : "false",
    onclick: () => ui.select(key),
  });
  button.append(s("title", { text: name }));
  return button;
}

// -- shapes that say without colour what a colour says

function hatch() {
  const lines = (id, name, turn) => s("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})` },
    s("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: name, "stroke-width": 2 }));
  return s("defs", {}, lines("hatch-bad", "line-bad", 45), lines("hatch-soft", "line-soft", -45));
}

const marks = {
  check: (x, y, r) => s("path", { d: `M${x - r} ${y}l${0.7 * r} ${0.8 * r}l${1.3 * r} ${-1.6 * r}`, class: "mark good" }),
  cross: (x, y, r) => s("path", { d: `M${x - r} ${y - r}l${2 * r} ${2 * r}M${x + r} ${y - r}l${-2 * r} ${2 * r}`, class: "mark bad" }),
  diamond: (x, y, r) => s("path", { d: `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z`, class: "fill-warm" }),
  square: (x, y, r) => s("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, class: "fill-ink" }),
  ring: (x, y, r) => s("circle", { cx: x, cy: y, r, class: "ring" }),
  dot: (x, y, r) => s("circle", { cx: x, cy: y, r, class: "fill-accent" }),
  corner: (x, y, r) => s("path", { d: `M${x - r} ${y - r}h${2 * r}l${-2 * r} ${2 * r}z`, class: "fill-accent" }),
};

// -- what a trace says

const systems = {};

// A scene is a trace made ready to draw:
//   count            positions of the slider are 0 (the question alone) to count
//   caption(at)      one line: what happened at this position
//   draw(g, width, at, ui)   draws into a group; returns the height
//   detail(key, at)  elements that tell more of what is selected; key may be null
//   legend           [[shape, what it means]]
//   said(at)         the text of the answer so far; answer: all of it
//   guess            {ask, options}: what a reader may predict
//   costs            [{flops, seconds, evaluations, forwards}] spent up to each position
function sceneOf(trace) {
  const make = systems[trace.method];
  return make ? make(trace) : systems.plain(trace);
}

const UNITS = ["flops", "seconds", "evaluations", "forwards"];

function running(costs) {
  const sum = Object.fromEntries(UNITS.map((unit) => [unit, 0]));
  return [{ ...sum }, ...costs.map((cost) => {
    for (const unit of UNITS) sum[unit] += (cost && cost[unit]) || 0;
    return { ...sum };
  })];
}

function pieceOf(trace, id) {
  const found = trace.pieces && trace.pieces[id];
  return found === undefined ? "#" + id : found;
}

const SPECIAL = /^\s*<\|?[^<>\s]*\|?>\s*$/;

function joined(trace, ids) {
  return ids.map((id) => pieceOf(trace, id)).filter((piece) => !SPECIAL.test(piece)).join("");
}

const plainName = (trace) => (trace.model || trace.method).replace(/[/\\]+$/, "").split(/[/\\]/).pop();

// Traces of one model are told apart by how it was asked (`named` in player.js).
const nameOf = (trace) => trace.shownAs || plainName(trace);

function variantOf(trace) {
  const meta = trace.meta || {};
  if (trace.method === "huginn" && meta.max_steps) return /never/i.test(meta.halt || "never") ? `${meta.max_steps} deep` : `up to ${meta.max_steps}`;
  return meta.scheme ? meta.scheme.replace("_", " ") : "";
}

const ENDED = {
  end: "said that it was done", stop: "met a stop word", length: "reached the number of tokens asked for",
  context: "filled its context", halted: "stopped by itself", budget: "ran out of steps", cancelled: "was stopped",
};

// A small table; rows are arrays of texts or elements, `marked` the row to point at.
function table(head, rows, marked, name) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    h("table", {},
      h("thead", {}, h("tr", {}, head.map((cell) => (cell ? h("th", { scope: "col", text: cell }) : h("td"))))),
      h("tbody", {}, rows.map((row, i) => h("tr", i === marked ? { class: "now", "aria-current": "true" } : {},
        row.map((cell) => (cell instanceof Node ? h("td", {}, cell) : h("td", { text: cell }))))))));
}

// A probability as a bar and a number.
function bar(p) {
  const width = 36;
  return h("span", { class: "bar" },
    s("svg", { width, height: 10, "aria-hidden": "true" },
      s("rect", { x: 0.5, y: 0.5, width: width - 1, height: 9, class: "bar-box" }),
      s("rect", { x: 0.5, y: 0.5, width: Math.max(0, (width - 1) * p), height: 9, class: "bar-fill" })),
    " " + percent(p));
}

// A path in a plane: numbered dots from a square (the first) to a ring (the last).
function planePicture(points, at, share, name) {
  const width = 300, height = 190, edge = 20;
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const spanX = Math.max(...xs) - Math.min(...xs), spanY = Math.max(...ys) - Math.min(...ys);
  const scale = Math.min((width - 2 * edge) / (spanX || 1), (height - 2 * edge) / (spanY || 1));
  const place = (p) => [
    width / 2 + scale * (p[0] - (Math.max(...xs) + Math.min(...xs)) / 2),
    height / 2 - scale * (p[1] - (Math.max(...ys) + Math.min(...ys)) / 2),
  ];
  const dots = points.map(place);
  const upto = clamp(at, 0, points.length - 1);
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "plane", role: "img", "aria-label": name });
  picture.append(s("rect", { x: 0.5, y: 0.5, width: width - 1, height: height - 1, rx: 6, class: "panel" }));
  dots.slice(1).forEach(([x, y], i) => {
    const [x0, y0] = dots[i];
    picture.append(s("line", { x1: x0, y1: y0, x2: x, y2: y, class: i < upto ? "path" : "path later" }));
  });
  dots.forEach(([x, y], i) => {
    const last = i === points.length - 1;
    if (i === 0) picture.append(marks.square(x, y, 4));
    else if (last) picture.append(marks.ring(x, y, 6));
    if (i > 0) picture.append(s("circle", { cx: x, cy: y, r: i === upto ? 4.5 : 2.5, class: i <= upto ? "fill-accent" : "fill-soft" }));
  });
  const shown = [];
  [0, upto, ...dots.keys()].forEach((i) => {
    const [x, y] = dots[i];
    if (shown.some(([a, b]) => Math.hypot(a - x, b - y) < 18)) return;
    shown.push([x, y]);
    picture.append(label(clamp(x + 7, 4, width - 18), clamp(y - 6, 12, height - 4), String(i + 1), { class: "tiny" }));
  });
  return h("figure", {}, picture, h("figcaption", { text: `${name}: from the square to the ring; this plane shows ${percent(share)} of its movement.` }));
}

// Numbers over steps on a log scale, with a threshold.
function logPicture(series, threshold, at, name) {
  const width = 300, height = 110, left = 38, bottom = 18;
  const values = series.map((v) => (v > 0 ? v : null));
  const known = values.filter((v) => v !== null).concat(threshold ? [threshold] : []);
  if (!known.length) return null;
  const low = Math.floor(Math.log10(Math.min(...known))), high = Math.ceil(Math.log10(Math.max(...known))) || low + 1;
  const y = (v) => 8 + (height - bottom - 8) * (1 - (Math.log10(v) - low) / Math.max(1, high - low));
  const x = (i) => left + (width - left - 10) * (series.length === 1 ? 0.5 : i / (series.length - 1));
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "plane", role: "img", "aria-label": name });
  for (const power of [low, high])
    picture.append(label(left - 5, y(10 ** power) + 4, "1e" + power, { class: "tiny", "text-anchor": "end" }),
      s("line", { x1: left, x2: width - 10, y1: y(10 ** power), y2: y(10 ** power), class: "grid-line" }));
  if (threshold) picture.append(s("line", { x1: left, x2: width - 10, y1: y(threshold), y2: y(threshold), class: "threshold" }),
    label(width - 12, y(threshold) - 4, "stops below", { class: "tiny", "text-anchor": "end" }));
  let before = null;
  values.forEach((v, i) => {
    if (v === null) { before = null; return; }
    if (before) picture.append(s("line", { x1: before[0], y1: before[1], x2: x(i), y2: y(v), class: "path" }));
    before = [x(i), y(v)];
    picture.append(s("circle", { cx: x(i), cy: y(v), r: i === at ? 4.5 : 2.5, class: i <= at ? "fill-accent" : "fill-soft" }));
  });
  picture.append(label(left, height - 4, "1", { class: "tiny" }), label(width - 10, height - 4, String(series.length), { class: "tiny", "text-anchor": "end" }));
  return h("figure", {}, picture, h("figcaption", { text: name }));
}
