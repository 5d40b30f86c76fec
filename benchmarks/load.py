"""The load: a process that speaks Dhan's feed just enough, and sends ticks at a rate, or as fast as it can.

    python -m benchmarks.load quote [volume]     prints {"port": …}, then takes one JSON command a line

Commands: `{"rate": 10000, "seconds": 5}` (rate 0: as fast as possible) answers when it is done with what was
sent, how far behind the sending fell, and how long the answer to a ping took at most (one goes out each
second, behind the ticks, as a vendor's does); `{}` answers the state. Ends with its standard input.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import selectors
import socket
import sys
import time
from typing import Any

from benchmarks.ticks import TickSource

_ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SUBSCRIBE = (15, 17, 19, 21)
_PACE_S = 0.0005
_MOST_AT_ONCE = 1_000
_PENDING_BYTES = 128 << 10
_SEND_BUFFER_BYTES = 256 << 10
_PING_EVERY_S = 1.0


class _Client:
    """One connection of the daemon."""

    def __init__(self, sock: socket.socket, load: Load) -> None:
        self.sock = sock
        self._load = load
        self._in = b""
        self._open = False
        self.out = bytearray()
        self.ids: dict[int, None] = {}
        self.source: TickSource | None = None
        self.pinged_s = 0.0
        """When the ping was sent that was not answered yet; 0.0 while there is none."""

    def ping(self, now_s: float) -> None:
        """Ask for a sign of life, unless it was asked for already."""
        if self._open and not self.pinged_s:
            self.pinged_s = now_s
            self.out += b"\x89\x00"

    def read(self) -> bool:
        """Take what has come; False when the connection is over."""
        try:
            data = self.sock.recv(65_536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._in += data
        if not self._open and not self._shake_hands():
            return True
        while self._frame():
            pass
        return True

    def _shake_hands(self) -> bool:
        head, end, rest = self._in.partition(b"\r\n\r\n")
        if not end:
            return False
        key = re.search(rb"(?i)sec-websocket-key:\s*(\S+)", head)
        assert key is not None, head
        accept = base64.b64encode(hashlib.sha1(key[1] + _ACCEPT.encode()).digest())
        self.out += (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        self._in, self._open = rest, True
        return True

    def _frame(self) -> bool:
        data = self._in
        if len(data) < 6:
            return False
        size, at = data[1] & 127, 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        if len(data) < at + 4 + size:
            return False
        mask, body = data[at : at + 4], data[at + 4 : at + 4 + size]
        self._in = data[at + 4 + size :]
        payload = bytes(byte ^ mask[place & 3] for place, byte in enumerate(body))
        if data[0] & 15 == 9:
            self.out += bytes([0x8A, len(payload)]) + payload
        elif data[0] & 15 == 10 and self.pinged_s:
            self._load.answered(time.monotonic() - self.pinged_s)
            self.pinged_s = 0.0
        elif data[0] & 15 == 1:
            self._request(json.loads(payload))
        return True

    def _request(self, request: dict[str, Any]) -> None:
        ids = [int(row["SecurityId"]) for row in request.get("InstrumentList", ())]
        if request["RequestCode"] in _SUBSCRIBE and ids:
            self.ids.update(dict.fromkeys(ids))
            self.source = None
            self.out += self._load.make(ids).block(len(ids), now_s=time.time())
        elif ids:
            for number in ids:
                self.ids.pop(number, None)
            self.source = None

    def produce(self, count: int) -> None:
        """Make the next `count` ticks."""
        if self.source is None:
            self.source = self._load.make(list(self.ids), first=False)
        self.out += self.source.block(count, now_s=time.time())

    def flush(self) -> None:
        """Send what the socket takes."""
        if self.out:
            with contextlib.suppress(BlockingIOError):
                del self.out[: self.sock.send(self.out)]


class Load:
    """The server and its pace."""

    def __init__(self, mode: str, stamp: str) -> None:
        self._mode, self._stamp = mode, stamp
        self.base_s = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)
        self._clients: list[_Client] = []
        self._next = 0
        self._commands = b""
        self._slowest_pong_s = 0.0
        self._pongs = 0
        self.port = self._server.getsockname()[1]

    def make(self, ids: list[int], *, first: bool = True) -> TickSource:
        """Return the market of some instruments; `first` for the values at subscription."""
        source = TickSource(
            ids,
            mode=self._mode,
            stamp=self._stamp,
            stamp_base_s=self.base_s,
            seed=len(ids),  # type: ignore[arg-type]
        )
        if not first and not self._stamp:
            source.trade_on(5_000_000)
        return source

    def answered(self, after_s: float) -> None:
        """Take note of the answer to a ping."""
        self._pongs += 1
        self._slowest_pong_s = max(self._slowest_pong_s, after_s)

    def serve(self) -> None:
        """Serve until standard input ends."""
        _say({"port": self.port, "base_s": self.base_s})
        while (command := self._wait()) is not None:
            if "rate" in command:
                _say(self._run(command["rate"], command["seconds"]))
            else:
                _say({"subscribed": sum(len(client.ids) for client in self._clients)})

    def _wait(self) -> dict[str, Any] | None:
        """Return the next command; None at the end."""
        while True:
            line, found, rest = self._commands.partition(b"\n")
            if found:
                self._commands = rest
                return dict(json.loads(line))
            if not self._look(0.05):
                return None

    def _look(self, within_s: float) -> bool:
        """Take what has come and send what waits; False when standard input has ended."""
        for key, _ in self._selector.select(within_s):
            if key.fileobj is sys.stdin:
                data = sys.stdin.buffer.raw.read(65_536)  # type: ignore[attr-defined]
                if not data:
                    return False
                self._commands += data
            elif key.data is None:
                sock, _ = self._server.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
                client = _Client(sock, self)
                self._clients.append(client)
                self._selector.register(sock, selectors.EVENT_READ, client)
            elif not key.data.read():
                self._selector.unregister(key.data.sock)
                key.data.sock.close()
                self._clients.remove(key.data)
        for client in list(self._clients):
            client.flush()
        return True

    def _run(self, rate: float, seconds: float) -> dict[str, Any]:
        began_s = time.monotonic()
        sent, most_behind, ping_at_s = 0, 0, began_s
        self._slowest_pong_s, self._pongs = 0.0, 0
        while (passed_s := time.monotonic() - began_s) < seconds:
            busy = [client for client in self._clients if client.ids]
            if began_s + passed_s >= ping_at_s:
                ping_at_s += _PING_EVERY_S
                for client in busy:
                    client.ping(began_s + passed_s)
            free = [client for client in busy if len(client.out) < _PENDING_BYTES]
            due = int(passed_s * rate) - sent if rate else _MOST_AT_ONCE * len(free)
            if rate:
                most_behind = max(most_behind, due)
            if free and due > 0:
                due = min(due, _MOST_AT_ONCE)
                for client in free:
                    share = due // len(free)
                    # What does not divide evenly goes to one connection after the other.
                    share += free[self._next % len(free)] is client and due - share * len(free)
                    if share:
                        client.produce(share)
                        # At once: its stamp is the moment of its making.
                        client.flush()
                        sent += share
                self._next += 1
            if not self._look(0.0 if not rate and free else _PACE_S):
                break
        while any(client.out for client in self._clients) and self._look(_PACE_S):
            pass
        ended_s = time.monotonic()
        while any(client.pinged_s for client in self._clients) and time.monotonic() < ended_s + 10.0:
            self._look(_PACE_S)
        waiting_s = [time.monotonic() - client.pinged_s for client in self._clients if client.pinged_s]
        return {
            "sent": sent,
            "seconds": ended_s - began_s,
            "most_behind": most_behind,
            "pongs": self._pongs,
            "slowest_pong_s": max([self._slowest_pong_s, *waiting_s]),
        }


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    Load(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "").serve()
