"""Many WebSocket clients in one process that take what comes and count it, and nothing more.

    python -m benchmarks.drain WS_URL CLIENTS INSTRUMENTS DELIVERY EVERY_MS    INSTRUMENTS 0: asks for nothing

Says `ready` when all are connected and what they asked for is granted. Commands: `{"do": "begin"}`, and
`{"do": "end"}`, which answers `frames`, `ticks` and `bytes` of all clients since.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import picows
import uvloop

from benchmarks.helper import commands, say, stdin_bytes

_TEXT = picows.WSMsgType.TEXT
_PING = picows.WSMsgType.PING


class Tally:
    """What all clients have taken."""

    frames = ticks = size = 0


class _Client(picows.WSListener):
    def __init__(self, request: bytes, tally: Tally) -> None:
        super().__init__()
        self._request = request
        self._tally = tally
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        if self._request:
            transport.send(_TEXT, self._request)
        else:
            self.ready.set_result(None)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is _PING:
            # The gateway learns by it how far the client has read.
            transport.send_pong(frame.get_payload_as_bytes())
            return
        if frame.msg_type is not _TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if not self.ready.done():
            if b'"type":"subscribed"' in payload:
                self.ready.set_result(None)
            return
        tally = self._tally
        tally.frames += 1
        tally.ticks += payload.count(b'"last_price"')
        tally.size += len(payload)


async def main(url: str, clients: int, instruments: int, delivery: str, every_ms: int) -> None:
    """Take what comes until standard input ends."""
    request: dict[str, Any] = {"action": "subscribe", "id": 1, "channels": ["tick"], "delivery": delivery}
    request["instruments"] = [f"NSE:S{number}" for number in range(instruments)]
    if delivery == "latest":
        request["every_ms"] = every_ms
    body = json.dumps(request).encode() if instruments else b""
    tally, made = Tally(), []
    for _ in range(clients):
        _, client = await picows.ws_connect(lambda: _Client(body, tally), url, enable_auto_pong=False)
        made.append(client)
    await asyncio.gather(*(client.ready for client in made))
    ended = asyncio.Event()

    def heard() -> None:
        data = stdin_bytes()
        if not data:
            ended.set()
        for command in commands(data):
            if command["do"] == "begin":
                tally.frames = tally.ticks = tally.size = 0
                say({"begun": True})
            else:
                say({"frames": tally.frames, "ticks": tally.ticks, "bytes": tally.size})

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), heard)
    say({"ready": True})
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
