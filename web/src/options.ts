// The option chain of one underlying: calls left, puts right, strikes in the middle, open interest as bars.
// Expiries and the first chain come over HTTP, every change after it over the channel `options`.

import { ask, Refused } from "./api";
import { age, badge, DASH, el, make, orDash, price, put, whole } from "./dom";
import type { Socket } from "./socket";
import { serverNow } from "./state";
import type { Message } from "./types";

interface Leg {
  f: [string, string, "call" | "put", number | null, number | null, number | null, number | null, number | null, number,
    number | null, number | null, number | null, number | null, number | null];
  bid: number | null;
  ask: number | null;
  greeks_by: "vendor" | "computed" | null;
}

interface Chain {
  underlying: string;
  source: string;
  underlying_price: number | null;
  forward: number | null;
  atm_strike: string | null;
  pcr: number | null;
  max_pain: string | null;
  completeness: number;
  timestamp: number;
  expiry: number;
  symbols: Leg[];
  refusals?: { provider: string; message: string }[];
}

const REFRESH_MS = 4000; // only where the channel cannot be had
const EVERY_MS = 500;
const AROUND = 15;
const HEADS = ["IV", "Delta", "OI", "Change", "Last"];

export class OptionsPanel {
  private underlying = "";
  private timer = 0;
  private round = 0;
  private live = true;
  private chain: Chain | null = null;
  private refusals: Chain["refusals"] = [];

  constructor(private readonly socket: Socket) {
    socket.listen((message) => this.take(message));
    setInterval(() => this.facts(), 1000);
    el("options-close").addEventListener("click", () => this.close());
    el("expiry").addEventListener("change", () => this.watch());
    const heads = [...HEADS, "Strike", ...[...HEADS].reverse()];
    el("options-columns").append(
      ...heads.map((text) => {
        const node = make("th", text === "Strike" ? "strike" : "number", text);
        node.scope = "col";
        return node;
      }),
    );
  }

  async show(underlying: string): Promise<void> {
    this.underlying = underlying;
    el("options-panel").hidden = false;
    put(el("options-title"), `Options on ${underlying}`);
    this.clear();
    el<HTMLSelectElement>("expiry").replaceChildren();
    this.hint("Loading…");
    const round = ++this.round;
    try {
      const found = await ask<{ expiries: number[]; dates: string[] }>(`/api/options/${encodeURIComponent(underlying)}/expiries`);
      if (round !== this.round) return;
      el<HTMLSelectElement>("expiry").replaceChildren(
        ...found.dates.map((date, place) => new Option(date, String(found.expiries[place]))),
      );
    } catch (error) {
      if (round !== this.round) return;
      // A gateway process asks no sources: it has the chains of the stream, that of the next expiry first.
      const elsewhere = error instanceof Refused && error.code === "not_here";
      if (!elsewhere) this.hint(error instanceof Refused ? error.message : "The chain cannot be read just now.");
    }
    this.watch();
  }

  close(): void {
    this.underlying = "";
    this.round += 1;
    clearTimeout(this.timer);
    this.socket.watchBeside("options", null);
    el("options-panel").hidden = true;
  }

  /** Show the chosen expiry, live. */
  private watch(): void {
    this.clear();
    this.live = true;
    const picker = el<HTMLSelectElement>("expiry");
    const expiry = picker.selectedOptions[0]?.text;
    this.socket.watchBeside("options", { key: this.underlying, every_ms: EVERY_MS, ...(expiry ? { expiry } : {}) });
    if (picker.value) void this.load();
  }

  private clear(): void {
    this.chain = null;
    this.refusals = [];
    el("chain").replaceChildren();
    el("options-source").replaceChildren();
    put(el("options-facts"), "");
  }

  private take(message: Message): void {
    if (!this.underlying) return;
    if (message.type === "options" && message.instrumentKey === this.underlying) {
      const picker = el<HTMLSelectElement>("expiry");
      const date = String(message.expiry_date);
      if (!picker.options.length) picker.append(new Option(date, String(message.expiry)));
      if (picker.selectedOptions[0]?.text !== date) return;
      this.draw(message as unknown as Chain);
      this.hint("");
    } else if (message.type === "stale" && message.channel === "options" && message.instrumentKey === this.underlying) {
      this.hint(String(message.reason));
    } else if (message.id === "options" && message.type === "subscribed") {
      const refused = (message.refused as Record<string, Record<string, string>> | undefined)?.options?.[this.underlying];
      if (refused) this.hint("Nothing of this name has options here.");
    } else if (message.id === "options" && message.type === "error") {
      // A daemon without the channel, or a token without the right to it: ask again and again.
      this.live = false;
      void this.load();
    }
  }

  private async load(): Promise<void> {
    clearTimeout(this.timer);
    const round = ++this.round;
    try {
      const expiry = el<HTMLSelectElement>("expiry").value;
      const chain = await ask<Chain>(`/api/options/${encodeURIComponent(this.underlying)}/chain?expiry=${expiry}`);
      if (round !== this.round) return;
      this.refusals = chain.refusals ?? [];
      if (!this.chain || chain.timestamp >= this.chain.timestamp) this.draw(chain);
      this.hint("");
    } catch (error) {
      if (round !== this.round) return;
      this.hint(error instanceof Refused ? error.message : "The chain cannot be read just now; trying again.");
    }
    if (this.live && this.chain) return;
    this.timer = window.setTimeout(() => void this.load(), document.hidden ? 5 * REFRESH_MS : REFRESH_MS);
  }

  private draw(chain: Chain): void {
    this.chain = chain;
    const by = new Map<string, { call?: Leg; put?: Leg }>();
    for (const leg of chain.symbols) {
      const row = by.get(leg.f[1]) ?? {};
      row[leg.f[2]] = leg;
      by.set(leg.f[1], row);
    }
    const strikes = [...by.keys()].sort((a, b) => Number(a) - Number(b));
    const middle = Math.max(0, strikes.indexOf(chain.atm_strike ?? ""));
    const near = strikes.slice(Math.max(0, middle - AROUND), middle + AROUND + 1);
    const most = Math.max(1, ...chain.symbols.map((leg) => leg.f[6] ?? 0));
    el("chain").replaceChildren(...near.map((strike) => chainRow(strike, by.get(strike)!, chain, most)));
    this.facts();
    const source = badge("good", `from ${chain.source}`);
    const refused = (this.refusals ?? []).map((it) => badge("warn", `${it.provider}: ${it.message}`));
    el("options-source").replaceChildren(source, ...refused);
  }

  private facts(): void {
    const chain = this.chain;
    if (!chain) return;
    const olderMs = Math.max(0, serverNow() - chain.timestamp);
    const facts = [
      `spot ${orDash(chain.underlying_price, (value) => price(value))}`,
      `forward ${orDash(chain.forward, (value) => price(value))}`,
      `PCR ${orDash(chain.pcr, (value) => value.toFixed(2))}`,
      `max pain ${chain.max_pain ?? DASH}`,
      `${Math.round(chain.completeness * 100)} % of the legs`,
      olderMs < 1000 ? "just read" : `${age(olderMs)} old`,
    ];
    put(el("options-facts"), facts.join(" · "));
  }

  private hint(text: string): void {
    el("options-hint").hidden = !text;
    put(el("options-hint"), text);
  }
}

function chainRow(strike: string, legs: { call?: Leg; put?: Leg }, chain: Chain, most: number): HTMLElement {
  const row = make("tr", strike === chain.atm_strike ? "atm" : "");
  const level = Number(strike);
  const spot = chain.underlying_price ?? NaN;
  const cells = (leg: Leg | undefined, inMoney: boolean): HTMLElement[] => {
    const [, , , , last, , oi, change, , delta, , , , iv] = leg?.f ?? ([] as unknown as Leg["f"]);
    const texts = [
      orDash(iv, (value) => `${value.toFixed(1)} %`),
      orDash(delta, (value) => value.toFixed(2).replace(/^-(0\.00)$/, "$1")),
      orDash(oi, whole.format),
      orDash(change, (value) => `${value > 0 ? "+" : ""}${whole.format(value)}`),
      price(last),
    ];
    const made = texts.map((text) => make("td", `number${inMoney ? " money" : ""}`, text));
    if (leg?.greeks_by === "computed") made[0]!.title = made[1]!.title = "computed from the price";
    const share = Math.round((100 * (oi ?? 0)) / most);
    made[2]!.style.setProperty("--share", `${share}%`);
    made[2]!.classList.add("oi");
    return made;
  };
  const calls = cells(legs.call, level < spot);
  const puts = cells(legs.put, level > spot).reverse();
  row.append(...calls, make("th", "strike", strike), ...puts);
  return row;
}
