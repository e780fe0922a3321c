// TiDAR, and plain decoding: the text with its drafts. Said, accepted, corrected, rejected, drafted and
// masked differ in shape: a tick, a diamond, a struck word, a dashed box, an empty square.

systems.tidar = (trace) => draftScene(trace);
systems.plain = (trace) => draftScene(trace);

function draftScene(trace) {
  const meta = trace.meta || {}, steps = trace.steps;
  const asked = trace.question.map((id) => pieceOf(trace, id)).filter((piece) => !SPECIAL.test(piece));
  const diffusion = meta.scheme === "diffusion";
  const forwards = steps.map((step, i) => {
    const says = (step.says && step.says.ids) || [], accepted = step.scores.accepted || 0;
    const draft = (step.view && step.view.draft) || null;
    return {
      at: i + 1, says, accepted: Math.min(accepted, says.length), draft, next: (step.view && step.view.next) || null, canvas: (step.view && step.view.canvas) || null,
      slots: step.scores.slots || 1, masks: step.scores.masks, offered: step.scores.offered || 0, block: step.scores.block, lookedUp: step.scores.looked_up,
      rejected: draft ? draft.ids.slice(accepted) : [],
    };
  });
  const words = [];
  forwards.forEach((f) => f.says.forEach((id, k) => words.push({ key: `w${words.length}`, id, piece: pieceOf(trace, id), at: f.at, kind: f.offered === 0 ? "alone" : k < f.accepted ? "accepted" : "corrected", hope: f.draft && f.draft.confidence && k < f.accepted ? f.draft.confidence[k] : null })));
  const visibleWords = words.filter((w) => !SPECIAL.test(w.piece));
  const saidBy = (at) => words.filter((w) => w.at <= at).length;
  const costs = running(steps.map((step) => step.cost)), plain = meta.plain || null;
  const drafting = forwards.some((f) => f.offered > 0);

  const scene = {
    trace, count: steps.length, unit: "forward", costs, units: UNITS.filter((unit) => unit !== "evaluations" && costs[steps.length][unit] > 0), first: "seconds", answer: visibleWords.map((w) => w.piece).join(""),
    said: (at) => visibleWords.filter((w) => w.at <= at).map((w) => w.piece).join(""),
    legend: drafting || diffusion ? [["accepted", "drafted, and it stood"], ["corrected", "put there by the verifier"], ["rejected", "drafted, and struck"], ["drafted", "a guess, not judged yet"], ["masked", "an open place"]] : [["word", "a word, one a forward"]],
  };
  scene.guess = { ask: "How does the text go on?", options: [] };
  scene.caption = (at) => {
    if (at === 0) return "The text that it was given.";
    const f = forwards[at - 1], said = saidBy(at), parts = [];
    parts.push(f.offered ? `${f.accepted} of ${plural(f.offered, "guess").replace("guesss", "guesses")} stood` : "nothing to judge");
    parts.push(`${plural(f.says.length, "token")} said`, `${plural(f.slots, "slot")} spent`);
    return `Forward ${at}: ${parts.join(", ")}. So far ${said} tokens in ${plural(at, "forward")}.`;
  };

  scene.draw = (g, width, at, ui) => {
    const boxes = asked.map((piece) => ({ kind: "asked", piece, key: null }));
    visibleWords.filter((w) => w.at <= at).forEach((w) => boxes.push({ ...w, kind: w.at === at ? w.kind : "said" }));
    const f = at ? forwards[at - 1] : null;
    if (f && !ui.quiet) {
      f.rejected.forEach((id, k) => boxes.push({ kind: "rejected", piece: pieceOf(trace, id), key: `r${k}`, hope: f.draft.confidence && f.draft.confidence[f.accepted + k] }));
      if (diffusion && f.canvas) f.canvas.ids.slice(-Math.max(0, f.slots - 1)).forEach((id, k) => boxes.push({ kind: pieceOf(trace, id).match(SPECIAL) || id === meta.mask ? "masked" : "drafted", piece: pieceOf(trace, id), key: `d${k}` }));
      else if (f.next) f.next.ids.forEach((id, k) => boxes.push({ kind: "drafted", piece: pieceOf(trace, id), key: `d${k}`, hope: f.next.confidence && f.next.confidence[k] }));
      else if (at < scene.count && forwards[at].draft) forwards[at].draft.ids.forEach((id, k) => boxes.push({ kind: "drafted", piece: pieceOf(trace, id), key: `d${k}`, hope: null }));
    }
    boxes.forEach((box) => {
      box.text = box.kind === "masked" ? "" : visible(box.piece);
      box.plain = box.kind === "asked" || box.kind === "said";
      box.width = box.kind === "masked" ? 18 : widthOf(box.text, 16, box.kind === "corrected" ? 600 : 400) + (box.plain ? 1 : 14);
      box.gap = box.plain ? (/^\s/.test(box.piece) ? 5 : 0) : 4;
      box.line = false;
    });
    const line = 44, { places, height } = flow(boxes, width, line, 2);
    boxes.forEach((box, i) => {
      const { x, y } = places[i], base = y + 20;
      if (box.plain) g.append(label(x, base + 5, box.text, { class: box.kind === "asked" ? "asked-text" : "chip-text", "font-size": 16 }));
      else {
        g.append(s("rect", { x, y: base - 14, width: box.width, height: 27, rx: box.kind === "corrected" ? 0 : 5, class: "draft " + box.kind }));
        g.append(label(x + box.width / 2, base + 5, box.text, { class: "chip-text " + box.kind + "-text", "text-anchor": "middle", "font-size": 16 }));
        if (box.kind === "rejected") g.append(s("line", { x1: x + 3, x2: x + box.width - 3, y1: base, y2: base, class: "strike" }));
        const mark = { accepted: marks.check, corrected: marks.diamond, rejected: marks.cross }[box.kind];
        if (mark) g.append(mark(x + box.width / 2, base + 19, 4));
        if (box.kind === "drafted" && box.hope !== null && box.hope !== undefined) g.append(s("rect", { x: x + 4, y: base + 16, width: box.width - 8, height: 3, class: "bar-box thin" }), s("rect", { x: x + 4, y: base + 16, width: (box.width - 8) * box.hope, height: 3, class: "bar-fill" }));
      }
      if (box.key && !ui.still) g.append(item(ui, box.key, `${visible(box.piece)}, ${box.kind}`, x - 1, base - 15, box.width + 2, 30));
    });
    let total = Math.max(height, line);
    if (!ui.still && (plain || drafting)) {
      const below = s("g", { transform: `translate(0 ${total + 16})` });
      const half = width >= 640;
      const first = raceChart(below, words, costs, plain, at, half ? width * 0.56 : width, scene.units.includes(ui.unit) ? ui.unit : scene.first);
      const second = s("g", { transform: half ? `translate(${width * 0.56 + 30} 0)` : `translate(0 ${first + 14})` });
      const more = slotChart(second, forwards, at, half ? width * 0.44 - 30 : width);
      below.append(second);
      g.append(below);
      total += 16 + (half ? Math.max(first, more) : first + 14 + more);
    }
    return total;
  };

  scene.defaultKey = () => null;
  scene.detail = (key, at) => {
    const parts = [];
    const word = words.find((w) => w.key === key);
    if (word && word.at <= at) {
      parts.push(h("h2", { text: JSON.stringify(word.piece) }));
      const told = { accepted: `Guessed in forward ${word.at - 1}${word.hope === null ? "" : ` with ${percent(word.hope)}`}, and it stood in forward ${word.at}.`, corrected: `The verifier put it here in forward ${word.at}, behind the last guess that stood.`, alone: `Said in forward ${word.at}, where nothing had been guessed.` };
      parts.push(h("p", { text: told[word.kind] }));
    } else if (key && (key[0] === "r" || key[0] === "d")) parts.push(h("p", { text: key[0] === "r" ? "A guess that the verifier did not keep; all behind it fell with it." : "A guess for the next forward, which will judge it." }));
    parts.push(h("h2", { text: drafting ? "Forwards" : "Words" }));
    if (!at) parts.push(h("p", { text: "Press play, or move the slider." }));
    else {
      const said = saidBy(at), slots = forwards.slice(0, at).reduce((sum, f) => sum + f.slots, 0);
      parts.push(h("p", { text: `${(said / at).toFixed(2)} tokens a forward, ${(slots / Math.max(1, said)).toFixed(1)} slots a token.` }));
      if (plain) parts.push(h("p", { text: plainLine(plain, words, costs, at) }));
      parts.push(table(["forward", "stood", "new words", "slots"], forwards.slice(0, at).map((f) => [
        String(f.at), f.offered ? `${f.accepted} of ${f.offered}${f.lookedUp ? ", looked up" : ""}` : "", joined(trace, f.says).replace(/\n/g, "⏎"), String(f.slots),
      ]), at - 1, "All forwards so far"));
    }
    return parts;
  };
  return scene;
}

function plainLine(plain, words, costs, at) {
  const said = words.filter((w) => w.at <= at).length, now = costs[at].seconds;
  const others = plain.seconds.filter((t) => t <= now).length;
  const lead = said - others;
  return `At ${withUnit(now, "seconds")} it has said ${said} tokens, plain decoding ${others}${lead > 0 ? `: ${plural(lead, "token")} ahead` : lead < 0 ? `: ${plural(-lead, "token")} behind` : ""}. ${plain.same ? "Both say the same words." : "Plain decoding says other words."}`;
}

// Tokens said over the clock, drafted and plain.
function raceChart(g, words, costs, plain, at, width, unit) {
  const height = 200, left = 30, foot = 30, top = 36, right = 16;
  const mine = words.map((w) => costs[w.at][unit]);
  const theirs = plain && plain[unit] ? plain[unit] : [];
  const most = Math.max(0, ...mine, ...theirs, costs[costs.length - 1][unit]) || 1, tall = Math.max(words.length, theirs.length) || 1;
  const x = (v) => left + ((width - left - right) * v) / most, y = (n) => top + (height - top - foot) * (1 - n / tall);
  g.append(label(0, 11, "tokens said, on the same clock", { class: "over" }));
  for (const n of [0, Math.round(tall / 2), tall]) g.append(s("line", { x1: left, x2: width - right, y1: y(n), y2: y(n), class: "grid-line" }), label(left - 5, y(n) + 4, String(n), { class: "tiny", "text-anchor": "end" }));
  const stairs = (times) => "M" + x(0) + " " + y(0) + times.map((t, i) => `H${x(t)}V${y(i + 1)}`).join("");
  const now = costs[at][unit];
  const ends = [mine, theirs].map((times) => (times.length ? x(times[times.length - 1]) : 0));
  if (theirs.length) g.append(s("path", { d: stairs(theirs), class: "stairs plain-line" }), label(Math.max(left + 26, ends[1] - 4 - (ends[1] > ends[0] - 76 && ends[1] <= ends[0] + 2 ? 76 : 0)), y(theirs.length) - 6, "plain", { class: "tiny strong", "text-anchor": "end" }));
  g.append(s("path", { d: stairs(mine), class: "stairs faint-line" }), s("path", { d: stairs(mine.filter((t) => t <= now)), class: "stairs draft-line" }));
  if (mine.length) g.append(label(Math.max(left + 62, ends[0] - 4 - (theirs.length && ends[0] > ends[1] - 34 && ends[0] < ends[1] ? 34 : 0)), y(mine.length) - 6, "with drafts", { class: "tiny strong", "text-anchor": "end" }));
  g.append(s("line", { x1: x(now), x2: x(now), y1: top, y2: height - foot, class: "cursor" }));
  const reached = mine.filter((t) => t <= now).length, others = theirs.filter((t) => t <= now).length;
  if (reached) g.append(marks.dot(x(now), y(reached), 4));
  if (theirs.length && others) g.append(marks.ring(x(now), y(others), 4));
  g.append(label(left, height - 12, "0", { class: "tiny" }), label(width - right, height - 12, withUnit(most, unit), { class: "tiny", "text-anchor": "end" }));
  return height;
}

// What each forward took (slots) and gave (tokens).
function slotChart(g, forwards, at, width) {
  const height = 190, left = 30, foot = 30, top = 24;
  const most = Math.max(...forwards.map((f) => f.slots)), tall = Math.max(1, ...forwards.map((f) => f.says.length));
  const step = Math.min(26, (width - left) / Math.max(1, forwards.length)), wide = Math.max(1.5, step - 2), middle = top + (height - top - foot) * 0.55;
  g.append(label(0, 11, "each forward: tokens up, slots down", { class: "over" }));
  forwards.forEach((f, i) => {
    const x = left + i * step, up = ((middle - top - 4) * f.says.length) / tall, down = ((height - foot - middle - 2) * f.slots) / most;
    g.append(s("rect", { x, y: middle - up, width: wide, height: up, class: f.at > at ? "fill-faint" : "fill-accent" }), s("rect", { x, y: middle + 2, width: wide, height: down, class: f.at > at ? "fill-faint" : "slots" }));
  });
  g.append(label(left - 5, top + 12, String(tall), { class: "tiny", "text-anchor": "end" }), label(left - 5, height - foot, String(most), { class: "tiny", "text-anchor": "end" }));
  if (at) g.append(s("path", { d: `M${left + (at - 1) * step + wide / 2 - 4} ${height - foot + 9}l4 -5l4 5z`, class: "fill-ink" }));
  return height;
}
