"""Yahoo's PricingData message: protobuf bytes to a struct that keeps presence, and back.

Used by the codec of Yahoo's frames. A field that is absent on the wire is None here and an explicit
zero is 0, which the usual proto3 readers cannot tell apart; pre-market is such a zero. Never does
I/O, never rounds a price, never judges a value.

Source: measured on captured frames; field numbers 1 to 33 as in the public schema of yfinance, 34
to 47 as in Yahoo's web client.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import Any

import msgspec
from msgspec.structs import astuple

from services.errors import WireFormatError
from services.wire.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    read_tag,
    skip_field,
    write_varint,
    zigzag,
)


class PricingData(msgspec.Struct, gc=False):
    """One quote, fields in the order of their numbers (1 to 47). None means absent on the wire.

    `time` is UTC epoch ms, `expire_date` and `latest_funding_date` epoch seconds, `price_hint` a
    number of decimals. Floats are the exact doubles of the float32 on the wire. For crypto
    `day_volume`, `last_size`, `vol_24hr` and `vol_all_currencies` are one rolling 24 h amount.
    """

    id: str | None = None
    price: float | None = None
    time: int | None = None
    currency: str | None = None
    exchange: str | None = None
    quote_type: int | None = None
    market_hours: int | None = None
    change_percent: float | None = None
    day_volume: int | None = None
    day_high: float | None = None
    day_low: float | None = None
    change: float | None = None
    short_name: str | None = None
    expire_date: int | None = None
    open_price: float | None = None
    previous_close: float | None = None
    strike_price: float | None = None
    underlying_symbol: str | None = None
    open_interest: int | None = None
    options_type: int | None = None
    mini_option: int | None = None
    last_size: int | None = None
    bid: float | None = None
    bid_size: int | None = None
    ask: float | None = None
    ask_size: int | None = None
    price_hint: int | None = None
    vol_24hr: int | None = None
    vol_all_currencies: int | None = None
    from_currency: str | None = None
    last_market: str | None = None
    circulating_supply: float | None = None
    market_cap: float | None = None
    components: str | None = None
    indices: tuple[str, ...] | None = None
    cmc_rank: int | None = None
    underlying_shortname: str | None = None
    fifty_two_week_change: float | None = None
    fifty_two_week_change_percent: float | None = None
    latest_amount_raised: float | None = None
    latest_funding_date: int | None = None
    latest_share_class: str | None = None
    latest_implied_valuation: float | None = None
    ytd_return: float | None = None
    qtd_return: float | None = None
    full_day_change: float | None = None
    full_day_change_percent: float | None = None


_FIELD_COUNT = 47
_SINT64, _FLOAT, _STRING, _INT32, _DOUBLE, _STRINGS = range(6)
_WIRE_TYPES = {
    _SINT64: VARINT,
    _FLOAT: FIXED32,
    _STRING: LENGTH_DELIMITED,
    _INT32: VARINT,
    _DOUBLE: FIXED64,
    _STRINGS: LENGTH_DELIMITED,
}


def _kind(number: int) -> int:
    if number in (2, 8, 10, 11, 12, 15, 16, 17, 23, 25, 38, 39, 40, 43, 44, 45, 46, 47):
        return _FLOAT
    if number in (1, 4, 5, 13, 18, 30, 31, 34, 37, 42):
        return _STRING
    if number in (6, 7):
        return _INT32
    if number in (32, 33):
        return _DOUBLE
    return _STRINGS if number == 35 else _SINT64


_KINDS = tuple((number, _kind(number)) for number in range(1, _FIELD_COUNT + 1))
_BY_TAG = {number << 3 | _WIRE_TYPES[kind]: (kind, number - 1) for number, kind in _KINDS}
_ENCODED = tuple((number, kind, write_varint(number << 3 | _WIRE_TYPES[kind])) for number, kind in _KINDS)
_ABSENT: list[Any] = [None] * _FIELD_COUNT
_LAST_VARINT_SHIFT = 63
_MAX_UINT64 = (1 << 64) - 1
_FLOAT_STRUCT = Struct("<f")
_DOUBLE_STRUCT = Struct("<d")
_read_float = _FLOAT_STRUCT.unpack_from
_read_double = _DOUBLE_STRUCT.unpack_from


def decode_pricing(payload: bytes) -> PricingData:
    """Decode one PricingData message; fields of other numbers are passed over.

    Raises `WireFormatError` with reason `truncated`, `overlong_varint`, `bad_tag`,
    `wrong_wire_type` (a field we know in a form it cannot have), `bad_wire_type`, `bad_group` or
    `bad_utf8`.

    Source: measured on captured frames.
    """
    try:
        return PricingData(*_decode_values(payload))
    except (IndexError, struct_error):
        raise WireFormatError("truncated", f"{len(payload)} bytes end inside a field", payload) from None
    except UnicodeDecodeError as error:
        raise WireFormatError("bad_utf8", str(error), payload) from None


def _decode_values(payload: bytes) -> list[Any]:
    # Varints of tags, numbers and lengths are read in line: calls would double the time of a message.
    values: list[Any] = _ABSENT.copy()
    offset = 0
    size = len(payload)
    while offset < size:
        tag = payload[offset]
        offset += 1
        if tag > 0x7F:
            byte = payload[offset]
            offset += 1
            if byte > 0x7F:
                tag, offset = read_tag(payload, offset - 2)
            else:
                tag = tag & 0x7F | byte << 7
        known = _BY_TAG.get(tag)
        if known is None:
            offset = _skip(payload, offset, tag)
            continue
        kind, slot = known
        if kind == _FLOAT:
            (values[slot],) = _read_float(payload, offset)
            offset += 4
            continue
        if kind == _DOUBLE:
            (values[slot],) = _read_double(payload, offset)
            offset += 8
            continue
        raw = payload[offset]
        offset += 1
        if raw > 0x7F:
            raw &= 0x7F
            shift = 7
            while (byte := payload[offset]) > 0x7F:
                raw |= (byte & 0x7F) << shift
                shift += 7
                offset += 1
                if shift > _LAST_VARINT_SHIFT:
                    raise WireFormatError("overlong_varint", f"more than ten bytes at {offset}", payload)
            raw |= byte << shift
            offset += 1
            if raw > _MAX_UINT64:
                raise WireFormatError("overlong_varint", f"more than 64 bits before {offset}", payload)
        if kind == _SINT64:
            values[slot] = raw >> 1 ^ -(raw & 1)
        elif kind == _INT32:
            raw &= 0xFFFFFFFF
            values[slot] = raw - (1 << 32) if raw >> 31 else raw
        else:
            end = offset + raw
            if end > size:
                raise WireFormatError("truncated", f"text of {raw} bytes at {offset} of {size}", payload)
            text = payload[offset:end].decode()
            offset = end
            values[slot] = text if kind == _STRING else (*(values[slot] or ()), text)
    return values


def _skip(payload: bytes, offset: int, tag: int) -> int:
    number, wire_type = tag >> 3, tag & 7
    if number == 0:
        raise WireFormatError("bad_tag", f"tag {tag} at byte {offset - 1}", payload)
    if number <= _FIELD_COUNT:
        raise WireFormatError("wrong_wire_type", f"field {number} with wire type {wire_type}", payload)
    return skip_field(payload, offset, tag)


def encode_pricing(data: PricingData) -> bytes:
    """Encode one message, explicit zeros kept, fields ascending by number as Yahoo sends them.

    Raises `WireFormatError` (`not_encodable`) where a value does not fit its field.
    """
    encoded = bytearray()
    for (number, kind, tag), value in zip(_ENCODED, astuple(data), strict=True):
        if value is None:
            continue
        try:
            if kind == _STRINGS:
                for text in value:
                    encoded += tag + _encode_value(_STRING, text)
            else:
                encoded += tag + _encode_value(kind, value)
        except (struct_error, OverflowError, UnicodeEncodeError) as error:
            raise WireFormatError("not_encodable", f"field {number} = {value!r}: {error}") from error
    return bytes(encoded)


def _encode_value(kind: int, value: Any) -> bytes:
    if kind == _FLOAT:
        return _FLOAT_STRUCT.pack(value)
    if kind == _DOUBLE:
        return _DOUBLE_STRUCT.pack(value)
    if kind == _STRING:
        raw: bytes = value.encode()
        return write_varint(len(raw)) + raw
    bits = 64 if kind == _SINT64 else 32
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise OverflowError(f"does not fit {bits} bits")
    return write_varint(zigzag(value) if kind == _SINT64 else value & _MAX_UINT64)
