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
 * This client was too slow: the daemon dropped `n` of its messages, by instrument.
 */
export type Skipped = {
    type: "skipped";
    n: number;
    instruments: Readonly<Record<string, number>>;
};
/**
 * The daemon has begun to send `accepted`. `recovered` is undefined at the first connection; after that true
 * means that everything missed follows, false that it does not: `snapshot` then has the newest values.
 */
export type Subscribed = {
    type: "subscribed";
    accepted: readonly string[];
    rejected: Readonly<Record<string, string>>;
    epoch: string;
    position: Readonly<Record<string, string>>;
    snapshot: Readonly<Record<string, Tick>>;
    recovered: boolean | undefined;
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
export type MarketRecord = Tick | Control | Bar | Skipped | Subscribed | Disconnected | Notice;
