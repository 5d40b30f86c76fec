// The dashboard. It reads the same interface as everybody else: HTTP for status and lists, /ws for prices.

import "./style.css";
import { ask, forgetToken, token, Unauthorized, useToken } from "./api";
import { ChartPanel } from "./chart";
import { DepthPanel } from "./depth";
import { el, pill } from "./dom";
import { hearEvents, note, takeEvent } from "./events";
import { OptionsPanel } from "./options";
import { Socket, type LinkState } from "./socket";
import { showStatus, wordOf } from "./status";
import { state, takeQuotes, type Listed } from "./state";
import { flash, requestDraw, select, setUpTable, showInstruments, visibleKeys } from "./table";
import type { Instrument, Quote, Readiness, Status } from "./types";

const STATUS_EVERY_MS = 2000;
const PRICE_EVERY_MS = 250;
const WATCH_ALL_UP_TO = 900; // the default limit of a client is 1000 instruments
const OPTION_KINDS = new Set(["equity", "etf", "index"]);

const socket = new Socket();
const chart = new ChartPanel(socket);
const options = new OptionsPanel(socket);
const depth = new DepthPanel(socket);
let statusTimer = 0;
let watchTimer = 0;
let providerStates = new Map<string, string>();

// ---- signing in ------------------------------------------------------------------------------

const sections = (): NodeListOf<HTMLElement> => document.querySelectorAll("main > section:not(.optional)");

function askForToken(wasWrong: boolean): void {
  clearTimeout(statusTimer);
  socket.stop();
  el("sign-in").hidden = false;
  el("sign-in-error").textContent = wasWrong ? "This token is not valid." : "";
  for (const section of sections()) section.hidden = true;
  chart.close();
  options.close();
  depth.close();
  pill(el("link"), "bad", "Not signed in");
  el("ready").hidden = true;
  el("token").focus();
}

el("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = el<HTMLInputElement>("token");
  useToken(field.value.trim());
  field.value = "";
  el("sign-in").hidden = true;
  for (const section of sections()) section.hidden = false;
  void start();
});

el("sign-out").addEventListener("click", () => {
  forgetToken();
  location.reload();
});

// ---- status ----------------------------------------------------------------------------------

function notice(text: string, bad: boolean): void {
  const node = el("notice");
  node.hidden = !text;
  node.classList.toggle("bad", bad);
  if (node.textContent !== text) node.textContent = text;
}

async function refreshStatus(): Promise<void> {
  clearTimeout(statusTimer);
  try {
    const [status, readiness] = await Promise.all([ask<Status>("/api/providers/status"), ask<Readiness>("/readyz")]);
    document.body.classList.remove("outdated");
    state.clockAheadMs = status.time_ms - Date.now();
    el("demo-banner").hidden = !status.demo;
    document.title = status.demo ? "DEMO · marketd" : "marketd";
    showStatus(status);
    noteProviders(status);
    pill(el("ready"), readiness.ready ? "good" : "warn", readiness.ready ? "Data flows" : "Data does not flow");
    const trouble = readiness.ready ? (readiness.degraded ?? []) : readiness.reasons;
    notice(trouble.length ? `${readiness.ready ? "Degraded" : "Not ready"}: ${trouble.join("; ")}` : "", false);
  } catch (error) {
    if (error instanceof Unauthorized) return askForToken(Boolean(token()));
    el("ready").hidden = true;
    document.body.classList.add("outdated");
    notice("The daemon does not answer. What you see is the last state it gave; trying again.", true);
  }
  statusTimer = window.setTimeout(() => void refreshStatus(), document.hidden ? 5 * STATUS_EVERY_MS : STATUS_EVERY_MS);
}

function noteProviders(status: Status): void {
  const seen = new Map<string, string>();
  for (const provider of status.providers) {
    const { word, reason } = wordOf(provider, status.pipeline);
    const before = providerStates.get(provider.code);
    seen.set(provider.code, word);
    if (before !== undefined && before !== word && !["connecting", "authenticating", "subscribing"].includes(word)) {
      note("provider", "*", `${provider.code} is ${word}${reason ? `: ${reason}` : ""}`);
    }
  }
  providerStates = seen;
}

// ---- instruments and prices ------------------------------------------------------------------

async function loadInstruments(): Promise<void> {
  const { instruments } = await ask<{ instruments: Instrument[] }>("/api/instruments?limit=10000");
  showInstruments(instruments.map((item) => ({ ...item, searchable: `${item.key} ${item.name}`.toLowerCase() })));
}

function watchSoon(): void {
  if (watchTimer) return;
  watchTimer = window.setTimeout(() => {
    watchTimer = 0;
    const all = state.instruments.length <= WATCH_ALL_UP_TO;
    socket.watchTicks(all ? state.instruments.map((item) => item.key) : visibleKeys(), PRICE_EVERY_MS);
  }, 250);
}

function choose(item: Listed): void {
  chart.show(item);
  el("options-open").hidden = !OPTION_KINDS.has(item.asset_class);
  if (depth.open) depth.show(item);
  const address = `#${item.key}`;
  if (location.hash !== address) history.replaceState(null, "", address);
  el("chart-panel").scrollIntoView({ block: "nearest" });
}

function chooseByAddress(): void {
  const key = decodeURIComponent(location.hash.slice(1));
  const item = state.instruments.find((one) => one.key === key);
  if (item) {
    select(item.key);
    choose(item);
  }
}

el("options-open").addEventListener("click", () => void options.show(chart.key));
el("depth-open").addEventListener("click", () => {
  const item = state.instruments.find((one) => one.key === chart.key);
  if (item) depth.show(item);
});
chart.onClosed = () => history.replaceState(null, "", location.pathname);
hearEvents((event) => chart.heard(event));
addEventListener("hashchange", chooseByAddress);

socket.listen((message) => {
  if (message.type === "raw_tick" || message.type === "subscribed") {
    const quotes = (message.type === "raw_tick" ? message.data : message.snapshot) as Record<string, Quote>;
    const moved = takeQuotes(quotes);
    requestDraw();
    if (moved.length) flash(moved);
    if (chart.key in quotes) chart.showPrice();
  } else {
    takeEvent(message);
  }
});

socket.onState = (link: LinkState, detail: string) => {
  if (link === "refused") return askForToken(true);
  if (link === "live") pill(el("link"), "good", "Live");
  else if (link === "closed") pill(el("link"), "bad", `Closed by the daemon: ${detail}`);
  else pill(el("link"), link === "connecting" ? "waiting" : "warn", link === "connecting" ? "Connecting" : "Reconnecting");
};
socket.onReturn = () => {
  void refreshAll();
  chart.refresh();
};

async function refreshAll(): Promise<void> {
  try {
    await loadInstruments();
  } catch {
    return; // the status says what is wrong, and the next round tries again
  }
  void refreshStatus();
}

// ---- theme, keys, start ----------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme(): void {
  const theme = localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  el("theme").textContent = theme === "dark" ? "Light" : "Dark";
  chart.paint();
}

el("theme").addEventListener("click", () => {
  localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  applyTheme();
});
dark.addEventListener("change", applyTheme);

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT)$/.test(document.activeElement?.tagName ?? "");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    el("search").focus();
  } else if (event.key === "Escape") {
    if (!el("options-panel").hidden) options.close();
    else if (depth.open) depth.close();
    else if (chart.key) chart.close();
  }
});

async function start(): Promise<void> {
  el("sign-out").hidden = !token();
  clearTimeout(statusTimer);
  try {
    await loadInstruments();
    socket.start();
    chooseByAddress();
  } catch (error) {
    if (error instanceof Unauthorized) return askForToken(Boolean(token()));
    pill(el("link"), "warn", "Reconnecting");
    setTimeout(() => void start(), 2000);
  }
  void refreshStatus();
}

setUpTable(watchSoon, choose);
applyTheme();
setInterval(() => void refreshAll(), 60_000);
void start();
