// What the client hands out. Times are UTC epoch milliseconds; an absent field is unknown, never zero.

/**
 * One trade or quote. `quantity` is what was traded since the previous tick, never cumulative; `open` to
 * `previousClose` are those of the day; `flags` are among snapshot, suspect, late, delayed, skewed.
 * @typedef {object} Tick
 * @property {"tick"} type
 * @property {string} instrument
 * @property {number} price
 * @property {number} tsMs
 * @property {number} [quantity]
 * @property {number} [bid]
 * @property {number} [ask]
 * @property {number} [cumulativeVolume]
 * @property {number} [oi]
 * @property {number} [open]
 * @property {number} [high]
 * @property {number} [low]
 * @property {number} [previousClose]
 * @property {string} [src]
 * @property {readonly string[]} flags
 */

/**
 * An event in order with the ticks. `event` is gap, stale, resumed, switched, backfilled, session or a later
 * one; `instrument` may be `EXCHANGE:*`; `fields` holds what the event brings (from, to, reason, …).
 * @typedef {object} Control
 * @property {"control"} type
 * @property {string} event
 * @property {string} instrument
 * @property {number} [tsMs]
 * @property {string} [src]
 * @property {Readonly<Record<string, unknown>>} fields
 * @property {string} [position]
 */

/**
 * One candle of the chart channel; `startS` is in epoch seconds. The last one of an interval may come again.
 * @typedef {object} Bar
 * @property {"bar"} type
 * @property {string} instrument
 * @property {string} interval
 * @property {number} startS
 * @property {number} open
 * @property {number} high
 * @property {number} low
 * @property {number} close
 * @property {number | null} volume
 */

/**
 * This client was too slow: the daemon dropped `n` of its messages, by instrument.
 * @typedef {object} Skipped
 * @property {"skipped"} type
 * @property {number} n
 * @property {Readonly<Record<string, number>>} instruments
 */

/**
 * The daemon has begun to send `accepted`. `recovered` is undefined at the first connection; after that true
 * means that everything missed follows, false that it does not: `snapshot` then has the newest values.
 * @typedef {object} Subscribed
 * @property {"subscribed"} type
 * @property {readonly string[]} accepted
 * @property {Readonly<Record<string, string>>} rejected
 * @property {string} epoch
 * @property {Readonly<Record<string, string>>} position
 * @property {Readonly<Record<string, Tick>>} snapshot
 * @property {boolean | undefined} recovered
 */

/**
 * The connection is gone (1006: without a word). The next attempt begins in `retryInMs`, for the reason
 * `buffer_full` as soon as half of what is buffered was taken.
 * @typedef {object} Disconnected
 * @property {"disconnected"} type
 * @property {number} code
 * @property {string} reason
 * @property {number} retryInMs
 */

/**
 * An error the daemon reports that concerns no subscription and does not end anything.
 * @typedef {object} Notice
 * @property {"notice"} type
 * @property {string} code
 * @property {string} message
 */

/**
 * Where a client is: keep it with your results, give it to the next client as `resume`.
 * @typedef {object} ResumePoint
 * @property {string} epoch
 * @property {Readonly<Record<string, string>>} position
 */

/** @typedef {Tick | Control | Bar | Skipped | Subscribed | Disconnected | Notice} MarketRecord */

export {};
