// Coconut and interleaved thinking: silence as numbered rings, speech as words, and under every
// thought what it is about to say. On ProsQA the search tree below: a node is the larger the likelier.

systems.coconut = (trace) => {
  const steps = trace.steps.map((step, i) => ({ step, at: i + 1 }))
    .sort((a, b) => (a.step.position || 0) - (b.step.position || 0) || a.at - b.at);
  let number = 0;
  const parts = [];
  const meta = trace.meta || {}, exact = meta.thought === "soft" || meta.thought === "superposed";
  steps.forEach(({ step, at }) => {
    if (step.kind === "thought") {
      number += 1;
      parts.push({ key: "h" + number, at, thought: number, block: step.scores.block || null, lens: lensOf(trace, step.view && step.view.lens), words: lensOf(trace, step.view && step.view.words), entropy: step.scores.entropy, place: step.arrays && step.arrays.plane, share: step.scores.plane });
    } else if (step.says) {
      const piece = step.says.ids.map((id) => pieceOf(trace, id)).join("");
      if (!SPECIAL.test(piece)) parts.push({ key: "w" + at, at, piece, p: step.says.confidence ? step.says.confidence[0] : null, entropy: step.scores.entropy });
      else parts.push({ at, piece, mark: true });
    }
  });
  const thoughts = parts.filter((p) => p.thought), words = parts.filter((p) => p.piece !== undefined && !p.mark);
  const tree = meta.tree || null, swaps = meta.swaps || [];
  const answer = words.map((w) => w.piece).join("");
  const thoughtsAt = (at) => thoughts.filter((t) => t.at <= at).length;

  const scene = {
    trace, count: trace.steps.length, unit: "step", answer: answer.trim(), costs: running(trace.steps.map((step) => step.cost)),
    said: (at) => words.filter((w) => w.at <= at).map((w) => w.piece).join("").trim(),
    legend: [
      ["thought", exact ? "a silent thought: exactly these words, mixed" : "a silent thought, and what it is about to say"],
      ["word", "a word said aloud"], ...(tree ? [["node", "likelihood that the next step begins there"], ["option", "the two options asked for"]] : []),
    ],
  };
  const final = answer.includes("#") ? answer.slice(answer.lastIndexOf("#") + 1).trim() : answer.trim();
  scene.guess = {
    ask: tree ? `Which one does ${tree.symbols[tree.root]} lead to?` : "What will it answer?",
    options: tree ? tree.options.map((node) => tree.symbols[node]).sort() : [], right: tree ? tree.options.map((n) => tree.symbols[n]).find((name) => final.split(/\W+/).includes(name)) || final : final,
  };

  scene.caption = (at) => {
    if (at === 0) return "The question, before any thought.";
    const part = parts.find((p) => p.at === at);
    if (!part) return `Step ${at}.`;
    if (part.thought) {
      const top = part.lens[0];
      return `Thought ${part.thought}${part.block ? ` (block ${part.block})` : ""}, silent${top ? `: about to say ${JSON.stringify(visible(top.text))}, ${percent(top.p || 0)}` : ""}.`;
    }
    if (part.mark && at === trace.steps.length && trace.stopped === "end") return `It has said all: ${JSON.stringify(answer.trim())}.`;
    return part.mark ? "A boundary between silence and speech." : `Says ${JSON.stringify(part.piece)}${part.p === null ? "" : ", " + percent(part.p)}.`;
  };

  scene.draw = (g, width, at, ui) => {
    const boxes = parts.filter((p) => !p.mark && p.at <= at).map((part) => part.thought
      ? { part, width: 78, gap: 4, line: false }
      : { part, width: Math.max(20, widthOf(visible(part.piece), 15, 500) + 12), gap: /^\s/.test(part.piece) ? 8 : 3, line: false });
    const line = 122;
    const { places, height } = flow(boxes, width, line, 0);
    let y0 = 4;
    boxes.forEach((box, i) => {
      const { x, y: top } = places[i], y = top + y0, part = box.part;
      if (part.thought) {
        const before = boxes[i - 1], joinedUp = before && before.part.thought && places[i - 1].y === top;
        g.append(s("rect", { x: x - (joinedUp ? 6 : 0), y: y + 16, width: box.width + (joinedUp ? 6 : 0), height: 96, class: "silence", rx: joinedUp ? 0 : 8 }));
        if (!joinedUp) g.append(label(x + 2, y + 10, part.block ? `silence ${part.block}` : "silence", { class: "over" }));
        g.append(s("circle", { cx: x + box.width / 2, cy: y + 36, r: 13, class: "ring" + (part.at === at ? " now" : "") }), label(x + box.width / 2, y + 41, String(part.thought), { class: "chip-text", "text-anchor": "middle", "font-size": 13 }));
        part.lens.slice(0, 3).forEach((read, k) => {
          const row = y + 58 + 18 * k, p = read.p === null ? 0 : read.p;
          g.append(s("rect", { x: x + 5, y: row, width: box.width - 10, height: 15, class: "bar-box", rx: 2 }), s("rect", { x: x + 5, y: row, width: (box.width - 10) * p, height: 15, class: "lens-fill", rx: 2 }));
          const room = box.width - 18 - (read.p === null ? 0 : 24);
          g.append(label(x + 9, row + 11.5, clipped(visible(read.text), room, 11), { class: "lens-text", "font-size": 11 }));
          if (read.p !== null) g.append(label(x + box.width - 8, row + 11.5, String(Math.round(100 * p)), { class: "lens-text", "text-anchor": "end", "font-size": 10 }));
        });
        const swap = swaps.find((row) => row.thought === part.thought);
        if (swap && swap.changed) g.append(marks.diamond(x + box.width - 12, y + 28, 6));
        g.append(item(ui, part.key, `thought ${part.thought}${part.lens.length ? ", about to say " + visible(part.lens[0].text) : ""}`, x, y + 16, box.width, 96));
      } else {
        const before = boxes[i - 1];
        if (!before || before.part.thought || places[i - 1].y !== top) g.append(label(x, y + 10, "says", { class: "over" }));
        g.append(s("rect", { x, y: y + 22, width: box.width, height: 28, rx: 5, class: "chip word" + (part.at === at ? " now" : "") }), label(x + box.width / 2, y + 41, visible(part.piece), { class: "chip-text", "text-anchor": "middle", "font-size": 15 }));
        if (part.p !== null) g.append(s("rect", { x: x + 3, y: y + 54, width: box.width - 6, height: 4, class: "bar-box thin" }), s("rect", { x: x + 3, y: y + 54, width: (box.width - 6) * part.p, height: 4, class: "bar-fill" }));
        g.append(item(ui, part.key, `word ${visible(part.piece)}`, x, y + 18, box.width, 44));
      }
    });
    let total = Math.max(height, line) + y0;
    if (!boxes.length) { g.append(label(0, 20, "Nothing is said yet.", { class: "over" })); total = 36; }
    if (tree) {
      const below = s("g", { transform: `translate(0 ${total + 12})` });
      total += 12 + drawTree(below, tree, thoughtsAt(at), width, ui, spoken(words.filter((w) => w.at <= at)), ui.hidden);
      g.append(below);
    }
    return total;
  };

  scene.defaultKey = () => (thoughts.length ? "h1" : null);
  scene.detail = (key, at) => {
    const found = [], now = thoughtsAt(at);
    const part = parts.find((p) => p.key === key);
    if (key && key[0] === "n" && tree) {
      const node = Number(key.slice(1));
      found.push(h("h2", { text: `Node ${tree.symbols[node]}` }), h("p", { text: tree.depths[node] < 0 ? "The start does not lead here." : `${plural(tree.depths[node], "hop")} from the start.` }));
      found.push(table(["thoughts", "next step begins here"], tree.values.slice(0, now + 1).map((row, i) => [String(i), bar(row[node])]), now, "After each thought"));
      return found;
    }
    if (part && part.thought) {
      found.push(h("h2", { text: `Thought ${part.thought}` }));
      if (part.words.length) found.push(table(["word", "weight"], part.words.map((l) => [h("b", { text: visible(l.text) }), l.p === null ? "" : bar(l.p)]), -1, "Exact read-out: the words of this thought, in order"));
      if (part.lens.length) found.push(table([exact ? "holds" : "about to say", ""], part.lens.map((l) => [h("b", { text: visible(l.text) }), l.p === null ? "" : bar(l.p)]), -1, "The lens of this thought"));
      else if (!part.words.length) found.push(h("p", { class: "hint", text: "It was not looked at: ask with trace=(\"lens\", \"plane\")." }));
      const swap = swaps.find((row) => row.thought === part.thought);
      if (swap) found.push(swapped(meta, swap, answer));
    } else if (part) found.push(h("h2", { text: JSON.stringify(part.piece) }), h("p", { text: part.p === null ? "" : `Said with ${percent(part.p)}.` }));
    if (tree && tree.answers) found.push(h("h2", { text: "If it had to answer now" }), table(["thoughts", ...tree.options.map((n) => tree.symbols[n])],
      tree.answers.slice(0, now + 1).map((row, i) => [String(i), bar(row[0]), bar(row[1])]), now, "Its answer after each thought"));
    if (swaps.length) found.push(h("h2", { text: "Swapped thoughts" }), table(["thought", "it then says", ""], swaps.map((row) => [
      row.thought ? String(row.thought) : "its own", row.text.trim().replace(/\n/g, " ⏎ "), row.changed ? "◆ other" : "the same",
    ]), -1, "What it says when one thought is another question's"));
    const places = thoughts.filter((t) => t.place);
    if (places.length > 2) found.push(planePicture(places.map((t) => t.place), Math.max(0, places.filter((t) => t.at <= at).length - 1), places[0].share || 1, "Path of its thoughts"));
    return found;
  };
  return scene;
};

function swapped(meta, swap, answer) {
  return h("div", { class: "swap" }, h("p", { text: swap.changed ? "◆ With the same thought of another question it says something else:" : "With the same thought of another question it says the same:" }),
    h("blockquote", { text: swap.text.trim() }), meta.other ? h("details", {}, h("summary", { text: "The other question" }), h("p", { text: meta.other })) : null);
}

// Pairs of names that were said one after the other on a line: edges that were spoken.
function spoken(words) {
  const pairs = new Set();
  words.map((w) => w.piece).join("").split("\n").forEach((line) => {
    const names = line.match(/[\w]+/g) || [];
    if (names.length === 2) pairs.add(names.join(">"));
    const text = line.match(/^(?:Every )?(\w+) is an? (\w+)/);
    if (text) pairs.add(text[1] + ">" + text[2]);
  });
  return pairs;
}

function drawTree(g, tree, thoughts, width, ui, said, hidden) {
  const values = tree.values[Math.min(thoughts, tree.values.length - 1)];
  const deep = Math.max(...tree.depths), layers = Array.from({ length: deep + 1 }, () => []);
  tree.depths.forEach((depth, node) => { if (depth >= 0) layers[depth].push(node); });
  const x = new Map(), rise = 78, first = 50;
  layers.forEach((layer, depth) => {
    const wanted = (node) => {
      const parents = tree.edges.filter(([, b]) => b === node).map(([a]) => x.get(a)).filter((v) => v !== undefined);
      return parents.length ? parents.reduce((a, b) => a + b, 0) / parents.length : 0.5;
    };
    const order = layer.slice().sort((a, b) => wanted(a) - wanted(b) || a - b), gap = Math.min(1 / order.length, 0.22);
    order.forEach((node, i) => x.set(node, 0.5 + (i - (order.length - 1) / 2) * gap));
    layers[depth] = order;
  });
  const room = Math.min(width, 720), off = (width - room) / 2;
  const X = (node) => off + room * x.get(node), Y = (node) => first + rise * tree.depths[node];
  g.append(label(0, 11, `the search, after ${plural(thoughts, "thought")}`, { class: "over" }));
  for (const [a, b] of tree.edges) {
    if (!x.has(a) || !x.has(b)) continue;
    const spokenAloud = said.has(tree.symbols[a] + ">" + tree.symbols[b]);
    const down = tree.depths[b] - tree.depths[a];
    const mx = (X(a) + X(b)) / 2 + (down > 1 || down < 0 ? 34 * (X(b) >= X(a) ? 1 : -1) : 0), my = (Y(a) + Y(b)) / 2 - (down === 0 ? 40 : 0);
    const turn = Math.atan2(Y(b) - my, X(b) - mx), back = 13 + 13 * Math.sqrt(values[b]), ex = X(b) - back * Math.cos(turn), ey = Y(b) - back * Math.sin(turn);
    g.append(s("path", { d: `M${X(a)} ${Y(a)}Q${mx} ${my} ${ex} ${ey}`, class: spokenAloud ? "edge said" : "edge" }),
      s("path", { d: "M0 0l-8 -3.5v7z", transform: `translate(${ex} ${ey}) rotate(${(180 * turn) / Math.PI})`, class: spokenAloud ? "fill-warm" : "arrow" }));
  }
  for (const node of x.keys()) {
    const p = values[node], radius = 11 + 13 * Math.sqrt(p), option = tree.options.indexOf(node);
    const here = node === tree.root;
    if (option >= 0) g.append(s("rect", { x: X(node) - radius, y: Y(node) - radius, width: 2 * radius, height: 2 * radius, rx: 3, class: "node option" }));
    else g.append(s("circle", { cx: X(node), cy: Y(node), r: radius, class: "node" + (here ? " root" : "") }));
    if (p > 0.01) g.append(s(option >= 0 ? "rect" : "circle", option >= 0
      ? { x: X(node) - radius, y: Y(node) - radius, width: 2 * radius, height: 2 * radius, rx: 3, class: "node-fill", opacity: p }
      : { cx: X(node), cy: Y(node), r: radius, class: "node-fill", opacity: p }));
    g.append(label(X(node), Y(node) + 4.5, tree.symbols[node], { class: "node-text" + (p > 0.5 ? " inverse" : ""), "text-anchor": "middle", "font-size": 13 }));
    if (p >= 0.005) g.append(label(X(node), Y(node) + radius + 12, percent(p), { class: "tiny", "text-anchor": "middle" }));
    if (here) g.append(label(X(node), Y(node) - radius - 5, "start", { class: "tiny", "text-anchor": "middle" }));
    if (option >= 0 && tree.answers && !hidden) {
      const chance = tree.answers[Math.min(thoughts, tree.answers.length - 1)][option];
      g.append(label(X(node), Y(node) + radius + (p >= 0.005 ? 25 : 12), `answers so: ${percent(chance)}`, { class: "tiny strong", "text-anchor": "middle" }));
    }
    g.append(item(ui, "n" + node, `node ${tree.symbols[node]}, ${percent(p)}`, X(node) - Math.max(13, radius), Y(node) - Math.max(13, radius), 2 * Math.max(13, radius), 2 * Math.max(13, radius)));
  }
  const others = tree.options.filter((node) => !x.has(node)).map((node) => tree.symbols[node]);
  const bottom = first + rise * deep + 58;
  if (others.length) {
    const value = tree.answers && !hidden ? tree.answers[Math.min(thoughts, tree.answers.length - 1)][tree.options.findIndex((n) => !x.has(n))] : null;
    g.append(label(off, bottom, `the other option, ${others.join(" and ")}, is not reached${value === null ? "" : `; answers so: ${percent(value)}`}`, { class: "tiny" }));
  }
  return bottom + 8;
}
