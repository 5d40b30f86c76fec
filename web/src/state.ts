// What the page knows: instruments, newest values, a short past of each for its sparkline.

import type { Instrument, Quote } from "./types";

const SPARK_POINTS = 60;
const SPARK_EVERY_MS = 1000;

export interface Listed extends Instrument {
  searchable: string;
}

export const state = {
  instruments: [] as Listed[],
  quotes: new Map<string, Quote>(),
  direction: new Map<string, number>(),
  sparks: new Map<string, number[]>(),
  clockAheadMs: 0, // the daemon's clock less ours
};

const sparkAt = new Map<string, number>();

export const serverNow = (): number => Date.now() + state.clockAheadMs;

export function changePercent(quote: Quote | undefined): number | undefined {
  if (!quote?.previous_close) return undefined;
  return ((quote.last_price - quote.previous_close) / quote.previous_close) * 100;
}

/** Take in newest values; returns the keys whose price moved. */
export function takeQuotes(quotes: Record<string, Quote>): string[] {
  const moved: string[] = [];
  const now = Date.now();
  for (const [key, values] of Object.entries(quotes)) {
    const before = state.quotes.get(key);
    // A tick names what it knows; what it does not repeat still holds.
    state.quotes.set(key, { ...before, ...values });
    if (before && before.last_price !== values.last_price) {
      state.direction.set(key, Math.sign(values.last_price - before.last_price));
      moved.push(key);
    }
    if (now - (sparkAt.get(key) ?? 0) >= SPARK_EVERY_MS) {
      sparkAt.set(key, now);
      const points = state.sparks.get(key) ?? [];
      points.push(values.last_price);
      if (points.length > SPARK_POINTS) points.shift();
      state.sparks.set(key, points);
    }
  }
  return moved;
}
