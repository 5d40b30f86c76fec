/**
 * @typedef {object} Wishes
 * @property {"all" | "latest"} [delivery]
 * @property {number} [everyMs]
 * @property {readonly string[]} [channels]
 * @property {string} [interval]
 * @property {ResumePoint} [resume]
 */
export class Session {
    /**
     * @param {Iterable<string>} instruments
     * @param {Wishes} [wishes]
     */
    constructor(instruments: Iterable<string>, { delivery, everyMs, channels, interval, resume }?: Wishes);
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
export type Wishes = {
    delivery?: "all" | "latest";
    everyMs?: number;
    channels?: readonly string[];
    interval?: string;
    resume?: ResumePoint;
};
