"""The codec of Yahoo's streaming feed: text frames to quotes, requests to text, and back.

Stands between the Yahoo provider's socket and its record handling. Version 2 of the feed wraps the
base64 of a PricingData message in a JSON envelope, version 1 sends the bare base64; both are read,
told apart by the first character. Never does I/O, never judges a value.

Source: measured on captured frames.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from string import ascii_letters, digits

import msgspec

from services.errors import WireFormatError
from services.wire.yahoo_pricing import PricingData, decode_pricing, encode_pricing

__all__ = [
    "PricingData",
    "StreamRequest",
    "decode_frame",
    "decode_pricing",
    "encode_frame",
    "encode_pricing",
    "parse_request",
    "subscribe_message",
    "unsubscribe_message",
]

_PRICING = "pricing"
_OPENINGS = ("{", b"{")
_FIRST_CHARACTERS = frozenset(f"{{{ascii_letters}{digits}+/=")


class StreamRequest(msgspec.Struct, frozen=True, gc=False):
    """What a client asks of the stream: symbols to add and symbols to drop, in its order."""

    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()


class _Envelope(msgspec.Struct, gc=False):
    type: str | None = None
    message: str | None = None


class _EnvelopeType(msgspec.Struct, gc=False):
    type: str | None = None


class _WireRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()


_encode_json = msgspec.json.Encoder().encode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_envelope_type = msgspec.json.Decoder(_EnvelopeType).decode
_decode_request = msgspec.json.Decoder(_WireRequest).decode


def decode_frame(text: str | bytes) -> PricingData | None:
    """Decode one frame of either version; None for an envelope of another type than pricing.

    Raises `WireFormatError` with reason `empty`, `not_json`, `bad_envelope`, `no_type`,
    `no_message`, `not_base64`, or as `decode_pricing`.

    Source: measured on captured frames.
    """
    if text[:1] not in _OPENINGS:
        text = _stripped(text)
    message = _open_envelope(text) if text[:1] in _OPENINGS else text
    if message is None:
        return None
    try:
        payload = a2b_base64(message, strict_mode=True)
    except ValueError as error:
        raise _damaged("not_base64", str(error), text) from None
    if len(message) != (len(payload) + 2) // 3 * 4:
        # Python before 3.13 lets padding pass where none belongs.
        raise _damaged("not_base64", "excess padding", text)
    return decode_pricing(payload)


def _open_envelope(text: str | bytes) -> str | None:
    try:
        envelope = _decode_envelope(text)
    except msgspec.ValidationError as error:
        if _is_of_another_type(text):
            return None
        raise _damaged("bad_envelope", str(error), text) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _damaged("not_json", str(error), text) from None
    if envelope.type is None:
        raise _damaged("no_type", "an envelope without a type", text)
    if envelope.type != _PRICING:
        return None
    if not envelope.message:
        raise _damaged("no_message", "a pricing envelope without a message", text)
    return envelope.message


def _is_of_another_type(text: str | bytes) -> bool:
    try:
        return _decode_envelope_type(text).type not in (None, _PRICING)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def _stripped(text: str | bytes) -> str:
    try:
        stripped = text.strip() if isinstance(text, str) else text.decode().strip()
    except UnicodeDecodeError as error:
        raise _damaged("not_json", str(error), text) from None
    if not stripped:
        raise _damaged("empty", "a frame without text", text)
    if stripped[0] not in _FIRST_CHARACTERS:
        raise _damaged("not_json", "neither an envelope nor bare base64", text)
    return stripped


def encode_frame(data: PricingData, *, version: int = 2) -> str:
    """Encode one quote as the server sends it: JSON envelope (2) or bare base64 (1).

    Raises `WireFormatError` (`not_encodable`) where a value does not fit its field.
    """
    message = b2a_base64(encode_pricing(data), newline=False).decode()
    return message if version == 1 else f'{{"type": "{_PRICING}", "message": "{message}"}}'


def subscribe_message(symbols: Sequence[str]) -> str:
    """Return the request that adds symbols to the connection's subscription."""
    return _encode_json({"subscribe": list(symbols)}).decode()


def unsubscribe_message(symbols: Sequence[str]) -> str:
    """Return the request that drops symbols from the connection's subscription."""
    return _encode_json({"unsubscribe": list(symbols)}).decode()


def parse_request(text: str | bytes) -> StreamRequest:
    """Read one request as the server does; an empty object or list asks for nothing.

    Raises `WireFormatError` for what makes the server close the connection: reason `not_json`, or
    `bad_request` (no object, another action, symbols that are not a list of text).

    Source: measured against the live service by third parties.
    """
    try:
        request = _decode_request(text)
    except msgspec.ValidationError as error:
        raise _damaged("bad_request", str(error), text) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _damaged("not_json", str(error), text) from None
    return StreamRequest(request.subscribe, request.unsubscribe)


def _damaged(reason: str, detail: str, text: str | bytes) -> WireFormatError:
    head = text[:64]
    return WireFormatError(reason, detail, head.encode("utf-8", "replace") if isinstance(head, str) else head)
