"""The spool's files: order, progress, restarts, limits, torn tails, damage, foreign files, full disks."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.errors import ConfigurationError
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.storage import spool_format
from services.storage.spool_format import MERGED, TRIED, decode_header, encode_header
from services.storage.spool_log import SpoolLog

LIMIT = 1 << 24


def tick(number: int, **fields: Any) -> DataIngestionFormat:
    return DataIngestionFormat(
        "NSE:RELIANCE",
        100.0 + number / 20,
        number,
        1_700_000_000_000 + number,
        "DHAN",
        exchange="NSE",
        position_ms=1_700_000_000_000 + number,
        position_seq=number % 3,
        **fields,
    )


def opened(folder: Path, **options: Any) -> SpoolLog:
    log = SpoolLog(folder, **({"limit_bytes": LIMIT} | options))
    log.open()
    return log


def put(log: SpoolLog, *records: Record) -> None:
    done = log.append([(record, 0) for record in records])
    assert (done.taken, done.error) == (len(records), None)


def put_singly(log: SpoolLog, *records: Record) -> None:
    """One frame for each record, so that a frame's fate is a record's."""
    for record in records:
        put(log, record)


def rest(log: SpoolLog) -> list[Record]:
    found: list[Record] = []
    while log.unread:
        found += [frame.record for frame in log.read(7).frames]
    return found


def reopened(log: SpoolLog, **options: Any) -> SpoolLog:
    """As after a kill: nothing is closed in order, only the files are there."""
    log.close()
    return opened(log.folder, **options)


def test_records_come_back_as_they_were_in_their_order_with_their_positions(tmp_path: Path) -> None:
    full = tick(
        1, bid=1.5, ask=2, oi=7, flags=5, cumulative_volume=2**53, provider_symbol="2885", received_ms=9,
        bid_size=1, ask_size=2, day_open=1.0, day_high=2.0, day_low=0.5, previous_close=3.25,
    )  # fmt: skip
    gap = ControlRecord("gap", "NSE:M&M", "NSE", 5, 6, "DHAN", {"from": 1, "reason": "reset ☠"}, 7, 8)
    log = opened(tmp_path)
    done = log.append([(full, MERGED), (gap, TRIED), (tick(2, bid=None), 0)])
    assert done.taken == 3
    frames = log.read(10).frames
    assert [frame.record for frame in frames] == [full, gap, tick(2, bid=None)]
    assert [frame.flags for frame in frames] == [MERGED, TRIED, 0]
    assert [frame.number for frame in frames] == [1, 2, 3]


def test_a_restart_replays_what_is_not_acknowledged_and_nothing_else(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, *map(tick, range(50)))
    log.read(30)
    log.ack(21)
    log.sync(now=True)
    again = reopened(log)
    assert (again.pending, again.leftover_until) == (30, 51)
    assert rest(again) == list(map(tick, range(20, 50)))
    put(again, tick(50))
    assert [frame.number for frame in again.read(5).frames] == [51]


def test_progress_that_was_not_noted_yet_is_replayed_once_more(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, *map(tick, range(5)))
    log.read(5)
    log.ack(6)
    assert rest(reopened(log)) == list(map(tick, range(5)))


def test_segments_that_are_done_with_are_removed_and_numbers_go_on(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=600)
    put_singly(log, *map(tick, range(100)))
    assert len(log.segments) > 3
    log.read(100)
    log.ack(101)
    log.sync(now=True)
    assert [path.name for path in tmp_path.iterdir()] == ["acked"]
    again = reopened(log, segment_bytes=600)
    assert (again.pending, again.next_number) == (0, 101)
    put(again, tick(7))
    assert rest(again) == [tick(7)]


def test_beyond_the_limit_the_oldest_segment_goes_and_its_unread_records_are_counted(tmp_path: Path) -> None:
    log = opened(tmp_path, limit_bytes=32_000, segment_bytes=2_000)
    dropped = 0
    for number in range(1_000):
        dropped += log.append([(tick(number), 0)]).dropped
        assert log.size_bytes <= 32_000 + 200
    left = rest(log)
    assert dropped > 300
    assert left == list(map(tick, range(dropped, 1_000)))
    assert log.pending == len(left)


def test_dropping_counts_only_what_nobody_has_read(tmp_path: Path) -> None:
    log = opened(tmp_path, limit_bytes=32_000, segment_bytes=2_000)
    put(log, *map(tick, range(20)))
    read = log.read(20).frames
    dropped = sum(log.append([(tick(number), 0)]).dropped for number in range(20, 1_000))
    assert len(read) + dropped + len(rest(log)) == 1_000
    log.ack(21)
    assert log.acked <= log.next_number - log.unread


def at_ms(number: int) -> int:
    return 1_700_000_000_000 + number


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_dropped_is_named_by_exchange_and_time(tmp_path: Path, restarted: bool) -> None:
    limits = {"limit_bytes": 32_000, "segment_bytes": 2_000}
    log = opened(tmp_path, **limits)
    early = tick(3)
    early.exchange = "BSE"
    put_singly(log, early, *map(tick, range(5, 400)))
    assert not log.append([]).lost
    if restarted:
        log = reopened(log, **limits)
    read = [frame.record.position_ms for frame in log.read(10).frames if frame.record.exchange == "NSE"]
    lost: dict[str, tuple[int, int]] = {}
    dropped = 0
    number = 400
    while dropped < 150:
        done = log.append([(tick(number), 0)])
        number += 1
        dropped += done.dropped
        for exchange, (first_ms, last_ms) in done.lost.items():
            known = lost.get(exchange, (first_ms, last_ms))
            lost[exchange] = min(known[0], first_ms), max(known[1], last_ms)
    rest_of_it = rest(log)
    # All that is missing lies inside, what was handed out before and what is still there outside.
    assert lost == {"NSE": (read[-1], rest_of_it[0].position_ms - 1)}


def test_a_dropped_gap_record_makes_the_loss_begin_where_its_gap_did(tmp_path: Path) -> None:
    log = opened(tmp_path, limit_bytes=32_000, segment_bytes=2_000)
    gap = ControlRecord("gap", "NSE:A", "NSE", 5, 6, "DHAN", {"from": 77, "to": 99}, at_ms(0), 0)
    put(log, gap)
    lost: dict[str, tuple[int, int]] = {}
    for number in range(1, 2_000):
        lost = lost or log.append([(tick(number), 0)]).lost
    assert lost["NSE"][0] == 77


def test_what_is_damaged_is_named_by_exchange_and_time(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put_singly(log, *map(tick, range(20)))
    log.close()
    (path,) = tmp_path.glob("*.seg")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    log = opened(tmp_path)
    found: list[Record] = []
    lost = {}
    while log.unread:
        out = log.read(3)
        found += [frame.record for frame in out.frames]
        lost |= out.lost
    (missing,) = set(range(20)) - {r.position_ms - at_ms(0) for r in found}
    first_ms, last_ms = lost["NSE"]
    assert first_ms <= at_ms(missing) <= last_ms <= at_ms(missing + 1)


def test_a_torn_tail_is_cut_at_every_possible_place(tmp_path: Path) -> None:
    log = opened(tmp_path / "whole")
    ends = []
    for number in range(3):
        put(log, tick(number))
        ends.append(log.segments[0].size)
    log.sync(now=True)
    [segment] = log.segments
    data = segment.path.read_bytes()
    for size in range(segment.frames_at, len(data)):
        folder = tmp_path / f"cut-{size}"
        folder.mkdir()
        (folder / segment.path.name).write_bytes(data[:size])
        cut = opened(folder)
        whole = sum(end <= size for end in ends)
        assert cut.segments[0].size == ([segment.frames_at, *ends])[whole]
        put(cut, tick(77))
        out = cut.read(10)
        assert [frame.record for frame in out.frames] == [*map(tick, range(whole)), tick(77)]
        assert out.damaged == 0
        cut.close()


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_with_any_one_byte_flipped_at_most_one_record_is_lost_and_it_is_counted(
    tmp_path: Path, flip: int
) -> None:
    log = opened(tmp_path / "whole")
    records = list(map(tick, range(4)))
    put_singly(log, *records[:3])
    last_at = log.segments[0].size
    put(log, records[3])
    log.close()
    [segment] = log.segments
    data = bytearray(segment.path.read_bytes())
    for offset in range(len(data)):
        folder = tmp_path / f"{offset}"
        folder.mkdir()
        data[offset] ^= flip
        (folder / segment.path.name).write_bytes(data)
        data[offset] ^= flip
        damaged = opened(folder)
        put(damaged, tick(99))
        out = damaged.read(100)
        found = [frame.record for frame in out.frames]
        assert found[-1] == tick(99)
        assert all(record in records for record in found[:-1])
        assert found == sorted(found, key=lambda record: record.timestamp)
        if offset < segment.frames_at:
            assert damaged.corrupt_segments == 1
            assert [path.suffix for path in folder.glob("*.corrupt")] == [".corrupt"]
            assert (len(found), out.damaged) == (1, 4)
        else:
            lost_at_the_end = offset >= last_at
            # A damaged last record is a torn tail: it was never acknowledged as written.
            assert (len(found), out.damaged) == (4, 0 if lost_at_the_end else 1)
        damaged.close()
        shutil.rmtree(folder)


def test_a_damaged_segment_in_the_middle_costs_its_records_only(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=600)
    put_singly(log, *map(tick, range(60)))
    log.close()
    middle = log.segments[1]
    data = bytearray(middle.path.read_bytes())
    data[20] ^= 1
    middle.path.write_bytes(data)
    again = opened(tmp_path, segment_bytes=600)
    lost = range(middle.first - 1, log.segments[2].first - 1)
    found: list[Record] = []
    damaged = 0
    while again.unread:
        out = again.read(9)
        found += [frame.record for frame in out.frames]
        damaged += out.damaged
    assert found == [tick(n) for n in range(60) if n not in lost]
    assert damaged == len(lost) > 0


def test_a_foreign_file_is_left_alone_and_never_read(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8 not ours")
    (tmp_path / f"{5:020d}.seg").write_bytes(b"somebody else's segment of something")
    log = opened(tmp_path)
    put(log, tick(1))
    assert rest(log) == [tick(1)]
    log.ack(2)
    log.sync(now=True)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"\xff\xd8 not ours"
    assert (tmp_path / f"{5:020d}.seg").read_bytes() == b"somebody else's segment of something"
    assert sorted(log.foreign) == [f"{5:020d}.seg", "holiday.jpg"]


def test_a_segment_of_a_later_version_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_format, "VERSION", 2)
    (tmp_path / f"{1:020d}.seg").write_bytes(encode_header(1, {}))
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match=r"later version .*replay it with that version"):
        opened(tmp_path)
    assert (tmp_path / f"{1:020d}.seg").exists()


def test_an_empty_or_half_written_header_is_no_obstacle(tmp_path: Path) -> None:
    header = encode_header(1, {"NSE": (5, 6)})
    for size in range(len(header)):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / f"{1:020d}.seg").write_bytes(header[:size])
        log = opened(folder)
        put(log, tick(1))
        assert rest(log) == [tick(1)]
        log.close()
    found = decode_header(header)
    assert found is not None
    assert found.positions == {"NSE": (5, 6)}


def test_damaged_progress_means_replay_from_the_oldest(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, *map(tick, range(10)))
    log.read(5)
    log.ack(6)
    log.sync(now=True)
    log.close()
    data = bytearray((tmp_path / "acked").read_bytes())
    data[3] ^= 4
    (tmp_path / "acked").write_bytes(data)
    assert rest(opened(tmp_path)) == list(map(tick, range(10)))


def test_the_newest_position_of_every_exchange_is_known_after_a_restart(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=600)
    early = tick(3)
    early.exchange = "BSE"
    put_singly(log, early, *map(tick, range(100)))
    log.close()
    positions = opened(tmp_path, segment_bytes=600).positions
    assert positions == {"BSE": (1_700_000_000_003, 0), "NSE": (1_700_000_000_099, 0)}


class ShortOfSpace:
    """Stands for a disk with so many bytes left: the write that exceeds it is cut, the next one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self._real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, file: int, data: Any, offset: int) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._real(file, bytes(data)[: self.left], offset)
        self.left -= count
        return count


@pytest.mark.parametrize("left", range(0, 1_000, 31))
def test_a_full_disk_takes_whole_records_and_goes_on_when_there_is_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    log = opened(tmp_path)
    disk = ShortOfSpace(monkeypatch, left)
    done = log.append([(tick(number), 0) for number in range(300)])
    assert done.error is not None
    assert done.error.errno == errno.ENOSPC
    assert disk.left == 0
    assert done.taken < 300
    disk.left = 1 << 20
    put(log, *map(tick, range(done.taken, 300)))
    assert rest(log) == list(map(tick, range(300)))
    log.close()
    assert rest(opened(tmp_path)) == list(map(tick, range(300)))


def test_a_real_limit_on_file_sizes_is_survived_like_a_full_disk(tmp_path: Path) -> None:
    import resource

    log = opened(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        done = log.append([(tick(number), 0) for number in range(300)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.error is not None
    assert 0 < done.taken < 300
    put(log, *map(tick, range(done.taken, 300)))
    log.close()
    assert rest(opened(tmp_path)) == list(map(tick, range(300)))


def test_a_record_too_large_to_be_one_is_refused_and_counted(tmp_path: Path) -> None:
    log = opened(tmp_path)
    monster = ControlRecord("gap", "NSE:X", "NSE", 1, 1, "DHAN", {"reason": "x" * 70_000})
    done = log.append([(tick(1), 0), (monster, 0), (tick(2), 0)])
    assert (done.taken, done.too_large) == (2, [monster])
    assert rest(log) == [tick(1), tick(2)]


def test_dropping_all_removes_the_files_and_says_how_many_records(tmp_path: Path) -> None:
    log = opened(tmp_path)
    put(log, *map(tick, range(10)))
    assert log.drop_all() == 10
    assert reopened(log).pending == 0
    assert not list(tmp_path.glob("*.seg"))


class SpoolModel(RuleBasedStateMachine):
    """The log against a list: append, read, acknowledge, restart, kill with a torn tail."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.log = opened(self.folder, segment_bytes=500, limit_bytes=LIMIT)
        self.written: list[DataIngestionFormat] = []
        self.read = 0
        self.acked = 0
        self.noted = 0
        self.made = 0

    def _tick(self) -> DataIngestionFormat:
        self.made += 1
        return tick(self.made)

    @rule(count=st.integers(1, 40))
    def append(self, count: int) -> None:
        new = [self._tick() for _ in range(count)]
        put(self.log, *new)
        self.written += new

    @rule(count=st.integers(1, 50))
    def read_some(self, count: int) -> None:
        out = self.log.read(count)
        expected = self.written[self.read : self.read + len(out.frames)]
        assert [frame.record for frame in out.frames] == expected
        assert out.damaged == 0
        assert out.frames or self.read == len(self.written)
        self.read += len(out.frames)

    @precondition(lambda self: self.read > self.acked)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        self.acked = data.draw(st.integers(self.acked, self.read))
        self.log.ack(self.log.next_number - len(self.written) + self.acked)

    @rule()
    def sync(self) -> None:
        self.log.sync(now=True)
        self.noted = self.acked

    @rule()
    def restart(self) -> None:
        self.log.sync(now=True)
        self.noted = self.acked
        self._open_again()

    @rule(cut=st.integers(0, 2_000))
    def crash(self, cut: int) -> None:
        self.log.close()
        if self.log.segments:
            last = self.log.segments[-1]
            size = max(last.frames_at, last.size - cut)
            os.truncate(last.path, size)
            frames = self._whole_frames(last.path.read_bytes(), last.frames_at)
            kept = last.first + frames - (self.log.next_number - len(self.written))
            # Nothing acknowledged can have been cut: the disk had it before the progress was noted.
            kept = max(kept, 0)
            if kept < self.noted:
                kept = self.noted
            self.written = self.written[:kept]
        self._open_again()

    @staticmethod
    def _whole_frames(data: bytes, offset: int) -> int:
        count = 0
        while (frame := spool_format.frame_at(data, offset)) is not None:
            offset = frame[3]
            count += frame[1]
        return count

    def _open_again(self) -> None:
        self.log.close()
        self.log = opened(self.folder, segment_bytes=500, limit_bytes=LIMIT)
        self.read = self.acked = self.noted
        assert self.log.pending == len(self.written) - self.noted

    @invariant()
    def counts_agree(self) -> None:
        assert self.log.unread == len(self.written) - self.read
        assert self.log.pending == len(self.written) - self.acked

    def teardown(self) -> None:
        left = rest(self.log)
        assert left == self.written[self.read :]
        self.log.close()
        shutil.rmtree(self.folder)


TestSpoolModel = SpoolModel.TestCase
TestSpoolModel.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
