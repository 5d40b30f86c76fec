// The WebSocket: one connection that comes back by itself, and what is watched over it.

import { token } from "./api";
import type { Message } from "./types";

export type LinkState = "connecting" | "live" | "reconnecting" | "refused" | "closed";
type Listener = (message: Message) => void;

/** What is watched of a channel beside ticks and charts; the answer's `id` is the channel's name. */
export interface Beside {
  key: string;
  every_ms: number;
  levels?: number;
  expiry?: string;
}

const FRAME_KEYS = 200; // a message may have 16 KiB: so many keys fit with room to spare

export class Socket {
  onState: (state: LinkState, detail: string) => void = () => {};
  onReturn: () => void = () => {};
  private connection: WebSocket | null = null;
  private listeners = new Set<Listener>();
  private ticks = new Map<string, number>();
  private chart: { key: string; interval: string } | null = null;
  private beside = new Map<"depth" | "options", Beside>();
  private attempts = 0;
  private timer = 0;
  private stopped = true;

  listen(listener: Listener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  start(): void {
    this.stop();
    this.stopped = false;
    this.onState("connecting", "");
    this.open();
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.timer);
    const connection = this.connection;
    this.connection = null;
    connection?.close();
  }

  /** Watch the newest prices of exactly these instruments, at most every so many ms. */
  watchTicks(keys: Iterable<string>, everyMs: number): void {
    const wanted = new Map([...keys].map((key) => [key, everyMs]));
    const gone = [...this.ticks.keys()].filter((key) => !wanted.has(key) && key !== this.chart?.key);
    const fresh = [...wanted.keys()].filter((key) => !this.ticks.has(key) && key !== this.chart?.key);
    this.ticks = wanted;
    for (const some of pieces(gone)) this.endFlow(some);
    for (const some of pieces(fresh)) this.subscribeTicks(some, everyMs);
  }

  /** Watch the bars of one instrument, or of none. `interval` is in minutes, or `1D`. */
  watchChart(chart: { key: string; interval: string } | null): void {
    const before = this.chart;
    this.chart = chart;
    if (before && before.key !== chart?.key) {
      const everyMs = this.ticks.get(before.key);
      if (everyMs === undefined) this.endFlow([before.key]);
      else this.subscribeTicks([before.key], everyMs);
    }
    if (chart) this.subscribeChart();
  }

  /** Watch the depth or the option chain of one instrument, or of none. */
  watchBeside(channel: "depth" | "options", wish: Beside | null): void {
    const before = this.beside.get(channel);
    if (before && before.key !== wish?.key) {
      this.send({ action: "unsubscribe", instruments: [before.key], channels: [channel] });
    }
    if (wish) this.beside.set(channel, wish);
    else this.beside.delete(channel);
    this.subscribeBeside(channel);
  }

  private subscribeBeside(channel: "depth" | "options"): void {
    const wish = this.beside.get(channel);
    if (!wish) return;
    const { key, ...how } = wish;
    this.send({ action: "subscribe", id: channel, instruments: [key], channels: [channel], ...how });
  }

  private endFlow(instruments: string[]): void {
    this.send({ action: "unsubscribe", instruments, channels: ["tick", "chart"] });
  }

  private subscribeTicks(instruments: string[], every_ms: number): void {
    this.send({ action: "subscribe", instruments, delivery: "latest", every_ms });
  }

  private subscribeChart(): void {
    if (!this.chart) return;
    const { key, interval } = this.chart;
    const wish = { instruments: [key], channels: ["tick", "chart"], interval, delivery: "latest", every_ms: 250 };
    this.send({ action: "subscribe", ...wish });
  }

  private open(): void {
    const connection = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    this.connection = connection;
    connection.onopen = () => {
      if (token()) this.send({ action: "auth", token: token() });
      const cameBack = this.attempts > 0;
      this.attempts = 0;
      this.onState("live", "");
      const everyMs = this.ticks.values().next().value;
      for (const some of pieces([...this.ticks.keys()])) this.subscribeTicks(some, everyMs ?? 250);
      this.subscribeChart();
      for (const channel of this.beside.keys()) this.subscribeBeside(channel);
      if (cameBack) this.onReturn();
    };
    connection.onmessage = (event) => {
      if (connection !== this.connection) return;
      const message = JSON.parse(event.data as string) as Message;
      for (const listener of this.listeners) listener(message);
    };
    connection.onclose = (event) => {
      if (connection !== this.connection || this.stopped) return;
      // Codes from 4500 on say that coming back is of no use.
      if (event.code === 4500) return this.onState("refused", event.reason);
      if (event.code > 4500) return this.onState("closed", `${event.reason} (${event.code})`);
      this.attempts += 1;
      // Full jitter, so that many dashboards do not come back in the same moment.
      const waitMs = 300 + Math.random() * Math.min(10_000, 500 * 2 ** this.attempts);
      this.onState("reconnecting", "");
      this.timer = window.setTimeout(() => this.open(), waitMs);
    };
  }

  private send(message: Record<string, unknown>): void {
    if (this.connection?.readyState === WebSocket.OPEN) this.connection.send(JSON.stringify(message));
  }
}

function* pieces(keys: string[]): Generator<string[]> {
  for (let at = 0; at < keys.length; at += FRAME_KEYS) yield keys.slice(at, at + FRAME_KEYS);
}
