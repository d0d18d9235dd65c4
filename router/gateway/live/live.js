// The live page. Reads /live/events, draws, and talks to /v1/chat/completions. No libraries, nothing inline.
// Everything that came from outside is set as text, never as markup.

const STAGES = ["tokenize", "decide", "queue", "prefill", "wire", "commit", "decode_first"];
const STAGE_WORDS = { decode_first: "first decode" };
const HISTORY = 120;
const byId = (id) => document.getElementById(id);
const history = { threshold: [], tokens: [] };
let key = sessionStorage.getItem("prfaas-key") || "";
let model = "";
let turns = [];
let answering = null;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function bar(parts) {
  const node = make("div", "bar");
  for (const { share, colour, title } of parts) {
    const piece = make("i");
    piece.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    piece.style.background = colour;
    if (title) piece.title = title;
    node.append(piece);
  }
  return node;
}

function seconds(value) {
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  return value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}

function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) { value /= 1000; at += 1; }
  return `${value.toFixed(at && value < 100 ? 1 : 0)} ${units[at]}`;
}

const count = (value) => Math.round(value).toLocaleString("en");
const headers = (more = {}) => (key ? { authorization: `Bearer ${key}`, ...more } : more);

// Server-sent events over fetch, because EventSource cannot send a key.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
    }
  }
}

function showState(text, className) {
  byId("state").textContent = text;
  byId("state").className = `badge ${className}`;
}

function drawTiles(state) {
  byId("tile-flight").textContent = count(state.in_flight);
  history.tokens.push([state.now_s, state.generated_tokens]);
  if (history.tokens.length > 6) history.tokens.shift();
  const [oldest, newest] = [history.tokens[0], history.tokens[history.tokens.length - 1]];
  const span = newest[0] - oldest[0];
  byId("tile-rate").textContent = span > 0 ? ((newest[1] - oldest[1]) / span).toFixed(1) : "–";
  const ttfts = state.traces.map((trace) => trace.ttft_s).sort((a, b) => a - b);
  byId("tile-ttft").textContent = ttfts.length ? seconds(ttfts[Math.floor(ttfts.length / 2)]) : "–";
  const prompt = state.traces.reduce((sum, trace) => sum + trace.prompt_tokens, 0);
  const cached = state.traces.reduce((sum, trace) => sum + trace.cached_tokens, 0);
  byId("tile-cached").textContent = prompt ? `${((100 * cached) / prompt).toFixed(0)} %` : "–";
  byId("tile-threshold").textContent = count(state.threshold_tokens);
  history.threshold.push(state.threshold_tokens);
  if (history.threshold.length > HISTORY) history.threshold.shift();
  drawLine(byId("threshold"), history.threshold);
}

function drawLine(svg, values) {
  const top = Math.max(...values, 1) * 1.1;
  const points = values.map((value, at) => `${(240 * at) / Math.max(1, values.length - 1)},${36 - (36 * value) / top}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  line.setAttribute("fill", "none");
  line.setAttribute("stroke", "currentColor");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.replaceChildren(line);
}

function drawSites(state) {
  byId("sites").replaceChildren(...state.sites.map((site) => {
    const node = make("div", "site");
    const workers = make("div", "workers");
    workers.append(...site.workers.map(drawWorker));
    node.append(make("h3", "", site.name), workers);
    return node;
  }));
  byId("links").replaceChildren(...state.links.map(drawLink));
}

function drawWorker(worker) {
  const node = make("div", `worker ${worker.state}`);
  const name = make("div", "name", worker.id);
  name.append(make("span", "role", `${worker.role.replace("_", " ")} · ${worker.device}`));
  const { used, cached, free } = worker.blocks;
  const total = Math.max(1, used + cached + free);
  const blocks = bar([
    { share: used / total, colour: "var(--accent)", title: `${used} blocks in use` },
    { share: cached / total, colour: "var(--commit)", title: `${cached} blocks cached` },
  ]);
  const facts = [`${worker.running}/${worker.max_running} running`, `${worker.waiting} waiting`];
  if (worker.transfers) facts.push(`${worker.transfers} transfers`);
  if (worker.becomes) facts.push(`becomes ${worker.becomes.replace("_", " ")}`);
  else if (worker.state !== "healthy") facts.push(worker.state);
  node.append(name, blocks, make("div", "facts", facts.join(" · ")));
  return node;
}

function drawLink(link) {
  const node = make("div", "link");
  const known = link.use !== null;
  const colour = known && link.use > 0.8 ? "var(--warn)" : "var(--wire)";
  const facts = make("div", "facts");
  const rate = `${bytes(link.goodput_bytes_per_s)}/s${known ? ` of ${bytes(link.capacity_bytes_per_s)}/s` : ""}`;
  const more = [`RTT ${seconds(link.rtt_s)}`, `${bytes(link.queued_bytes)} queued`, `loss ${(100 * link.loss_ratio).toFixed(2)} %`];
  facts.append(make("span", "", `${link.src} → ${link.dst}: ${rate}`), make("span", "", more.join(" · ")));
  node.append(facts, bar([{ share: known ? link.use : 0, colour, title: rate }]));
  return node;
}

function drawTraces(state) {
  if (!state.traces.length) return;
  const longest = Math.max(...state.traces.map((trace) => trace.ttft_s));
  byId("waterfall").replaceChildren(...state.traces.slice(0, 20).map((trace) => {
    const node = make("div", "trace");
    const pieces = STAGES.map((stage) => ({
      share: (trace.stages[stage] || 0) / longest,
      colour: `var(--${stage})`,
      title: `${STAGE_WORDS[stage] || stage}: ${seconds(trace.stages[stage] || 0)}`,
    }));
    const facts = [seconds(trace.ttft_s), `${count(trace.prompt_tokens)} in`, `${count(trace.completion_tokens)} out`];
    if (trace.kv_bytes) facts.push(bytes(trace.kv_bytes));
    node.append(make("span", "", trace.route), bar(pieces), make("span", "facts", facts.join(" · ")));
    node.title = `${trace.request_id} on ${trace.worker}`;
    return node;
  }));
  const routes = Object.entries(state.finished).map(([route, total]) => make("span", "", `${route}: ${count(total)} requests`));
  byId("routes").replaceChildren(...routes);
}

function drawLegend() {
  byId("legend").replaceChildren(...STAGES.map((stage) => {
    const item = make("span");
    const patch = make("i");
    patch.style.background = `var(--${stage})`;
    item.append(patch, STAGE_WORDS[stage] || stage);
    return item;
  }));
}

async function watch() {
  for (;;) {
    try {
      const response = await fetch("/live/events", { headers: headers() });
      const refused = response.status === 401 ? "needs a key" : response.status === 403 ? "needs an admin's key" : "";
      byId("gate").hidden = !refused;
      if (refused) { showState(refused, "lost"); return; }
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      for await (const text of eventsOf(response)) {
        const state = JSON.parse(text);
        model = state.model;
        byId("model").textContent = model;
        showState(state.state, state.state);
        drawTiles(state);
        drawSites(state);
        drawTraces(state);
      }
    } catch (error) {
      console.warn("live events:", error);
    }
    showState("connection lost, retrying", "lost");
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

function addTurn(role, text) {
  const node = make("div", `turn ${role}`, text);
  byId("dialog").append(node);
  node.scrollIntoView({ block: "nearest" });
  return node;
}

async function ask(text) {
  addTurn("user", text);
  turns.push({ role: "user", content: text });
  const node = addTurn("assistant", "");
  const thought = make("span", "thought");
  const answer = make("span");
  node.append(thought, answer);
  answering = new AbortController();
  byId("send").textContent = "Stop";
  let report = null;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers({ "content-type": "application/json" }),
      signal: answering.signal,
      body: JSON.stringify({
        model, messages: turns, stream: true, prfaas_report: true,
        max_tokens: byId("max-tokens").valueAsNumber || 128,
        temperature: Number.isNaN(byId("temperature").valueAsNumber) ? 0.7 : byId("temperature").valueAsNumber,
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const text of eventsOf(response)) {
      if (text === "[DONE]") break;
      const chunk = JSON.parse(text);
      if (chunk.error) throw new Error(chunk.error.message);
      report = chunk.prfaas || report;
      const delta = chunk.choices.length ? chunk.choices[0].delta : {};
      thought.textContent += delta.reasoning_content || "";
      answer.textContent += delta.content || "";
      node.scrollIntoView({ block: "nearest" });
    }
  } catch (error) {
    if (error.name !== "AbortError") addTurn("error", error.message);
  }
  answering = null;
  byId("send").textContent = "Send";
  turns.push({ role: "assistant", content: answer.textContent });
  if (report) node.append(make("span", "how", howServed(report)));
}

function howServed(report) {
  const parts = [`${report.route} prefill on ${report.worker}`, `TTFT ${seconds(report.ttft_s)}`];
  if (report.kv_bytes) parts.push(`${bytes(report.kv_bytes)} of KV cache moved`);
  if (report.reasons.length) parts.push(report.reasons.join("; "));
  return parts.join(" · ");
}

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) { answering.abort(); return; }
  const text = byId("prompt").value.trim() || byId("prompt").placeholder;
  byId("prompt").value = "";
  ask(text);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); byId("chat-form").requestSubmit(); }
});
byId("clear").addEventListener("click", () => { turns = []; byId("dialog").replaceChildren(); });
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  sessionStorage.setItem("prfaas-key", key);
  watch();
});
byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

drawLegend();
watch();
