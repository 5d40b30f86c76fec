"""Stream entries and latest-value hashes back to records: the way back from `entry`.

Beneath everything that reads what the writers have stored. What does not read as a record of ours
(another program may have written it) is None, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import cast, get_args

from services.market_data.records import (
    FLAG_TEXT,
    ControlRecord,
    ControlType,
    DataIngestionFormat,
    Record,
)
from services.pipeline.sequencer import START, Position

_FLAGS_OF = {text: flags for flags, text in enumerate(FLAG_TEXT)}
_CONTROL_TYPES = frozenset(get_args(ControlType))
_COMMON_FIELDS = frozenset({"type", "k", "src", "t", "r"})
_TEXT_FIELDS = frozenset(
    {"reason", "from_src", "to_src", "state", "i", "st", "o", "h", "l", "c", "ph", "srcs"}
)
"""Fields of control records that stay text even when it looks like a number."""


def record_of(exchange: str, position: Position, fields: Mapping[str, str]) -> Record | None:
    """Return the record of one stream entry, equal to the one that was written but for what is not stored."""
    kind = fields.get("type")
    if kind == "tick":
        return tick_of(fields.get("k", ""), fields, position)
    if kind not in _CONTROL_TYPES:
        return None
    try:
        return ControlRecord(
            cast(ControlType, kind),
            fields.get("k", ""),
            exchange,
            int(fields["t"]),
            int(fields["r"]),
            fields.get("src", ""),
            {name: _value(name, text) for name, text in fields.items() if name not in _COMMON_FIELDS},
            *position,
        )
    except (KeyError, ValueError):
        return None


def tick_of(
    instrument: str, fields: Mapping[str, str], position: Position = START
) -> DataIngestionFormat | None:
    """Return the tick in the fields of an entry or of a hash. `provider_symbol` is not stored."""
    try:
        price = float(fields["p"])
        if not isfinite(price):
            return None
        return DataIngestionFormat(
            instrument,
            price,
            _whole(fields, "v"),
            int(fields["t"]),
            fields["src"],
            received_ms=int(fields["r"]),
            cumulative_volume=_whole(fields, "cv"),
            bid=_number(fields, "b"),
            ask=_number(fields, "a"),
            bid_size=_whole(fields, "bs"),
            ask_size=_whole(fields, "as"),
            oi=_whole(fields, "oi"),
            day_open=_number(fields, "o"),
            day_high=_number(fields, "h"),
            day_low=_number(fields, "l"),
            previous_close=_number(fields, "pc"),
            flags=_FLAGS_OF.get(fields.get("f", ""), 0),
            exchange=instrument.partition(":")[0],
            position_ms=position[0],
            position_seq=position[1],
        )
    except (KeyError, ValueError):
        return None


def _value(name: str, text: str) -> str | int:
    if name in _TEXT_FIELDS:
        return text
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and str(int(digits)) == digits else text


def _whole(fields: Mapping[str, str], name: str) -> int | None:
    text = fields.get(name)
    return None if text is None else int(text)


def _number(fields: Mapping[str, str], name: str) -> float | None:
    text = fields.get(name)
    return None if text is None else float(text)
