"""The server's side of the WebSocket protocol: records and answers to JSON, and JSON to frames.

Pure: no I/O. The JSON of a tick is made once, by the first client that needs it, and kept on the
publication that all clients share.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from services.data_broadcast import Publication
from services.market_data.bars import Bar, Interval, parse_bar
from services.market_data.records import FLAG_TEXT, ControlRecord, DataIngestionFormat, Record

MAX_FRAME_BYTES = 60 * 1024
"""Ticks are gathered into frames of up to about so much: no more than is written at a time anyway, so that a
slow reader still finishes one soon, and with a length of two bytes."""

INTERVAL_OF: dict[str, Interval] = {"1": "1m", "5": "5m", "15": "15m", "60": "1h", "1D": "1d"}
"""The names of intervals in messages (minutes as text) and everywhere else."""
NAME_OF = {interval: name for name, interval in INTERVAL_OF.items()}

_OPCODE_TEXT = 0x81
_OPCODE_CLOSE = 0x88
_OPCODE_PING = 0x89
_OPCODE_PONG = 0x8A
_FLAGS = tuple(text.split(",") if text else None for text in FLAG_TEXT)
_encode = msgspec.json.Encoder().encode


class RawTick(msgspec.Struct, omit_defaults=True, gc=False):
    """The newest values of one instrument as clients see them; a field that is absent is unknown.

    `ltq` is the quantity traded since the previous tick, times are UTC epoch ms, `open` to
    `previous_close` are those of the day, `src` is the provider's code.
    """

    last_price: float
    ltq: int | None = None
    ts_ms: int = 0
    bid: float | None = None
    ask: float | None = None
    cumulative_volume: int | None = None
    oi: int | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    previous_close: float | None = None
    src: str = ""
    flags: list[str] | None = None


def raw_tick(record: DataIngestionFormat) -> RawTick:
    """Return a tick in the shape of `raw_tick` data, of snapshots and of quotes."""
    return RawTick(
        record.price,
        record.volume,
        record.timestamp,
        record.bid,
        record.ask,
        record.cumulative_volume,
        record.oi,
        record.day_open,
        record.day_high,
        record.day_low,
        record.previous_close,
        record.provider_code,
        _FLAGS[record.flags & 31] if record.flags else None,
    )


def to_json(value: Any) -> bytes:
    """Return any answer as JSON."""
    return _encode(value)


def fragment(publication: Publication) -> bytes:
    """Return `"KEY":{…}` of a tick, or the whole message of a control record; made once, then shared."""
    made = publication.fragment
    if made is None:
        record = publication.record
        if isinstance(record, DataIngestionFormat):
            made = b"%b:%b" % (_encode(record.symbol), _encode(raw_tick(record)))
        elif record.type == "bar" and (bar := parse_bar(record)) is not None:
            made = _encode(chart_message(bar))
        else:
            made = _encode(control_message(record))
        publication.fragment = made
    return made


def chart_message(bar: Bar) -> dict[str, Any]:
    """Return a bar as the `chart_update` message; its start in UTC epoch seconds, null for unknown volume."""
    candle = [bar.start_ms // 1000, bar.open, bar.high, bar.low, bar.close, bar.volume]
    return {
        "type": "chart_update",
        "instrumentKey": bar.instrument,
        "interval": NAME_OF[bar.interval],
        "ohlcv": [candle],
        "status": bar.status.value,
    }


def control_message(record: ControlRecord) -> dict[str, Any]:
    """Return a control record as the client's message; `ts_ms` is when it holds from."""
    message: dict[str, Any] = {
        "type": record.type,
        "instrumentKey": record.symbol or f"{record.exchange}:*",
        "ts_ms": record.timestamp,
    }
    if record.provider_code:
        message["src"] = record.provider_code
    for name, value in record.fields.items():
        message.setdefault(name, value)
    # One that is no part of the stream has no position.
    message["position"] = {record.exchange: record.position} if record.position_ms else {}
    return message


def skipped_message(skipped: dict[str, int], beside: dict[str, int] | None = None) -> dict[str, Any]:
    """Return the notice that this client was too slow: `n` messages were dropped, by instrument.

    `beside` are those of them that were no ticks, by channel.
    """
    message: dict[str, Any] = {"type": "skipped", "n": sum(skipped.values()), "instruments": skipped}
    if len(skipped) == 1:
        message["instrumentKey"] = next(iter(skipped))
    if beside:
        ticks = message["n"] - sum(beside.values())
        message["channels"] = ({"tick": ticks} if ticks else {}) | beside
    return message


def single_frame(publication: Publication) -> bytes:
    """Return the complete frame of one publication; made once, then shared."""
    frame = publication.frame
    if frame is None:
        record = publication.record
        if isinstance(record, DataIngestionFormat):
            frame = tick_frame([fragment(publication)], {record.exchange: record})
        else:
            frame = text_frame(fragment(publication))
        publication.frame = frame
    return frame


def tick_frame(fragments: Iterable[bytes], newest: dict[str, Record]) -> bytes:
    """Return one `raw_tick` frame. `newest` holds the record with the newest position per exchange."""
    position = b",".join(
        b'%b:"%d-%d"' % (_encode(exchange), record.position_ms, record.position_seq)
        for exchange, record in newest.items()
        if record.position_ms
    )
    body = b",".join(fragments)
    return text_frame(b'{"type":"raw_tick","data":{%b},"position":{%b}}' % (body, position))


def text_frame(payload: bytes) -> bytes:
    """Return a complete, unmasked WebSocket text frame."""
    return _header(_OPCODE_TEXT, len(payload)) + payload


def ping_frame(payload: bytes) -> bytes:
    """Return a WebSocket ping frame; `payload` has at most 125 bytes."""
    return _header(_OPCODE_PING, len(payload)) + payload


def pong_frame(payload: bytes) -> bytes:
    """Return a WebSocket pong frame; `payload` has at most 125 bytes."""
    return _header(_OPCODE_PONG, len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """Return a WebSocket close frame; the reason is cut to what a control frame can hold."""
    payload = struct.pack("!H", code) + reason.encode()[:120].decode(errors="ignore").encode()
    return _header(_OPCODE_CLOSE, len(payload)) + payload


def _header(first: int, size: int) -> bytes:
    if size < 126:
        return struct.pack("!BB", first, size)
    if size < 65_536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)
