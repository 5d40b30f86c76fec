"""Ticks of a made-up market as Dhan sends them, made many at a time so that the load is never the bottleneck.

Each tick is one packet in one WebSocket message (`quote`, 50 bytes, or `full` with depth, 162 bytes), laid
out by numpy. Every one is news: prices walk on a grid of five paise, the day's volume grows. A stamped
volume, or best bid's quantity, is the moment of sending: whoever sees it later knows how long it took.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Mode = Literal["quote", "full"]
Stamp = Literal["", "volume", "depth"]

IST_OFFSET_S = 19_800
STAMPS_PER_S = 100_000
"""A stamp counts hundred-thousandths of a second on the monotonic clock, since `stamp_base_s`."""
SEGMENT_NSE_EQ = 1
_CODES = {"quote": 4, "full": 8}

_HEAD: list[tuple[str, Any]] = [
    ("code", "u1"), ("length", "<u2"), ("segment", "u1"), ("security_id", "<u4"),
    ("ltp", "<f4"), ("ltq", "<u2"), ("ltt", "<u4"), ("atp", "<f4"), ("volume", "<u4"),
    ("total_sell", "<u4"), ("total_buy", "<u4"),
]  # fmt: skip
_DAY: list[tuple[str, Any]] = [(f"day_{name}", "<f4") for name in ("open", "close", "high", "low")]
_LEVEL = np.dtype(
    [
        ("bid_qty", "<u4"),
        ("ask_qty", "<u4"),
        ("bid_orders", "<u2"),
        ("ask_orders", "<u2"),
        ("bid", "<f4"),
        ("ask", "<f4"),
    ]
)
_PACKETS: dict[str, list[tuple[str, Any]]] = {
    "quote": [("ws", "V2"), *_HEAD, *_DAY],
    "full": [("ws", "V4"), *_HEAD, *((f"oi{n}", "<u4") for n in range(3)), *_DAY, ("depth", _LEVEL, (5,))],
}
_MOVES = np.array([-1, 0, 0, 0, 0, 1])


class TickSource:
    """The ticks of some instruments, given by their security ids, in turn.

    With `stamp` "volume" the day's volume of a tick is the moment of its sending, in units of `STAMPS_PER_S`
    after `stamp_base_s` on the monotonic clock; with "depth" the quantity of its best bid is (mode `full`).
    """

    def __init__(
        self,
        ids: Sequence[int],
        *,
        mode: Mode = "quote",
        seed: int = 1,
        stamp: Stamp = "",
        stamp_base_s: float = 0.0,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._stamp, self._stamp_base_s = stamp, stamp_base_s
        self._cursor = 0
        count = len(ids)
        dtype = np.dtype(_PACKETS[mode])
        table = self._table = np.zeros(count, dtype)
        self.bytes_per_tick = dtype.itemsize
        size = dtype.itemsize - dtype["ws"].itemsize
        header = bytes([0x82, size]) if size < 126 else bytes([0x82, 126, 0, size])
        table["ws"] = np.void(header)
        table["code"], table["length"], table["segment"] = _CODES[mode], size, SEGMENT_NSE_EQ
        table["security_id"] = np.array(ids)
        self._ticks = self._random.integers(2_000, 80_000, count)
        table["day_open"] = table["day_close"] = table["atp"] = self._ticks / 20
        table["day_high"], table["day_low"] = (self._ticks + 300) / 20, (self._ticks - 300) / 20
        self._volumes = self._random.integers(10_000, 5_000_000, count)
        if stamp == "volume":
            self._volumes[:] = 0
        table["total_sell"] = self._random.integers(1_000, 900_000, count)
        table["total_buy"] = self._random.integers(1_000, 900_000, count)
        if mode == "full":
            for name in ("bid_qty", "ask_qty"):
                table["depth"][name] = self._random.integers(1, 5_000, (count, 5))
            table["depth"]["bid_orders"] = table["depth"]["ask_orders"] = 3
        self._has_depth = mode == "full"

    def trade_on(self, volume: int) -> None:
        """Let every instrument have traded `volume` more."""
        self._volumes += volume

    def block(self, count: int, *, now_s: float) -> bytes:
        """Return the next `count` messages, one behind the other; `now_s` is UTC epoch seconds."""
        parts = []
        while count:
            take = min(count, len(self._table) - self._cursor)
            parts.append(self._run(slice(self._cursor, self._cursor + take), take, now_s))
            self._cursor = (self._cursor + take) % len(self._table)
            count -= take
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def payloads(self, count: int, *, now_s: float) -> list[bytes]:
        """Return the next `count` packets without their WebSocket headers."""
        size, header = self.bytes_per_tick, self._table.dtype["ws"].itemsize
        data = self.block(count, now_s=now_s)
        return [data[start + header : start + size] for start in range(0, len(data), size)]

    def _run(self, which: slice, count: int, now_s: float) -> bytes:
        table = self._table
        part = table[which]
        quantities = self._random.integers(1, 400, count)
        stamp = int((time.monotonic() - self._stamp_base_s) * STAMPS_PER_S)
        self._ticks[which] += self._random.choice(_MOVES, count)
        if self._stamp == "volume":
            self._volumes[which] = np.maximum(self._volumes[which] + 1, stamp)
        else:
            self._volumes[which] += quantities
        part["ltp"] = self._ticks[which] / 20
        part["ltq"] = quantities
        part["volume"] = self._volumes[which]
        part["ltt"] = int(now_s) + IST_OFFSET_S
        if self._has_depth:
            steps = np.arange(1, 6)
            part["depth"]["bid"] = (self._ticks[which, None] - steps) / 20
            part["depth"]["ask"] = (self._ticks[which, None] + steps) / 20
            if self._stamp == "depth":
                part["depth"]["bid_qty"][:, 0] = stamp
        return part.tobytes()
