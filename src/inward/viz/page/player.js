// The page: which trace is shown, where in it we are, and everything one can press.

function keySign(kind) {
  const icon = (children) => s("svg", { width: 22, height: 16, viewBox: "0 0 22 16", "aria-hidden": "true", class: "sign" }, hatch(), children);
  const box = (name, more) => s("rect", { x: 2, y: 2, width: 18, height: 12, rx: 3, class: name, ...more });
  const signs = {
    tower: () => [0, 4, 8].map((y, i) => s("rect", { x: 6, y: y + 2, width: 10 - 2 * i, height: 3, class: "block" })),
    notch: () => [s("path", { d: "M6 4l6 4l-6 4z", class: "fill-warm" })],
    depth: () => [0, 1, 2, 3].map((i) => s("rect", { x: 1 + 5 * i, y: 3, width: 5, height: 10, class: "chip depth-" + (i + 1) })),
    ghost: () => [box("chip open"), label(11, 12, "a", { class: "chip-text italic", "text-anchor": "middle", "font-size": 10 })],
    thought: () => [s("circle", { cx: 11, cy: 8, r: 6, class: "ring" })],
    word: () => [box("chip word")],
    node: () => [s("circle", { cx: 6, cy: 8, r: 4, class: "node" }), s("circle", { cx: 15, cy: 8, r: 6, class: "node" }), s("circle", { cx: 15, cy: 8, r: 6, class: "node-fill" })],
    option: () => [s("rect", { x: 5, y: 2, width: 12, height: 12, rx: 2, class: "node option" })],
    given: () => [box("cell given", { rx: 0 }), label(11, 12, "5", { class: "digit bold", "text-anchor": "middle", "font-size": 10 })],
    changed: () => [box("changed", { rx: 0 }), marks.corner(5, 5, 2.5)],
    sure: () => [s("rect", { x: 2, y: 6, width: 18, height: 4, class: "bar-box thin" }), s("rect", { x: 2, y: 6, width: 13, height: 4, class: "bar-fill" })],
    second: () => [box("cell", { rx: 0 }), label(16, 8, "3", { class: "second", "text-anchor": "middle", "font-size": 8 })],
    broken: () => [box("cell", { rx: 0 }), box("", { rx: 0, fill: "url(#hatch-bad)" }), marks.cross(16, 5, 2.5)],
    accepted: () => [box("draft accepted", { y: 1, height: 9 }), marks.check(11, 12.5, 3)],
    corrected: () => [box("draft corrected", { y: 1, height: 9, rx: 0 }), marks.diamond(11, 12, 3.5)],
    rejected: () => [box("draft rejected", { y: 3, height: 10 }), s("line", { x1: 3, x2: 19, y1: 8, y2: 8, class: "strike" })],
    drafted: () => [box("draft drafted")], masked: () => [s("rect", { x: 5, y: 2, width: 12, height: 12, class: "draft masked" })],
    tick: () => [6, 11, 16].map((x) => s("line", { x1: x, x2: x, y1: 4, y2: 12, class: "tick" })),
  };
  return icon((signs[kind] || signs.word)());
}

class Player {
  constructor(root, { title = "", live = null } = {}) {
    this.root = root;
    this.title = title;
    this.live = live;
    this.traces = [];
    this.scenes = [];
    this.state = { trace: 0, step: null, selected: null, side: false, unit: "", guess: false };
    this.guessed = new Map();
    this.playing = null;
    this.speed = 1;
    this.build();
    addEventListener("resize", () => this.later());
    addEventListener("hashchange", () => { this.readHash(); this.refresh(); });
    addEventListener("keydown", (event) => this.onKey(event));
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    if (scheme.addEventListener) scheme.addEventListener("change", () => this.later());
    addEventListener("beforeprint", () => this.draw(680));
    addEventListener("afterprint", () => this.draw());
  }

  // -- what is shown

  setTraces(traces) {
    this.traces = traces;
    named(traces);
    this.scenes = traces.map(sceneOf);
    this.together = null;
    this.readHash();
    this.tabs();
    this.refresh();
  }

  // One trace has grown (live): its scene is made anew, and the slider stays at its end.
  grow(index, trace) {
    const atEnd = this.state.step === null || !this.scenes[index] || this.state.step >= this.scenes[index].count;
    const isNew = this.scenes.length <= index || this.traces[index] === undefined;
    this.traces[index] = trace;
    named(this.traces.filter(Boolean));
    this.scenes[index] = sceneOf(trace);
    this.together = null;
    if (atEnd) this.state.step = null;
    if (isNew) this.tabs();
    this.refresh();
  }

  // Who stands beside the trace that is shown: those of the same question; all, if no two share one.
  group() {
    const all = this.scenes.filter(Boolean), asked = (scene) => questionKey(scene.trace);
    const mine = this.scenes[this.state.trace], same = all.filter((scene) => mine && asked(scene) === asked(mine));
    if (same.length > 1) return same;
    return all.some((a) => all.some((b) => a !== b && asked(a) === asked(b))) ? [] : all.length > 1 ? all : [];
  }
  get scene() {
    const group = this.state.side ? this.group() : [];
    if (group.length < 2) return this.scenes[this.state.trace];
    if (!this.together || this.together.of.length !== group.length || group.some((scene, i) => this.together.of[i] !== scene)) this.together = Object.assign(compareScene(group), { of: group });
    return this.together;
  }
  get at() {
    const scene = this.scene;
    if (!scene) return 0;
    if (this.asking) return scene.guess && scene.guess.cell !== undefined ? 0 : 0;
    return this.state.step === null ? scene.count : clamp(this.state.step, 0, scene.count);
  }
  get asking() {
    return this.state.guess && !this.state.side && this.scene && this.scene.guess && !this.guessed.has(this.state.trace);
  }

  // -- the address after # holds the state, so that a link shows the same

  readHash() {
    const found = new URLSearchParams(location.hash.slice(1));
    const number = (name, most) => (/^\d+$/.test(found.get(name) || "") ? clamp(Number(found.get(name)), 0, most) : null);
    const state = this.state;
    state.trace = number("trace", Math.max(0, this.traces.length - 1)) || 0;
    state.side = found.get("view") === "side" && this.traces.length > 1;
    state.step = number("step", 1e6);
    state.selected = /^[a-z]\d+$/.test(found.get("on") || "") ? found.get("on") : null;
    state.unit = UNITS.includes(found.get("unit")) ? found.get("unit") : "";
    state.guess = found.get("guess") === "1";
  }

  writeHash() {
    const { trace, step, selected, side, unit, guess } = this.state, found = new URLSearchParams();
    if (trace) found.set("trace", trace);
    if (side) found.set("view", "side");
    if (step !== null) found.set("step", step);
    if (selected) found.set("on", selected);
    if (unit) found.set("unit", unit);
    if (guess) found.set("guess", "1");
    const text = found.toString();
    if (text === location.hash.slice(1)) return;
    try { history.replaceState(null, "", text ? "#" + text : location.pathname + location.search); } catch (error) { /* in a frame without an address */ }
  }

  // -- the frame, made once

  build() {
    const button = (name, text, onclick, more) => h("button", { type: "button", class: name, onclick, ...more }, text);
    this.parts = {
      tabs: h("nav", { class: "tabs", "aria-label": "What is shown" }),
      question: h("div", { class: "question" }),
      facts: h("p", { class: "facts" }),
      stage: h("div", { class: "stage" }),
      caption: h("p", { class: "caption", "aria-live": "polite" }),
      play: button("play", "", () => this.toggle(), { "aria-label": "Play" }),
      back: button("", "‹", () => this.move(-1), { "aria-label": "One step back" }),
      on: button("", "›", () => this.move(1), { "aria-label": "One step on" }),
      slider: h("input", { type: "range", min: 0, step: 1, "aria-label": "Step", oninput: (event) => { this.stop(); this.go(Number(event.target.value)); } }),
      where: h("output", { class: "where" }),
      speed: h("select", { "aria-label": "Speed", onchange: (event) => { this.speed = Number(event.target.value); if (this.playing) { this.stop(); this.toggle(); } } },
        [["0.5", "slow"], ["1", "normal"], ["2", "fast"]].map(([value, text]) => h("option", { value, text, selected: value === "1" }))),
      unit: h("select", { "aria-label": "Axis of compute", onchange: (event) => { this.state.unit = event.target.value; this.refresh(); } }),
      detail: h("section", { class: "detail", "aria-label": "Details" }),
      guess: h("section", { class: "guess", "aria-label": "Your guess", hidden: true }),
      legend: h("ul", { class: "legend", "aria-label": "Key" }),
      guessing: button("", "Guess first", () => this.toggleGuess(), { "aria-pressed": "false" }),
      link: button("", "Copy link", () => this.copyLink()),
      svg: button("", "SVG", () => this.export(saveSvg), { "aria-label": "Save the picture as SVG" }),
      png: button("", "PNG", () => this.export(savePng), { "aria-label": "Save the picture as PNG" }),
      told: h("p", { class: "told", role: "status" }),
    };
    const p = this.parts;
    this.root.replaceChildren(
      h("header", { class: "top" }, h("h1", {}, h("span", { class: "logo", text: "inward" }), this.title ? h("span", { class: "title", text: this.title }) : null), p.tabs),
      h("main", {}, this.live ? this.live.form : null,
        h("div", { class: "columns" },
          h("section", { class: "left", "aria-label": "How it thought" }, p.question, p.facts, p.guess, p.stage, p.caption,
            h("div", { class: "controls" }, p.play, p.back, p.on, p.slider, p.where, p.speed, p.unit), p.legend,
            h("div", { class: "actions" }, p.guessing, p.link, p.svg, p.png), p.told),
          p.detail)),
      h("footer", {}, h("p", { text: "Space plays, arrow keys move the slider, Tab and arrow keys walk the picture, Enter tells more. Made by inward; nothing is loaded from a network." })));
    p.stage.addEventListener("focusin", (event) => { this.focused = event.target.getAttribute("data-key"); });
  }

  tabs() {
    const choose = (state) => () => { this.stop(); Object.assign(this.state, { selected: null, step: null }, state); this.refresh(); };
    const names = this.scenes.map((scene, i) => h("button", { type: "button", onclick: choose({ trace: i, side: false }), "data-tab": i }, nameOf(scene.trace)));
    if (this.scenes.length > 1) names.push(h("button", { type: "button", onclick: choose({ side: true }), "data-tab": "side" }, "Side by side"));
    this.parts.tabs.replaceChildren(...(names.length > 1 ? names : []));
  }

  // -- moving

  go(step) {
    const scene = this.scene;
    this.state.step = step >= scene.count ? null : Math.max(0, step);
    this.refresh();
  }
  move(by) {
    this.stop();
    const stride = this.scene.compare ? 6 * by : by;
    this.go(this.at + stride);
  }
  toggle() {
    if (this.playing) return this.stop();
    const scene = this.scene;
    if (!scene || this.asking) return;
    if (this.at >= scene.count) this.go(0);
    const pause = clamp((scene.compare ? 8000 : 12000) / scene.count, scene.compare ? 30 : 90, 900) / this.speed;
    this.playing = setInterval(() => {
      if (this.at >= this.scene.count) return this.stop();
      this.go(this.at + 1);
      if (this.at >= this.scene.count) this.stop();
    }, pause);
    this.refresh();
  }
  stop() {
    if (!this.playing) return;
    clearInterval(this.playing);
    this.playing = null;
    this.refresh();
  }
  select(key) {
    this.state.selected = this.state.selected === key ? null : key;
    this.refresh();
  }
  open(index, at) {
    index = this.scenes.indexOf(this.together.of[index]);
    this.state = { ...this.state, trace: index, side: false, step: at >= this.scenes[index].count ? null : at, selected: null };
    this.refresh();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const kind = event.target.tagName, key = event.target.getAttribute && event.target.getAttribute("data-key");
    if (key) {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.select(key); }
      const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
      if (way) { event.preventDefault(); this.walk(event.target, way); }
      return;
    }
    if (["INPUT", "SELECT", "TEXTAREA", "BUTTON", "SUMMARY"].includes(kind) || !this.scene) return;
    if (event.target.closest && event.target.closest(".scroll")) return;
    if (event.key === " ") { event.preventDefault(); this.toggle(); }
    else if (event.key === "ArrowRight") this.move(1);
    else if (event.key === "ArrowLeft") this.move(-1);
  }

  // The nearest item in a direction gets the focus.
  walk(from, [dx, dy]) {
    const here = from.getBoundingClientRect(), cx = here.x + here.width / 2, cy = here.y + here.height / 2;
    let best = null;
    this.parts.stage.querySelectorAll("[data-key]").forEach((other) => {
      if (other === from) return;
      const box = other.getBoundingClientRect(), x = box.x + box.width / 2 - cx, y = box.y + box.height / 2 - cy;
      const along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
      if (along < 2) return;
      const far = along + 3 * across;
      if (!best || far < best.far) best = { other, far };
    });
    if (best) { this.rove(best.other); best.other.focus(); }
  }
  rove(button) {
    this.parts.stage.querySelectorAll("[data-key]").forEach((other) => other.setAttribute("tabindex", other === button ? "0" : "-1"));
  }

  // -- drawing

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = null; this.refresh(); });
  }

  refresh() {
    const p = this.parts, scene = this.scene;
    this.root.classList.toggle("empty", !scene);
    if (!scene) return;
    this.writeHash();
    this.question();
    this.draw();
    const at = this.at;
    p.slider.max = scene.count;
    p.slider.value = at;
    p.slider.disabled = Boolean(this.asking);
    p.slider.setAttribute("aria-valuetext", scene.compare ? `${Math.round((100 * at) / scene.count)} percent of the axis` : `${scene.unit} ${at} of ${scene.count}`);
    p.where.textContent = scene.compare ? "" : `${at} / ${scene.count}`;
    p.play.textContent = this.playing ? "❚❚" : "▶";
    p.play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    for (const name of ["play", "back", "on"]) p[name].disabled = Boolean(this.asking);
    p.caption.textContent = this.asking ? "The answer is hidden until you have guessed." : scene.caption(at, this.state);
    p.unit.hidden = !scene.units || scene.units.length < 2;
    if (!p.unit.hidden) {
      p.unit.replaceChildren(...scene.units.map((unit) => h("option", { value: unit, text: { flops: "FLOPs", seconds: "time", evaluations: "evaluations", forwards: "forwards" }[unit], selected: unit === (scene.units.includes(this.state.unit) ? this.state.unit : scene.first || scene.units[0]) })));
    }
    p.guessing.setAttribute("aria-pressed", String(this.state.guess));
    p.guessing.hidden = !scene.guess;
    p.legend.replaceChildren(...scene.legend.map(([kind, text]) => h("li", {}, keySign(kind), text)));
    p.detail.replaceChildren(...(this.asking ? [h("p", { class: "hint", text: "Guess first." })] : scene.detail(this.key, at, this.state)));
    this.guessPanel();
    p.tabs.querySelectorAll("button").forEach((tab) => {
      const chosen = this.state.side ? tab.dataset.tab === "side" : tab.dataset.tab === String(this.state.trace);
      tab.setAttribute("aria-pressed", String(chosen));
      if (tab.dataset.tab === "side") tab.hidden = this.group().length < 2;
    });
  }

  get key() {
    return this.state.selected || (this.scene.defaultKey ? this.scene.defaultKey(this.at) : null);
  }

  draw(forced) {
    const scene = this.scene, p = this.parts;
    if (!scene) return;
    const width = Math.max(280, Math.floor(forced || p.stage.clientWidth || 640));
    const picture = s("svg", { class: "picture", role: "group", "aria-label": `${scene.compare ? "Side by side" : nameOf(scene.trace)}: picture of the thinking` }, hatch());
    const g = s("g", {});
    picture.append(g);
    const asking = this.asking ? scene.guess.cell : undefined;
    const ui = { selected: this.state.selected, select: (key) => this.select(key), open: (i, at) => this.open(i, at), unit: this.state.unit, asking, hidden: this.asking };
    const height = Math.ceil(scene.draw(g, width, this.at, ui)) + 4;
    picture.setAttribute("width", width);
    picture.setAttribute("height", height);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const had = p.stage.contains(document.activeElement) ? this.focused : null;
    p.stage.replaceChildren(picture);
    const items = picture.querySelectorAll("[data-key]");
    const wanted = [...items].find((one) => one.getAttribute("data-key") === (had || this.state.selected)) || items[0];
    if (wanted) this.rove(wanted);
    if (had && wanted) wanted.focus({ preventScroll: true });
  }

  question() {
    const p = this.parts, scene = this.scene;
    if (scene.compare) {
      const all = scene.of.map((one) => questionText(one.trace)), same = all.every((text) => text === all[0]);
      p.question.replaceChildren(h("p", { text: same && all[0] ? all[0] : "Several models, one axis of compute." }));
      p.facts.textContent = "Click a picture to open it.";
      return;
    }
    const { trace } = scene, text = questionText(trace), sum = scene.costs[scene.count];
    p.question.replaceChildren(...(text ? [text.length > 240 ? h("details", {}, h("summary", { text: clipped(text, 560, 15) }), h("p", { text })) : h("p", { text })] : []));
    const facts = [nameOf(trace), plural(scene.count, "step")];
    if (sum.flops) facts.push(withUnit(sum.flops, "flops"));
    if (sum.seconds) facts.push(withUnit(sum.seconds, "seconds"));
    if (trace.stopped) facts.push(ENDED[trace.stopped] || trace.stopped);
    p.facts.textContent = facts.join(" · ");
  }

  // -- guess first

  toggleGuess() {
    this.stop();
    this.state.guess = !this.state.guess;
    this.state.step = null;
    if (!this.state.guess) this.guessed.clear();
    this.refresh();
    if (this.asking) { const first = this.parts.guess.querySelector("button, input"); if (first) first.focus(); }
  }

  guessPanel() {
    const panel = this.parts.guess, scene = this.scene, mine = this.guessed.get(this.state.trace);
    const wanted = this.state.guess && scene.guess && !this.state.side;
    panel.hidden = !wanted;
    if (!wanted) { panel.dataset.for = ""; return; }
    const mark = `${this.state.trace}:${mine === undefined ? "" : mine}`;
    if (panel.dataset.for === mark) return;
    panel.dataset.for = mark;
    const { ask, options } = scene.guess, right = visible(scene.guess.right === undefined ? scene.answer : scene.guess.right);
    if (mine === undefined) {
      const answer = (value) => { this.guessed.set(this.state.trace, value); this.state.step = 0; this.refresh(); this.toggle(); this.parts.play.focus(); };
      const input = h("input", { type: "text", "aria-label": ask, autocomplete: "off" });
      panel.replaceChildren(h("p", { class: "ask", text: ask }), options.length
        ? h("div", { class: "options" }, options.map((value) => h("button", { type: "button", onclick: () => answer(value), text: value })))
        : h("form", { onsubmit: (event) => { event.preventDefault(); if (input.value.trim()) answer(input.value.trim()); } }, input, h("button", { type: "submit", text: "Guess" })));
      return;
    }
    const all = [...this.guessed].map(([i, value]) => this.same(i, value)), good = all.filter(Boolean).length;
    panel.replaceChildren(h("p", {}, h("b", { text: this.same(this.state.trace, mine) ? "✓ You thought what it thought." : "✗ It thought otherwise." }), ` You: ${mine}. The model: ${right}.` + (all.length > 1 ? ` ${good} of ${all.length} so far.` : "")));
  }
  same(index, value) {
    const scene = this.scenes[index], plainly = (text) => visible(String(text)).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
    const right = plainly(scene.guess.right === undefined ? scene.answer : scene.guess.right);
    return right === plainly(value) || (plainly(value).length > 3 && right.startsWith(plainly(value)));
  }

  // -- out

  async copyLink() {
    this.writeHash();
    try { await navigator.clipboard.writeText(location.href); this.say("The link is copied; it opens this very view."); }
    catch (error) { this.say(location.href); }
  }
  async export(how) {
    const scene = this.scene, picture = this.parts.stage.querySelector("svg");
    const name = scene.compare ? "side-by-side" : nameOf(scene.trace) + "-" + this.at;
    try { await how(picture, scene.compare ? "Side by side" : nameOf(scene.trace), scene.caption(this.at, this.state), name.replace(/[^\w.-]+/g, "-")); this.say("Saved."); }
    catch (error) { this.say(error.message); }
  }
  say(text) {
    this.parts.told.textContent = text;
    clearTimeout(this.quieting);
    this.quieting = setTimeout(() => { this.parts.told.textContent = ""; }, 6000);
  }
}

// Every trace gets a name of its own: the model's, how it was asked, a number.
function named(traces) {
  const groups = new Map();
  const sorted = (key) => { groups.clear(); traces.forEach((trace) => groups.set(key(trace), [...(groups.get(key(trace)) || []), trace])); return [...groups.values()]; };
  traces.forEach((trace) => { trace.shownAs = plainName(trace); });
  for (const same of sorted(nameOf)) if (same.length > 1 && new Set(same.map(variantOf)).size > 1) same.forEach((trace) => { trace.shownAs += variantOf(trace) ? ", " + variantOf(trace) : ""; });
  for (const same of sorted(nameOf)) if (same.length > 1) same.forEach((trace, i) => { trace.shownAs += " " + (i + 1); });
}

// Equal for traces of one question, whatever tokens it became.
function questionKey(trace) {
  return trace.method === "trm" ? "cells " + trace.question.join(" ") : joined(trace, trace.question).replace(/\s+/g, " ").trim();
}

function questionText(trace) {
  if (trace.method === "trm") return "";
  const meta = trace.meta || {};
  if (meta.question) return meta.question;
  if (trace.method === "huginn" || trace.method === "tidar" || trace.method === "plain") return "";
  return joined(trace, trace.question).trim();
}

const inward = {
  mount(root, options) {
    const player = new Player(root, options);
    if (options && options.traces) player.setTraces(options.traces);
    return player;
  },
};
globalThis.inward = inward;
