// The WebSocket of a daemon as an async iterable that comes back by itself.
//
//     const client = new Client("http://127.0.0.1:8080", ["NSE:RELIANCE"], { delivery: "all" });
//     for await (const record of client) { … }
//
// A browser's WebSocket cannot be told to wait. So when the buffer is full the client closes the connection,
// and comes back, resuming, when half of it was taken: the daemon's stream keeps what this page cannot.

import { Backoff } from "./backoff.js";
import { ConnectionRefused, OutOfOrder, Unreadable } from "./errors.js";
import { Session } from "./session.js";

/** @typedef {import("./records.js").MarketRecord} MarketRecord */
/** @typedef {import("./records.js").ResumePoint} ResumePoint */

/**
 * `token`: the secret, or a function that returns one, asked at every attempt; it goes in the first message.
 * `WebSocket`: the class to use where there is no global one (Node before 22: `import WebSocket from "ws"`).
 * `bufferFrames`: how many messages may wait. `silenceMs`: after so long without a word the daemon is asked
 * whether it is still there, and given up after half of that time again.
 * @typedef {import("./session.js").Wishes & {
 *   token?: string | (() => string | Promise<string>),
 *   WebSocket?: new (url: string) => any,
 *   backoff?: Backoff,
 *   bufferFrames?: number,
 *   silenceMs?: number,
 * }} ClientOptions
 */

const ABNORMAL = 1006;
const OWN_CLOSE = 3000;

/**
 * Records of `instruments` (keys, or `EXCHANGE:*`), over as many connections as it takes. `url` is the daemon's
 * address, or those of several gateways on one Redis: after every connection that ends, or cannot be made, the
 * next one is tried, and goes on where the last one stopped. Iterating throws ConnectionRefused or
 * SubscriptionRefused when coming back is of no use; leaving the loop closes.
 * @implements {AsyncIterable<MarketRecord>}
 */
export class Client {
  /** @type {string[]} */ #urls;
  #turn = 0;
  /** @type {Session} */ #session;
  /** @type {ClientOptions["token"]} */ #token;
  /** @type {new (url: string) => any} */ #WebSocket;
  /** @type {Backoff} */ #backoff;
  /** @type {number} */ #bufferFrames;
  /** @type {number} */ #silenceMs;
  /** @type {{records: MarketRecord[], point: ResumePoint | undefined}[]} */ #frames = [];
  /** @type {ResumePoint | undefined} */ #point;
  /** @type {any} */ #socket = undefined;
  /** @type {(() => void) | undefined} */ #detach = undefined;
  /** @type {(() => void) | undefined} */ #wake = undefined;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer = undefined;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #watch = undefined;
  /** @type {unknown} */ #failure = undefined;
  #started = false;
  #closed = false;
  #waitsForRoom = false;
  #attempt = 0;
  #openedMs = 0;
  #heardMs = 0;
  #askedMs = 0;

  /**
   * @param {string | URL | Iterable<string | URL>} url
   * @param {Iterable<string>} instruments
   * @param {ClientOptions} [options]
   */
  constructor(url, instruments, options = {}) {
    const { token, WebSocket = globalThis.WebSocket, backoff, bufferFrames = 10_000, silenceMs = 20_000 } = options;
    if (WebSocket === undefined) {
      throw new TypeError("there is no WebSocket here: pass one in the options, for instance from the package ws");
    }
    const urls = typeof url === "string" || url instanceof URL ? [url] : [...url];
    if (urls.length === 0) throw new TypeError("no address of a daemon was given");
    this.#urls = urls.map(websocketUrl);
    this.#session = new Session(instruments, options);
    this.#token = token;
    this.#WebSocket = WebSocket;
    this.#backoff = backoff ?? new Backoff();
    this.#bufferFrames = Math.max(2, bufferFrames);
    this.#silenceMs = silenceMs;
    this.#point = options.resume;
  }

  /**
   * The address that is connected to, or tried next.
   * @returns {string}
   */
  get url() {
    return /** @type {string} */ (this.#urls[this.#turn % this.#urls.length]);
  }

  /**
   * Where the records handed out so far end; moves when the last record of a frame was taken. Undefined
   * before the first answer, and always with `latest`.
   * @returns {ResumePoint | undefined}
   */
  get resumePoint() {
    return this.#point;
  }

  /**
   * Watch more; the answer comes as a `subscribed` record.
   * @param {...string} instruments
   * @returns {void}
   */
  subscribe(...instruments) {
    this.#say(this.#session.add(instruments));
  }

  /**
   * Watch less; records that are on their way still come.
   * @param {...string} instruments
   * @returns {void}
   */
  unsubscribe(...instruments) {
    this.#say(this.#session.remove(instruments));
  }

  /**
   * End the connection; iterating ends after what is buffered.
   * @returns {void}
   */
  close() {
    this.#closed = true;
    this.#leave(1000, "");
    clearTimeout(this.#timer);
    this.#wake?.();
  }

  /** @returns {AsyncGenerator<MarketRecord, void, undefined>} */
  async *[Symbol.asyncIterator]() {
    if (this.#started) throw new TypeError("a client can be iterated once");
    this.#started = true;
    this.#open();
    try {
      for (;;) {
        const frames = this.#frames;
        this.#frames = [];
        for (const [index, { records, point }] of frames.entries()) {
          for (const [place, record] of records.entries()) {
            // The point moves with the last record, before it is used: it is the reader's from here on.
            if (place === records.length - 1) this.#point = point;
            yield record;
          }
          this.#makeRoom(frames.length - index - 1);
        }
        if (this.#frames.length > 0) continue;
        if (this.#failure !== undefined) throw this.#failure;
        if (this.#closed) return;
        await new Promise((/** @type {(value?: unknown) => void} */ resolve) => (this.#wake = resolve));
      }
    } finally {
      this.close();
    }
  }

  // ---- connecting ------------------------------------------------------------------------------

  async #open() {
    const attempt = ++this.#attempt;
    /** @type {string | undefined} */
    let secret;
    try {
      secret = typeof this.#token === "function" ? await this.#token() : this.#token;
    } catch (error) {
      this.#fail(error);
    }
    if (this.#closed || attempt !== this.#attempt || this.#failure !== undefined) return;
    /** @type {any} */
    let socket;
    try {
      socket = new (/** @type {any} */ (this.#WebSocket))(this.url);
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#openedMs = 0;
    const opened = () => {
      this.#openedMs = this.#heardMs = now();
      this.#askedMs = 0;
      if (secret !== undefined) {
        socket.send(JSON.stringify({ action: "auth", id: this.#session.nextId(), token: secret }));
      }
      this.#socket = socket;
      this.#say(this.#session.opening());
    };
    const heard = (/** @type {{data: unknown}} */ event) => this.#hear(event.data);
    const ended = (/** @type {{code: number, reason: string}} */ event) => {
      this.#leave(OWN_CLOSE, "");
      this.#ended(event.code, event.reason || "connection lost");
    };
    const broken = () => {}; // what is wrong is said by the close that follows
    socket.addEventListener("open", opened);
    socket.addEventListener("message", heard);
    socket.addEventListener("close", ended);
    socket.addEventListener("error", broken);
    clearInterval(this.#watch);
    const openBy = now() + this.#silenceMs;
    this.#watch = setInterval(() => this.#check(openBy), Math.max(10, this.#silenceMs / 8));
    this.#detach = () => {
      socket.removeEventListener("open", opened);
      socket.removeEventListener("message", heard);
      socket.removeEventListener("close", ended);
      return socket;
    };
  }

  /** @param {unknown} data */
  #hear(data) {
    this.#heardMs = now();
    this.#askedMs = 0;
    let records;
    try {
      records = this.#session.hear(data);
    } catch (error) {
      if (error instanceof OutOfOrder) {
        this.#session.forgetPosition();
        this.#drop(`out_of_order: ${error.message}`);
      } else if (error instanceof Unreadable) {
        this.#drop(error.message);
      } else {
        this.#fail(error);
      }
      return;
    }
    if (records.length > 0) this.#handOver(records);
    if (this.#frames.length >= this.#bufferFrames) {
      this.#waitsForRoom = true;
      this.#drop("buffer_full");
    }
  }

  /** @param {MarketRecord[]} records */
  #handOver(records) {
    this.#frames.push({ records, point: this.#session.resumePoint() });
    this.#wake?.();
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #ended(code, reason) {
    if (this.#openedMs > 0) this.#backoff.lasted(now() - this.#openedMs);
    if (code >= 4500 && code <= 4999) {
      this.#fail(new ConnectionRefused(code, reason));
      return;
    }
    // One that closed because the reader is behind is as good as it was.
    if (!this.#waitsForRoom) this.#turn += 1;
    const retryInMs = this.#waitsForRoom ? 0 : this.#backoff.nextMs();
    this.#handOver([{ type: "disconnected", code, reason, retryInMs }]);
    if (!this.#waitsForRoom) this.#timer = setTimeout(() => this.#open(), retryInMs);
  }

  /** @param {number} left */
  #makeRoom(left) {
    if (this.#waitsForRoom && left + this.#frames.length <= this.#bufferFrames / 2) {
      this.#waitsForRoom = false;
      this.#open();
    }
  }

  /** @param {string} reason */
  #drop(reason) {
    this.#leave(OWN_CLOSE, reason.slice(0, 40));
    this.#ended(ABNORMAL, reason);
  }

  /** @param {unknown} error */
  #fail(error) {
    this.#failure ??= error;
    this.#leave(1000, "");
    this.#wake?.();
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #leave(code, reason) {
    clearInterval(this.#watch);
    const socket = this.#detach?.();
    this.#detach = undefined;
    this.#socket = undefined;
    try {
      /** @type {any} */ (socket)?.close(code, reason.replace(/[^ -~]/g, "?"));
    } catch {
      // Closed while it was still being opened: that is what was wanted.
    }
  }

  /** @param {number} openBy */
  #check(openBy) {
    const at = now();
    if (this.#socket === undefined) {
      if (at > openBy) this.#drop("no answer");
    } else if (this.#askedMs > 0) {
      if (at - this.#askedMs > this.#silenceMs / 2) this.#drop("silent");
    } else if (at - this.#heardMs > this.#silenceMs) {
      this.#askedMs = at;
      this.#say([JSON.stringify({ action: "ping", id: this.#session.nextId() })]);
    }
  }

  /** @param {string[]} messages */
  #say(messages) {
    // Without a connection there is nothing to say: the next one begins with all that is wanted.
    for (const message of messages) this.#socket?.send(message);
  }
}

/**
 * The address of the WebSocket of a daemon at `url` (http, https, ws or wss). Throws TypeError for another
 * scheme, and for a secret in the URL: it would stand in logs.
 * @param {string | URL} url
 * @returns {string}
 */
export function websocketUrl(url) {
  const parsed = new URL(url);
  const scheme = { "http:": "ws:", "https:": "wss:", "ws:": "ws:", "wss:": "wss:" }[parsed.protocol];
  if (scheme === undefined) throw new TypeError(`${parsed.protocol} is no address of a daemon; expected http://HOST:PORT`);
  if (parsed.username || parsed.password || parsed.search) {
    throw new TypeError("no secrets and no query in the URL: pass token in the options");
  }
  const path = parsed.pathname.replace(/\/+$/, "");
  return `${scheme}//${parsed.host}${path.endsWith("/ws") ? path : `${path}/ws`}`;
}

/** @returns {number} */
function now() {
  return performance.now();
}
