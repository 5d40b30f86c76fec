"""The client's side of the WebSocket protocol: bytes to typed messages, or an error with a code.

Pure: no I/O. Whatever bytes a client sends, the result is a message whose every field has been
checked, or a `ClientMessageError`. Unknown fields are ignored, so that newer clients can talk to us.

| code | the message |
|---|---|
| `too_large` | is longer than 16 KiB |
| `invalid_json` | is not UTF-8 JSON, or holds NaN, Infinity, or a number that fits no machine word |
| `too_deep` | is nested deeper than the protocol needs |
| `duplicate_key` | names a field twice |
| `invalid_message` | lacks a field, or has one of the wrong type or out of range |
| `unknown_action` `unknown_channel` `unknown_interval` `unknown_levels` | asks for what does not exist |
"""

from __future__ import annotations

import json
import math
import re
from datetime import date
from typing import Any, Literal, NoReturn

import msgspec

from services.errors import ClientProtocolError
from services.pipeline.sequencer import parse_position

MAX_MESSAGE_BYTES = 16 * 1024
MAX_DEPTH = 4
FLOW_CHANNELS = ("tick", "chart")
CHANNELS = (*FLOW_CHANNELS, "quote", "trade", "depth", "options", "news")
LEVELS = (5, 20, 200)
INTERVALS = ("1", "5", "15", "60", "1D")
MIN_EVERY_MS = 10
MAX_EVERY_MS = 60_000
DEFAULT_EVERY_MS = 100

MessageId = int | str | None

_INSTRUMENT = re.compile(r"[A-Z][A-Z0-9_]{0,15}:(?:\*|[^\s:*\"\\\x00-\x1f]{1,64})")
_BIGGEST = 2**63 - 1


class ClientMessageError(ClientProtocolError):
    """A message that cannot be accepted; `message_id` is the client's own id, as far as it could be read."""

    def __init__(self, code: str, message: str, message_id: MessageId = None) -> None:
        super().__init__(code, message)
        self.message_id = message_id


class Authenticate(msgspec.Struct, frozen=True):
    """`{"action":"auth","token":…}`."""

    id: MessageId
    token: str


class ResumePoint(msgspec.Struct, frozen=True):
    """Where a client was: the epoch it knew and its newest position per exchange."""

    epoch: str
    position: dict[str, str]


class Subscribe(msgspec.Struct, frozen=True):
    """`{"action":"subscribe",…}`: begin to watch instruments, or change how they are delivered.

    `expiry` is a date as ISO text, or UTC epoch seconds as text; empty for the next one. `levels` of depth.
    """

    id: MessageId
    instruments: tuple[str, ...]
    channels: tuple[str, ...]
    interval: str
    delivery: Literal["all", "latest"]
    every_ms: int
    resume: ResumePoint | None
    expiry: str = ""
    levels: int = LEVELS[0]


class Unsubscribe(msgspec.Struct, frozen=True):
    """`{"action":"unsubscribe",…}`: end the channels named, without any all of them."""

    id: MessageId
    instruments: tuple[str, ...]
    channels: tuple[str, ...] = ()


class Ping(msgspec.Struct, frozen=True):
    """`{"action":"ping"}`."""

    id: MessageId


class ListSubscriptions(msgspec.Struct, frozen=True):
    """`{"action":"list"}`."""

    id: MessageId


ClientMessage = Authenticate | Subscribe | Unsubscribe | Ping | ListSubscriptions


def parse_client_message(data: bytes | str) -> ClientMessage:
    """Return the typed message in one WebSocket text frame. Raises `ClientMessageError` for anything else."""
    fields = _decode_object(data)
    message_id = fields.get("id")
    if not (message_id is None or _is_int(message_id) or isinstance(message_id, str)):
        raise ClientMessageError("invalid_message", "id must be a whole number or text")
    if isinstance(message_id, str) and len(message_id) > 64:
        raise ClientMessageError("invalid_message", "id must have at most 64 characters")
    try:
        return _parse_action(fields, message_id)
    except ClientMessageError as refusal:
        refusal.message_id = message_id
        raise


def is_well_formed(instrument: str) -> bool:
    """Tell whether a text looks like an instrument key `EXCHANGE:SYMBOL` or a wildcard `EXCHANGE:*`."""
    return _INSTRUMENT.fullmatch(instrument) is not None


def _parse_action(fields: dict[str, Any], message_id: MessageId) -> ClientMessage:
    match fields.get("action"):
        case "subscribe":
            return Subscribe(
                id=message_id,
                instruments=_instruments(fields),
                channels=_channels(fields),
                interval=_interval(fields),
                delivery=_delivery(fields),
                every_ms=_every_ms(fields),
                resume=_resume(fields),
                expiry=_expiry(fields),
                levels=_levels(fields),
            )
        case "unsubscribe":
            channels = _channels(fields) if fields.get("channels") is not None else ()
            return Unsubscribe(message_id, _instruments(fields), channels)
        case "ping":
            return Ping(message_id)
        case "list":
            return ListSubscriptions(message_id)
        case "auth":
            token = fields.get("token")
            if not isinstance(token, str) or not token:
                raise ClientMessageError("invalid_message", "auth needs a token, as text")
            return Authenticate(message_id, token)
        case None:
            raise ClientMessageError("invalid_message", 'the message needs an "action"')
        case str() as action:
            raise ClientMessageError(
                "unknown_action",
                f"{action[:40]!r} is no action; there are auth, subscribe, unsubscribe, list and ping",
            )
        case _:
            raise ClientMessageError("invalid_message", "action must be text")


def _instruments(fields: dict[str, Any]) -> tuple[str, ...]:
    keys = fields.get("instruments")
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise ClientMessageError(
            "invalid_message", 'instruments must be a list of keys such as "NSE:RELIANCE", at least one'
        )
    return tuple(dict.fromkeys(keys))


def _channels(fields: dict[str, Any]) -> tuple[str, ...]:
    channels = fields.get("channels")
    if channels is None:
        return ("tick",)
    if not isinstance(channels, list) or not channels or not all(isinstance(name, str) for name in channels):
        raise ClientMessageError("invalid_message", "channels must be a list of names, at least one")
    for name in channels:
        if name not in CHANNELS:
            raise ClientMessageError(
                "unknown_channel", f"{name[:40]!r} is no channel; there are {_spoken(CHANNELS)}"
            )
    return tuple(name for name in CHANNELS if name in channels)


def _interval(fields: dict[str, Any]) -> str:
    interval = fields.get("interval")
    if interval is None:
        return "1"
    if not isinstance(interval, str):
        raise ClientMessageError("invalid_message", 'interval must be text, in minutes, such as "1"')
    if interval not in INTERVALS:
        raise ClientMessageError(
            "unknown_interval", f"{interval[:40]!r} is no interval; there are {_spoken(INTERVALS)}"
        )
    return interval


def _delivery(fields: dict[str, Any]) -> Literal["all", "latest"]:
    match fields.get("delivery"):
        case None | "latest":
            return "latest"
        case "all":
            return "all"
        case _:
            raise ClientMessageError("invalid_message", "delivery must be all or latest")


def _every_ms(fields: dict[str, Any]) -> int:
    every_ms = fields.get("every_ms")
    if every_ms is None:
        return DEFAULT_EVERY_MS
    if not _is_int(every_ms) or not 0 <= every_ms <= MAX_EVERY_MS:
        raise ClientMessageError(
            "invalid_message", f"every_ms must be a whole number from 0 to {MAX_EVERY_MS}"
        )
    return max(MIN_EVERY_MS, int(every_ms))


def _expiry(fields: dict[str, Any]) -> str:
    expiry = fields.get("expiry")
    if expiry is None:
        return ""
    if isinstance(expiry, str) and len(expiry) == 10 and "-" in expiry:
        try:
            return date.fromisoformat(expiry).isoformat()
        except ValueError:
            pass
    elif _is_int(expiry) and 946_684_800 <= expiry <= 4_102_444_800:
        return str(expiry)
    raise ClientMessageError(
        "invalid_message", "expiry must be a date such as 2026-12-29, or UTC epoch seconds"
    )


def _levels(fields: dict[str, Any]) -> int:
    levels = fields.get("levels")
    if levels is None:
        return LEVELS[0]
    if not _is_int(levels):
        raise ClientMessageError("invalid_message", "levels must be a whole number")
    if levels not in LEVELS:
        raise ClientMessageError(
            "unknown_levels", f"no depth has {levels} levels; there are {_spoken(tuple(map(str, LEVELS)))}"
        )
    return int(levels)


def _resume(fields: dict[str, Any]) -> ResumePoint | None:
    resume = fields.get("resume")
    if resume is None:
        return None
    if not isinstance(resume, dict):
        raise ClientMessageError("invalid_message", "resume must hold an epoch and positions")
    epoch, position = resume.get("epoch"), resume.get("position")
    if not isinstance(epoch, str) or not isinstance(position, dict):
        raise ClientMessageError("invalid_message", "resume must hold an epoch and positions by exchange")
    for exchange, text in position.items():
        if not isinstance(text, str) or len(text) > 40:
            raise ClientMessageError("invalid_message", "a position must be text such as 1700000000000-4")
        try:
            parse_position(text)
        except ValueError as error:
            raise ClientMessageError("invalid_message", f"{exchange[:20]}: {error}") from None
    return ResumePoint(epoch, position)


def _decode_object(data: bytes | str) -> dict[str, Any]:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ClientMessageError("too_large", f"a message may have at most {MAX_MESSAGE_BYTES} bytes")
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_int=_small_int,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ClientMessageError("too_deep", f"a message may be nested {MAX_DEPTH} deep") from None
    except UnicodeDecodeError:
        raise ClientMessageError("invalid_json", "the message is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ClientMessageError(
            "invalid_json", f"the message is not JSON: {error.msg} at {error.pos}"
        ) from None
    _check_depth(value)
    if not isinstance(value, dict):
        raise ClientMessageError("invalid_message", "a message must be a JSON object")
    if "\\u" in text:
        _check_text(value)
    return value


def _check_text(value: Any) -> None:
    # An escape can name half a character; such text could never be sent back.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ClientMessageError("invalid_json", "the message holds half a character") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ClientMessageError("duplicate_key", "a field is named twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ClientMessageError("invalid_json", f"{name} is not JSON")


def _small_int(digits: str) -> int:
    # Checked by length first: turning thousands of digits into a number is slow, and refused by Python.
    if len(digits) > 20 or abs(number := int(digits)) > _BIGGEST:
        raise ClientMessageError("invalid_json", "a number is too large")
    return number


def _finite_float(text: str) -> float:
    number = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(number):
        raise ClientMessageError("invalid_json", "a number is too large")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ClientMessageError("too_deep", f"a message may be nested {MAX_DEPTH} deep")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _spoken(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"
