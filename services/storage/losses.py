"""Records that a sink had to give up, by exchange, time and reason; declared as gaps as soon as that can be.

A sink that keeps everything notes here what it drops, besides counting it. `LossDeclaration` says so in the
stream and to the clients once Redis takes writes again: one `gap` record for the whole exchange, with `from`
and `to` in UTC epoch ms, `reason`, and `store`, the sink whose copy has the hole. What is not declared yet
is kept on disk, so that a restart does not make a loss a silent one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from services.market_data.clock import Clock
from services.market_data.records import PROBE_EXCHANGE, ControlRecord, Record
from services.storage.spool_segment import Spans

_log = structlog.get_logger(__name__)

LOSSES_NAME = "undeclared.json"
DECLARE_EVERY_S = 0.5


class Loss(msgspec.Struct):
    """Records of one exchange, accepted between two moments (UTC epoch ms), that one store will not have."""

    store: str
    exchange: str
    reason: str
    from_ms: int
    to_ms: int


class Losses:
    """What one sink lost and nobody declared yet; losses of one exchange and reason become one."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._losses: dict[tuple[str, str], Loss] = {}

    def __len__(self) -> int:
        return len(self._losses)

    def note(self, reason: str, exchange: str, first_ms: int, last_ms: int) -> None:
        """Add a loss. The probe's records are nobody's loss."""
        if exchange == PROBE_EXCHANGE:
            return
        known = self._losses.get((exchange, reason))
        if known is None:
            self._losses[exchange, reason] = Loss(self._store, exchange, reason, first_ms, last_ms)
        else:
            known.from_ms = min(known.from_ms, first_ms)
            known.to_ms = max(known.to_ms, last_ms)

    def note_spans(self, reason: str, spans: Spans) -> None:
        """Add a loss of several exchanges."""
        for exchange, (first_ms, last_ms) in spans.items():
            self.note(reason, exchange, first_ms, last_ms)

    def pending(self) -> list[Loss]:
        """Return what is not declared yet."""
        return list(self._losses.values())

    def clear(self) -> None:
        """Forget everything: it is declared."""
        self._losses.clear()


class LossDeclaration:
    """Publishes the losses of some sinks as gaps while `possible()`; keeps the others in `folder`."""

    def __init__(
        self,
        losses: Mapping[str, Losses],
        *,
        folder: Path,
        clock: Clock,
        publish: Callable[[Record], None],
        possible: Callable[[], bool],
    ) -> None:
        self._losses = losses
        self._path = folder / LOSSES_NAME
        self._clock = clock
        self._publish = publish
        self._possible = possible
        self._saved: list[Loss] | None = None

    async def run(self) -> None:
        """Look for losses until cancelled, beginning with those of an earlier run."""
        if self._saved is None:
            self._saved = await asyncio.to_thread(self._load)
            for loss in self._saved:
                if loss.store in self._losses:
                    self._losses[loss.store].note(loss.reason, loss.exchange, loss.from_ms, loss.to_ms)
        while True:
            if self._possible():
                self.declare()
            await self.save()
            await asyncio.sleep(DECLARE_EVERY_S)

    async def save(self) -> None:
        """Bring to disk what is not declared yet; what an earlier run left stays until `run` has seen it."""
        if self._saved is None:
            return
        pending = [msgspec.structs.replace(loss) for held in self._losses.values() for loss in held.pending()]
        if pending != self._saved:
            self._saved = pending
            await asyncio.to_thread(self._save, pending)

    def declare(self) -> None:
        """Publish everything that is not declared yet."""
        for losses in self._losses.values():
            for loss in losses.pending():
                now_ms = self._clock.now_ms()
                _log.error("records_lost", **msgspec.structs.asdict(loss))
                self._publish(
                    ControlRecord(
                        "gap",
                        "",
                        loss.exchange,
                        now_ms,
                        now_ms,
                        "",
                        {
                            "from": loss.from_ms,
                            "to": loss.to_ms,
                            "reason": loss.reason,
                            "store": loss.store,
                        },
                    )
                )
            losses.clear()

    def _load(self) -> list[Loss]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Loss])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            _log.error("undeclared_losses_unreadable", file=str(self._path), error=str(error))
            return []

    def _save(self, losses: list[Loss]) -> None:
        # A full disk is the very time when records are lost: what cannot be kept is still in memory.
        with contextlib.suppress(OSError):
            if not losses:
                self._path.unlink(missing_ok=True)
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            written = self._path.with_suffix(".new")
            written.write_bytes(msgspec.json.encode(losses))
            written.replace(self._path)
