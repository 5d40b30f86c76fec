"""Redis commands as text, assembled by hand for the commands that run once per tick.

Stands between the writers and their connection. Everything constant (command names, keys, field
names) is prepared once as text; per tick only numbers are added. Text is built as `str` and encoded
once per batch, which is the cheapest way Python offers. Knows nothing of records or sockets.

Source: Redis serialization protocol specification (arrays of bulk strings).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import msgspec

_encode_json = msgspec.json.Encoder().encode

_FLOATS_REMEMBERED = 32_768
_INTEGERS_REMEMBERED = 16_384

BULK_HEAD: tuple[str, ...] = tuple(f"${length}\r\n" for length in range(64))
"""The head of a bulk string by its length in bytes: `BULK_HEAD[7] == "$7\\r\\n"`."""


def bulk(text: str) -> str:
    """Return one argument as a bulk string. Its length counts UTF-8 bytes; lone surrogates become `?`."""
    length = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return f"${length}\r\n{text}\r\n"


def command(*arguments: str) -> str:
    """Return one whole command, such as `command("PING")`."""
    return f"*{len(arguments)}\r\n{''.join(map(bulk, arguments))}"


def to_bytes(pieces: Iterable[str]) -> bytes:
    """Return the bytes of a run of command texts, for the socket."""
    return "".join(pieces).encode("utf-8", "replace")


class _FloatBulks(dict[float, str]):
    """Remembers prices as bulk strings: prices repeat, and a look-up costs a fifth of a conversion."""

    def __missing__(self, number: float) -> str:
        if not isfinite(number):
            raise ValueError(f"{number} is not a finite number")
        # msgspec writes the shortest decimal that reads back as the same double.
        # Zero has no sign here: -0.0 is the same key.
        text = _encode_json(number + 0.0).decode()
        if len(self) >= _FLOATS_REMEMBERED:
            self.clear()
        piece = self[number] = f"{BULK_HEAD[len(text)]}{text}\r\n"
        return piece


class _IntegerBulks(dict[int, str]):
    """Remembers whole numbers (times, quantities) as bulk strings, always written without exponent."""

    def __missing__(self, number: int) -> str:
        text = str(number)
        if len(self) >= _INTEGERS_REMEMBERED:
            self.clear()
        piece = self[number] = f"${len(text)}\r\n{text}\r\n"
        return piece


FLOAT_BULKS = _FloatBulks()
"""`FLOAT_BULKS[2456.75]` is that number as a bulk string. Raises ValueError for NaN and infinities."""
INTEGER_BULKS = _IntegerBulks()
"""`INTEGER_BULKS[120]` is that number as a bulk string."""
