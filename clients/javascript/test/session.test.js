// The state machine of the client, message by message; no socket. The cases are those of the Python client.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff, SubscriptionRefused, websocketUrl } from "../src/index.js";
import { OutOfOrder, Unreadable } from "../src/errors.js";
import { Session } from "../src/session.js";

const answer = (message, fields = {}) => {
  const asked = JSON.parse(message);
  return JSON.stringify({
    type: "subscribed", id: asked.id, accepted: asked.instruments, rejected: {}, epoch: "e1",
    position: { NSE: "100-0" }, snapshot: {}, ...fields,
  });
};
const ticks = (position, prices) => JSON.stringify({
  type: "raw_tick", position: { NSE: position },
  data: Object.fromEntries(Object.entries(prices).map(([name, price]) => [`NSE:${name}`, { last_price: price, ts_ms: 5 }])),
});
const begun = (wishes = { delivery: "all" }) => {
  const session = new Session(["NSE:A", "NSE:B"], wishes);
  session.hear(answer(session.opening()[0]));
  return session;
};

test("the first connection asks for no recovery and reports none", () => {
  const session = new Session(["NSE:A", "NSE:A"], { delivery: "all" });
  const [opening] = session.opening();
  assert.deepEqual(JSON.parse(opening), {
    action: "subscribe", id: 1, instruments: ["NSE:A"], delivery: "all", channels: ["tick"],
  });
  const [record] = session.hear(answer(opening, { snapshot: { "NSE:A": { last_price: 7.5, ts_ms: 3, bid: null } } }));
  assert.equal(record.recovered, undefined);
  assert.deepEqual(record.snapshot, { "NSE:A": { type: "tick", instrument: "NSE:A", price: 7.5, tsMs: 3, flags: [] } });
  assert.deepEqual(session.resumePoint(), { epoch: "e1", position: { NSE: "100-0" } });
});

test("a new history is told, and the next resume names its epoch", () => {
  const session = begun();
  session.hear(ticks("101-0", { A: 1 }));
  const [record] = session.hear(
    JSON.stringify({ type: "resync", instrumentKey: "*", reason: "history_lost", epoch: "e2" }),
  );
  assert.equal(record.event, "resync");
  assert.deepEqual(session.resumePoint(), { epoch: "e2", position: { NSE: "101-0" } });
});

test("a reconnection resumes from the last message heard", () => {
  const session = begun();
  session.hear(ticks("100-1", { A: 1, B: 2 }));
  session.hear(ticks("101-0", { A: 1.5 }));
  assert.deepEqual(JSON.parse(session.opening()[0]).resume, { epoch: "e1", position: { NSE: "101-0" } });
});

test("a recovery does not move the position, only what follows it does", () => {
  const session = begun();
  session.hear(ticks("101-0", { A: 1 }));
  const [record] = session.hear(answer(session.opening()[0], { recovered: true, position: { NSE: "500-0" } }));
  assert.equal(record.recovered, true);
  session.hear(ticks("102-0", { A: 2 }));
  assert.deepEqual(JSON.parse(session.opening()[0]).resume.position, { NSE: "102-0" });
});

test("what cannot be recovered is said and the position is the new one", () => {
  const session = begun();
  session.hear(ticks("101-0", { A: 1 }));
  const fields = { recovered: false, epoch: "e2", position: { NSE: "50-0" } };
  const [record] = session.hear(answer(session.opening()[0], fields));
  assert.equal(record.recovered, false);
  assert.deepEqual(session.resumePoint(), { epoch: "e2", position: { NSE: "50-0" } });
});

test("an exchange without records is resumed from its beginning", () => {
  const session = new Session(["NSE:A", "BSE:A"], { delivery: "all" });
  session.hear(answer(session.opening()[0]));
  assert.deepEqual(session.resumePoint().position, { NSE: "100-0", BSE: "0-0" });
});

test("with latest there is no position, and a reconnection says so", () => {
  const session = begun({ everyMs: 50 });
  session.hear(ticks("105-0", { A: 1 }));
  session.hear(ticks("104-0", { B: 1 }));
  assert.equal(session.resumePoint(), undefined);
  const [opening] = session.opening();
  assert.equal(JSON.parse(opening).resume, undefined);
  assert.equal(session.hear(answer(opening))[0].recovered, false);
  assert.throws(() => new Session(["NSE:A"], { resume: { epoch: "e", position: {} } }), TypeError);
});

test("a position that does not increase is noticed", () => {
  for (const position of ["100-0", "99-9"]) {
    const session = begun();
    assert.throws(() => session.hear(ticks(position, { A: 1 })), OutOfOrder);
    session.forgetPosition();
    assert.equal(JSON.parse(session.opening()[0]).resume, undefined);
  }
});

test("more instruments join and leave, and the next connection knows", () => {
  const session = begun();
  const [added] = session.add(["NSE:C", "NSE:A", "BSE:X"]);
  assert.deepEqual(JSON.parse(added).instruments, ["NSE:C", "BSE:X"]);
  session.hear(ticks("101-0", { A: 1 }));
  session.hear(answer(added, { position: { NSE: "300-0", BSE: "7-7" } }));
  assert.deepEqual(session.resumePoint().position, { NSE: "101-0", BSE: "7-7" });
  const [removed] = session.remove(["NSE:A", "NSE:NEVER"]);
  assert.deepEqual(JSON.parse(removed).instruments, ["NSE:A"]);
  assert.deepEqual(JSON.parse(session.opening()[0]).instruments, ["NSE:B", "NSE:C", "BSE:X"]);
});

test("control records, notices and bars become records", () => {
  const session = begun();
  const gap = { type: "gap", instrumentKey: "NSE:A", ts_ms: 9, src: "DHAN", from: 5, to: 9, position: { NSE: "100-1" } };
  assert.deepEqual(session.hear(JSON.stringify(gap)), [
    { type: "control", event: "gap", instrument: "NSE:A", tsMs: 9, src: "DHAN", fields: { from: 5, to: 9 }, position: "100-1" },
  ]);
  assert.deepEqual(session.hear('{"type":"skipped","n":3,"instruments":{"NSE:A":3}}'), [
    { type: "skipped", n: 3, instruments: { "NSE:A": 3 } },
  ]);
  const bar = '{"type":"chart_update","instrumentKey":"NSE:A","interval":"1","ohlcv":[[60,1,2,0.5,1.5,10]]}';
  assert.deepEqual(session.hear(bar), [
    { type: "bar", instrument: "NSE:A", interval: "1", startS: 60, open: 1, high: 2, low: 0.5, close: 1.5, volume: 10 },
  ]);
  assert.equal(session.hear('{"type":"error","id":null,"code":"too_many","message":"grown"}')[0].type, "notice");
});

test("a refused subscription ends the client", () => {
  const session = new Session(["NSE:A"]);
  session.opening();
  assert.throws(() => session.hear('{"type":"error","id":1,"code":"too_many","message":"x"}'), SubscriptionRefused);
});

test("a thousand long names go in messages the daemon takes, and are then not resumed", () => {
  const keys = Array.from({ length: 1000 }, (_, index) => `NFO:NIFTY-2026-12-31-${10_000 + index}-CE`);
  const session = new Session(keys, { delivery: "all" });
  const messages = session.opening();
  assert.ok(messages.length > 1);
  assert.ok(messages.every((message) => message.length < 16 * 1024));
  assert.deepEqual(messages.flatMap((message) => JSON.parse(message).instruments), keys);
  messages.forEach((message) => session.hear(answer(message)));
  assert.ok(session.opening().every((message) => JSON.parse(message).resume === undefined));
});

test("anything else is unreadable and nothing worse", () => {
  for (const text of ["", "{", "null", "[]", "7", '"x"', "{}", '{"type":"raw_tick"}', '{"type":"gap"}', new Uint8Array(3),
    '{"type":"subscribed","id":99}', '{"type":"raw_tick","position":{},"data":{"A":{}}}',
    '{"type":"raw_tick","position":{"NSE":"x"},"data":{}}']) {
    assert.throws(() => begun().hear(text), Unreadable, String(text));
  }
});

test("waits have full jitter and a limit that doubles; only a connection that lasted makes them short", () => {
  const backoff = new Backoff({ chance: () => 1 });
  assert.deepEqual([1, 2, 3, 4, 5, 6, 7].map(() => backoff.nextMs()), [1e3, 2e3, 4e3, 8e3, 16e3, 30e3, 30e3]);
  backoff.lasted(29_999);
  assert.equal(backoff.nextMs(), 30_000);
  backoff.lasted(30_000);
  assert.equal(backoff.nextMs(), 1_000);
  assert.equal(new Backoff({ chance: () => 0 }).nextMs(), 0);
});

test("the address of the daemon is enough; secrets in it are refused", () => {
  assert.equal(websocketUrl("http://127.0.0.1:8080"), "ws://127.0.0.1:8080/ws");
  assert.equal(websocketUrl("https://host/market/"), "wss://host/market/ws");
  assert.equal(websocketUrl("ws://host:1/ws"), "ws://host:1/ws");
  for (const url of ["ftp://host", "host", "http://user:pw@host", "http://host/?token=x"]) {
    assert.throws(() => websocketUrl(url), TypeError);
  }
});

test("the other channels are records of their own, and two of one tick may share its position", () => {
  const session = begun({ delivery: "all", channels: ["quote", "trade", "depth", "options", "news"], levels: 20, expiry: "2026-12-29" });
  const [opening] = session.opening();
  assert.equal(JSON.parse(opening).levels, 20);
  assert.equal(JSON.parse(opening).expiry, "2026-12-29");
  const say = (message) => session.hear(JSON.stringify(message));
  assert.deepEqual(
    say({ type: "trade", position: { NSE: "101-0" }, data: { "NSE:A": { price: 7.5, quantity: 3, ts_ms: 9, src: "DHAN" } } }),
    [{ type: "trade", instrument: "NSE:A", price: 7.5, quantity: 3, tsMs: 9, src: "DHAN", flags: [] }],
  );
  assert.deepEqual(
    say({ type: "quote", position: { NSE: "101-0" }, data: { "NSE:A": { bid: 7, ask_size: 2, ts_ms: 9 } } }),
    [{ type: "quote", instrument: "NSE:A", bid: 7, askSize: 2, tsMs: 9, flags: [] }],
  );
  assert.deepEqual(session.resumePoint().position, { NSE: "101-0" });
  assert.throws(() => say({ type: "trade", position: { NSE: "100-9" }, data: {} }), OutOfOrder);
  assert.deepEqual(
    say({ type: "depth", data: { "NSE:A": { bids: [[7, 1, 1]], asks: [], levels: 5, ts_ms: 9, flags: ["stale"] } } }),
    [{ type: "depth", instrument: "NSE:A", bids: [[7, 1, 1]], asks: [], levels: 5, tsMs: 9, flags: ["stale"] }],
  );
  const [chain] = say({
    type: "options", instrumentKey: "NSE:A", expiry: 5, expiry_date: "2026-12-29", is_next: true, timestamp: 9, max_pain: null,
    symbols: [{ f: ["NFO:A-CE", "100", "call", 99, 1.5, 2, 3, null, 5, 0.5, null, null, null, 20], bid: 1, ask: 2, greeks_by: "vendor" }],
  });
  assert.deepEqual([chain.instrument, chain.expiryDate, chain.isNext, chain.tsMs], ["NSE:A", "2026-12-29", true, 9]);
  assert.deepEqual(chain.legs, [{
    symbol: "NFO:A-CE", strike: "100", side: "call", lastPrice: 1.5, volume: 2, oi: 3, delta: 0.5, iv: 20, bid: 1, ask: 2, greeksBy: "vendor",
  }]);
  const article = { id: "YF:1", ts_ms: 9, headline: "h", publisher: "", url: null, instruments: [], symbols: [], src: "YF" };
  assert.deepEqual(say({ type: "news", article }), [
    { type: "news", id: "YF:1", tsMs: 9, headline: "h", publisher: "", instruments: [], symbols: [], src: "YF" },
  ]);
  assert.deepEqual(say({ type: "skipped", n: 2, instruments: { "NSE:A": 2 }, channels: { trade: 2 } })[0].channels, { trade: 2 });
});

test("what is refused and what is newest stand in the answer", () => {
  const session = new Session(["NSE:A", "*"], { channels: ["quote", "depth"] });
  const [record] = session.hear(answer(session.opening()[0], {
    refused: { depth: { "NSE:A": "no_depth" } }, snapshots: { quote: { "NSE:A": { bid: 7, ts_ms: 1 } } },
  }));
  assert.deepEqual(record.refused, { depth: { "NSE:A": "no_depth" } });
  assert.deepEqual(record.newest, [{ type: "quote", instrument: "NSE:A", bid: 7, tsMs: 1, flags: [] }]);
});
