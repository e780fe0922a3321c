// TRM: one grid, rewritten. A cell's bar is how sure the model is, a filled corner says that the cell
// has just changed, a small digit is the runner-up, hatching and a cross mark a broken rule.

const UNSURE = 0.6;
const SIGNS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";

systems.trm = (trace) => {
  const meta = trace.meta || {}, task = meta.task || "grid";
  const side = Math.round(Math.sqrt(trace.question.length));
  const [rows, cols] = meta.grid || [side, trace.question.length / side];
  const maze = task.startsWith("maze"), sudoku = task.startsWith("sudoku"), arc = task.startsWith("arc");
  const sign = (token) => {
    if (maze) return " # SGo"[token] || "?";
    if (arc) return token < 2 ? "" : String(token - 2);
    return token < 2 ? "" : SIGNS[token - 2] || "?";
  };
  const blank = maze ? 2 : arc ? -1 : 1;
  const given = trace.question.map((token) => !arc && token !== blank && token !== 0);
  const high = sudoku ? [...Array(Math.floor(Math.sqrt(rows))).keys()].map((n) => n + 1).reverse().find((n) => rows % n === 0) : rows;
  const wide = sudoku ? rows / high : cols;

  const frames = [{ tokens: trace.question, sure: null, second: null, changed: [], halt: null }];
  trace.steps.filter((step) => step.view && step.view.grid).forEach((step) => {
    const before = frames[frames.length - 1], tokens = step.view.grid.ids;
    frames.push({
      tokens, sure: step.view.grid.confidence || null, second: step.view.runner_up || null,
      changed: frames.length === 1 ? [] : tokens.map((t, i) => t !== before.tokens[i]),
      halt: step.scores.halt === undefined ? null : sigmoid(step.scores.halt),
    });
  });
  frames.forEach((frame, i) => {
    frame.broken = brokenCells(frame.tokens, i ? trace.question : null, given, { rows, cols, high, wide, sudoku, maze, blank });
    frame.num = frame.changed.filter(Boolean).length;
    frame.unsure = frame.sure ? frame.sure.filter((p, c) => p < UNSURE && !given[c]).length : 0;
  });
  const count = frames.length - 1, last = frames[count];
  const numBroken = (frame) => frame.broken.filter(Boolean).length;

  // cells around which there is something: padding is left out
  const used = [...Array(rows * cols).keys()].filter((c) => frames.some((f) => f.tokens[c] !== 0));
  const top = Math.min(...used.map((c) => Math.floor(c / cols))), bottom = Math.max(...used.map((c) => Math.floor(c / cols)));
  const first = Math.min(...used.map((c) => c % cols)), end = Math.max(...used.map((c) => c % cols));

  const answerText = last.tokens.map(sign).join("");
  const scene = {
    trace, count, unit: "step", answer: answerText,
    costs: running(trace.steps.map((step) => step.cost)),
    said: (at) => (at === 0 ? "" : frames[at].tokens.map(sign).join("")),
    legend: [
      ["given", "given"], ["changed", "changed in this step"],
      ...(last.sure ? [["sure", "bar: how sure it is"]] : []),
      ...(frames.some((f) => f.second) ? [["second", "its second choice"]] : []),
      ["broken", sudoku || maze ? "breaks a rule" : "a given cell was overwritten"],
    ],
  };

  scene.caption = (at) => {
    const frame = frames[at];
    if (at === 0) return arc ? "The question." : `The question: ${plural(given.filter((x) => !x).length, "cell")} to decide.`;
    const parts = [at === 1 ? "first draft" : frame.num ? `${plural(frame.num, "cell")} changed` : "nothing changed"];
    if (frame.sure) parts.push(frame.unsure ? `unsure of ${frame.unsure}` : "sure of every cell");
    if (numBroken(frame)) parts.push(`${plural(numBroken(frame), "cell")} break a rule`.replace("1 cell break", "1 cell breaks"));
    if (frame.halt !== null) parts.push(`believes ${percent(frame.halt)} that it is right`);
    return `Step ${at}: ${parts.join(", ")}.`;
  };

  scene.draw = (g, width, at, ui) => {
    const frame = frames[at], across = end - first + 1, down = bottom - top + 1;
    const beside = width >= 620;
    const room = beside ? Math.min(width * 0.6, 520) : width;
    const cell = Math.max(8, Math.floor(Math.min(room / across, maze || arc ? 34 : 56)));
    const board = s("g", { transform: "translate(1 1)" });
    const x = (c) => ((c % cols) - first) * cell, y = (c) => (Math.floor(c / cols) - top) * cell;
    used.forEach((c) => board.append(...drawCell(c)));
    if (sudoku) {
      for (let r = 0; r <= down; r += high) board.append(s("line", { x1: 0, x2: across * cell, y1: r * cell, y2: r * cell, class: "box-line" }));
      for (let k = 0; k <= across; k += wide) board.append(s("line", { y1: 0, y2: down * cell, x1: k * cell, x2: k * cell, class: "box-line" }));
    }
    used.forEach((c) => board.append(item(ui, "c" + c, cellName(c, at), x(c) + 1, y(c) + 1, cell - 2, cell - 2)));
    g.append(board);

    function drawCell(c) {
      const token = frame.tokens[c], text = sign(token), drawn = [];
      const X = x(c), Y = y(c), size = Math.round(cell * 0.52);
      const kind = given[c] ? "cell given" : "cell";
      const wall = maze && token === 1;
      drawn.push(s("rect", { x: X, y: Y, width: cell, height: cell, class: wall ? "wall" : arc && token > 1 ? `cell arc-${token - 2}` : kind }));
      if (frame.broken[c]) drawn.push(s("rect", { x: X, y: Y, width: cell, height: cell, fill: "url(#hatch-bad)" }));
      if (at > 0 && frame.changed[c] && !(ui.hidden && !given[c])) {
        drawn.push(s("rect", { x: X + 1.5, y: Y + 1.5, width: cell - 3, height: cell - 3, class: "changed" }));
        drawn.push(marks.corner(X + cell * 0.13, Y + cell * 0.13, cell * 0.12));
      }
      if (maze && text === "o") drawn.push(s("circle", { cx: X + cell / 2, cy: Y + cell / 2, r: cell * 0.24, class: "trail", opacity: frame.sure ? 0.35 + 0.65 * frame.sure[c] : 1 }));
      else if (!wall && text && text !== " " && cell > 11)
        drawn.push(label(X + cell / 2, Y + cell * 0.68, text, { class: "digit" + (given[c] ? " bold" : "") + (frame.sure && frame.sure[c] < UNSURE && !given[c] ? " unsure" : ""), "text-anchor": "middle", "font-size": size }));
      if (frame.sure && !given[c] && !maze && !arc && cell > 18) {
        drawn.push(s("rect", { x: X + cell * 0.14, y: Y + cell * 0.85, width: cell * 0.72, height: Math.max(2, cell * 0.06), class: "bar-box thin" }));
        drawn.push(s("rect", { x: X + cell * 0.14, y: Y + cell * 0.85, width: cell * 0.72 * frame.sure[c], height: Math.max(2, cell * 0.06), class: "bar-fill" }));
      }
      if (frame.second && !given[c] && cell >= 30 && frame.second.confidence[c] >= 0.05)
        drawn.push(label(X + cell * 0.86, Y + cell * 0.29, sign(frame.second.ids[c]), { class: "second", "text-anchor": "middle", "font-size": cell * 0.24 }));
      if (frame.broken[c]) drawn.push(marks.cross(X + cell * 0.84, Y + cell * 0.2, cell * 0.08));
      if (ui.asking === c) drawn.push(s("rect", { x: X + 2, y: Y + 2, width: cell - 4, height: cell - 4, class: "asking" }),
        label(X + cell / 2, Y + cell * 0.68, "?", { class: "digit bold", "text-anchor": "middle", "font-size": size }));
      return drawn;
    }

    const boardHeight = down * cell + 4;
    if (frames.every((f) => f.halt === null)) return boardHeight;
    const chart = s("g", { transform: beside ? `translate(${across * cell + 34} 0)` : `translate(0 ${boardHeight + 18})` });
    const chartWidth = beside ? width - across * cell - 36 : width, chartHeight = beside ? clamp(boardHeight, 150, 260) : 150;
    beliefChart(chart, frames, at, chartWidth, chartHeight, trace.stopped);
    g.append(chart);
    return beside ? Math.max(boardHeight, chartHeight) : boardHeight + 18 + chartHeight;
  };

  const cellName = (c, at) => {
    const frame = frames[at], where = `row ${Math.floor(c / cols) + 1}, column ${(c % cols) + 1}`;
    const what = maze ? { " ": "free", "#": "wall", S: "start", G: "goal", o: "path" }[sign(frame.tokens[c])] || "?" : sign(frame.tokens[c]) || "blank";
    const more = [];
    if (given[c]) more.push("given");
    else if (frame.sure) more.push(percent(frame.sure[c]) + " sure");
    if (at && frame.changed[c]) more.push("changed");
    if (frame.broken[c]) more.push("breaks a rule");
    return `${where}: ${[what, ...more].join(", ")}`;
  };

  const hardest = () => {
    const open = used.filter((c) => !given[c] && (!maze || last.tokens[c] === 5));
    const when = (c) => Math.max(0, ...frames.map((f, i) => (f.changed[c] ? i : 0)));
    return open.sort((a, b) => when(b) - when(a) || ((frames[1].sure || [])[a] || 0) - ((frames[1].sure || [])[b] || 0))[0];
  };
  const puzzling = count && !arc ? hardest() : undefined;
  if (sudoku && puzzling !== undefined)
    scene.guess = {
      ask: `Which digit will stand in row ${Math.floor(puzzling / cols) + 1}, column ${(puzzling % cols) + 1}?`, cell: puzzling,
      options: [...SIGNS.slice(0, rows)], right: sign(last.tokens[puzzling]),
    };
  else
    scene.guess = {
      ask: "After how many steps will it stop?", options: [...new Set([1, 2, 4, 8, 16, 32, 64].filter((n) => n <= 2 * count).concat(count))].sort((a, b) => a - b).map(String),
      right: String(count),
    };

  scene.detail = (key, at) => {
    const parts = [];
    if (key && key[0] === "c" && Number(key.slice(1)) < rows * cols) {
      const c = Number(key.slice(1));
      parts.push(h("h2", { text: `Row ${Math.floor(c / cols) + 1}, column ${(c % cols) + 1}` }));
      if (given[c]) parts.push(h("p", { text: `Given: ${sign(trace.question[c]) || "blank"}.` }));
      const upto = frames.slice(1, at + 1);
      if (!upto.length) parts.push(h("p", { text: "Nothing is written yet." }));
      else parts.push(table(["step", "holds", "", "second"], upto.map((f, i) => [
        String(i + 1), h("b", { text: (sign(f.tokens[c]).trim() || "·") + (f.changed[c] ? " ◤" : "") }), f.sure ? bar(f.sure[c]) : "",
        f.second ? `${sign(f.second.ids[c]).trim() || "·"} ${percent(f.second.confidence[c])}` : "",
      ]), at - 1, "What this cell held after each step"));
      return parts;
    }
    parts.push(h("h2", { text: "Steps" }));
    if (at === 0) parts.push(h("p", { text: "Press play, or move the slider. Click a cell for its story." }));
    else parts.push(table(["step", "new", "unsure", "broken", "belief"], frames.slice(1, at + 1).map((f, i) => [
      String(i + 1), i ? String(f.num) : "all", f.sure ? String(f.unsure) : "", String(numBroken(f)), f.halt === null ? "" : bar(f.halt),
    ]), at - 1, "All steps so far"));
    return parts;
  };
  return scene;
};

// Which cells break a rule: given cells that were overwritten; in a Sudoku, equal digits in a unit.
function brokenCells(tokens, question, given, board) {
  const { rows, cols, high, wide, sudoku, maze } = board;
  const broken = tokens.map((t, c) => Boolean(question && given[c] && t !== question[c] && !(maze && question[c] === 2)));
  if (maze && question) {
    // a path goes on from each of its cells, and leaves the start and the goal once
    const road = (c) => tokens[c] >= 3;
    tokens.forEach((t, c) => {
      if (!road(c)) return;
      const r = Math.floor(c / cols), k = c % cols;
      const next = [[r - 1, k], [r + 1, k], [r, k - 1], [r, k + 1]].filter(([a, b]) => a >= 0 && b >= 0 && a < rows && b < cols && road(a * cols + b)).length;
      if (next !== (t === 5 ? 2 : 1)) broken[c] = true;
    });
  }
  if (!sudoku) return broken;
  const units = [];
  for (let i = 0; i < rows; i += 1) {
    units.push([...Array(cols).keys()].map((k) => i * cols + k), [...Array(rows).keys()].map((k) => k * cols + i));
    const r = Math.floor(i / (cols / wide)) * high, k = (i % (cols / wide)) * wide;
    units.push([...Array(rows).keys()].map((n) => (r + Math.floor(n / wide)) * cols + k + (n % wide)));
  }
  for (const unit of units)
    for (const c of unit)
      if (tokens[c] > 1 && unit.some((other) => other !== c && tokens[other] === tokens[c])) broken[c] = true;
  return broken;
}

// Belief over the steps as a line, changed cells as bars below it.
function beliefChart(g, frames, at, width, height, stopped) {
  const steps = frames.slice(1), left = 52, right = 12, bars = 34, foot = 16, top = 20;
  const lineHeight = height - bars - foot - top - 8;
  const x = (i) => left + (width - left - right) * (steps.length === 1 ? 0.5 : i / (steps.length - 1));
  const y = (p) => top + lineHeight * (1 - p);
  g.append(label(0, 11, "Does it believe that it is right?", { class: "over" }));
  for (const p of [0, 0.5, 1]) g.append(s("line", { x1: left, x2: width - right, y1: y(p), y2: y(p), class: p === 0.5 ? "threshold" : "grid-line" }), label(left - 6, y(p) + 4, percent(p), { class: "tiny", "text-anchor": "end" }));
  const most = Math.max(1, ...steps.slice(1).map((f) => f.num)), ground = height - foot;
  const wide = clamp((width - left - right) / Math.max(1, steps.length) - 2, 1.5, 12);
  steps.forEach((f, i) => {
    const later = i + 1 > at;
    if (i && f.num) g.append(s("rect", { x: x(i) - wide / 2, y: ground - (bars * f.num) / most, width: wide, height: (bars * f.num) / most, class: later ? "fill-faint" : "fill-warm" }));
    if (f.halt === null) return;
    if (i && steps[i - 1].halt !== null) g.append(s("line", { x1: x(i - 1), y1: y(steps[i - 1].halt), x2: x(i), y2: y(f.halt), class: later ? "path later" : "path" }));
    if (steps.length < 40 || i + 1 === at) g.append(s("circle", { cx: x(i), cy: y(f.halt), r: i + 1 === at ? 5 : 2.5, class: later ? "fill-soft" : "fill-accent" }));
  });
  g.append(label(left - 6, ground - bars / 2 + 3, "changed", { class: "tiny", "text-anchor": "end" }));
  g.append(label(left, height - 2, "step 1", { class: "tiny" }), label(width - right, height - 2, `${steps.length}: ${stopped === "halted" ? "it stopped" : stopped === "budget" ? "budget" : stopped || "so far"}`, { class: "tiny", "text-anchor": "end" }));
  if (at > 0) g.append(s("line", { x1: x(at - 1), x2: x(at - 1), y1: top, y2: ground, class: "cursor" }));
}
