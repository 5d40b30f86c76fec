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
 * What was traded since the tick before: `quantity` in all, `price` the last one.
 * @typedef {object} Trade
 * @property {"trade"} type
 * @property {string} instrument
 * @property {number} price
 * @property {number} quantity
 * @property {number} tsMs
 * @property {string} [src]
 * @property {readonly string[]} flags
 */

/**
 * Best bid and ask; comes when a price or a size of them is another than before.
 * @typedef {object} Quote
 * @property {"quote"} type
 * @property {string} instrument
 * @property {number} [bid]
 * @property {number} [ask]
 * @property {number} [bidSize]
 * @property {number} [askSize]
 * @property {number} tsMs
 * @property {string} [src]
 * @property {readonly string[]} flags
 */

/**
 * A whole order book, best levels first: `[price, quantity, orders]`. `flags` are among crossed, stale, gap,
 * one_sided, partial, received.
 * @typedef {object} Depth
 * @property {"depth"} type
 * @property {string} instrument
 * @property {readonly (readonly [number, number, number])[]} bids
 * @property {readonly (readonly [number, number, number])[]} asks
 * @property {number} levels
 * @property {number} tsMs
 * @property {string} [src]
 * @property {readonly string[]} flags
 * @property {string} [entry]
 */

/**
 * One leg of a chain; `iv` in percent.
 * @typedef {object} OptionLeg
 * @property {string} symbol
 * @property {string} strike
 * @property {"call" | "put"} side
 * @property {number} [lastPrice]
 * @property {number} [volume]
 * @property {number} [oi]
 * @property {number} [oiChange]
 * @property {number} [delta]
 * @property {number} [gamma]
 * @property {number} [theta]
 * @property {number} [vega]
 * @property {number} [iv]
 * @property {number} [bid]
 * @property {number} [ask]
 * @property {"vendor" | "computed"} [greeksBy]
 */

/**
 * All legs of an underlying and expiry at one moment; `expiryS` is in epoch seconds.
 * @typedef {object} OptionChain
 * @property {"options"} type
 * @property {string} instrument
 * @property {number} expiryS
 * @property {string} expiryDate
 * @property {boolean} isNext
 * @property {number} tsMs
 * @property {readonly OptionLeg[]} legs
 * @property {number} [underlyingPrice]
 * @property {number} [forward]
 * @property {string} [atmStrike]
 * @property {number} [pcr]
 * @property {string} [maxPain]
 * @property {string} [src]
 * @property {string} [entry]
 */

/**
 * One article; one that turns out to be about more instruments comes again with the same `id`.
 * @typedef {object} News
 * @property {"news"} type
 * @property {string} id
 * @property {number} tsMs
 * @property {string} headline
 * @property {string} [publisher]
 * @property {string} [url]
 * @property {readonly string[]} instruments
 * @property {readonly string[]} symbols
 * @property {string} [src]
 */

/**
 * This client was too slow: the daemon dropped `n` of its messages, by instrument; `channels` where not all of
 * them were ticks.
 * @typedef {object} Skipped
 * @property {"skipped"} type
 * @property {number} n
 * @property {Readonly<Record<string, number>>} instruments
 * @property {Readonly<Record<string, number>>} [channels]
 */

/**
 * The daemon has begun to send `accepted`. `recovered` is undefined at the first connection; after that true
 * means that everything missed follows, false that it does not: `snapshot` then has the newest values.
 * `refused` says by channel and instrument what cannot be had; `newest` are the newest quotes, trades and news.
 * @typedef {object} Subscribed
 * @property {"subscribed"} type
 * @property {readonly string[]} accepted
 * @property {Readonly<Record<string, string>>} rejected
 * @property {string} epoch
 * @property {Readonly<Record<string, string>>} position
 * @property {Readonly<Record<string, Tick>>} snapshot
 * @property {boolean | undefined} recovered
 * @property {Readonly<Record<string, Readonly<Record<string, string>>>>} [refused]
 * @property {readonly (Quote | Trade | News)[]} [newest]
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

/** @typedef {Trade | Quote | Depth | OptionChain | News} Update */
/** @typedef {Tick | Control | Bar | Update | Skipped | Subscribed | Disconnected | Notice} MarketRecord */

export {};
