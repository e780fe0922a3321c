// The playground: a form, and traces that grow event by event. Where and how events come from is told
// by the page's data: {"live": {"models": address, "events": address}}.

// The head of a trace from the event that opens a stream: its question comes as {tokens, pieces, roles}.
function opening(head) {
  const { question } = head;
  if (!question || Array.isArray(question)) return head;
  const pieces = {};
  question.tokens.forEach((id, i) => { pieces[id] = question.pieces[i]; });
  return { method: head.method, model: head.model, question: question.tokens, roles: question.roles || [], pieces };
}

// A trace grown from events. An event may carry the recorded step ("record"), which is taken as it is;
// without one, the step is made of the event's tokens and scores.
class Growing {
  constructor(head) {
    this.trace = { method: "plain", model: "", question: [], steps: [], stopped: "", pieces: {}, meta: {}, roles: [], ...opening(head) };
    this.guesses = null;
    this.asked = this.trace.question.length;
    this.said = 0;
    this.began = performance.now();
    this.before = this.began;
  }

  learn(event) {
    const { trace } = this;
    Object.assign(trace.pieces, event.pieces && !Array.isArray(event.pieces) ? event.pieces : {});
    const tokens = event.tokens || [];
    const letters = [...(event.text || "")].filter((c) => c !== "\n");
    const texts = Array.isArray(event.pieces) ? event.pieces : tokens.length === 1 ? [event.text] : letters.length === tokens.length ? letters : [];
    tokens.forEach((id, i) => { if (trace.pieces[id] === undefined && texts[i] !== undefined) trace.pieces[id] = texts[i]; });
  }

  feed(event) {
    const { trace } = this, tokens = event.tokens || [], scores = event.scores || {};
    this.learn(event);
    if (event.kind === "end") return this.finish(event.answer || {}, event.trace);
    const now = performance.now(), cost = { seconds: (now - this.before) / 1000 };
    if (event.record) { trace.steps.push(event.record); this.before = now; return; }
    const step = { index: trace.steps.length + 1, scores, cost, kind: "forward", view: {} };
    if (event.kind === "draft") { this.guesses = { ids: tokens, confidence: null }; const last = trace.steps[trace.steps.length - 1]; if (last && last.kind === "forward") last.view.next = this.guesses; return; }
    this.before = now;
    if (event.kind === "rewrite") { step.kind = "refine"; step.view.grid = { ids: tokens, confidence: null }; }
    else if (event.kind === "thought") {
      step.kind = trace.method === "huginn" ? "recur" : "thought";
      if (tokens.length) step.view.lens = { ids: tokens, confidence: null };
      step.position = this.asked + this.said + (trace.method === "coconut" ? trace.steps.filter((x) => x.kind === "thought").length : 0);
    } else if (event.kind === "word") {
      if (trace.method === "trm") return;
      step.kind = trace.method === "huginn" || trace.method === "coconut" ? "word" : "forward";
      step.says = { ids: tokens, confidence: null };
      step.position = this.asked + this.said + (trace.method === "coconut" ? trace.steps.filter((x) => x.kind === "thought").length : 0);
      this.said += tokens.length;
      if (this.guesses && scores.offered) step.view.draft = { ...this.guesses, ids: this.guesses.ids.slice(0, scores.offered) };
      this.guesses = null;
    } else return;
    trace.steps.push(step);
  }

  finish(answer, trace) {
    const whole = trace || answer.trace;
    this.trace = whole ? whole : { ...this.trace, stopped: answer.stopped || this.trace.stopped };
    this.over = true;
  }
}
inward.Growing = Growing;

// Lines of an event stream (server-sent events) as objects.
async function* streamed(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += done ? "" : decoder.decode(value, { stream: true });
    const lines = rest.split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      const text = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (text && text !== "[DONE]") yield JSON.parse(text);
    }
    if (done) return;
  }
}

// Whole numbers are in the method's own unit; words and shares of the dial are those of OpenAI's field.
function effortOf(text) {
  if (!text) return {};
  if (/^\d+$/.test(text)) return { inward: { effort: Number(text) } };
  return { reasoning_effort: /^[\d.]+$/.test(text) ? Number(text) : text };
}

function startPlayground(root, data) {
  const { live } = data;
  const second = h("select", { "aria-label": "Second model" }), first = h("select", { "aria-label": "Model" });
  const question = h("textarea", { "aria-label": "Question", placeholder: "Ask: a text, or a puzzle" }, live.question || "");
  const effort = h("input", { type: "text", "aria-label": "Effort", size: 8, placeholder: "as trained" });
  const key = h("input", { type: "password", "aria-label": "API key", size: 10, placeholder: "none", autocomplete: "off" });
  const go = h("button", { type: "submit", class: "go", text: "Think" }), halt = h("button", { type: "button", text: "Stop", disabled: true });
  const now = h("button", { type: "button", text: "Answer now", title: "End the thinking; the answer so far comes", disabled: true });
  const said = h("div", { class: "said-now", role: "status" });
  const form = h("form", { class: "ask-form" }, question, h("div", { class: "row" }, h("label", {}, "model", first), h("label", {}, "beside", second), h("label", {}, "effort", effort), h("label", {}, "key", key), go, now, halt), said);
  const player = new Player(root, { title: "playground", live: { form } });
  root.classList.add("empty");
  let running = [], traces = {}, thinks = {};
  const headers = () => ({ "content-type": "application/json", ...(key.value ? { authorization: "Bearer " + key.value } : {}) });

  async function models() {
    const answer = await fetch(live.models, { headers: headers() });
    if (!answer.ok) throw new Error(await refusal(answer));
    const rows = (await answer.json()).data, names = rows.map((row) => row.id);
    traces = Object.fromEntries(rows.map((row) => { const own = row.inward || row; return [row.id, (live.wanted[own.method] || []).filter((name) => (own.traces || []).includes(name))]; }));
    thinks = Object.fromEntries(rows.map((row) => [row.id, !row.inward || Boolean(row.inward.budget)]));
    const chosen = [first.value, second.value];
    first.replaceChildren(...names.map((name) => h("option", { value: name, text: name })));
    second.replaceChildren(h("option", { value: "", text: "no other" }), ...names.map((name) => h("option", { value: name, text: name })));
    // a list that comes again, with a new key, takes no choice back
    [first, second].forEach((list, i) => { if (names.includes(chosen[i])) list.value = chosen[i]; });
  }
  async function refusal(answer) {
    try { const found = await answer.json(); return found.error && found.error.message ? found.error.message : answer.statusText; } catch (error) { return `${answer.status} ${answer.statusText}`; }
  }
  // Where each answer is told: one line for one model; of two each has its own, under its name.
  function lines(names) {
    if (names.length < 2) { said.replaceChildren(); return [said]; }
    const made = names.map((name) => ({ name, text: h("span") }));
    said.replaceChildren(...made.map(({ name, text }) => h("p", {}, h("b", { text: name }), text)));
    return made.map(({ text }) => text);
  }
  const FAULTS = { "no solution": "The puzzle has no solution: no answer can be right.", "several solutions": "The puzzle allows more than one answer." };

  async function think(model, index, control, line) {
    const body = { model, question: question.value, trace: (traces[model] || []).length ? traces[model] : true };
    Object.assign(body, effortOf(effort.value.trim()));
    const answer = await fetch(live.events, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: control.signal });
    if (!answer.ok) throw new Error(await refusal(answer));
    let growing = null, drawn = 0;
    for await (const event of streamed(answer)) {
      if (event.error) throw new Error(event.error.message || String(event.error));
      if (!growing) growing = new Growing(event.kind === "begin" ? event : { model, method: event.method || "plain" });
      if (event.kind === "begin") { control.id = event.id; now.disabled = !running.some((one) => one.id && one.thinks); continue; }
      growing.feed(event);
      if (event.kind === "word") line.textContent += event.text || "";
      const fault = event.kind === "end" && FAULTS[(event.answer || {}).fault];
      if (fault) line.textContent += `${line.textContent ? "\n" : ""}${fault}`;
      if (growing.over || performance.now() - drawn > 60) { player.grow(index, growing.trace); drawn = performance.now(); }
    }
    if (growing) player.grow(index, growing.trace);
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running.forEach((control) => control.abort());
    const names = [first.value, ...(second.value ? [second.value] : [])];
    running = names.map((name) => Object.assign(new AbortController(), { thinks: thinks[name] }));
    const mine = running, told = lines(names);
    player.setTraces([]);
    go.disabled = true;
    halt.disabled = false;
    const ends = await Promise.allSettled(names.map((name, i) => think(name, i, mine[i], told[i])));
    ends.forEach((end, i) => { if (end.status === "rejected" && end.reason.name !== "AbortError") told[i].textContent = end.reason.message; });
    if (mine === running) { go.disabled = false; halt.disabled = now.disabled = true; }
  });
  // The server ends the answer, so that what was said and its trace still come; without an id there is nothing to keep.
  async function end(control, action) {
    if (!control.id) return control.abort();
    const answer = await fetch(live.control, { method: "POST", headers: headers(), body: JSON.stringify({ id: control.id, action }) });
    if (!answer.ok && answer.status !== 404) throw new Error(await refusal(answer));
  }
  halt.addEventListener("click", () => running.forEach((control) => end(control, "cancel").catch((error) => { control.abort(); said.textContent = error.message; })));
  now.addEventListener("click", () => running.filter((control) => control.id && control.thinks).forEach((control) => end(control, "reasoning_end").catch((error) => { said.append(` ${error.message}`); })));
  key.addEventListener("change", () => models().catch((error) => { said.textContent = error.message; }));
  models().catch((error) => { said.textContent = error.message; });
  return player;
}
