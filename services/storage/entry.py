"""A record as flat fields and values: the body of a stream entry and of the latest-value hash.

    type k src t r p  v cv b a bs as oi  o h l pc  f

Field names as consumers see them; a field that is absent is unknown, never zero. Used by the stream
writer and the latest-value writer, which may share one encoder so that a tick is put into words once.
"""

from __future__ import annotations

from math import isfinite, nan

import msgspec

from services.market_data.records import FLAG_TEXT, ControlRecord, DataIngestionFormat
from services.storage.resp import BULK_HEAD, FLOAT_BULKS, INTEGER_BULKS, bulk

OPTIONAL_FIELDS = ("v", "cv", "b", "a", "bs", "as", "oi", "o", "h", "l", "pc", "f")
"""The fields that may be absent; bit n of a mask stands for the n-th."""
_V, _CV, _B, _A, _BS, _AS, _OI, _O, _H, _L, _PC, _F = (1 << bit for bit in range(12))
ALL_FIELDS = (1 << 12) - 1

_ALWAYS = 6
ARGUMENTS: tuple[int, ...] = tuple(2 * (_ALWAYS + mask.bit_count()) for mask in range(ALL_FIELDS + 1))
"""How many arguments (names and values) the fields of a mask make."""

FLAG_FIELDS = tuple(f"$1\r\nf\r\n{bulk(text)}" for text in FLAG_TEXT)
_FLOAT_FIELDS = ("bid", "ask", "day_open", "day_high", "day_low", "previous_close")


class EncodedTick:
    """The newest tick of one instrument in words: `text` are its fields, `mask` says which optional ones."""

    __slots__ = ("day_mask", "day_text", "head", "mask", "price", "price_text", "provider", "record", "text")

    def __init__(self) -> None:
        self.record: DataIngestionFormat | None = None
        self.provider: str | None = None
        self.head = ""
        self.day_mask = 0
        self.day_text = ""
        self.price = nan
        self.price_text = ""
        self.mask = 0
        self.text = ""


class EntryEncoder:
    """Puts records into words; remembers per instrument what seldom changes."""

    def __init__(self) -> None:
        self.remembered: dict[str, EncodedTick] = {}
        """The newest tick of each instrument in words; for the writers' compiled loops."""

    def tick(self, record: DataIngestionFormat) -> EncodedTick:
        """Return the tick in words; valid until the next tick of the instrument. ValueError for a NaN."""
        encoded = self.remembered.get(record.symbol)
        if encoded is None:
            encoded = self.remembered[record.symbol] = EncodedTick()
        if encoded.record is record:
            return encoded
        if encoded.provider != record.provider_code:
            encoded.provider = record.provider_code
            encoded.head = (
                f"{_pair('type', 'tick')}{_pair('k', record.symbol)}{_pair('src', record.provider_code)}"
                "$1\r\nt\r\n"
            )
        mask = 0
        time = INTEGER_BULKS[record.timestamp]
        received = time if record.received_ms == record.timestamp else INTEGER_BULKS[record.received_ms]
        if record.price != encoded.price:
            encoded.price_text = FLOAT_BULKS[record.price]
            encoded.price = record.price
        price = encoded.price_text
        volume, cumulative = record.volume, record.cumulative_volume
        if volume is not None and cumulative is not None:
            mask |= _V | _CV
            digits = f"{cumulative}"
            text = (
                f"{encoded.head}{time}$1\r\nr\r\n{received}$1\r\np\r\n{price}"
                f"$1\r\nv\r\n{INTEGER_BULKS[volume]}$2\r\ncv\r\n{BULK_HEAD[len(digits)]}{digits}\r\n"
            )
        else:
            text = f"{encoded.head}{time}$1\r\nr\r\n{received}$1\r\np\r\n{price}"
            if volume is not None:
                mask |= _V
                text = f"{text}$1\r\nv\r\n{INTEGER_BULKS[volume]}"
            elif cumulative is not None:
                mask |= _CV
                text = f"{text}$2\r\ncv\r\n{INTEGER_BULKS[cumulative]}"
        bid, ask, bid_size, ask_size = record.bid, record.ask, record.bid_size, record.ask_size
        if bid is not None and ask is not None and bid_size is not None and ask_size is not None:
            mask |= _B | _A | _BS | _AS
            text = (
                f"{text}$1\r\nb\r\n{FLOAT_BULKS[bid]}$1\r\na\r\n{FLOAT_BULKS[ask]}"
                f"$2\r\nbs\r\n{INTEGER_BULKS[bid_size]}$2\r\nas\r\n{INTEGER_BULKS[ask_size]}"
            )
        else:
            if bid is not None:
                mask |= _B
                text = f"{text}$1\r\nb\r\n{FLOAT_BULKS[bid]}"
            if ask is not None:
                mask |= _A
                text = f"{text}$1\r\na\r\n{FLOAT_BULKS[ask]}"
            if bid_size is not None:
                mask |= _BS
                text = f"{text}$2\r\nbs\r\n{INTEGER_BULKS[bid_size]}"
            if ask_size is not None:
                mask |= _AS
                text = f"{text}$2\r\nas\r\n{INTEGER_BULKS[ask_size]}"
        if (oi := record.oi) is not None:
            mask |= _OI
            text = f"{text}$2\r\noi\r\n{INTEGER_BULKS[oi]}"
        last = encoded.record
        if (
            last is None
            or record.day_high is not last.day_high
            or record.day_low is not last.day_low
            or record.day_open is not last.day_open
            or record.previous_close is not last.previous_close
        ):
            # The normaliser hands on the same objects until one of them changes.
            encoded.day_mask, encoded.day_text = _day_fields(
                (record.day_open, record.day_high, record.day_low, record.previous_close)
            )
        mask |= encoded.day_mask
        if record.flags:
            encoded.mask = mask | _F
            encoded.text = f"{text}{encoded.day_text}{FLAG_FIELDS[record.flags]}"
        else:
            encoded.mask = mask
            encoded.text = text + encoded.day_text
        encoded.record = record
        return encoded


def control_fields(record: ControlRecord) -> tuple[int, str]:
    """Return a control record in words: how many arguments, and their text."""
    pairs: list[tuple[str, str]] = [("type", record.type)]
    if record.symbol:
        pairs.append(("k", record.symbol))
    if record.provider_code:
        pairs.append(("src", record.provider_code))
    pairs += [("t", str(record.timestamp)), ("r", str(record.received_ms))]
    pairs += [(name, str(value)) for name, value in record.fields.items()]
    return 2 * len(pairs), "".join(_pair(name, value) for name, value in pairs)


def without_bad_numbers(record: DataIngestionFormat) -> DataIngestionFormat | None:
    """Return the tick with NaN and infinite side fields made unknown; None when the price is one."""
    if not isfinite(record.price):
        return None
    bad = {name: None for name in _FLOAT_FIELDS if not isfinite(getattr(record, name) or 0.0)}
    return msgspec.structs.replace(record, **bad)


def _pair(name: str, value: str) -> str:
    return bulk(name) + bulk(value)


def _day_fields(day: tuple[float | None, ...]) -> tuple[int, str]:
    mask, text = 0, ""
    for bit, name, number in zip((_O, _H, _L, _PC), ("o", "h", "l", "pc"), day, strict=True):
        if number is not None:
            mask |= bit
            text += bulk(name) + FLOAT_BULKS[number]
    return mask, text
