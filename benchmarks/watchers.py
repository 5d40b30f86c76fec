"""WebSocket clients of the daemon: many connections in one process, how old each tick is on arrival.

    python -m benchmarks.watchers WS_URL BASE_S CLIENTS WATCHED INSTRUMENTS DELIVERY EVERY_MS [CHANNEL]

Client n watches `WATCHED` of the `INSTRUMENTS`, beginning where the one before ended. Commands as for
`benchmarks.reader`. Made with picows, so that a hundred clients cost less than the daemon that serves them.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import picows
import uvloop

from benchmarks.helper import Latencies, commands, say, stdin_bytes

_STAMPS = {
    "tick": re.compile(rb'"cumulative_volume":(\d+)').findall,
    "depth": re.compile(rb'"bids":\[\[[\d.]+,(\d+),').findall,
}
_TEXT = picows.WSMsgType.TEXT


class _Client(picows.WSListener):
    def __init__(self, request: dict[str, Any], latencies: Latencies) -> None:
        super().__init__()
        self._stamps = _STAMPS[request["channels"][0]]
        self._request = request
        self._latencies = latencies
        self.subscribed = asyncio.get_running_loop().create_future()
        self.ended = False

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.ended = True

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        transport.send(_TEXT, json.dumps(self._request).encode())

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is not _TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if not self.subscribed.done():
            if b'"type":"subscribed"' in payload:
                self.subscribed.set_result(json.loads(payload)["rejected"])
            elif b'"type":"error"' in payload:
                self.subscribed.set_exception(RuntimeError(payload.decode()))
            return
        latencies = self._latencies
        latencies.note(latencies.now(), [int(stamp) for stamp in self._stamps(payload)])


async def main(
    url: str,
    base_s: float,
    clients: int,
    watched: int,
    instruments: int,
    delivery: str,
    every_ms: int,
    channel: str = "tick",
) -> None:
    """Watch until standard input ends."""
    latencies = Latencies(base_s)
    made = []
    for number in range(clients):
        first = number * watched
        keys = [f"NSE:SYM{(first + place) % instruments + 1:05d}" for place in range(watched)]
        request: dict[str, Any] = {"action": "subscribe", "id": 1, "instruments": keys, "channels": [channel]}
        request["delivery"] = delivery
        if delivery == "latest":
            request["every_ms"] = every_ms
        _, client = await picows.ws_connect(lambda request=request: _Client(request, latencies), url)
        made.append(client)
    rejected = await asyncio.gather(*(client.subscribed for client in made))
    if any(rejected):
        raise RuntimeError(f"not subscribed: {next(filter(None, rejected))}")
    ended = asyncio.Event()

    def heard() -> None:
        data = stdin_bytes()
        if not data:
            ended.set()
        for command in commands(data):
            if command["do"] == "begin":
                latencies.begin()
                say({"begun": True})
            else:
                say({**latencies.end(), "cut": sum(client.ended for client in made)})

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), heard)
    say({"ready": True})
    await ended.wait()
    for client in made:
        client.transport.disconnect(graceful=False)


if __name__ == "__main__":
    uvloop.run(
        main(
            sys.argv[1],
            float(sys.argv[2]),
            *map(int, sys.argv[3:6]),
            sys.argv[6],
            int(sys.argv[7]),
            *sys.argv[8:9],
        )
    )
