"""The journal: what each simulator really sent, so that a judge can say what must have arrived.

Stands beside the simulators and is written to at the moment the bytes are handed to a socket. It holds
one entry per market-data packet and connection, and one per connection opened and closed. An entry with
a `fault` was damaged on purpose and must not be stored as it is. Volumes are cumulative: the quantity a
store should hold for a tick is the difference to the entry before it on the same symbol that was
acceptable, and unknown for the first one of a connection.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from simulators.market import exact_text

_FLOAT32 = struct.Struct("<f")
_FLOAT32_MAX = 3.4028234663852886e38


class SentTick(msgspec.Struct, gc=False):
    """One packet that carried a price. `event_ms` is UTC as the wire said it (Dhan's shift removed).

    `price` is the double nearest to the intended decimal (`price_text`), `float32` what the wire could
    carry of it. `volume` is the cumulative traded quantity in the packet, None where the packet has none or
    the instrument none (the zero of an index, the rolling amount of a crypto pair). `quantity` was traded
    in this tick. `copies` of the packet were sent. `packet` names its kind.
    """

    provider: str
    symbol: str
    seq: int
    price: float
    decimals: int
    event_ms: int
    quantity: int
    volume: int | None
    bid: float | None
    ask: float | None
    sent_ms: int
    connection: int
    packet: str
    snapshot: bool = False
    copies: int = 1
    fault: str | None = None

    @property
    def price_text(self) -> str:
        """The intended price as an exact decimal."""
        return exact_text(self.price, self.decimals)

    @property
    def float32(self) -> float:
        """The price after its passage through the wire's float32."""
        if abs(self.price) > _FLOAT32_MAX or self.price != self.price:
            return self.price
        return float(_FLOAT32.unpack(_FLOAT32.pack(self.price))[0])

    def as_dict(self) -> dict[str, object]:
        """Return the entry for JSON: prices as text, so that NaN and exact decimals survive."""
        entry: dict[str, object] = {"type": "tick"}
        entry.update(msgspec.structs.asdict(self))
        del entry["decimals"]
        entry["price"] = self.price_text
        entry["float32"] = repr(self.float32)
        return entry


class ConnectionEvent(msgspec.Struct, gc=False):
    """A connection was `opened` or `closed` (with the simulator's reason), at `at_ms` UTC."""

    provider: str
    connection: int
    event: str
    at_ms: int
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the entry for JSON."""
        entry: dict[str, object] = {"type": "connection"}
        entry.update(msgspec.structs.asdict(self))
        return entry


Entry = SentTick | ConnectionEvent


class Journal:
    """Entries in the order of sending, in memory (the newest `limit`) and optionally as JSON lines.

    `recorded` counts all entries ever made, `forgotten` those no longer in memory. The file is opened on
    entry of the context and holds everything.
    """

    def __init__(self, *, limit: int = 500_000, path: Path | None = None) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._path = path
        self._file: IO[bytes] | None = None
        self._unwritten: list[Entry] = []
        self.recorded = 0

    def __enter__(self) -> Self:
        if self._path is not None:
            self._file = self._path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def forgotten(self) -> int:
        """How many entries have left the memory."""
        return self.recorded - len(self._entries)

    @property
    def entries(self) -> list[Entry]:
        """All entries still in memory, oldest first."""
        return list(self._entries)

    @property
    def ticks(self) -> list[SentTick]:
        """The packets with a price still in memory, oldest first."""
        return [entry for entry in self._entries if isinstance(entry, SentTick)]

    @property
    def connections(self) -> list[ConnectionEvent]:
        """The openings and closings still in memory, oldest first."""
        return [entry for entry in self._entries if isinstance(entry, ConnectionEvent)]

    def ticks_of(self, symbol: str) -> list[SentTick]:
        """Return the packets of one provider symbol, oldest first."""
        return [tick for tick in self.ticks if tick.symbol == symbol]

    def since(self, position: int, limit: int) -> tuple[int, list[Entry]]:
        """Return the position after, and up to `limit` entries from `position` on (0 is the first ever)."""
        first = max(position, self.forgotten)
        start = first - self.forgotten
        chosen = list(islice(self._entries, start, start + limit))
        return first + len(chosen), chosen

    def record(self, entry: Entry) -> None:
        """Add one entry."""
        self.recorded += 1
        self._entries.append(entry)
        if self._file is not None:
            self._unwritten.append(entry)

    def flush(self) -> None:
        """Write what is new to the file, if there is one."""
        if self._file is None or not self._unwritten:
            return
        encode = msgspec.json.encode
        self._file.write(b"".join(encode(entry.as_dict()) + b"\n" for entry in self._unwritten))
        self._file.flush()
        self._unwritten.clear()
