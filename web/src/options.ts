// The option chain of one underlying: calls left, puts right, strikes in the middle, open interest as bars.

import { ask, Refused } from "./api";
import { age, badge, DASH, el, make, orDash, price, put, whole } from "./dom";

interface Leg {
  f: [string, string, "call" | "put", number | null, number | null, number | null, number | null, number | null, number,
    number | null, number | null, number | null, number | null, number | null];
  bid: number | null;
  ask: number | null;
  age_ms: number;
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
  age_ms: number;
  expiry: number;
  symbols: Leg[];
  refusals: { provider: string; message: string }[];
}

const REFRESH_MS = 4000;
const AROUND = 15;
const HEADS = ["IV", "Delta", "OI", "Change", "Last"];

export class OptionsPanel {
  private underlying = "";
  private timer = 0;
  private round = 0;

  constructor() {
    el("options-close").addEventListener("click", () => this.close());
    el("expiry").addEventListener("change", () => void this.load());
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
    el("chain").replaceChildren();
    this.hint("Loading…");
    try {
      const found = await ask<{ expiries: number[]; dates: string[] }>(`/api/options/${encodeURIComponent(underlying)}/expiries`);
      el<HTMLSelectElement>("expiry").replaceChildren(
        ...found.dates.map((date, place) => new Option(date, String(found.expiries[place]))),
      );
      await this.load();
    } catch (error) {
      this.hint(error instanceof Refused ? error.message : "The chain cannot be read just now.");
    }
  }

  close(): void {
    this.underlying = "";
    this.round += 1;
    clearTimeout(this.timer);
    el("options-panel").hidden = true;
  }

  private async load(): Promise<void> {
    clearTimeout(this.timer);
    const round = ++this.round;
    try {
      const expiry = el<HTMLSelectElement>("expiry").value;
      const chain = await ask<Chain>(`/api/options/${encodeURIComponent(this.underlying)}/chain?expiry=${expiry}`);
      if (round !== this.round) return;
      this.draw(chain);
      this.hint("");
    } catch (error) {
      if (round !== this.round) return;
      this.hint(error instanceof Refused ? error.message : "The chain cannot be read just now; trying again.");
    }
    this.timer = window.setTimeout(() => void this.load(), document.hidden ? 5 * REFRESH_MS : REFRESH_MS);
  }

  private draw(chain: Chain): void {
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
    const facts = [
      `spot ${orDash(chain.underlying_price, (value) => price(value))}`,
      `forward ${orDash(chain.forward, (value) => price(value))}`,
      `PCR ${orDash(chain.pcr, (value) => value.toFixed(2))}`,
      `max pain ${chain.max_pain ?? DASH}`,
      `${Math.round(chain.completeness * 100)} % of the legs`,
      chain.age_ms < 1000 ? "just read" : `${age(chain.age_ms)} old`,
    ];
    put(el("options-facts"), facts.join(" · "));
    const source = badge("good", `from ${chain.source}`);
    const refused = chain.refusals.map((it) => badge("warn", `${it.provider}: ${it.message}`));
    el("options-source").replaceChildren(source, ...refused);
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
