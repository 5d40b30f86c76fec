/**
 * Waits of random length between 0 and a limit that doubles from `firstMs` to `longestMs`. The limit falls
 * back to `firstMs` only after a connection that lasted `healthyAfterMs`.
 */
export class Backoff {
    /** @param {{firstMs?: number, longestMs?: number, healthyAfterMs?: number, chance?: () => number}} [options] */
    constructor({ firstMs, longestMs, healthyAfterMs, chance }?: {
        firstMs?: number;
        longestMs?: number;
        healthyAfterMs?: number;
        chance?: () => number;
    });
    /** @type {number} */ firstMs: number;
    /** @type {number} */ longestMs: number;
    /** @type {number} */ healthyAfterMs: number;
    /** @type {() => number} */ chance: () => number;
    /**
     * Note how long the connection that just ended had been open.
     * @param {number} ms
     * @returns {void}
     */
    lasted(ms: number): void;
    /**
     * Return the next wait in milliseconds.
     * @returns {number}
     */
    nextMs(): number;
    #private;
}
