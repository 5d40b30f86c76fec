"""A consumer of the daemon's Redis stream: `XREAD BLOCK` in its own process, how old each tick is on arrival.

    python -m benchmarks.reader REDIS_URL STREAM BASE_S [FIELD]

The stamp is the field `cv`, or with `bids` as FIELD the quantity of a book's best bid.

Commands: `{"do": "begin"}` forgets, `{"do": "end"}` answers how many were seen and how old they were, in ms.
"""

from __future__ import annotations

import select
import socket
import sys
from urllib.parse import urlsplit

import hiredis

from benchmarks.helper import Latencies, commands, say, stdin_bytes

_COUNT = 2_000


def main(url: str, stream: str, base_s: float, field: bytes = b"cv") -> None:
    """Read until standard input ends."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = hiredis.Reader()
    latencies = Latencies(base_s)
    _ask(sock, b"AUTH", (parts.password or "").encode())
    last = b"$"
    places: dict[int, int] = {}
    waiting = 1
    say({"ready": True})
    while True:
        ready, _, _ = select.select([sock, sys.stdin], [], [])
        if sys.stdin in ready:
            data = stdin_bytes()
            if not data:
                return
            for command in commands(data):
                if command["do"] == "begin":
                    latencies.begin()
                    say({"begun": True})
                else:
                    say(latencies.end())
        if sock not in ready:
            continue
        reader.feed(sock.recv(1 << 20))
        while (reply := reader.gets()) is not False:
            waiting -= 1
            if isinstance(reply, list):
                now = latencies.now()
                stamps = []
                for position, fields in reply[0][1]:
                    last = position
                    place = places.get(len(fields), 0)
                    if not place or fields[place - 1] != field:
                        if field not in fields:
                            continue
                        place = places[len(fields)] = fields.index(field) + 1
                    text = fields[place]
                    stamps.append(int(text if field == b"cv" else text.split(b",", 2)[1]))
                latencies.note(now, stamps)
            elif isinstance(reply, hiredis.HiredisError):
                raise reply
            if not waiting:
                _ask(
                    sock,
                    b"XREAD",
                    b"COUNT",
                    b"%d" % _COUNT,
                    b"BLOCK",
                    b"0",
                    b"STREAMS",
                    stream.encode(),
                    last,
                )
                waiting = 1


def _ask(sock: socket.socket, *arguments: bytes) -> None:
    sock.sendall(
        b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments)
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *(name.encode() for name in sys.argv[4:5]))
