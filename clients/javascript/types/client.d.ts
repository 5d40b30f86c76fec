/**
 * The address of the WebSocket of a daemon at `url` (http, https, ws or wss). Throws TypeError for another
 * scheme, and for a secret in the URL: it would stand in logs.
 * @param {string | URL} url
 * @returns {string}
 */
export function websocketUrl(url: string | URL): string;
/**
 * Records of `instruments` (keys, or `EXCHANGE:*`), over as many connections as it takes. `url` is the daemon's
 * address, or those of several gateways on one Redis: after every connection that ends, or cannot be made, the
 * next one is tried, and goes on where the last one stopped. Iterating throws ConnectionRefused or
 * SubscriptionRefused when coming back is of no use; leaving the loop closes.
 * @implements {AsyncIterable<MarketRecord>}
 */
export class Client implements AsyncIterable<MarketRecord> {
    /**
     * @param {string | URL | Iterable<string | URL>} url
     * @param {Iterable<string>} instruments
     * @param {ClientOptions} [options]
     */
    constructor(url: string | URL | Iterable<string | URL>, instruments: Iterable<string>, options?: ClientOptions);
    /**
     * The address that is connected to, or tried next.
     * @returns {string}
     */
    get url(): string;
    /**
     * Where the records handed out so far end; moves when the last record of a frame was taken. Undefined
     * before the first answer, and always with `latest`.
     * @returns {ResumePoint | undefined}
     */
    get resumePoint(): ResumePoint | undefined;
    /**
     * Watch more; the answer comes as a `subscribed` record.
     * @param {...string} instruments
     * @returns {void}
     */
    subscribe(...instruments: string[]): void;
    /**
     * Watch less; records that are on their way still come.
     * @param {...string} instruments
     * @returns {void}
     */
    unsubscribe(...instruments: string[]): void;
    /**
     * End the connection; iterating ends after what is buffered.
     * @returns {void}
     */
    close(): void;
    /** @returns {AsyncGenerator<MarketRecord, void, undefined>} */
    [Symbol.asyncIterator](): AsyncGenerator<MarketRecord, void, undefined>;
    #private;
}
export type MarketRecord = import("./records.js").MarketRecord;
export type ResumePoint = import("./records.js").ResumePoint;
/**
 * `token`: the secret, or a function that returns one, asked at every attempt; it goes in the first message.
 * `WebSocket`: the class to use where there is no global one (Node before 22: `import WebSocket from "ws"`).
 * `bufferFrames`: how many messages may wait. `silenceMs`: after so long without a word the daemon is asked
 * whether it is still there, and given up after half of that time again.
 */
export type ClientOptions = import("./session.js").Wishes & {
    token?: string | (() => string | Promise<string>);
    WebSocket?: new (url: string) => any;
    backoff?: Backoff;
    bufferFrames?: number;
    silenceMs?: number;
};
import { Backoff } from "./backoff.js";
