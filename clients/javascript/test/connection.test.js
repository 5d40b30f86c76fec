// How the client comes back and when it does not, with a WebSocket that the test plays.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff, Client, ConnectionRefused } from "../src/index.js";

/** Sockets made so far, newest last; `made()` waits for the next one. */
function theatre() {
  const sockets = [];
  const waiting = [];
  class FakeSocket extends EventTarget {
    sent = [];
    closedWith = undefined;
    constructor(url) {
      super();
      this.url = url;
      sockets.push(this);
      waiting.shift()?.(this);
    }
    send(text) { this.sent.push(JSON.parse(text)); }
    close(code) { this.closedWith = code; }
    open() { this.dispatchEvent(new Event("open")); }
    say(message) { this.dispatchEvent(Object.assign(new Event("message"), { data: JSON.stringify(message) })); }
    end(code, reason = "") { this.dispatchEvent(Object.assign(new Event("close"), { code, reason })); }
    begin(fields = {}) {
      this.open();
      const asked = this.sent.at(-1);
      this.say({ type: "subscribed", id: asked.id, accepted: asked.instruments, rejected: {}, epoch: "e",
        position: { NSE: "1-0" }, snapshot: {}, ...fields });
      return asked;
    }
    tick(number) {
      this.say({ type: "raw_tick", position: { NSE: `1-${number}` }, data: { "NSE:A": { last_price: number, ts_ms: number } } });
    }
  }
  const made = () => new Promise((resolve) => waiting.push(resolve));
  return { FakeSocket, sockets, made };
}
const atOnce = () => new Backoff({ firstMs: 0, longestMs: 0 });

test("close codes up to 4499 come back", async () => {
  for (const code of [1000, 1006, 1012, 4000, 4008, 4413, 4499]) {
    const { FakeSocket, made } = theatre();
    const client = new Client("http://d", ["NSE:A"], { WebSocket: FakeSocket, backoff: atOnce() });
    const records = client[Symbol.asyncIterator]();
    let next = made();
    const first = records.next();
    let socket = await next;
    next = made();
    socket.begin();
    assert.equal((await first).value.type, "subscribed");
    socket.end(code, "because");
    assert.deepEqual((await records.next()).value, { type: "disconnected", code, reason: "because", retryInMs: 0 });
    socket = await next;
    socket.begin();
    assert.equal((await records.next()).value.recovered, false);
    await records.return();
    assert.equal(socket.closedWith, 1000);
  }
});

test("close codes from 4500 do not", async () => {
  for (const code of [4500, 4501, 4999]) {
    const { FakeSocket, made, sockets } = theatre();
    const records = new Client("http://d", ["NSE:A"], { WebSocket: FakeSocket })[Symbol.asyncIterator]();
    const next = made();
    const first = records.next();
    const socket = await next;
    socket.open();
    socket.end(code, "no");
    await assert.rejects(first, (error) => error instanceof ConnectionRefused && error.code === code);
    assert.equal((await records.next()).done, true);
    assert.equal(sockets.length, 1);
  }
});

test("a broken connection is resumed where it broke, with a fresh token", async () => {
  const { FakeSocket, made } = theatre();
  const secrets = ["first", "second"];
  const client = new Client("http://d", ["NSE:A"], {
    WebSocket: FakeSocket, backoff: atOnce(), delivery: "all", token: async () => secrets.shift(),
  });
  const seen = [];
  let next = made();
  const loop = (async () => {
    for await (const record of client) {
      seen.push(record.type);
      if (record.type === "tick" && record.price === 3) break;
    }
  })();
  let socket = await next;
  next = made();
  socket.begin();
  socket.tick(1);
  socket.tick(2);
  socket.end(1006);
  socket = await next;
  const asked = socket.begin({ recovered: true, position: { NSE: "1-9" } });
  assert.deepEqual(asked.resume, { epoch: "e", position: { NSE: "1-2" } });
  assert.equal(socket.sent[0].token, "second");
  socket.tick(3);
  await loop;
  assert.deepEqual(seen, ["subscribed", "tick", "tick", "disconnected", "subscribed", "tick"]);
  assert.deepEqual(client.resumePoint, { epoch: "e", position: { NSE: "1-3" } });
});

test("a full buffer closes the connection, and room brings it back where it broke", async () => {
  const { FakeSocket, made, sockets } = theatre();
  const client = new Client("http://d", ["NSE:A"], { WebSocket: FakeSocket, delivery: "all", bufferFrames: 10 });
  const records = client[Symbol.asyncIterator]();
  let next = made();
  const first = records.next();
  const socket = await next;
  next = made();
  socket.begin();
  assert.equal((await first).value.type, "subscribed");
  for (let number = 1; number <= 50; number += 1) socket.tick(number);
  assert.equal(socket.closedWith, 3000);
  assert.equal(sockets.length, 1);
  const prices = [];
  let reason = "";
  while (reason === "") {
    const { value } = await records.next();
    if (value.type === "tick") prices.push(value.price);
    else reason = value.reason;
  }
  assert.equal(reason, "buffer_full");
  assert.deepEqual(prices, Array.from({ length: 10 }, (_, index) => index + 1));
  const waiting = records.next();
  const again = await next;
  assert.deepEqual(again.begin({ recovered: true }).resume.position, { NSE: "1-10" });
  assert.equal((await waiting).value.recovered, true);
  client.close();
});

test("positions out of order end the connection and are not resumed from", async () => {
  const { FakeSocket, made } = theatre();
  const client = new Client("http://d", ["NSE:A"], { WebSocket: FakeSocket, delivery: "all", backoff: atOnce() });
  const records = client[Symbol.asyncIterator]();
  let next = made();
  const first = records.next();
  const socket = await next;
  next = made();
  socket.begin();
  socket.tick(2);
  socket.tick(1);
  await first;
  await records.next();
  assert.match((await records.next()).value.reason, /out_of_order/);
  assert.equal((await next).begin().resume, undefined);
  client.close();
});

test("a daemon that says nothing is asked, and given up when it does not answer", async () => {
  const { FakeSocket, made } = theatre();
  const client = new Client("http://d", ["NSE:A"], { WebSocket: FakeSocket, backoff: atOnce(), silenceMs: 40 });
  const records = client[Symbol.asyncIterator]();
  const next = made();
  const first = records.next();
  const socket = await next;
  socket.begin();
  await first;
  const gone = (await records.next()).value;
  assert.equal(gone.reason, "silent");
  assert.equal(socket.sent.at(-1).action, "ping");
  client.close();
});

test("without a WebSocket it says what to do", () => {
  const saved = globalThis.WebSocket;
  globalThis.WebSocket = undefined;
  try {
    assert.throws(() => new Client("http://d", ["NSE:A"]), /package ws/);
  } finally {
    globalThis.WebSocket = saved;
  }
});

test("several addresses are tried in turn, and the next one resumes where the last one stopped", async () => {
  const { FakeSocket, made } = theatre();
  const client = new Client(["http://a:1", new URL("http://b:2/x")], ["NSE:A"], {
    WebSocket: FakeSocket, backoff: atOnce(), delivery: "all",
  });
  const records = client[Symbol.asyncIterator]();
  let next = made();
  const first = records.next();
  let socket = await next;
  assert.equal(socket.url, "ws://a:1/ws");
  next = made();
  socket.begin();
  await first;
  socket.tick(7);
  await records.next();
  socket.end(1006);
  await records.next();
  socket = await next;
  assert.equal(socket.url, "ws://b:2/x/ws");
  assert.equal(client.url, socket.url);
  socket.open();
  assert.deepEqual(socket.sent.at(-1).resume, { epoch: "e", position: { NSE: "1-7" } });
  next = made();
  socket.end(1006, "refused");
  await records.next();
  assert.equal((await next).url, "ws://a:1/ws", "after the last one comes the first");
  await records.return();
  assert.throws(() => new Client([], ["NSE:A"], { WebSocket: FakeSocket }), TypeError);
});
