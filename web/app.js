"use strict";
// The dashboard. It reads the same interface as everybody else: HTTP for status and lists, /ws for prices.

const STATUS_EVERY_MS = 2000;
const PRICE_EVERY_MS = 250;
const WATCH_ALL_UP_TO = 900; // the default limit of a client is 1000 instruments
const ROW_PX = 36;
const STALE_AFTER_MS = 60_000;
const PROVIDER_LOOKS = {
  streaming: "good", stale: "warn", backing_off: "warn", parked: "bad", closed: "bad",
  connecting: "waiting", authenticating: "waiting", subscribing: "waiting", idle: "",
};
const SINK_LOOKS = { ready: "good", starting: "waiting", unavailable: "bad", parked: "bad", closed: "bad" };

const el = (id) => document.getElementById(id);
const state = {
  token: sessionStorage.getItem("token") || "",
  instruments: [], // as the interface gives them
  shown: [], // filtered and sorted
  quotes: new Map(), // newest values by key
  direction: new Map(), // +1 or -1: how the last price moved
  sort: { column: "key", down: false },
  clockAheadMs: 0, // the daemon's clock less ours
  watched: new Set(),
};

// ---- small helpers ---------------------------------------------------------------------------

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function pill(node, look, text) {
  node.hidden = false;
  node.dataset.state = look;
  if (node.textContent !== text) node.textContent = text;
}

const whole = new Intl.NumberFormat("en");
const DASH = "–";

function price(value, tickSize) {
  if (value === undefined || value === null) return DASH;
  const digits = tickSize ? Math.max(0, Math.min(8, Math.ceil(-Math.log10(tickSize) - 1e-9))) : undefined;
  if (digits !== undefined) return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: Math.abs(value) < 10 ? 6 : 2 });
}

function age(ms) {
  if (ms < 1000) return "now";
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

const serverNow = () => Date.now() + state.clockAheadMs;
const orDash = (value, text) => (value === null || value === undefined ? DASH : text(value));

function notice(text, bad) {
  const node = el("notice");
  node.hidden = !text;
  node.classList.toggle("bad", Boolean(bad));
  if (node.textContent !== text) node.textContent = text;
}

// ---- asking over HTTP ------------------------------------------------------------------------

class Unauthorized extends Error {}

async function ask(path) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const response = await fetch(path, { headers, signal: AbortSignal.timeout(8000) });
  if (response.status === 401) throw new Unauthorized();
  if (!response.ok && response.status !== 503) throw new Error(`the daemon answers ${response.status}`);
  return response.json();
}

function askForToken(wasWrong) {
  el("sign-in").hidden = false;
  el("sign-in-error").textContent = wasWrong ? "This token is not valid." : "";
  for (const section of document.querySelectorAll("main > section")) section.hidden = true;
  pill(el("link"), "bad", "Not signed in");
  socket.stop();
  el("token").focus();
}

el("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = el("token").value.trim();
  sessionStorage.setItem("token", state.token);
  el("token").value = "";
  el("sign-in").hidden = true;
  for (const section of document.querySelectorAll("main > section")) section.hidden = false;
  start();
});

el("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem("token");
  location.reload();
});

// ---- status ----------------------------------------------------------------------------------

let statusTimer = 0;

async function refreshStatus() {
  clearTimeout(statusTimer);
  try {
    const [status, readiness] = await Promise.all([ask("/api/providers/status"), ask("/readyz")]);
    document.body.classList.remove("outdated");
    state.clockAheadMs = status.time_ms - Date.now();
    showDemo(status.demo);
    showProviders(status.providers);
    showPipeline(status);
    pill(el("ready"), readiness.ready ? "good" : "warn", readiness.ready ? "Data flows" : "Data does not flow");
    notice(readiness.ready ? "" : `Not ready: ${readiness.reasons.join("; ")}`, false);
  } catch (error) {
    if (error instanceof Unauthorized) return askForToken(Boolean(state.token));
    el("ready").hidden = true;
    document.body.classList.add("outdated");
    notice("The daemon does not answer. What you see is the last state it gave; trying again.", true);
  }
  statusTimer = setTimeout(refreshStatus, document.hidden ? 5 * STATUS_EVERY_MS : STATUS_EVERY_MS);
}

function showDemo(demo) {
  el("demo-banner").hidden = !demo;
  document.title = demo ? "DEMO · marketd" : "marketd";
}

function pairs(list, entries) {
  for (const [name, value] of entries) {
    const group = make("div");
    group.append(make("dt", "", name), make("dd", "", value));
    list.append(group);
  }
}

function showProviders(providers) {
  const cards = providers.map((provider) => {
    const card = make("article", "card");
    const head = make("header");
    const badge = make("p", "pill", provider.state.replaceAll("_", " "));
    badge.dataset.state = PROVIDER_LOOKS[provider.state] ?? "";
    head.append(make("h3", "", `${provider.name} (${provider.code})`), badge);
    card.append(head);
    const reason = provider.reason || provider.last_error;
    if (reason) card.append(make("p", "reason", reason));
    const list = make("dl");
    const { p50, p99 } = provider.latency_ms;
    pairs(list, [
      ["Ticks / s", whole.format(provider.ticks_per_s ?? 0)],
      ["Live / asked", `${provider.instruments_live ?? 0} / ${provider.subscribed ?? 0}`],
      ["Last tick", orDash(provider.last_tick_ms, (ms) => age(serverNow() - ms))],
      ["Delay p50 / p99", `${orDash(p50, whole.format)} / ${orDash(p99, whole.format)} ms`],
      ["Connections", whole.format(provider.connections ?? 0)],
      ["Reconnects", whole.format(provider.reconnects ?? 0)],
    ]);
    card.append(list);
    return card;
  });
  el("providers").replaceChildren(
    ...(cards.length ? cards : [make("p", "hint", "No providers are set up. Run: python data_migration/setup_providers.py")]),
  );
}

function showPipeline({ pipeline, clients }) {
  const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);
  const sinks = pipeline.sinks ?? [];
  el("sinks-hint").hidden = sinks.length > 0;
  el("sinks-hint").textContent = "No sinks are running.";
  el("sinks").replaceChildren(
    ...sinks.map((sink) => {
      const row = make("tr");
      const badge = make("span", "pill", sink.reason ? `${sink.state}: ${sink.reason}` : sink.state);
      badge.dataset.state = SINK_LOOKS[sink.state] ?? "";
      const cell = make("td");
      cell.append(badge);
      row.append(make("td", "", sink.name), cell);
      for (const [value, alarming] of [
        [sink.written, false], [sink.queued, false], [sum(sink.dropped), true],
        [sum(sink.rejected), true], [sink.imbalance, true],
      ]) {
        row.append(make("td", `number${alarming && value ? " bad" : ""}`, whole.format(value)));
      }
      return row;
    }),
  );
  const restarts = (pipeline.tasks ?? []).reduce((total, task) => total + task.restarts, 0);
  const figures = el("figures");
  figures.replaceChildren();
  pairs(figures, [
    ["Clients", whole.format(clients.connected)],
    ["Watched", whole.format(clients.watched)],
    ["Slowest client", `${whole.format(clients.lag_ms_max)} ms behind`],
    ["Skipped messages", whole.format(clients.skipped)],
    ["Task restarts", whole.format(restarts)],
    ["Published", orDash(pipeline.published, whole.format)],
  ]);
}

// ---- the table -------------------------------------------------------------------------------

const COLUMNS = [
  { id: "key", label: "Instrument", of: (item) => item.key },
  { id: "price", label: "Last", number: true, of: (item) => quote(item)?.last_price },
  { id: "change", label: "Change", number: true, of: (item) => change(quote(item)) },
  { id: "bid", label: "Bid", number: true, minor: true, of: (item) => quote(item)?.bid },
  { id: "ask", label: "Ask", number: true, minor: true, of: (item) => quote(item)?.ask },
  { id: "volume", label: "Volume", number: true, minor: true, of: (item) => quote(item)?.cumulative_volume },
  { id: "age", label: "Age", number: true, of: (item) => quote(item)?.ts_ms },
  { id: "source", label: "Source", minor: true, of: (item) => quote(item)?.src ?? item.provider },
];
const quote = (item) => state.quotes.get(item.key);

function change(values) {
  if (!values || !values.previous_close) return undefined;
  return ((values.last_price - values.previous_close) / values.previous_close) * 100;
}

for (const column of COLUMNS) {
  const head = make("th", `${column.number ? "number " : ""}${column.minor ? "minor" : ""}`.trim());
  head.scope = "col";
  head.dataset.column = column.id;
  const button = make("button", "", column.label);
  button.type = "button";
  button.addEventListener("click", () => {
    const same = state.sort.column === column.id;
    state.sort = { column: column.id, down: same ? !state.sort.down : Boolean(column.number) };
    arrange();
  });
  head.append(button);
  el("columns").append(head);
}

function arrange() {
  const words = el("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const exchange = el("exchange").value;
  const shown = state.instruments.filter(
    (item) => (!exchange || item.exchange === exchange) && words.every((word) => item.searchable.includes(word)),
  );
  const column = COLUMNS.find((candidate) => candidate.id === state.sort.column);
  // Age sorts by time, so the other way round; what is unknown always stands last.
  const sign = (state.sort.down ? -1 : 1) * (column.id === "age" ? -1 : 1);
  const values = new Map(shown.map((item) => [item, column.of(item)]));
  shown.sort((a, b) => {
    const left = values.get(a);
    const right = values.get(b);
    if (left === undefined || left === null || right === undefined || right === null) {
      return (left === undefined || left === null) - (right === undefined || right === null) || (a.key < b.key ? -1 : 1);
    }
    if (left === right) return a.key < b.key ? -1 : 1;
    return (left < right ? -1 : 1) * sign;
  });
  state.shown = shown;
  for (const head of el("columns").children) {
    const active = head.dataset.column === state.sort.column;
    head.ariaSort = active ? (state.sort.down ? "descending" : "ascending") : "none";
    const label = COLUMNS.find((candidate) => candidate.id === head.dataset.column).label;
    head.firstChild.textContent = active ? `${label} ${state.sort.down ? "↓" : "↑"}` : label;
  }
  el("count").textContent =
    shown.length === state.instruments.length ? whole.format(shown.length) : `${whole.format(shown.length)} of ${whole.format(state.instruments.length)}`;
  const hint = el("table-hint");
  hint.hidden = shown.length > 0;
  hint.textContent = state.instruments.length
    ? "Nothing matches the search."
    : "No instruments are mapped. Run: python data_migration/populate_instrument_mappings.py";
  draw();
}

// Only the rows in view exist; spacers stand for the rest, so thousands of instruments scroll smoothly.
const pool = new Map(); // key -> row
let drawnWindow = "";

function draw() {
  const scroller = el("scroller");
  const first = Math.max(0, Math.floor(scroller.scrollTop / ROW_PX) - 10);
  const last = Math.min(state.shown.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW_PX) + 10);
  const visible = state.shown.slice(first, last);
  const keys = visible.map((item) => item.key).join("\n");
  if (keys !== drawnWindow || !keys) {
    drawnWindow = keys;
    const rows = visible.map((item) => pool.get(item.key) ?? newRow(item));
    pool.clear();
    visible.forEach((item, index) => pool.set(item.key, rows[index]));
    el("rows").replaceChildren(spacer(first), ...rows, spacer(state.shown.length - last));
  }
  for (const item of visible) fillRow(pool.get(item.key), item);
  watchSoon();
}

function spacer(count) {
  const row = make("tr", "spacer");
  const cell = make("td");
  cell.colSpan = COLUMNS.length;
  cell.style.height = `${count * ROW_PX}px`;
  row.append(cell);
  row.hidden = count === 0;
  return row;
}

function newRow(item) {
  const row = make("tr");
  for (const column of COLUMNS) {
    const cell = make("td", `${column.number ? "number " : ""}${column.minor ? "minor" : ""}`.trim());
    row.append(cell);
  }
  const name = row.children[0];
  name.className = "name";
  name.append(make("span", "", item.key), make("small", "", item.name === item.symbol ? "" : item.name));
  name.title = item.name;
  row.children[1].classList.add("price");
  return row;
}

function put(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

function fillRow(row, item) {
  const values = quote(item);
  const [, last, moved, bid, ask, volume, time, source] = row.children;
  put(last, price(values?.last_price, item.tick_size));
  const percent = change(values);
  put(moved, percent === undefined ? DASH : `${percent < 0 ? "▼" : percent > 0 ? "▲" : ""} ${Math.abs(percent).toFixed(2)} %`);
  moved.classList.toggle("rise", percent > 0);
  moved.classList.toggle("fall", percent < 0);
  put(bid, price(values?.bid, item.tick_size));
  put(ask, price(values?.ask, item.tick_size));
  put(volume, orDash(values?.cumulative_volume, whole.format));
  const olderMs = values ? serverNow() - values.ts_ms : undefined;
  put(time, orDash(olderMs, (ms) => age(Math.max(0, ms))));
  time.classList.toggle("quiet", olderMs === undefined || olderMs > STALE_AFTER_MS);
  put(source, values?.src ?? item.provider ?? DASH);
}

function flash(keys) {
  const cells = keys.map((key) => [key, pool.get(key)?.children[1]]).filter(([, cell]) => cell);
  for (const [, cell] of cells) cell.classList.remove("went-up", "went-down");
  void el("rows").offsetWidth; // restarts the animations
  for (const [key, cell] of cells) cell.classList.add(state.direction.get(key) > 0 ? "went-up" : "went-down");
}

function takeQuotes(quotes) {
  const moved = [];
  for (const [key, values] of Object.entries(quotes)) {
    const before = state.quotes.get(key);
    // A tick names what it knows; what it does not repeat still holds.
    state.quotes.set(key, { ...before, ...values });
    if (before && before.last_price !== values.last_price) {
      state.direction.set(key, Math.sign(values.last_price - before.last_price));
      moved.push(key);
    }
  }
  requestDraw();
  if (moved.length) flash(moved);
}

let drawRequested = false;
function requestDraw() {
  if (drawRequested) return;
  drawRequested = true;
  requestAnimationFrame(() => {
    drawRequested = false;
    draw();
  });
}

el("scroller").addEventListener("scroll", requestDraw, { passive: true });
addEventListener("resize", requestDraw);
el("search").addEventListener("input", () => { el("scroller").scrollTop = 0; arrange(); });
el("exchange").addEventListener("change", () => { el("scroller").scrollTop = 0; arrange(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    el("search").focus();
  }
});
setInterval(requestDraw, 1000); // ages
setInterval(() => { if (state.sort.column !== "key" && state.sort.column !== "source") arrange(); }, 3000);

async function loadInstruments() {
  const { instruments } = await ask("/api/instruments?limit=10000");
  for (const item of instruments) item.searchable = `${item.key} ${item.name}`.toLowerCase();
  state.instruments = instruments;
  const select = el("exchange");
  const chosen = select.value;
  const exchanges = [...new Set(instruments.map((item) => item.exchange))].sort();
  select.replaceChildren(new Option("All exchanges", ""), ...exchanges.map((name) => new Option(name, name)));
  select.value = exchanges.includes(chosen) ? chosen : "";
  arrange();
}

// ---- live prices -----------------------------------------------------------------------------

const socket = {
  connection: null,
  attempts: 0,
  timer: 0,
  stopped: true,

  start() {
    this.stop();
    this.stopped = false;
    this.open();
  },

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    this.connection?.close();
    this.connection = null;
  },

  open() {
    state.watched.clear();
    const connection = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    this.connection = connection;
    connection.onopen = () => {
      if (state.token) this.send({ action: "auth", token: state.token });
      const cameBack = this.attempts > 0;
      this.attempts = 0;
      pill(el("link"), "good", "Live");
      watch();
      if (cameBack) refreshAll();
    };
    connection.onmessage = (event) => {
      if (connection !== this.connection) return;
      const message = JSON.parse(event.data);
      if (message.type === "raw_tick") takeQuotes(message.data);
      else if (message.type === "subscribed") takeQuotes(message.snapshot);
    };
    connection.onclose = (event) => {
      if (connection !== this.connection || this.stopped) return;
      // Codes from 4500 on say that coming back is of no use.
      if (event.code === 4500) return askForToken(true);
      if (event.code >= 4501) return pill(el("link"), "bad", `Closed by the daemon (${event.code})`);
      this.attempts += 1;
      // Full jitter, so that many dashboards do not come back in the same moment.
      const waitMs = 300 + Math.random() * Math.min(10_000, 500 * 2 ** this.attempts);
      pill(el("link"), "warn", "Reconnecting");
      this.timer = setTimeout(() => this.open(), waitMs);
    };
  },

  send(message) {
    if (this.connection?.readyState === WebSocket.OPEN) this.connection.send(JSON.stringify(message));
  },
};

let watchTimer = 0;
function watchSoon() {
  if (!watchTimer) watchTimer = setTimeout(() => { watchTimer = 0; watch(); }, 250);
}

function watch() {
  if (socket.connection?.readyState !== WebSocket.OPEN) return;
  const wanted = state.instruments.length <= WATCH_ALL_UP_TO ? state.instruments.map((item) => item.key) : [...pool.keys()];
  const wantedSet = new Set(wanted);
  const gone = [...state.watched].filter((key) => !wantedSet.has(key));
  const fresh = wanted.filter((key) => !state.watched.has(key));
  state.watched = wantedSet;
  // A message may have 16 KiB: 200 keys fit with room to spare.
  for (let at = 0; at < gone.length; at += 200) socket.send({ action: "unsubscribe", instruments: gone.slice(at, at + 200) });
  for (let at = 0; at < fresh.length; at += 200) {
    socket.send({ action: "subscribe", instruments: fresh.slice(at, at + 200), delivery: "latest", every_ms: PRICE_EVERY_MS });
  }
}

// ---- theme and start -------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  const theme = localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  el("theme").textContent = theme === "dark" ? "Light" : "Dark";
}
el("theme").addEventListener("click", () => {
  localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  applyTheme();
});
dark.addEventListener("change", applyTheme);
applyTheme();

async function start() {
  el("sign-out").hidden = !state.token;
  clearTimeout(statusTimer);
  try {
    await loadInstruments();
    socket.start();
  } catch (error) {
    if (error instanceof Unauthorized) return askForToken(Boolean(state.token));
    pill(el("link"), "warn", "Reconnecting");
    setTimeout(start, 2000);
  }
  refreshStatus();
}

async function refreshAll() {
  try {
    await loadInstruments();
  } catch {
    return; // the status says what is wrong, and the next round tries again
  }
  refreshStatus();
}

setInterval(refreshAll, 60_000);
start();
