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
    /**
     * @param {Iterable<string>} instruments
     * @param {Wishes} [wishes]
     */
    constructor(instruments: Iterable<string>, wishes?: Wishes);
    /**
     * Where everything taken in so far ends; undefined before the first answer and with `latest`.
     * @returns {ResumePoint | undefined}
     */
    resumePoint(): ResumePoint | undefined;
    /**
     * The messages that begin a connection.
     * @returns {string[]}
     */
    opening(): string[];
    /**
     * Want more; the messages that say so on an open connection.
     * @param {Iterable<string>} instruments
     * @returns {string[]}
     */
    add(instruments: Iterable<string>): string[];
    /**
     * Want less; the messages that say so on an open connection.
     * @param {Iterable<string>} instruments
     * @returns {string[]}
     */
    remove(instruments: Iterable<string>): string[];
    /**
     * Do not resume at the next connection: what was heard cannot be trusted.
     * @returns {void}
     */
    forgetPosition(): void;
    /** @returns {number} */
    nextId(): number;
    /**
     * The records in one message. Throws OutOfOrder, Unreadable, and SubscriptionRefused when the daemon
     * refuses our wish.
     * @param {unknown} text
     * @returns {MarketRecord[]}
     */
    hear(text: unknown): MarketRecord[];
    #private;
}
export type MarketRecord = import("./records.js").MarketRecord;
export type Tick = import("./records.js").Tick;
export type ResumePoint = import("./records.js").ResumePoint;
/**
 * `channels` are any of tick, chart, quote, trade, depth, options and news; `interval` is of chart, `levels` (5,
 * 20, 200) of depth, `expiry` (a date, or epoch seconds; the next one without) of options.
 */
export type Wishes = {
    delivery?: "all" | "latest";
    everyMs?: number;
    channels?: readonly string[];
    interval?: string;
    expiry?: string | number;
    levels?: number;
    resume?: ResumePoint;
};
