// Providers, sinks, spool, ledger, tasks and clients, as the daemon's status page tells them.

import { age, badge, DASH, el, make, orDash, pairs, whole, type Look } from "./dom";
import { serverNow } from "./state";
import type { Clients, Pipeline, Provider, Status } from "./types";

const PROVIDER_LOOKS: Record<string, Look> = {
  streaming: "good", stale: "warn", backing_off: "warn", parked: "bad", closed: "bad",
  connecting: "waiting", authenticating: "waiting", subscribing: "waiting", idle: "",
};
const SINK_LOOKS: Record<string, Look> = {
  ready: "good", starting: "waiting", unavailable: "bad", parked: "bad", closed: "bad",
};

/** What to say of a provider: its state, or that it is silent although it is connected, and why. */
export function wordOf(provider: Provider, pipeline: Pipeline): { look: Look; word: string; reason: string } {
  const reason = provider.reason || provider.last_error || "";
  if (provider.state === "streaming") {
    const about = `silence:${provider.code}:`;
    const alarms = Object.entries(pipeline.silence ?? {}).filter(([key]) => key.startsWith(about));
    const whole = alarms.some(([key]) => !key.endsWith(":instruments"));
    const said = alarms.map(([, text]) => text).join("; ");
    if (said) return { look: "warn", word: whole ? "silent" : "partly silent", reason: said };
  }
  return { look: PROVIDER_LOOKS[provider.state] ?? "", word: provider.state.replaceAll("_", " "), reason };
}

export function showStatus(status: Status): void {
  showProviders(status);
  showSinks(status.pipeline);
  showFigures(status.pipeline, status.clients);
  showClients(status.clients, status.pipeline);
}

function showProviders({ providers, pipeline }: Status): void {
  const cards = providers.map((provider) => providerCard(provider, pipeline));
  const none = make("p", "hint", "No providers are set up. Run: python data_migration/setup_providers.py");
  el("providers").replaceChildren(...(cards.length ? cards : [none]));
}

function providerCard(provider: Provider, pipeline: Pipeline): HTMLElement {
  const { look, word, reason } = wordOf(provider, pipeline);
  const card = make("article", "card");
  card.dataset.code = provider.code;
  const head = make("header");
  head.append(
    make("h3", "", `${provider.name} (${provider.code})`),
    badge(look, word),
  );
  card.append(head);
  if (reason) card.append(make("p", "reason", reason));
  const list = make("dl");
  const { p50, p99 } = provider.latency_ms;
  pairs(list, [
    ["Ticks / s", whole.format(provider.ticks_per_s ?? 0)],
    ["Live / asked", `${provider.instruments_live ?? 0} / ${provider.subscribed ?? 0}`],
    ["Last tick", orDash(provider.last_tick_ms, (ms) => age(Math.max(0, serverNow() - ms)))],
    ["Delay p50 / p99", `${orDash(p50, whole.format)} / ${orDash(p99, whole.format)} ms`],
    ["Reconnects", whole.format(provider.reconnects ?? 0)],
    ["Token left", orDash(provider.credential_expires_ms, (ms) => (ms <= serverNow() ? "expired" : age(ms - serverNow())))],
  ]);
  card.append(list);
  return card;
}

function showSinks(pipeline: Pipeline): void {
  const sinks = pipeline.sinks ?? [];
  el("sinks-hint").hidden = sinks.length > 0;
  el("sinks-hint").textContent = "No sinks are running.";
  el("sinks").replaceChildren(
    ...sinks.map((sink) => {
      const row = make("tr");
      const cell = make("td");
      cell.append(badge(SINK_LOOKS[sink.state] ?? "", sink.reason ? `${sink.state}: ${sink.reason}` : sink.state));
      row.append(make("td", "", sink.name.replaceAll("_", " ")), cell);
      const numbers: [number, boolean][] = [
        [sink.written, false], [sink.queued, false], [sink.spooled ?? 0, true],
        [sum(sink.dropped), true], [sum(sink.rejected), true], [sink.imbalance, true],
      ];
      for (const [value, alarming] of numbers) {
        row.append(make("td", `number${alarming && value ? " bad" : ""}`, whole.format(value)));
      }
      return row;
    }),
  );
}

function showFigures(pipeline: Pipeline, clients: Clients): void {
  const tasks = pipeline.tasks ?? [];
  const faults = (pipeline.accounts ?? []).filter((account) => account.fault);
  const spool = pipeline.spool ?? [];
  const used = spool.reduce((total, channel) => total + channel.size_bytes, 0);
  const limit = spool.reduce((total, channel) => total + channel.limit_bytes, 0);
  const process = pipeline.process ?? {};
  pairs(el("figures"), [
    ["Published", orDash(pipeline.published, whole.format)],
    ["Ledger", faults.length ? `${faults.length} do not balance` : "balances"],
    ["Disk spool", limit ? `${Math.round((100 * used) / limit)} % full` : DASH],
    ["Task restarts", whole.format(tasks.reduce((total, task) => total + task.restarts, 0))],
    ["Loop lag", orDash(pipeline.loop_lag_ms, (ms) => `${ms} ms`)],
    ["Memory", orDash(process.rss_bytes, (bytes) => `${Math.round(bytes / 2 ** 20)} MiB`)],
    ["Open files", orDash(process.open_descriptors, whole.format)],
    ["Role", orDash(pipeline.lease?.role, (role) => role.replaceAll("_", " "))],
    ["Mappings", orDash(pipeline.mappings, (it) => (it.reason ? it.state : `version ${it.version}`))],
    ["Clients", whole.format(clients.connected)],
    ["Slowest client", `${whole.format(clients.lag_ms_max)} ms behind`],
    ["Skipped messages", whole.format(clients.skipped)],
  ]);
}

function showClients(clients: Clients, pipeline: Pipeline): void {
  const groups = pipeline.streams?.groups ?? [];
  const rows = [
    ...(clients.sessions ?? []).map((it) => [`${it.name || "anonymous"} ${it.address}`, it.protocol === "sse" ? "event stream" : "WebSocket", whole.format(it.instruments), `${whole.format(it.lag_ms)} ms`, whole.format(it.skipped)]),
    ...groups.map((it) => [it.group, `stream ${it.exchange}`, `${whole.format(it.pending)} pending`, orDash(it.lag, (lag) => `${whole.format(lag)} entries`), it.trimmed ? "entries lost" : ""]),
  ];
  el("clients-hint").hidden = rows.length > 0;
  el("clients").replaceChildren(
    ...rows.map((cells) => {
      const row = make("tr");
      cells.forEach((text, place) => row.append(make("td", place > 1 ? "number" : "", text)));
      return row;
    }),
  );
}

const sum = (counts: Record<string, number>): number => Object.values(counts).reduce((total, count) => total + count, 0);
