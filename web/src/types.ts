// What the daemon says over HTTP and WebSocket, as far as this page reads it. Times are UTC epoch ms.

export interface Instrument {
  key: string;
  exchange: string;
  symbol: string;
  name: string;
  asset_class: string;
  currency: string;
  tick_size: number | null;
  provider: string | null;
}

export interface Quote {
  last_price: number;
  ts_ms: number;
  bid?: number;
  ask?: number;
  ltq?: number;
  cumulative_volume?: number;
  oi?: number;
  open?: number;
  high?: number;
  low?: number;
  previous_close?: number;
  src?: string;
  flags?: string[];
}

export interface Provider {
  code: string;
  name: string;
  state: string;
  reason: string | null;
  since_ms: number | null;
  connections?: number;
  subscribed?: number;
  instruments_live?: number;
  ticks_per_s?: number;
  last_tick_ms: number | null;
  latency_ms: { p50: number | null; p99: number | null };
  reconnects?: number;
  last_error: string | null;
  credential_expires_ms: number | null;
  unresolved?: string[];
}

export interface Sink {
  name: string;
  state: string;
  reason: string;
  queued: number;
  imbalance: number;
  written: number;
  spooled?: number;
  dropped: Record<string, number>;
  rejected: Record<string, number>;
}

export interface Account {
  account: string;
  imbalance: number;
  fault: boolean;
}

export interface SpoolChannel {
  name: string;
  records: number;
  size_bytes: number;
  limit_bytes: number;
  reason: string;
}

export interface Pipeline {
  phase?: string;
  published?: number;
  loop_lag_ms?: number;
  sinks?: Sink[];
  tasks?: { name: string; restarts: number; alive: boolean; last_error?: string | null }[];
  accounts?: Account[];
  spool?: SpoolChannel[];
  streams?: {
    groups?: { exchange: string; group: string; lag: number | null; pending: number; idle_ms: number | null; trimmed: boolean }[];
  };
  /** Feeds and instruments that bring less than they should, in words. */
  silence?: Record<string, string>;
  lease?: { role: string; reason?: string };
  mappings?: { version: number; instruments: number; state: string; reason: string };
  process?: { rss_bytes?: number; memory_limit_bytes?: number; open_descriptors?: number; descriptor_limit?: number };
}

export interface Clients {
  connected: number;
  watched: number;
  lag_ms_max: number;
  skipped: number;
  sessions?: ClientSession[];
}

export interface ClientSession {
  id: string;
  name: string;
  address: string;
  protocol: string;
  instruments: number;
  lag_ms: number;
  skipped: number;
  frames_out: number;
}

export interface Status {
  demo: boolean;
  time_ms: number;
  providers: Provider[];
  pipeline: Pipeline;
  clients: Clients;
}

export interface Readiness {
  ready: boolean;
  reasons: string[];
  degraded?: string[];
}

/** `[start in UTC epoch seconds, open, high, low, close, volume]`. */
export type Candle = [number, number, number, number, number, number | null];

export interface History {
  candles: Candle[];
  complete: boolean;
  /** From and to in UTC epoch seconds, and why. */
  missing?: [number, number, string][];
}

export interface Route {
  events: { at_ms: number; action: string; from: string | null; to: string | null; reason: string }[];
}

export type Message = { type: string; [field: string]: unknown };
