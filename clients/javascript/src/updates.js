// The messages of the channels quote, trade, depth, options and news as records. No I/O.

/** @typedef {import("./records.js").Update} Update */

/**
 * The records in a message of one of these channels; undefined for one of another type.
 * @param {any} message
 * @returns {Update[] | undefined}
 */
export function updatesOf(message) {
  switch (message.type) {
    case "quote":
      return Object.entries(message.data).map(([key, data]) => quoteOf(key, data));
    case "trade":
      return Object.entries(message.data).map(([key, data]) => tradeOf(key, data));
    case "depth":
      return Object.entries(message.data).map(([key, data]) => depthOf(key, data));
    case "options":
      return [chainOf(message)];
    case "news":
      return [articleOf(message.article)];
    default:
      return undefined;
  }
}

/**
 * What stands in the answer to a subscription of these channels.
 * @param {any} snapshots
 * @returns {Update[]}
 */
export function newestOf({ quote = {}, trade = {}, news = [] }) {
  return [
    ...Object.entries(quote).map(([key, data]) => quoteOf(key, data)),
    ...Object.entries(trade).map(([key, data]) => tradeOf(key, data)),
    ...news.map(articleOf),
  ];
}

/**
 * Without the fields that are not known.
 * @param {any} record
 * @returns {any}
 */
export function known(record) {
  for (const name in record) if (record[name] === undefined || record[name] === null) delete record[name];
  return record;
}

/**
 * @param {string} instrument
 * @param {any} data
 * @returns {import("./records.js").Quote}
 */
function quoteOf(instrument, { bid, ask, bid_size: bidSize, ask_size: askSize, ts_ms: tsMs, src, flags = [] }) {
  return known({ type: "quote", instrument, bid, ask, bidSize, askSize, tsMs, src, flags });
}

/**
 * @param {string} instrument
 * @param {any} data
 * @returns {import("./records.js").Trade}
 */
function tradeOf(instrument, { price, quantity, ts_ms: tsMs, src, flags = [] }) {
  return known({ type: "trade", instrument, price, quantity, tsMs, src, flags });
}

/**
 * @param {string} instrument
 * @param {any} data
 * @returns {import("./records.js").Depth}
 */
function depthOf(instrument, { bids, asks, levels, ts_ms: tsMs, src, flags = [], entry }) {
  return known({ type: "depth", instrument, bids, asks, levels, tsMs, src, flags, entry });
}

/**
 * @param {any} message
 * @returns {import("./records.js").OptionChain}
 */
function chainOf(message) {
  return known({
    type: "options",
    instrument: message.instrumentKey,
    expiryS: message.expiry,
    expiryDate: message.expiry_date,
    isNext: message.is_next,
    tsMs: message.timestamp,
    legs: message.symbols.map(legOf),
    underlyingPrice: message.underlying_price,
    forward: message.forward,
    atmStrike: message.atm_strike,
    pcr: message.pcr,
    maxPain: message.max_pain,
    src: message.source,
    entry: message.entry,
  });
}

/**
 * @param {any} leg
 * @returns {import("./records.js").OptionLeg}
 */
function legOf({ f, bid, ask, greeks_by: greeksBy }) {
  const [symbol, strike, side, , lastPrice, volume, oi, oiChange, , delta, gamma, theta, vega, iv] = f;
  return known({ symbol, strike, side, lastPrice, volume, oi, oiChange, delta, gamma, theta, vega, iv, bid, ask, greeksBy });
}

/**
 * @param {any} article
 * @returns {import("./records.js").News}
 */
function articleOf({ id, ts_ms: tsMs, headline, publisher, url, instruments, symbols, src }) {
  return known({ type: "news", id, tsMs, headline, publisher, url, instruments, symbols, src });
}
