"""The JSON requests of Dhan's feeds, made by the provider and read by the simulator.

Version 2 of the live feed and both depth feeds use the same messages. None of them is ever
acknowledged. Never does I/O; the limits of an account are the caller's affair, only the number of
instruments per message is kept here.

Source: DhanHQ v2 live market feed and full market depth documentation, request structures.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from services.errors import WireFormatError
from services.wire.dhan_codes import FeedMode, RequestCode, Segment

MAX_INSTRUMENTS_PER_REQUEST = 100
"""Source: DhanHQ v2 live market feed documentation, adding instruments."""

_NAMES = frozenset(segment.name for segment in Segment)
_CODES = frozenset(int(code) for code in RequestCode)


class FeedRequest(msgspec.Struct, frozen=True, gc=False):
    """One request as a server reads it: its code and (segment name, security id) pairs.

    `flat` tells the form without a list, which the 200-level feed wants.
    """

    code: int
    instruments: tuple[tuple[str, str], ...] = ()
    flat: bool = False


class _WireInstrument(msgspec.Struct, gc=False):
    segment: str = msgspec.field(name="ExchangeSegment")
    security_id: str | int = msgspec.field(name="SecurityId")


class _WireRequest(msgspec.Struct, gc=False):
    code: int = msgspec.field(name="RequestCode")
    count: int | None = msgspec.field(name="InstrumentCount", default=None)
    instruments: list[_WireInstrument] | None = msgspec.field(name="InstrumentList", default=None)
    segment: str | None = msgspec.field(name="ExchangeSegment", default=None)
    security_id: str | int | None = msgspec.field(name="SecurityId", default=None)


_encode_json = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(_WireRequest).decode


def list_messages(code: RequestCode, instruments: Sequence[tuple[str, str]], chunk: int) -> list[str]:
    """Return requests in the list form, each with at most `chunk` (segment name, security id) pairs."""
    messages = []
    for start in range(0, len(instruments), chunk):
        part = instruments[start : start + chunk]
        rows = [{"ExchangeSegment": segment, "SecurityId": security_id} for segment, security_id in part]
        request = {"RequestCode": int(code), "InstrumentCount": len(rows), "InstrumentList": rows}
        messages.append(_encode_json(request).decode())
    return messages


def flat_message(code: RequestCode, segment: str, security_id: str) -> str:
    """Return a request in the form without a list, for one instrument."""
    request = {"RequestCode": int(code), "ExchangeSegment": segment, "SecurityId": security_id}
    return _encode_json(request).decode()


def subscribe_messages(mode: FeedMode, instruments: Sequence[tuple[str, str]]) -> list[str]:
    """Return the requests that subscribe (segment name, security id) pairs, at most 100 each."""
    return list_messages(mode.subscribe_code, instruments, MAX_INSTRUMENTS_PER_REQUEST)


def unsubscribe_messages(mode: FeedMode, instruments: Sequence[tuple[str, str]]) -> list[str]:
    """Return the requests that end what `subscribe_messages` with the same arguments began."""
    return list_messages(mode.unsubscribe_code, instruments, MAX_INSTRUMENTS_PER_REQUEST)


def disconnect_message() -> str:
    """Return the request that tells the server we leave."""
    return _encode_json({"RequestCode": int(RequestCode.DISCONNECT)}).decode()


def parse_request(text: str) -> FeedRequest:
    """Read one request as the server does; a security id may be text or a whole number.

    Raises `WireFormatError` with reason `not_json`, `bad_request` (wrong shape), `unknown_code`,
    `bad_count` (the count is not the list's length), `no_instruments`, `bad_segment` or
    `bad_security_id`. How many instruments are allowed is for the caller to judge.
    """
    request = _read(text)
    if request.code not in _CODES:
        raise _refused("unknown_code", f"request code {request.code}", text)
    if request.code in (RequestCode.CONNECT, RequestCode.DISCONNECT):
        return FeedRequest(request.code)
    if request.instruments is not None:
        if request.count != len(request.instruments):
            detail = f"InstrumentCount is {request.count}, the list has {len(request.instruments)}"
            raise _refused("bad_count", detail, text)
        pairs = tuple(_pair(row.segment, row.security_id, text) for row in request.instruments)
        if not pairs:
            raise _refused("no_instruments", "the list is empty", text)
        return FeedRequest(request.code, pairs)
    if request.segment is None or request.security_id is None:
        raise _refused("no_instruments", "neither a list nor one instrument", text)
    return FeedRequest(request.code, (_pair(request.segment, request.security_id, text),), flat=True)


def _read(text: str) -> _WireRequest:
    try:
        return _decode_request(text)
    except msgspec.ValidationError as error:
        raise _refused("bad_request", str(error), text) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _refused("not_json", str(error), text) from error


def _pair(segment: str, security_id: str | int, text: str) -> tuple[str, str]:
    if segment not in _NAMES:
        raise _refused("bad_segment", f"exchange segment {segment[:40]!r}", text)
    identifier = str(security_id)
    if not (identifier.isascii() and identifier.isdigit()):
        raise _refused("bad_security_id", f"security id {identifier[:40]!r}", text)
    return segment, identifier


def _refused(reason: str, detail: str, text: str) -> WireFormatError:
    return WireFormatError(reason, detail, text[:64].encode("utf-8", "replace"))
