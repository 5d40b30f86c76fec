"""Losses: declared once, as one gap for each exchange and reason, when it can be; kept until then."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.market_data.clock import ManualClock
from services.market_data.records import PROBE_EXCHANGE, ControlRecord, Record
from services.storage.losses import LOSSES_NAME, LossDeclaration, Losses
from tests.support.eventually import eventually


class Declaring:
    """A declaration of one store's losses, with what it published."""

    def __init__(self, folder: Path) -> None:
        self.losses = Losses("stream")
        self.possible = False
        self.published: list[Record] = []
        self.clock = ManualClock()
        self.declaration = LossDeclaration(
            {"stream": self.losses},
            folder=folder,
            clock=self.clock,
            publish=self.published.append,
            possible=lambda: self.possible,
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Declaring:
        self._task = asyncio.create_task(self.declaration.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_losses_of_one_reason_become_one_gap_once_redis_is_back(tmp_path: Path) -> None:
    async with Declaring(tmp_path) as declaring:
        declaring.losses.note("spool_full", "NSE", 200, 300)
        declaring.losses.note("spool_full", "NSE", 100, 150)
        declaring.losses.note("queue_full", "BSE", 7, 7)
        declaring.losses.note("queue_full", PROBE_EXCHANGE, 1, 1)
        await eventually((tmp_path / LOSSES_NAME).exists)
        assert declaring.published == []
        declaring.possible = True
        await eventually(lambda: declaring.published)
        now_ms = declaring.clock.now_ms()
        assert declaring.published == [
            ControlRecord(
                "gap",
                "",
                exchange,
                now_ms,
                now_ms,
                "",
                {"from": a, "to": b, "reason": why, "store": "stream"},
            )
            for exchange, a, b, why in (("NSE", 100, 300, "spool_full"), ("BSE", 7, 7, "queue_full"))
        ]
        await eventually(lambda: not (tmp_path / LOSSES_NAME).exists())
        assert len(declaring.losses) == 0


async def test_a_restart_makes_no_loss_a_silent_one(tmp_path: Path) -> None:
    async with Declaring(tmp_path) as killed:
        killed.losses.note("spool_damaged", "NSE", 5, 6)
        await eventually((tmp_path / LOSSES_NAME).exists)
    async with Declaring(tmp_path) as again:
        again.possible = True
        await eventually(lambda: again.published)
        (gap,) = again.published
        assert isinstance(gap, ControlRecord)
        assert gap.fields == {"from": 5, "to": 6, "reason": "spool_damaged", "store": "stream"}


async def test_what_is_lost_while_stopping_is_kept_too(tmp_path: Path) -> None:
    async with Declaring(tmp_path) as stopping:
        await eventually(lambda: stopping.declaration._saved is not None)
    stopping.losses.note("spool_full", "NSE", 8, 9)
    await stopping.declaration.save()
    async with Declaring(tmp_path) as again:
        again.possible = True
        await eventually(lambda: len(again.published) == 1)


async def test_a_damaged_note_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LOSSES_NAME).write_bytes(b'[{"store":')
    async with Declaring(tmp_path) as declaring:
        declaring.possible = True
        declaring.losses.note("spool_full", "NSE", 1, 2)
        await eventually(lambda: len(declaring.published) == 1)
