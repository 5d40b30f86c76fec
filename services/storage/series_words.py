"""The commands that define a series of samples, as text, for many series that differ in little.

Beneath the series of ticks and of bars. A start makes, and looks after, some series for each instrument; what
all of them say is put into words once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from services.storage.resp import bulk

_OF_ONE = frozenset({"instrument", "symbol", "replayed"})
"""Labels that say something else of every instrument."""
_shared = lru_cache(maxsize=1_024)(bulk)


def create_series(key: str, retention_ms: int, chunk_bytes: int, labels: Mapping[str, str]) -> str:
    """Return the command that makes a series; it fails where there is one."""
    return _words("TS.CREATE", key, retention_ms, chunk_bytes, labels)


def correct_series(key: str, retention_ms: int, chunk_bytes: int, labels: Mapping[str, str]) -> str:
    """Return the command that gives an existing series our retention, policy and labels."""
    return _words("TS.ALTER", key, retention_ms, chunk_bytes, labels)


def series_options(retention_ms: int, chunk_bytes: int) -> tuple[str, ...]:
    """Return what stands between the key of a series and its labels."""
    return (
        "RETENTION",
        str(retention_ms),
        "CHUNK_SIZE",
        str(chunk_bytes),
        "DUPLICATE_POLICY",
        "LAST",
        "LABELS",
    )


def _words(verb: str, key: str, retention_ms: int, chunk_bytes: int, labels: Mapping[str, str]) -> str:
    pieces = [_head(verb, len(labels)), bulk(key), _options(retention_ms, chunk_bytes)]
    for name, value in labels.items():
        pieces.append(_shared(name))
        pieces.append(bulk(value) if name in _OF_ONE else _shared(value))
    return "".join(pieces)


@lru_cache(maxsize=16)
def _head(verb: str, labels: int) -> str:
    return f"*{2 + len(series_options(0, 0)) + 2 * labels}\r\n{bulk(verb)}"


@lru_cache(maxsize=64)
def _options(retention_ms: int, chunk_bytes: int) -> str:
    return "".join(map(bulk, series_options(retention_ms, chunk_bytes)))
