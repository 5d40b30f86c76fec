/** The client has ended and will not come back by itself. */
export class ClientError extends Error {
}
/** The daemon does not want this client again; `code` is the close code (4500-4999). */
export class ConnectionRefused extends ClientError {
    /**
     * @param {number} code
     * @param {string} reason
     */
    constructor(code: number, reason: string);
    /** @type {number} */
    code: number;
}
/** The daemon refuses what was subscribed, for instance `too_many`; see `code`. */
export class SubscriptionRefused extends ClientError {
    /**
     * @param {string} code
     * @param {string} message
     */
    constructor(code: string, message: string);
    /** @type {string} */
    code: string;
}
/** The daemon sent a position that is not later than the one before it. */
export class OutOfOrder extends Error {
}
/** The other side does not speak this protocol. */
export class Unreadable extends Error {
}
