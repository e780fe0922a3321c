// Huginn: a tower over every token, a block for each recurrence it took. A block is the fuller the
// surer the model was of what it read there, and a notch says that the reading changed.

systems.huginn = (trace) => {
  const asked = trace.question.length;
  const tokens = trace.question.map((id, i) => ({
    key: "t" + i, position: i, piece: pieceOf(trace, id), prompt: true, rounds: [], depth: 0, born: 0,
  }));
  const spots = new Map();
  const ensure = (position) => {
    if (!spots.has(position)) {
      const made = { key: "t" + position, position, piece: null, prompt: false, rounds: [], depth: 0, born: Infinity };
      spots.set(position, made);
      tokens.push(made);
    }
    return spots.get(position);
  };
  // what happened at each position of the slider: the token and its recurrence, or its word
  const story = [];
  trace.steps.forEach((step, index) => {
    const token = ensure(step.position === undefined ? asked + story.filter((x) => x.word).length : step.position);
    const at = index + 1;
    token.born = Math.min(token.born, at);
    if (step.kind === "recur") {
      const view = step.view || {}, arrays = step.arrays || {};
      token.rounds.push({
        at, lens: lensOf(trace, view.lens), change: step.scores.change, exit: step.scores.exit,
        place: arrays.plane, share: step.scores.plane,
      });
      if (view.prompt) view.prompt.ids.forEach((id, i) => {
        tokens[i].rounds.push({
          at, lens: [{ text: pieceOf(trace, id), p: view.prompt.confidence ? view.prompt.confidence[i] : null }],
          change: arrays.prompt_change && arrays.prompt_change[i], place: arrays.prompt_plane && arrays.prompt_plane[i], share: null,
        });
      });
      story.push({ token, round: token.rounds.length });
    } else {
      token.piece = joined(trace, step.says.ids) || pieceOf(trace, step.says.ids[0]);
      token.p = step.says.confidence ? step.says.confidence[0] : null;
      token.depth = step.scores.steps;
      token.done = at;
      if (token.position === asked) tokens.slice(0, asked).forEach((t) => { t.depth = token.depth; t.done = at; });
      story.push({ token, word: true });
    }
  });
  const deepest = Math.max(1, ...tokens.map((t) => Math.max(t.depth, t.rounds.length)));
  const depthAt = (token, at) => {
    if (token.rounds.length) return token.rounds.filter((r) => r.at <= at).length;
    return token.done && token.done <= at ? token.depth : 0;
  };
  const settled = (token) => {
    let since = 1;
    token.rounds.forEach((r, i) => { if (i && r.lens.length && token.rounds[i - 1].lens.length && r.lens[0].text !== token.rounds[i - 1].lens[0].text) since = i + 1; });
    return token.rounds.length ? since : null;
  };

  const scene = {
    trace, count: story.length, costs: running(trace.steps.map((step) => step.cost)),
    answer: tokens.filter((t) => !t.prompt && t.done).map((t) => t.piece).join(""),
    said: (at) => tokens.filter((t) => !t.prompt && t.done && t.done <= at).map((t) => t.piece).join(""),
    unit: "recurrence",
    legend: [
      ["tower", "a block for each recurrence: what it read, fuller where surer"],
      ["notch", "here the reading changed"],
      ["depth", "tint of a token: how deep it went, number below"],
      ["ghost", "not said yet: what it reads now"],
    ],
  };
  scene.guess = { ask: "What will it say?", options: guessOptions(tokens, scene.answer) };

  scene.caption = (at) => {
    if (at === 0) return "The question, before any thought.";
    const { token, round, word } = story[at - 1];
    if (word) return `Says ${JSON.stringify(token.piece)} after ${plural(token.depth, "recurrence")}.`;
    const found = token.rounds[round - 1];
    const reads = found.lens.length ? `, reads ${JSON.stringify(found.lens[0].text)}${found.lens[0].p === null ? "" : " " + percent(found.lens[0].p)}` : "";
    return `Recurrence ${round}${token.position === asked ? " of the question" : ` of token ${token.position - asked + 1}`}${reads}.`;
  };

  scene.draw = (g, width, at, ui) => {
    const printed = deepest <= 16 && tokens.some((t) => t.rounds.some((r) => r.lens.length));
    const block = printed ? 14 : deepest > 24 ? 4 : deepest > 12 ? 6 : 9;
    const tower = deepest * block + 6, size = 15, chip = 26, line = tower + chip + 34, left = 0;
    const now = at > 0 ? story[at - 1].token : null;
    const shown = tokens.filter((t) => t.prompt || t.born <= at);
    const boxes = shown.map((t) => {
      const text = t.piece === null || (t.done > at && !t.prompt) ? ghost(t, at) : visible(t.piece);
      return {
        token: t, text, width: Math.max(printed ? 30 : 24, widthOf(text, size, 500) + 12), line: !t.prompt && t.position === asked,
        gap: /^\s/.test(t.piece || " ") ? 7 : 3,
      };
    });
    const { places, height } = flow(boxes, width, line, left);
    boxes.forEach((box, i) => {
      const { x, y } = places[i], t = box.token, depth = depthAt(t, at), base = y + tower + 18;
      const open = !t.prompt && !(t.done <= at);
      if (i === 0 || box.line) g.append(label(x, y + 11, t.prompt ? "question" : "answer", { class: "over" }));
      const rounds = t.rounds.length ? t.rounds.slice(0, depth) : Array.from({ length: depth }, () => null);
      const wide = printed ? box.width - 2 : Math.min(22, box.width - 6), middle = x + box.width / 2;
      rounds.forEach((round, k) => {
        const top = base - 4 - (k + 1) * block, p = round && round.lens.length && round.lens[0].p !== null ? round.lens[0].p : 1;
        g.append(s("rect", { x: middle - wide / 2, y: top, width: wide, height: block - 1, class: "block-box" }),
          s("rect", { x: middle - wide / 2, y: top, width: wide * p, height: block - 1, class: printed ? "lens-fill" : "block" }));
        if (printed && round && round.lens.length)
          g.append(label(middle, top + block - 4, clipped(visible(round.lens[0].text), wide - 4, 10), { class: "lens-text", "text-anchor": "middle", "font-size": 10 }));
        if (k && round && rounds[k - 1].lens.length && round.lens.length && rounds[k - 1].lens[0].text !== round.lens[0].text)
          g.append(s("path", { d: `M${middle - wide / 2 - (printed ? 0 : 5)} ${top + (block - 1) / 2 - 3}l5 3l-5 3z`, class: "fill-warm" }));
      });
      const tint = Math.round(4 * Math.min(1, depth / deepest));
      g.append(s("rect", { x, y: base, width: box.width, height: chip, rx: 5, class: `chip depth-${tint}` + (open ? " open" : "") + (t.prompt ? " given" : "") }));
      g.append(label(middle, base + 18, box.text, { class: "chip-text on-" + tint + (open ? " italic" : ""), "text-anchor": "middle", "font-size": size }));
      if (depth) g.append(label(middle, base + chip + 12, String(depth), { class: "tiny", "text-anchor": "middle" }));
      if (t === now) g.append(s("path", { d: `M${middle - 5} ${base + chip + 21}l5 -5l5 5z`, class: "fill-ink" }));
      const name = `${t.prompt ? "question" : "answer"} token ${visible(t.piece || box.text)}, ${plural(depth, "recurrence")}`;
      g.append(item(ui, t.key, name, x - 1, base - 4 - depth * block, box.width + 2, chip + 6 + depth * block));
    });
    return height;
  };

  scene.defaultKey = () => "t" + asked;
  scene.detail = (key, at) => {
    const token = tokens.find((t) => t.key === key) || tokens.find((t) => t.position === asked) || tokens[0];
    if (!token) return [];
    if (!token.prompt && token.born > at) return [h("p", { text: "This token has not begun yet." })];
    const title = token.piece === null || (!token.prompt && token.done > at) ? "the next token" : JSON.stringify(token.piece);
    const parts = [h("h2", { text: `${token.prompt ? "Question" : "Answer"} token ${title}` })];
    const seen = token.rounds.filter((r) => r.at <= at), now = seen.length - 1;
    const done = token.done && token.done <= at;
    const facts = [];
    if (done) facts.push(`took ${plural(token.depth, "recurrence")}`);
    if (done && settled(token)) facts.push(`its reading stood still after ${settled(token)}`);
    if (token.prompt) facts.push("the tokens of a question think together, and stop together");
    if (token.p) facts.push(`said with ${percent(token.p)}`);
    if (facts.length) parts.push(h("p", { text: facts.join("; ") + "." }));
    if (!token.rounds.length) {
      parts.push(h("p", { class: "hint", text: token.prompt
        ? "What it read is not in this trace: ask with trace=(\"lens\", \"plane\", \"prompt\")."
        : "This trace holds no recurrences: ask with trace=(\"lens\", \"plane\")." }));
      return parts;
    }
    const below = trace.meta && trace.meta.below, from = trace.meta && trace.meta.from;
    const scored = seen.some((r) => r.exit !== undefined && r.exit !== null);
    if (done && !token.prompt) parts.push(h("p", { class: "exit", text: exitLine(trace, token, below, from) }));
    const rows = seen.map((r, i) => {
      const first = r.lens[0];
      const cells = [String(i + 1), first ? h("b", { text: visible(first.text) }) : "", first && first.p !== null ? bar(first.p) : "",
        r.lens.slice(1, 3).map((l) => visible(l.text) + (l.p === null ? "" : " " + Math.round(100 * l.p))).join(", ")];
      cells.push(scored ? (r.exit === undefined || r.exit === null ? "" : short(r.exit) + (fires(r.exit, below, from) ? " ◆" : "")) : r.change === undefined || r.change === null ? "" : short(r.change));
      return cells;
    });
    const last = scored ? "exit" : "moved";
    parts.push(table(["", "reads", "", "then", last], rows, now, `What ${title} read after each recurrence`));
    const places = token.rounds.filter((r) => r.place);
    if (places.length > 1)
      parts.push(planePicture(places.map((r) => r.place), now, places[0].share === null || places[0].share === undefined ? 1 : places[0].share, "Path of its state"));
    const moves = logPicture(token.rounds.map((r) => (scored && r.exit !== undefined ? r.exit : r.change)), scored ? below : null, now,
      scored ? "Exit score after each recurrence" : "How far each recurrence moved the state, as a share of its length");
    if (moves) parts.push(moves);
    return parts;
  };
  return scene;
};

const fires = (exit, below, from) => (below !== undefined && exit < below) || (from !== undefined && exit >= from);

function exitLine(trace, token, below, from) {
  const last = token.rounds[token.rounds.length - 1];
  const rule = (trace.meta && trace.meta.halt) || "its rule";
  if (last && last.exit !== undefined && last.exit !== null && fires(last.exit, below, from))
    return `◆ Stopped after recurrence ${token.rounds.length}: ${short(last.exit)} is ${below !== undefined ? `below ${short(below)}` : `at least ${from}`} (${rule}).`;
  const asked = rule.startsWith("Never") ? "no rule was asked" : rule;
  return `Went on to its budget of ${plural(token.depth, "recurrence")} (${asked}).`;
}

function ghost(token, at) {
  const seen = token.rounds.filter((r) => r.at <= at && r.lens.length);
  return seen.length ? visible(seen[seen.length - 1].lens[0].text) : "…";
}

function lensOf(trace, span) {
  if (!span) return [];
  return span.ids.map((id, i) => ({ text: pieceOf(trace, id), p: span.confidence ? span.confidence[i] : null }));
}

// What a reader may choose from: the answer and what the model had in mind on its way.
function guessOptions(tokens, answer) {
  const first = tokens.find((t) => !t.prompt);
  if (!first || tokens.filter((t) => !t.prompt).length > 1) return [];
  const names = new Set();
  first.rounds.forEach((r) => r.lens.forEach((l) => names.add(visible(l.text))));
  names.add(visible(answer));
  return names.size > 1 && names.size < 13 ? [...names].sort() : [];
}
