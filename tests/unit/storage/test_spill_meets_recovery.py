"""Redis comes back while what waits in memory is on its way to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.storage.entry import EntryEncoder
from services.storage.spool import Spool
from services.storage.spool_log import Appended
from services.storage.stream_writer import StreamWriter
from tests.support.storage import Ticks, offer

WAITING = 10_000


@pytest.mark.timeout(30)
async def test_a_spill_ends_when_redis_takes_the_rest_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    await spool.open()
    channel = spool.channels["stream"]
    writer = StreamWriter(
        "redis://127.0.0.1:1/0", max_entries=1_000, encoder=EntryEncoder(), spool=channel, spill_above=100
    )
    ticks = Ticks()
    offer([ticks.tick() for _ in range(WAITING)], writer)
    append = channel.append
    spilled = 0

    async def then_redis_is_back(records: Any, settle: Callable[[Appended], None]) -> None:
        nonlocal spilled
        spilled += len(records)
        await append(records, settle)
        writer._finish(writer._pending_count)

    monkeypatch.setattr(channel, "append", then_redis_is_back)
    await writer._spill(channel)
    assert 0 < spilled < WAITING
    assert channel.pending == spilled
    await spool.close()
