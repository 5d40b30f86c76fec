"""What a state directory remembers of its leaderships, so that a deposed leader's spool doubles nothing.

Beside the spool. Between its last confirmed lease and its stepping down a deposed leader went on accepting
records while another daemon was storing the same ones; those are never written. Everything spooled before
that is its own and follows when it leads again, except for the stream, where the other's entries stand
above it. Writes one small file; decides nothing about leading.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import structlog

_log = structlog.get_logger(__name__)

LED_TIMES_NAME = "leadership.json"
_MOST_TIMES = 100


class _Memory(msgspec.Struct):
    epoch: int = 0
    lost_ms: list[tuple[int, int]] = []
    overtaken: bool = False


class LedTimes:
    """The epoch last held, and the times (UTC epoch ms, both ends included) in which another led as well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory: _Memory | None = None

    @property
    def any_lost(self) -> bool:
        """Whether there is any such time."""
        return bool(self._read().lost_ms)

    def was_lost(self, position_ms: int) -> bool:
        """Tell whether a record accepted at `position_ms` is another leader's to store."""
        return any(start <= position_ms <= end for start, end in self._read().lost_ms)

    def lose(self, from_ms: int, until_ms: int) -> None:
        """Take note that another led while we still accepted records."""
        memory = self._read()
        memory.lost_ms = [*memory.lost_ms[1 - _MOST_TIMES :], (from_ms, max(from_ms, until_ms))]
        self._write()

    def take(self, epoch: int) -> None:
        """Take note that we hold the lease under `epoch`, whether or not we come to lead.

        A daemon that ends on its way to leading used up an epoch; the next one is not overtaken by that.
        """
        memory = self._read()
        if memory.epoch == epoch:
            return
        memory.overtaken = memory.overtaken or memory.epoch not in (0, epoch - 1)
        memory.epoch = epoch
        self._write()

    def lead(self, epoch: int) -> bool:
        """Take note that we lead under `epoch`; tell whether another led since we last did."""
        self.take(epoch)
        memory = self._read()
        overtaken, memory.overtaken = memory.overtaken, False
        if overtaken:
            self._write()
        return overtaken

    def forget_lost(self) -> None:
        """Forget the lost times: nothing of them waits on disk any more."""
        if self._read().lost_ms:
            self._read().lost_ms = []
            self._write()

    def _read(self) -> _Memory:
        if self._memory is None:
            self._memory = _Memory()
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._memory = msgspec.json.decode(self._path.read_bytes(), type=_Memory)
        return self._memory

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(self._read()) + b"\n")
            fresh.replace(self._path)
        except OSError as error:
            _log.warning("led_times_not_kept", file=self._path.name, error=error.strerror)
