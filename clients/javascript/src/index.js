// Client of the marketd market-data daemon. Browsers and Node, no dependencies.

export { Backoff } from "./backoff.js";
export { Client, websocketUrl } from "./client.js";
export { ClientError, ConnectionRefused, SubscriptionRefused } from "./errors.js";

/** @typedef {import("./client.js").ClientOptions} ClientOptions */
/** @typedef {import("./records.js").Tick} Tick */
/** @typedef {import("./records.js").Control} Control */
/** @typedef {import("./records.js").Bar} Bar */
/** @typedef {import("./records.js").Trade} Trade */
/** @typedef {import("./records.js").Quote} Quote */
/** @typedef {import("./records.js").Depth} Depth */
/** @typedef {import("./records.js").OptionLeg} OptionLeg */
/** @typedef {import("./records.js").OptionChain} OptionChain */
/** @typedef {import("./records.js").News} News */
/** @typedef {import("./records.js").Skipped} Skipped */
/** @typedef {import("./records.js").Subscribed} Subscribed */
/** @typedef {import("./records.js").Disconnected} Disconnected */
/** @typedef {import("./records.js").Notice} Notice */
/** @typedef {import("./records.js").ResumePoint} ResumePoint */
/** @typedef {import("./records.js").MarketRecord} MarketRecord */
