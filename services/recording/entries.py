"""What a recording is made of: frames as they came, and the events that change how they are read.

    entry   kind u8 | provider u8 | time i64 | length u32 | payload        (little-endian)

The time is when the frame arrived, or when the event happened, UTC epoch ms. The provider is an index
into `Context.providers` of the newest context before the entry. Pure; never opens anything. Holds no
secret: frames are what a provider sent, a context holds no settings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgspec

from services.errors import ConfigurationError
from services.market_data.instruments import MappingSnapshot

FORMAT = 1
HEAD = struct.Struct("<BBqI")
NO_PROVIDER = 255


class Kind(IntEnum):
    """What an entry says. Symbols are provider symbols, in a JSON list."""

    BINARY = 1
    TEXT = 2
    ASKING = 3
    """Data of these symbols is to begin now."""
    ASKED = 4
    """The requests for these symbols were sent."""
    LOST = 5
    """The connection that carried these symbols ended."""
    CONTROL = 6
    """A control record as consumers saw it, as JSON."""
    CONTEXT = 7
    """A `Context`, as JSON."""
    DROPPED = 8
    """So many frames (a JSON number) came here that could not be recorded."""
    ROUTES = 9
    """Instruments that are served by another provider from here on: key to code or null, as JSON."""


FRAMES = (Kind.BINARY, Kind.TEXT)


class ProviderMemory(msgspec.Struct, frozen=True):
    """What a provider knew of its symbols: asked for, waiting for their first tick, without data."""

    wanted: list[str] = []
    fresh: list[str] = []
    dark: list[str] = []


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to read the frames that follow: who sends, what is mapped, who serves what.

    `daemon` tells one run of the daemon from the next, whose providers begin without memory.
    `partial` are the providers that were chosen, empty for all.
    """

    format: int
    daemon: str
    demo: bool
    at_ms: int
    providers: list[str]
    partial: list[str]
    snapshot: MappingSnapshot
    routes: dict[str, str]
    memory: dict[str, ProviderMemory]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry as it was read."""

    kind: int
    provider: int
    at_ms: int
    payload: bytes


class EntriesDamaged(Exception):
    """Bytes that should be whole entries are not."""


def pack(kind: int, provider: int, at_ms: int, payload: bytes) -> bytes:
    """Return one entry as bytes."""
    return HEAD.pack(kind, provider, at_ms, len(payload)) + payload


def pack_json(kind: int, provider: int, at_ms: int, value: Any) -> bytes:
    """Return one entry whose payload is `value` as JSON."""
    return pack(kind, provider, at_ms, msgspec.json.encode(value))


def unpack(data: bytes) -> Iterator[Entry]:
    """Yield the entries in `data`. Raises `EntriesDamaged` where they do not fit."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEAD.size:
            raise EntriesDamaged("an entry is cut off")
        kind, provider, at_ms, length = HEAD.unpack_from(data, offset)
        offset += HEAD.size
        if length > end - offset:
            raise EntriesDamaged("an entry is longer than its block")
        yield Entry(kind, provider, at_ms, data[offset : offset + length])
        offset += length


def read_context(payload: bytes) -> Context:
    """Return the context in an entry's payload. Raises `ConfigurationError` for one of another version."""
    try:
        head = msgspec.json.decode(payload, type=dict[str, Any])
        if head.get("format") != FORMAT:
            raise ConfigurationError(
                f"the recording has format {head.get('format')}, this program reads {FORMAT}: "
                "use the version that made it"
            )
        return msgspec.json.decode(payload, type=Context)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"the recording's mappings cannot be read: {error}") from error
