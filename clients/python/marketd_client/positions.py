"""Positions in an exchange's stream: `<ms>-<seq>`, the id of the entry in Redis."""

from __future__ import annotations

START = "0-0"


def order(position: str) -> tuple[int, int]:
    """Return what positions are compared by. Raises ValueError for anything but `<ms>-<seq>`."""
    ms, separator, seq = position.partition("-")
    if not separator or not (ms.isascii() and ms.isdigit() and seq.isascii() and seq.isdigit()):
        raise ValueError(f"not a position: {position[:40]!r}; expected <ms>-<seq>")
    return int(ms), int(seq)


def is_after(position: str, other: str) -> bool:
    """Tell whether `position` comes later in the stream than `other`."""
    return order(position) > order(other)
