// The order book of the chosen instrument as a ladder: bids left, asks right, quantities as bars, live.

import { age, badge, el, make, orDash, price, put, whole } from "./dom";
import type { Socket } from "./socket";
import { serverNow, type Listed } from "./state";
import type { Message } from "./types";

type Level = [price: number, quantity: number, orders: number];

interface Book {
  bids: Level[];
  asks: Level[];
  levels: number;
  ts_ms: number;
  src?: string;
  flags?: string[];
}

const EVERY_MS = 200;
const HEADS = ["Orders", "Quantity", "Bid", "Ask", "Quantity", "Orders"];
const FLAG_WORDS: Record<string, string> = {
  crossed: "crossed: do not trade on it",
  stale: "stale: nothing came for a while",
  gap: "something was missed before this",
  one_sided: "one side is empty",
  partial: "one side is not known yet",
};
const REFUSED_WORDS: Record<string, string> = {
  no_depth: "Nobody here has the depth of this instrument.",
  unknown_instrument: "This instrument is not known.",
  depth_off: "Depth is switched off (DEPTH in .env).",
  depth_levels: "This many levels are not offered here.",
  depth_full: "All places of this depth are taken; ask for fewer levels.",
  depth_unavailable: "The provider of this depth is parked or not active.",
  depth_credentials: "The provider of this depth has no credentials.",
  channel_unavailable: "This daemon has no depth.",
};

export class DepthPanel {
  private item: Listed | null = null;
  private book: Book | null = null;

  constructor(private readonly socket: Socket) {
    socket.listen((message) => this.take(message));
    el("depth-close").addEventListener("click", () => this.close());
    el("depth-levels").addEventListener("change", () => this.watch());
    el("depth-columns").append(
      ...HEADS.map((text, place) => {
        const node = make("th", `number${text === "Orders" ? " minor" : ""}`, text);
        node.scope = "col";
        node.ariaLabel = text === "Bid" || text === "Ask" ? text : `${text} ${place < 3 ? "bid" : "asked"}`;
        return node;
      }),
    );
    setInterval(() => this.facts(), 1000);
  }

  get open(): boolean {
    return this.item !== null;
  }

  show(item: Listed): void {
    this.item = item;
    el("depth-panel").hidden = false;
    put(el("depth-title"), `Depth of ${item.key}`);
    this.watch();
  }

  close(): void {
    this.item = null;
    this.socket.watchBeside("depth", null);
    el("depth-panel").hidden = true;
  }

  private watch(): void {
    if (!this.item) return;
    this.book = null;
    el("ladder").replaceChildren();
    el("depth-flags").replaceChildren();
    put(el("depth-facts"), "");
    this.hint("Waiting for the book…");
    const levels = Number(el<HTMLSelectElement>("depth-levels").value);
    this.socket.watchBeside("depth", { key: this.item.key, every_ms: EVERY_MS, levels });
  }

  private take(message: Message): void {
    const key = this.item?.key;
    if (!key) return;
    if (message.type === "depth") {
      const book = (message.data as Record<string, Book>)[key];
      if (book) this.draw(book);
    } else if (message.id === "depth" && message.type === "subscribed") {
      const code = (message.refused as Record<string, Record<string, string>> | undefined)?.depth?.[key];
      if (code) this.hint(REFUSED_WORDS[code] ?? `The depth cannot be had: ${code}`);
    } else if (message.id === "depth" && message.type === "error") {
      this.hint(REFUSED_WORDS[String(message.code)] ?? String(message.message));
    }
  }

  private draw(book: Book): void {
    this.book = book;
    const rows = Math.max(book.bids.length, book.asks.length);
    const most = Math.max(1, ...book.bids.map((level) => level[1]), ...book.asks.map((level) => level[1]));
    const tick = this.item?.tick_size;
    const made = Array.from({ length: rows }, (_, place) => {
      const row = make("tr");
      row.append(...side(book.bids[place], "bid", most, tick), ...side(book.asks[place], "ask", most, tick).reverse());
      return row;
    });
    el("ladder").replaceChildren(...made);
    this.hint(rows ? "" : "The book is empty.");
    const bad = (book.flags ?? []).filter((flag) => flag in FLAG_WORDS);
    el("depth-flags").replaceChildren(
      ...bad.map((flag) => {
        const node = badge(flag === "crossed" || flag === "stale" ? "bad" : "warn", FLAG_WORDS[flag]!);
        node.dataset.flag = flag;
        return node;
      }),
    );
    el("depth-panel").classList.toggle("old", bad.includes("stale"));
    this.facts();
  }

  private facts(): void {
    const book = this.book;
    if (!book || !this.item) return;
    const [bid, ask] = [book.bids[0]?.[0], book.asks[0]?.[0]];
    const spread = bid === undefined || ask === undefined ? undefined : ask - bid;
    const sum = (levels: Level[]): string => whole.format(levels.reduce((total, level) => total + level[1], 0));
    const olderMs = Math.max(0, serverNow() - book.ts_ms);
    const parts = [
      `spread ${orDash(spread, (value) => price(value, this.item?.tick_size))}`,
      `${sum(book.bids)} bid, ${sum(book.asks)} asked`,
      olderMs < 1000 ? "live" : `${age(olderMs)} old`,
      book.src ? `from ${book.src}` : "",
    ];
    put(el("depth-facts"), parts.filter(Boolean).join(" · "));
  }

  private hint(text: string): void {
    el("depth-hint").hidden = !text;
    put(el("depth-hint"), text);
  }
}

/** Orders, quantity and price of one level, outermost first; empty cells where the book ends. */
function side(level: Level | undefined, name: "bid" | "ask", most: number, tick: number | null | undefined): HTMLElement[] {
  const orders = make("td", "number minor", level ? whole.format(level[2]) : "");
  const quantity = make("td", `number size ${name}`, level ? whole.format(level[1]) : "");
  quantity.style.setProperty("--share", `${Math.round((100 * (level?.[1] ?? 0)) / most)}%`);
  return [orders, quantity, make("td", `number level ${name === "bid" ? "rise" : "fall"}`, level ? price(level[0], tick) : "")];
}
