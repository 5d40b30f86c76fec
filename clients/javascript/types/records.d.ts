/**
 * One trade or quote. `quantity` is what was traded since the previous tick, never cumulative; `open` to
 * `previousClose` are those of the day; `flags` are among snapshot, suspect, late, delayed, skewed.
 */
export type Tick = {
    type: "tick";
    instrument: string;
    price: number;
    tsMs: number;
    quantity?: number;
    bid?: number;
    ask?: number;
    cumulativeVolume?: number;
    oi?: number;
    open?: number;
    high?: number;
    low?: number;
    previousClose?: number;
    src?: string;
    flags: readonly string[];
};
/**
 * An event in order with the ticks. `event` is gap, stale, resumed, switched, backfilled, session or a later
 * one; `instrument` may be `EXCHANGE:*`; `fields` holds what the event brings (from, to, reason, …).
 */
export type Control = {
    type: "control";
    event: string;
    instrument: string;
    tsMs?: number;
    src?: string;
    fields: Readonly<Record<string, unknown>>;
    position?: string;
};
/**
 * One candle of the chart channel; `startS` is in epoch seconds. The last one of an interval may come again.
 */
export type Bar = {
    type: "bar";
    instrument: string;
    interval: string;
    startS: number;
    open: number;
    high: number;
    low: number;
    close: number;
    volume: number | null;
};
/**
 * What was traded since the tick before: `quantity` in all, `price` the last one.
 */
export type Trade = {
    type: "trade";
    instrument: string;
    price: number;
    quantity: number;
    tsMs: number;
    src?: string;
    flags: readonly string[];
};
/**
 * Best bid and ask; comes when a price or a size of them is another than before.
 */
export type Quote = {
    type: "quote";
    instrument: string;
    bid?: number;
    ask?: number;
    bidSize?: number;
    askSize?: number;
    tsMs: number;
    src?: string;
    flags: readonly string[];
};
/**
 * A whole order book, best levels first: `[price, quantity, orders]`. `flags` are among crossed, stale, gap,
 * one_sided, partial, received.
 */
export type Depth = {
    type: "depth";
    instrument: string;
    bids: readonly (readonly [number, number, number])[];
    asks: readonly (readonly [number, number, number])[];
    levels: number;
    tsMs: number;
    src?: string;
    flags: readonly string[];
    entry?: string;
};
/**
 * One leg of a chain; `iv` in percent.
 */
export type OptionLeg = {
    symbol: string;
    strike: string;
    side: "call" | "put";
    lastPrice?: number;
    volume?: number;
    oi?: number;
    oiChange?: number;
    delta?: number;
    gamma?: number;
    theta?: number;
    vega?: number;
    iv?: number;
    bid?: number;
    ask?: number;
    greeksBy?: "vendor" | "computed";
};
/**
 * All legs of an underlying and expiry at one moment; `expiryS` is in epoch seconds.
 */
export type OptionChain = {
    type: "options";
    instrument: string;
    expiryS: number;
    expiryDate: string;
    isNext: boolean;
    tsMs: number;
    legs: readonly OptionLeg[];
    underlyingPrice?: number;
    forward?: number;
    atmStrike?: string;
    pcr?: number;
    maxPain?: string;
    src?: string;
    entry?: string;
};
/**
 * One article; one that turns out to be about more instruments comes again with the same `id`.
 */
export type News = {
    type: "news";
    id: string;
    tsMs: number;
    headline: string;
    publisher?: string;
    url?: string;
    instruments: readonly string[];
    symbols: readonly string[];
    src?: string;
};
/**
 * This client was too slow: the daemon dropped `n` of its messages, by instrument; `channels` where not all of
 * them were ticks.
 */
export type Skipped = {
    type: "skipped";
    n: number;
    instruments: Readonly<Record<string, number>>;
    channels?: Readonly<Record<string, number>>;
};
/**
 * The daemon has begun to send `accepted`. `recovered` is undefined at the first connection; after that true
 * means that everything missed follows, false that it does not: `snapshot` then has the newest values.
 * `refused` says by channel and instrument what cannot be had; `newest` are the newest quotes, trades and news.
 */
export type Subscribed = {
    type: "subscribed";
    accepted: readonly string[];
    rejected: Readonly<Record<string, string>>;
    epoch: string;
    position: Readonly<Record<string, string>>;
    snapshot: Readonly<Record<string, Tick>>;
    recovered: boolean | undefined;
    refused?: Readonly<Record<string, Readonly<Record<string, string>>>>;
    newest?: readonly (Quote | Trade | News)[];
};
/**
 * The connection is gone (1006: without a word). The next attempt begins in `retryInMs`, for the reason
 * `buffer_full` as soon as half of what is buffered was taken.
 */
export type Disconnected = {
    type: "disconnected";
    code: number;
    reason: string;
    retryInMs: number;
};
/**
 * An error the daemon reports that concerns no subscription and does not end anything.
 */
export type Notice = {
    type: "notice";
    code: string;
    message: string;
};
/**
 * Where a client is: keep it with your results, give it to the next client as `resume`.
 */
export type ResumePoint = {
    epoch: string;
    position: Readonly<Record<string, string>>;
};
export type Update = Trade | Quote | Depth | OptionChain | News;
export type MarketRecord = Tick | Control | Bar | Update | Skipped | Subscribed | Disconnected | Notice;
