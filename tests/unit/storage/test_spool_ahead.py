"""What goes to Redis ahead of what waits: whole or not at all, damage costs little, a full disk nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from services.market_data.records import Record
from services.storage.spool import Spool, SpoolState
from services.storage.spool_ahead import AHEAD_NAME, decode_ahead, read_ahead, remove_ahead, write_ahead
from services.storage.spool_format import FRAME_RECORDS
from services.storage.spool_inspection import inspect_channel
from services.storage.spool_log import SpoolLog
from tests.support.storage import Ticks


def some(count: int) -> list[Record]:
    ticks = Ticks()
    return [ticks.tick() if number % 3 else ticks.control() for number in range(count)]


def test_what_is_kept_comes_back_and_the_next_takes_its_place(tmp_path: Path) -> None:
    assert read_ahead(tmp_path) == []
    first, second = some(200), some(300)
    write_ahead(tmp_path, first)
    assert read_ahead(tmp_path) == first
    assert (tmp_path / AHEAD_NAME).stat().st_mode & 0o777 == 0o600
    write_ahead(tmp_path, second)
    assert read_ahead(tmp_path) == second
    remove_ahead(tmp_path)
    remove_ahead(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_damaged_byte_costs_one_frame_at_most_or_sets_the_file_aside(tmp_path: Path) -> None:
    records = some(3 * FRAME_RECORDS)
    write_ahead(tmp_path, records)
    path = tmp_path / AHEAD_NAME
    sound = path.read_bytes()
    set_aside = 0
    for offset in range(0, len(sound), 7):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0xFF]) + sound[offset + 1 :])
        found = decode_ahead(path)
        if found is None:
            set_aside += 1
            assert read_ahead(tmp_path) == []
            assert path.with_suffix(".corrupt").exists()
        else:
            assert len(found) in (2 * FRAME_RECORDS, 3 * FRAME_RECORDS)
            assert [record for record in records if record in found] == found
    assert set_aside > 1


def test_the_files_beside_the_segments_are_no_foreign_ones(tmp_path: Path) -> None:
    write_ahead(tmp_path, some(10))
    # What a kill in the middle of writing leaves.
    (tmp_path / "ahead.new").write_bytes(b"MDSP")
    log = SpoolLog(tmp_path, limit_bytes=1 << 20)
    log.open()
    assert (log.foreign, log.pending) == ([], 0)
    contents = inspect_channel(tmp_path)
    assert (contents.again, contents.records, contents.foreign_files) == (10, 0, [])
    log.close()


async def test_a_disk_that_refuses_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    await spool.open()
    channel = spool.channels["stream"]
    first = some(10)
    assert await channel.keep_ahead(first)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert not await channel.keep_ahead(some(20))
    assert channel.state is SpoolState.DISABLED
    assert channel.ahead == first
    assert channel.status().again == 10
    monkeypatch.undo()
    await spool.close()
    again = Spool(tmp_path)
    await again.open()
    assert again.channels["stream"].ahead == first
    newest = max((record.position_ms, record.position_seq) for record in first)
    assert again.positions() == {"NSE": newest}
    assert await again.drop_all() == 10
    await again.close()
    assert read_ahead(tmp_path / "stream") == []
