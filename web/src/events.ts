// The list of what happened: gaps, switches, silence, links that broke. Newest first, bounded.

import { clockTime, el, make, spanText } from "./dom";
import type { Message } from "./types";

const KEPT = 200;

export interface MarketEvent {
  at: number;
  type: string;
  key: string;
  text: string;
}

const WORDS: Record<string, (message: Message) => string> = {
  gap: (m) => `no data from ${spanText(Number(m.from), Number(m.to))}: ${String(m.reason)}`,
  stale: (m) => `nobody delivers: ${String(m.reason ?? "silence")}`,
  resumed: () => "data flows again",
  switched: (m) => `${String(m.from_src)} → ${String(m.to_src)}: ${String(m.reason)}`,
  backfilled: (m) => `filled from ${spanText(Number(m.from), Number(m.to))}`,
  session: (m) => `the market ${m.session === "open" || m.event === "open" ? "opens" : "closes"}`,
  resync: () => "the stored history was lost; everything begins anew",
  skipped: (m) => `${String(m.n ?? m.count ?? "some")} messages left out: this page is too slow`,
};

const events: MarketEvent[] = [];
let onEvent: (event: MarketEvent) => void = () => {};

export function hearEvents(listener: (event: MarketEvent) => void): void {
  onEvent = listener;
}

/** Take in a message if it is an event; tells whether it was one. */
export function takeEvent(message: Message): boolean {
  const words = WORDS[message.type];
  if (!words) return false;
  const at = Number(message.ts_ms ?? message.t ?? Date.now());
  note(message.type, String(message.instrumentKey ?? "*"), words(message), at);
  return true;
}

export function note(type: string, key: string, text: string, at = Date.now()): void {
  const event = { at, type, key, text };
  events.unshift(event);
  events.length = Math.min(events.length, KEPT);
  show();
  onEvent(event);
}

export const eventsOf = (key: string): MarketEvent[] => events.filter((event) => event.key === key);

function show(): void {
  el("events-hint").hidden = events.length > 0;
  el("events").replaceChildren(
    ...events.slice(0, 60).map((event) => {
      const row = make("li");
      row.dataset.type = event.type;
      const time = make("time", "", clockTime(event.at));
      time.dateTime = new Date(event.at).toISOString();
      row.append(time, make("b", "", event.type), make("span", "", `${event.key === "*" ? "" : `${event.key} `}${event.text}`));
      return row;
    }),
  );
}
