"""An order book as an entry of its stream `md:depth:{exchange}`: written, and read back.

Flat fields, as on every stream: `type` (`depth`), `k` instrument key, `src` provider code, `lv` how many
levels each side may have, `t` event time and `r` receive time in UTC epoch ms, `bids` and `asks` as JSON
lists of `[price, quantity, orders]` with the best first, `f` flags. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.market_data.updates import DEPTH_FLAG_TEXT, DEPTH_FLAGS, Level, Level2Update
from services.pipeline.sequencer import Position
from services.storage.resp import BULK_HEAD, INTEGER_BULKS, bulk

_json = msgspec.json.Encoder().encode
_levels = msgspec.json.Decoder(tuple[tuple[float, int, int], ...]).decode
_FLAGS = tuple(f"$1\r\nf\r\n{bulk(text)}" if text else "" for text in DEPTH_FLAG_TEXT)
_PLAIN_ARGUMENTS = 16


class DepthEncoder:
    """Writes updates as the arguments of XADD; remembers what is constant of each instrument."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, str, int], str] = {}

    def arguments(self, update: Level2Update) -> tuple[int, str]:
        """Return how many names and values there are, and their text."""
        key = (update.symbol, update.provider_code, update.levels)
        head = self._heads.get(key)
        if head is None:
            pairs = (
                ("type", "depth"),
                ("k", update.symbol),
                ("src", update.provider_code),
                ("lv", str(update.levels)),
            )
            head = self._heads[key] = "".join(bulk(name) + bulk(value) for name, value in pairs)
        flags = _FLAGS[update.flags]
        return _PLAIN_ARGUMENTS + (2 if flags else 0), (
            f"{head}$1\r\nt\r\n{INTEGER_BULKS[update.timestamp // 1000]}"
            f"$1\r\nr\r\n{INTEGER_BULKS[update.received_ms]}"
            f"$4\r\nbids\r\n{_side(update.bids)}$4\r\nasks\r\n{_side(update.asks)}{flags}"
        )


def _side(levels: tuple[Level, ...]) -> str:
    text = _json(levels).decode()
    length = len(text)
    return f"{BULK_HEAD[length]}{text}\r\n" if length < 64 else f"${length}\r\n{text}\r\n"


def depth_of_entry(exchange: str, position: Position, fields: Mapping[str, str]) -> Level2Update | None:
    """Return the book of a stream entry; None for an entry that is none."""
    if fields.get("type") != "depth":
        return None
    try:
        flags = 0
        for name in filter(None, fields.get("f", "").split(",")):
            # A later version may know flags that this one does not.
            flags |= DEPTH_FLAGS.get(name, 0)
        return Level2Update(
            symbol=fields["k"],
            exchange=exchange,
            provider_code=fields["src"],
            timestamp=int(fields["t"]) * 1000,
            received_ms=int(fields["r"]),
            bids=_levels(fields["bids"]),
            asks=_levels(fields["asks"]),
            levels=int(fields["lv"]),
            flags=flags,
            position_ms=position[0],
            position_seq=position[1],
        )
    except (KeyError, ValueError, msgspec.DecodeError):
        return None
