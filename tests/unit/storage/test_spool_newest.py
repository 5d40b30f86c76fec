"""The newest waiting tick of each instrument, read back from the spool's files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from services.market_data.records import DataIngestionFormat
from services.storage.spool_log import SpoolLog
from services.storage.spool_newest import newest_ticks

ACC, TCS, M_M = "NSE:ACC", "NSE:TCS", "NSE:M&M"


def tick(instrument: str, number: int) -> DataIngestionFormat:
    at_ms = 1_700_000_000_000 + number
    return DataIngestionFormat(
        instrument, 100.0 + number, number, at_ms, "DHAN", exchange="NSE", position_ms=at_ms
    )


def filled(folder: Path, *ticks: DataIngestionFormat) -> SpoolLog:
    log = SpoolLog(folder, limit_bytes=1 << 24, segment_bytes=400)
    log.open()
    for record in ticks:
        assert log.append([(record, 0)]).error is None
    return log


def test_the_newest_of_each_is_found_over_many_segments(tmp_path: Path) -> None:
    log = filled(tmp_path, tick(ACC, 1), *(tick(TCS, number) for number in range(2, 40)))
    assert len(log.segments) > 3
    assert newest_ticks(tmp_path, [ACC, TCS, M_M]) == {ACC: tick(ACC, 1), TCS: tick(TCS, 39)}
    assert newest_ticks(tmp_path, [M_M]) == {}


def test_what_is_done_with_is_not_waiting(tmp_path: Path) -> None:
    log = filled(tmp_path, tick(ACC, 1), tick(TCS, 2), tick(TCS, 3))
    log.read(2)
    log.ack(3)
    log.sync(now=True)
    assert newest_ticks(tmp_path, [ACC, TCS]) == {TCS: tick(TCS, 3)}


def test_damage_and_a_missing_folder_hide_only_what_they_hide(tmp_path: Path) -> None:
    assert newest_ticks(tmp_path / "none", [ACC]) == {}
    log = SpoolLog(tmp_path / "one", limit_bytes=1 << 24)
    log.open()
    for record in (tick(ACC, 1), tick(TCS, 2), tick(ACC, 3)):
        log.append([(record, 0)])
    [segment] = log.segments
    data = bytearray(segment.path.read_bytes())
    data[-1] ^= 0xFF
    segment.path.write_bytes(data)
    found = newest_ticks(tmp_path / "one", [ACC, TCS])
    assert found == {ACC: tick(ACC, 1), TCS: tick(TCS, 2)}
    assert msgspec.structs.asdict(found[TCS])["price"] == 102.0
