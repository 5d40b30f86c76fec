// How long to wait before the next connection: exponential, with full jitter.

/**
 * Waits of random length between 0 and a limit that doubles from `firstMs` to `longestMs`. The limit falls
 * back to `firstMs` only after a connection that lasted `healthyAfterMs`.
 */
export class Backoff {
  #failures = 0;

  /** @param {{firstMs?: number, longestMs?: number, healthyAfterMs?: number, chance?: () => number}} [options] */
  constructor({ firstMs = 1_000, longestMs = 30_000, healthyAfterMs = 30_000, chance = Math.random } = {}) {
    /** @type {number} */ this.firstMs = firstMs;
    /** @type {number} */ this.longestMs = longestMs;
    /** @type {number} */ this.healthyAfterMs = healthyAfterMs;
    /** @type {() => number} */ this.chance = chance;
  }

  /**
   * Note how long the connection that just ended had been open.
   * @param {number} ms
   * @returns {void}
   */
  lasted(ms) {
    if (ms >= this.healthyAfterMs) this.#failures = 0;
  }

  /**
   * Return the next wait in milliseconds.
   * @returns {number}
   */
  nextMs() {
    const limit = Math.min(this.longestMs, this.firstMs * 2 ** Math.min(this.#failures, 32));
    this.#failures += 1;
    return this.chance() * limit;
  }
}
