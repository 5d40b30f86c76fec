"""Recordings on disk: what is written is read, what is torn or damaged is counted and costs no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import ConfigurationError
from services.recording.entries import EntriesDamaged, Kind, pack, pack_json, unpack
from services.recording.files import Reading, RecordingWriter, read_blocks, recording_files

CONTEXT = pack_json(Kind.CONTEXT, 255, 1_000, {"format": 1})
MIB = 1 << 20


def frames(count: int, start: int = 0, size: int = 40) -> bytes:
    return b"".join(
        pack(Kind.BINARY, 0, 1_000 + number, number.to_bytes(4, "big") * (size // 4))
        for number in range(start, start + count)
    )


def times(folder: Path, reading: Reading | None = None) -> list[int]:
    return [
        entry.at_ms
        for block in read_blocks(folder, reading or Reading())
        for entry in unpack(block)
        if entry.kind == Kind.BINARY
    ]


def record(folder: Path, blocks: int = 3) -> Path:
    with RecordingWriter(folder, limit_bytes=64 * MIB) as writer:
        writer.add_context(CONTEXT)
        for number in range(blocks):
            writer.add(frames(10, 10 * number))
            writer.flush()
        writer.sync()
    [path] = recording_files(folder)
    return path


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 255), st.integers(0, 1 << 52), st.binary(max_size=300))
    )
)
def test_what_is_packed_is_unpacked_again(entries: list[tuple[int, int, int, bytes]]) -> None:
    packed = b"".join(pack(*entry) for entry in entries)
    assert [(entry.kind, entry.provider, entry.at_ms, entry.payload) for entry in unpack(packed)] == entries


@pytest.mark.parametrize("cut", [1, 13, 20])
def test_half_an_entry_is_damage(cut: int) -> None:
    with pytest.raises(EntriesDamaged):
        list(unpack(frames(1)[:-cut]))


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    record(tmp_path / "one")
    reading = Reading()
    assert times(tmp_path / "one", reading) == list(range(1_000, 1_030))
    assert (reading.files, reading.blocks, reading.damaged_blocks, reading.torn_bytes) == (1, 4, 0, 0)


def test_a_file_cut_anywhere_is_read_up_to_the_last_whole_block(tmp_path: Path) -> None:
    path = record(tmp_path / "one", blocks=2)
    data = path.read_bytes()
    second = data.find(b"mdR1", 1)
    third = data.find(b"mdR1", second + 1)
    for length in range(third + 1, len(data)):
        path.write_bytes(data[:length])
        reading = Reading()
        assert times(tmp_path / "one", reading) == list(range(1_000, 1_010))
        assert (reading.torn_bytes, reading.damaged_blocks) == (length - third, 0)


def test_any_changed_byte_costs_its_block_alone_and_is_counted(tmp_path: Path) -> None:
    path = record(tmp_path / "one")
    data = path.read_bytes()
    starts = [0]
    while (found := data.find(b"mdR1", starts[-1] + 1)) > 0:
        starts.append(found)
    assert len(starts) == 4
    for offset in range(starts[2], starts[3]):
        changed = bytearray(data)
        changed[offset] ^= 0x55
        path.write_bytes(changed)
        reading = Reading()
        assert times(tmp_path / "one", reading) == [*range(1_000, 1_010), *range(1_020, 1_030)]
        assert reading.damaged_blocks == 1


def test_a_damaged_last_block_is_told_from_a_torn_tail(tmp_path: Path) -> None:
    path = record(tmp_path / "one", blocks=2)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 0xFF
    path.write_bytes(changed)
    reading = Reading()
    assert times(tmp_path / "one", reading) == list(range(1_000, 1_010))
    assert reading.damaged_blocks == 1


def test_a_foreign_file_is_refused_and_so_is_a_folder_without_a_recording(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no recording in"):
        times(tmp_path)
    (tmp_path / "frames-000001.mdr").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ConfigurationError, match="is no recording of ours"):
        times(tmp_path)


def test_a_second_recording_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "one")
    with (
        pytest.raises(ConfigurationError, match="holds a recording already"),
        RecordingWriter(tmp_path / "one", limit_bytes=MIB),
    ):
        pass
    assert times(tmp_path / "one") == list(range(1_000, 1_030))


def test_beyond_the_bound_the_oldest_file_goes_and_each_file_begins_with_a_context(tmp_path: Path) -> None:
    import os

    limit, file_bytes = 400_000, 100_000
    with RecordingWriter(tmp_path / "ring", limit_bytes=limit, file_bytes=file_bytes) as writer:
        writer.add_context(CONTEXT)
        for number in range(60):
            writer.add(pack(Kind.BINARY, 0, number, os.urandom(20_000)))
            writer.flush()
            if writer.file_is_full:
                writer.add_context(CONTEXT)
            held = sum(path.stat().st_size for path in recording_files(tmp_path / "ring"))
            assert held <= limit
        dropped = writer.files_dropped
    assert dropped >= 5
    assert recording_files(tmp_path / "ring")[0].name == f"frames-{dropped + 1:06d}.mdr"
    for path in recording_files(tmp_path / "ring"):
        alone = tmp_path / "alone" / path.stem
        alone.mkdir(parents=True)
        (alone / path.name).write_bytes(path.read_bytes())
        assert next(unpack(next(read_blocks(alone, Reading())))).kind == Kind.CONTEXT
    kept = times(tmp_path / "ring")
    assert kept == list(range(kept[0], 60)), "the newest is kept, without a hole"


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    path = record(tmp_path / "one")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
