// Side by side: several models on one question, on one axis of compute.

function compareScene(scenes) {
  const total = (scene, unit) => scene.costs[scene.count][unit];
  const units = UNITS.filter((unit) => scenes.every((scene) => total(scene, unit) > 0));
  const grid = 240;
  // where on the axis a position of the slider lies: even steps of the logarithm where costs differ much
  const axis = (unit) => {
    const ends = scenes.map((scene) => total(scene, unit)), most = Math.max(...ends);
    const firsts = scenes.flatMap((scene) => scene.costs.slice(1).map((c) => c[unit])).filter((v) => v > 0);
    const least = Math.min(...firsts), log = most / Math.min(...ends) > 20;
    const share = (v) => (v <= 0 ? 0 : log ? clamp(Math.log(v / (0.8 * least)) / Math.log(most / (0.8 * least)), 0, 1) : v / most);
    const value = (at) => (at <= 0 ? 0 : at >= grid ? most : log ? 0.8 * least * (most / (0.8 * least)) ** (at / grid) : (most * at) / grid);
    return { most, log, share, value };
  };
  const reached = (scene, unit, value) => {
    let at = 0;
    while (at < scene.count && scene.costs[at + 1][unit] <= value * (1 + 1e-9)) at += 1;
    return at;
  };
  const scene = { count: grid, unit: "", units, legend: [["tick", "a step of a model"], ["sure", "how far it is"]], answer: "", said: () => "", guess: null, compare: true };
  const pick = (ui) => (units.includes(ui.unit) ? ui.unit : units[0] || "evaluations");
  scene.caption = (at, ui) => {
    const unit = pick(ui || {}), value = axis(unit).value(at);
    return `${withUnit(value, unit)} each: ` + scenes.map((one) => `${nameOf(one.trace)} is at ${one.unit} ${reached(one, unit, value)} of ${one.count}`).join("; ") + ".";
  };
  scene.draw = (g, width, at, ui) => {
    const unit = pick(ui), line = axis(unit), value = line.value(at);
    const columns = width >= 760 && scenes.length > 1 ? 2 : 1, room = (width - 28 * (columns - 1)) / columns;
    const heights = Array(columns).fill(0);
    scenes.forEach((one, i) => {
      const column = heights.indexOf(Math.min(...heights)), lane = s("g", { transform: `translate(${column * (room + 28)} ${heights[column]})` });
      const now = reached(one, unit, value), done = now === one.count;
      lane.append(label(0, 14, nameOf(one.trace), { class: "lane-name" }), label(room, 14, done ? `done: ${withUnit(total(one, unit), unit)}` : withUnit(value, unit), { class: "tiny", "text-anchor": "end" }));
      lane.append(s("rect", { x: 0, y: 24, width: room, height: 12, rx: 6, class: "bar-box" }), s("rect", { x: 0, y: 24, width: Math.max(0, room * line.share(Math.min(value, total(one, unit)))), height: 12, rx: 6, class: done ? "lane-done" : "bar-fill" }));
      one.costs.slice(1).forEach((c, k) => { if (k % Math.ceil(one.count / 120) === 0) lane.append(s("line", { x1: room * line.share(c[unit]), x2: room * line.share(c[unit]), y1: 38, y2: 43, class: "tick" })); });
      lane.append(label(0, 56, "0", { class: "tiny" }), label(room, 56, withUnit(line.most, unit) + (line.log ? ", logarithmic" : ""), { class: "tiny", "text-anchor": "end" }));
      const picture = s("g", { transform: "translate(0 70)" });
      const height = one.draw(picture, room, now, { ...ui, selected: null, still: true, select: () => ui.open(i, now) });
      picture.querySelectorAll(".item").forEach((button) => button.remove());
      lane.append(picture);
      g.append(lane);
      heights[column] += 70 + height + 34;
    });
    return Math.max(...heights);
  };
  scene.defaultKey = () => null;
  scene.detail = (key, at, ui) => {
    const unit = pick(ui), value = axis(unit).value(at);
    return [h("h2", { text: "At this point" }), table(["model", "what it does"], scenes.map((one) => {
      const now = reached(one, unit, value);
      return [nameOf(one.trace), h("span", {}, one.caption(now, ui))];
    }), -1, "Where each model is")];
  };
  return scene;
}
