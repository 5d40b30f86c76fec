// Follows a daemon and prints each record as a line of JSON; the line `point` in between tells where it is.
// Usage: node follow.mjs URL[,URL…] '["NSE:TCS"]' '{"delivery":"all"}' [COUNT]
import { createInterface } from "node:readline";

import { Backoff, Client } from "../src/index.js";

const [url, instruments, options, count = "Infinity"] = process.argv.slice(2);
const client = new Client(url.split(","), JSON.parse(instruments), {
  ...JSON.parse(options),
  WebSocket: globalThis.WebSocket,
  backoff: new Backoff({ firstMs: 20, longestMs: 100 }),
});
// The one who started this says in lines of JSON what to watch more or less, and ends it by closing the pipe.
createInterface({ input: process.stdin }).on("line", (line) => {
  const [method, ...keys] = JSON.parse(line);
  client[method](...keys);
}).on("close", () => client.close());

let left = Number(count);
try {
  for await (const record of client) {
    console.log(JSON.stringify({ ...record, point: client.resumePoint }));
    if (--left <= 0) break;
  }
} catch (error) {
  console.log(JSON.stringify({ type: "ended", name: error.name, code: error.code, message: error.message }));
}
process.exit(0);
