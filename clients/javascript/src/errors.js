// What ends a client: nothing here is worth trying again unchanged.

/** The client has ended and will not come back by itself. */
export class ClientError extends Error {
  /** @type {string} */
  name = "ClientError";
}

/** The daemon does not want this client again; `code` is the close code (4500-4999). */
export class ConnectionRefused extends ClientError {
  /** @type {string} */
  name = "ConnectionRefused";

  /**
   * @param {number} code
   * @param {string} reason
   */
  constructor(code, reason) {
    super(`the daemon refuses the connection (${code}): ${reason || "no reason given"}`);
    /** @type {number} */
    this.code = code;
  }
}

/** The daemon refuses what was subscribed, for instance `too_many`; see `code`. */
export class SubscriptionRefused extends ClientError {
  /** @type {string} */
  name = "SubscriptionRefused";

  /**
   * @param {string} code
   * @param {string} message
   */
  constructor(code, message) {
    super(`${code}: ${message}`);
    /** @type {string} */
    this.code = code;
  }
}

/** The daemon sent a position that is not later than the one before it. */
export class OutOfOrder extends Error {}

/** The other side does not speak this protocol. */
export class Unreadable extends Error {}
