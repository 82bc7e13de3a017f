
"use strict";
// Asks /status.json once a second and writes what it says. Text goes in by textContent only.
const EVERY_MS = 1000, PATIENCE_MS = 4000, KEPT = 120;
const at = id => document.getElementById(id);
const put = (id, text) => { const e = at(id); if (e.textContent !== text) e.textContent = text; };
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const count = n => n === undefined ? "–" : n < 100000 ? whole.format(n) : short.format(n);
const span = ms => {
  if (ms === null || ms === undefined) return "–";
  const s = Math.max(ms, 0) / 1000;
  if (s < 1) return whole.format(ms > 0 ? ms : 0) + " ms";
  if (s < 120) return (s < 10 ? s.toFixed(1) : whole.format(s)) + " s";
  if (s < 7200) return whole.format(s / 60) + " min";
  return s < 172800 ? whole.format(s / 3600) + " h" : whole.format(s / 86400) + " days";
};
const ago = (now, time) => time === null ? "–" : span(now - time);
let before = null, answeredAt = performance.now(), rates = [];

function row(cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = document.createElement("td");
    if (cell instanceof Element) td.append(cell); else td.textContent = cell;
    tr.append(td);
  }
  tr.lastChild.className = "n";
  return tr;
}

function fill(body, rows, none) {
  at(body).replaceChildren(...(rows.length ? rows.map(row) : [row([none, ""])]));
}

function graph(now, s) {
  const figures = x => ({
    interactions: (x.sources.find(y => y.topic === "interactions") || {}).records,
    candidates: (x.sources.find(y => y.topic === "candidates") || {}).records,
    items: (x.sources.find(y => y.topic === "items") || {}).records,
    embeddings: (x.sources.find(y => y.topic === "embeddings") || {}).records,
    history: x.live.users, pairs: x.live.pairs, catalog: x.live.items, examples: x.totals.examples,
    eligible: x.cot.wanted, generate: x.cot.attempts, cot: x.cot.answered,
    texts: (x.queues.find(y => y.queue === "embed") || {}).depth, encoder: x.totals.embeddings,
    demonstrations: x.live.demonstrations, retrieval: x.live.features_full, ict: x.live.features,
    features: x.totals.features, neighbours: x.totals.examples,
  });
  const flows = ["interactions", "candidates", "items", "embeddings", "examples", "generate", "encoder", "features"];
  const values = figures(s), old = before && before.taken < s.taken_at ? before : null;
  for (const id in values) {
    put("v-" + id, count(values[id]));
    if (flows.includes(id) && old && old.values[id] !== undefined) {
      const rate = Math.max(values[id] - old.values[id], 0) / ((s.taken_at - old.taken) / 1000);
      put("r-" + id, rate > 0 ? " " + (rate < 10 ? rate.toFixed(1) : short.format(rate)) + "/s" : "");
      if (id === "features") rates.push(rate);
    }
  }
  rates = rates.slice(-KEPT);
  if (!before || s.taken_at > before.taken) before = { taken: s.taken_at, values };
}

function spark() {
  if (!rates.length) return;
  const most = Math.max(...rates), step = 240 / (KEPT - 1);
  const point = (r, n) => (n * step).toFixed(1) + " " + (42 - (most > 0 ? r / most : 0) * 40).toFixed(1);
  at("spark").setAttribute("d", "M" + rates.map(point).join("L"));
  put("rate", short.format(rates[rates.length - 1])); put("rate-most", short.format(most));
}

function show(answer) {
  const now = answer.now, s = answer.status, cot = s.cot;
  document.title = (answer.ready ? "ictflow " : "not ready: ictflow ") + s.job;
  put("job", s.job); put("epoch", count(s.epoch)); put("up", span(now - s.started_at));
  put("committed", s.committed_at === null ? "–" : ago(now, s.committed_at) + " ago");
  put("state", answer.ready ? "ready" : s.phase === "running" ? "not ready" : s.phase);
  at("state").className = "pill " + (answer.ready ? "good" : "bad");
  at("reasons").hidden = answer.ready;
  at("reasons").replaceChildren(...answer.reasons.map(r => {
    const li = document.createElement("li");
    li.textContent = r.code.replaceAll("_", " ") + ": " + r.detail;
    return li;
  }));
  graph(now, s); spark();
  const lags = s.sources.flatMap(x => x.lag);
  put("lag", lags.length ? count(lags.reduce((a, b) => a + b, 0)) : "–");
  put("age", span(s.event_age_ms)); put("f-output", ago(now, s.frontier_output));
  put("f-input", s.frontier_input === null ? "–" : ago(now, s.frontier_input) + " ago");
  put("f-cot", s.frontier_cot === null ? "–" : ago(now, s.frontier_cot) + " ago");
  put("oldest", cot.oldest_pending === null ? "none waits" : ago(now, cot.oldest_pending));
  put("epoch-ms", span(s.epoch_ms)); put("commit-ms", span(s.commit_ms)); put("recovery", span(s.recovery_ms));
  put("wanted", count(cot.wanted)); put("answered", count(cot.answered)); put("queued", count(cot.queued));
  put("in-flight", count(cot.in_flight)); put("failed", count(cot.failed));
  const coverage = cot.wanted ? cot.answered / cot.wanted : 1;
  put("coverage", (100 * coverage).toFixed(coverage < 1 ? 1 : 0) + " %"); at("coverage-bar").value = coverage;
  put("attempts", count(cot.attempts)); put("called", count(cot.called));
  put("amplification", cot.called ? (cot.first_calls / cot.called).toFixed(2) : "1");
  put("retry", cot.first_calls ? (cot.attempts / cot.first_calls).toFixed(2) : "1");
  put("tokens-in", count(cot.tokens_in)); put("tokens-out", count(cot.tokens_out));
  put("hits", count(cot.cache_hits)); put("cancelled", count(cot.cancelled));
  fill("queues", s.queues.map(q => {
    if (q.limit === null) return [q.queue.replaceAll("_", " "), "one a key or text", count(q.depth)];
    const meter = document.createElement("meter");
    meter.max = q.limit; meter.high = q.limit * 0.8; meter.value = q.depth;
    return [q.queue.replaceAll("_", " "), meter, count(q.depth) + " of " + count(q.limit)];
  }), "none yet");
  fill("failures", answer.dead_letters.map(([stage, reason, n]) => [stage + ": " + reason.replaceAll("_", " "), count(n)])
    .concat(s.errors.filter(e => e.count > 0).map(e =>
      [e.component + ", " + e.stage + ", last " + ago(now, e.last_at) + " ago: " + e.hint, count(e.count)])), "nothing");
  fill("versions", Object.entries(s.versions).map(([role, version]) => [role.replaceAll("_", " "), version]), "not known yet");
}

async function ask() {
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error("status " + response.status);
    show(await response.json());
    answeredAt = performance.now();
    at("silent").hidden = true;
  } catch (error) {
    put("silent", "The job doesn't answer since " + span(performance.now() - answeredAt) + ": has it ended? What stands below is old.");
    at("silent").hidden = false;
    put("state", "no answer"); at("state").className = "pill bad";
  }
  setTimeout(ask, EVERY_MS);
}
ask();
