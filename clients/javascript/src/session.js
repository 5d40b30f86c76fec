// The client's side of the protocol: what to say, what was heard, where we are. No I/O.
//
// One Session lives as long as its Client and sees every connection. The rule that makes resuming exact: the
// position is that of the last message taken in, and nothing else moves it. With `latest` there is no such
// position (newer values overtake older ones of other instruments): a reconnection begins with a snapshot.

import { OutOfOrder, SubscriptionRefused, Unreadable } from "./errors.js";
import { known, newestOf, updatesOf } from "./updates.js";

/** @typedef {import("./records.js").MarketRecord} MarketRecord */
/** @typedef {import("./records.js").Tick} Tick */
/** @typedef {import("./records.js").ResumePoint} ResumePoint */

const INSTRUMENT_BYTES = 13_500; // the daemon takes 16 KiB; the rest of a message needs some of it
const START = "0-0";

/**
 * `channels` are any of tick, chart, quote, trade, depth, options and news; `interval` is of chart, `levels` (5,
 * 20, 200) of depth, `expiry` (a date, or epoch seconds; the next one without) of options.
 * @typedef {object} Wishes
 * @property {"all" | "latest"} [delivery]
 * @property {number} [everyMs]
 * @property {readonly string[]} [channels]
 * @property {string} [interval]
 * @property {string | number} [expiry]
 * @property {number} [levels]
 * @property {ResumePoint} [resume]
 */

export class Session {
  /** @type {Set<string>} */ #wanted;
  /** @type {Record<string, unknown>} */ #options;
  /** @type {boolean} */ #resumable;
  /** @type {string} */ #epoch;
  /** @type {Record<string, string>} */ #position;
  /** @type {boolean} */ #wasHere;
  /** @type {boolean} */ #several;
  /** @type {number} */ #lastId = 0;
  /** @type {Map<number, {again: boolean, resumes: boolean}>} */ #asked = new Map();

  /**
   * @param {Iterable<string>} instruments
   * @param {Wishes} [wishes]
   */
  constructor(instruments, wishes = {}) {
    const { delivery = "latest", everyMs = 100, channels = ["tick"], interval = "1", expiry, levels, resume } = wishes;
    this.#resumable = delivery === "all";
    if (resume && !this.#resumable) {
      throw new TypeError('only delivery "all" can be resumed: "latest" begins with a snapshot');
    }
    this.#wanted = new Set(instruments);
    this.#options = { delivery, channels };
    if (!this.#resumable) this.#options["every_ms"] = everyMs;
    if (channels.includes("chart")) this.#options["interval"] = interval;
    if (expiry !== undefined) this.#options["expiry"] = expiry;
    if (levels !== undefined) this.#options["levels"] = levels;
    // With several of these channels one record is told of in several messages.
    this.#several = channels.filter((name) => ["tick", "quote", "trade"].includes(name)).length > 1;
    this.#epoch = resume?.epoch ?? "";
    this.#position = { ...resume?.position };
    Object.values(this.#position).forEach(order);
    this.#wasHere = resume !== undefined;
  }

  /**
   * Where everything taken in so far ends; undefined before the first answer and with `latest`.
   * @returns {ResumePoint | undefined}
   */
  resumePoint() {
    if (!this.#resumable || this.#epoch === "") return undefined;
    return { epoch: this.#epoch, position: { ...this.#position } };
  }

  /**
   * The messages that begin a connection.
   * @returns {string[]}
   */
  opening() {
    this.#asked.clear();
    const batches = batchesOf(this.#wanted);
    // Two messages would be resumed one after the other, out of order with each other.
    const point = batches.length > 1 ? undefined : this.resumePoint();
    if (point === undefined) this.#position = {};
    return batches.map((batch) => this.#subscribe(batch, point, this.#wasHere));
  }

  /**
   * Want more; the messages that say so on an open connection.
   * @param {Iterable<string>} instruments
   * @returns {string[]}
   */
  add(instruments) {
    const added = [...new Set(instruments)].filter((key) => !this.#wanted.has(key));
    for (const key of added) this.#wanted.add(key);
    return batchesOf(added).map((batch) => this.#subscribe(batch, undefined, false));
  }

  /**
   * Want less; the messages that say so on an open connection.
   * @param {Iterable<string>} instruments
   * @returns {string[]}
   */
  remove(instruments) {
    const removed = [...new Set(instruments)].filter((key) => this.#wanted.delete(key));
    return batchesOf(removed).map((batch) =>
      JSON.stringify({ action: "unsubscribe", id: this.nextId(), instruments: batch }),
    );
  }

  /**
   * Do not resume at the next connection: what was heard cannot be trusted.
   * @returns {void}
   */
  forgetPosition() {
    this.#position = {};
    this.#epoch = "";
  }

  /** @returns {number} */
  nextId() {
    this.#lastId += 1;
    return this.#lastId;
  }

  /**
   * The records in one message. Throws OutOfOrder, Unreadable, and SubscriptionRefused when the daemon
   * refuses our wish.
   * @param {unknown} text
   * @returns {MarketRecord[]}
   */
  hear(text) {
    let message;
    try {
      message = JSON.parse(/** @type {string} */ (text));
      if (message.type === "raw_tick") {
        this.#advance(message.position);
        return Object.entries(message.data).map(([key, data]) => tickOf(key, data));
      }
      return this.#hearOther(message);
    } catch (error) {
      if (error instanceof OutOfOrder || error instanceof SubscriptionRefused) throw error;
      throw new Unreadable(`not a message of this protocol: ${String(text).slice(0, 80)}`);
    }
  }

  /**
   * @param {any} message
   * @returns {MarketRecord[]}
   */
  #hearOther(message) {
    const updates = updatesOf(message);
    if (updates !== undefined) {
      this.#advance(message.position ?? {});
      return updates;
    }
    switch (message.type) {
      case "subscribed":
        return [this.#subscribed(message)];
      case "chart_update":
        return message.ohlcv.map((/** @type {number[]} */ candle) => barOf(message, candle));
      case "skipped":
        return [
          known({ type: "skipped", n: message.n, instruments: message.instruments ?? {}, channels: message.channels }),
        ];
      case "error":
        if (this.#asked.has(message.id)) throw new SubscriptionRefused(message.code, message.message);
        return [{ type: "notice", code: message.code, message: message.message ?? "" }];
      case "pong":
        this.#advance(message.position ?? {});
        return [];
      case "unsubscribed":
      case "subscriptions":
      case "authenticated":
        return [];
      case "resync":
        // Redis begins anew; positions only go on, so the next resume names the new epoch.
        this.#epoch = message.epoch;
    }
    const { type: event, instrumentKey: instrument, ts_ms: tsMs, src, position = {}, ...fields } = message;
    if (typeof event !== "string" || typeof instrument !== "string") throw new Unreadable();
    this.#advance(position);
    /** @type {string | undefined} */
    const where = Object.values(position)[0];
    return [known({ type: "control", event, instrument, tsMs, src, fields, position: where })];
  }

  /**
   * @param {any} message
   * @returns {import("./records.js").Subscribed}
   */
  #subscribed({ id, accepted, rejected, epoch, position, snapshot, recovered, refused, snapshots }) {
    const wish = this.#asked.get(id);
    if (wish === undefined) throw new Unreadable();
    this.#asked.delete(id);
    if (wish.resumes && !recovered) this.#position = {};
    for (const key of accepted) {
      // What was missed follows a recovery, so a position that we have stays. An exchange without one has
      // no record yet: all that it will ever have is still to come.
      const exchange = key.split(":", 1)[0];
      if (exchange === "*") continue;
      this.#position[exchange] ??= position[exchange] ?? START;
    }
    this.#epoch = epoch;
    this.#wasHere = true;
    const ticks = Object.entries(snapshot).map(([key, data]) => [key, tickOf(key, data)]);
    return {
      type: "subscribed",
      accepted,
      rejected,
      epoch,
      position,
      snapshot: Object.fromEntries(ticks),
      recovered: wish.again ? recovered === true : undefined,
      ...known({ refused, newest: snapshots && newestOf(snapshots) }),
    };
  }

  /** @param {Record<string, string>} position */
  #advance(position) {
    if (!this.#resumable) return;
    for (const [exchange, text] of Object.entries(position)) {
      const last = this.#position[exchange];
      const stays = this.#several && text === last;
      if (last !== undefined && !stays && !isAfter(text, last)) {
        throw new OutOfOrder(`${exchange}: ${text} came after ${last}`);
      }
      this.#position[exchange] = text;
    }
  }

  /**
   * @param {string[]} instruments
   * @param {ResumePoint | undefined} point
   * @param {boolean} again
   */
  #subscribe(instruments, point, again) {
    const id = this.nextId();
    this.#asked.set(id, { again, resumes: point !== undefined });
    return JSON.stringify({ action: "subscribe", id, instruments, ...this.#options, resume: point });
  }
}

/**
 * @param {string} instrument
 * @param {any} data
 * @returns {Tick}
 */
function tickOf(instrument, data) {
  if (typeof data.last_price !== "number") throw new Unreadable();
  return known({
    type: "tick",
    instrument,
    price: data.last_price,
    tsMs: data.ts_ms,
    quantity: data.ltq,
    bid: data.bid,
    ask: data.ask,
    cumulativeVolume: data.cumulative_volume,
    oi: data.oi,
    open: data.open,
    high: data.high,
    low: data.low,
    previousClose: data.previous_close,
    src: data.src,
    flags: data.flags ?? [],
  });
}

/**
 * @param {any} message
 * @param {any[]} candle
 * @returns {import("./records.js").Bar}
 */
function barOf({ instrumentKey: instrument, interval }, [startS, open, high, low, close, volume]) {
  return { type: "bar", instrument, interval, startS, open, high, low, close, volume };
}

/**
 * @param {string} position
 * @returns {[number, number]}
 */
function order(position) {
  const parts = /^(\d{1,15})-(\d{1,15})$/.exec(position);
  if (parts === null) throw new TypeError(`not a position: ${position}; expected <ms>-<seq>`);
  return [Number(parts[1]), Number(parts[2])];
}

/**
 * @param {string} position
 * @param {string} other
 */
function isAfter(position, other) {
  const [ms, seq] = order(position);
  const [otherMs, otherSeq] = order(other);
  return ms > otherMs || (ms === otherMs && seq > otherSeq);
}

/**
 * @param {Iterable<string>} instruments
 * @returns {string[][]}
 */
function batchesOf(instruments) {
  const encoder = new TextEncoder();
  /** @type {string[][]} */
  const batches = [];
  let size = Infinity;
  for (const key of instruments) {
    const needed = encoder.encode(JSON.stringify(key)).length + 1;
    if (size + needed > INSTRUMENT_BYTES) {
      batches.push([]);
      size = 0;
    }
    batches.at(-1)?.push(key);
    size += needed;
  }
  return batches;
}
