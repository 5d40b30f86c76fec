/** @typedef {import("./records.js").Update} Update */
/**
 * The records in a message of one of these channels; undefined for one of another type.
 * @param {any} message
 * @returns {Update[] | undefined}
 */
export function updatesOf(message: any): Update[] | undefined;
/**
 * What stands in the answer to a subscription of these channels.
 * @param {any} snapshots
 * @returns {Update[]}
 */
export function newestOf({ quote, trade, news }: any): Update[];
/**
 * Without the fields that are not known.
 * @param {any} record
 * @returns {any}
 */
export function known(record: any): any;
export type Update = import("./records.js").Update;
