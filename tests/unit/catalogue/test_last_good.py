"""The last good snapshot on disk: what comes back, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from services.catalogue.last_good import MAX_AGE_MS, LastGoodUnusable, read_last_good, write_last_good
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry

NOW_MS = 1_800_000_000_000
SOURCE = "PostgreSQL at db.example:5432, database marketd"
SNAPSHOT = MappingSnapshot(
    version=3,
    loaded_ms=NOW_MS,
    providers=(ProviderEntry(code="DHAN", name="DhanHQ", rate_limit=5.0),),
    mappings=(
        InstrumentMapping(
            mapping_id=1,
            instrument="NSE:M&M",
            exchange="NSE",
            symbol="M&M",
            name="Mahindra & Mahindra “é”",
            asset_class=AssetClass.EQUITY,
            currency="INR",
            provider_code="DHAN",
            search_code="M&M-EQ",
            segment="NSE_EQ",
            security_id="2031",
            tick_size=0.1,
            lot_size=1,
            is_primary=True,
            priority=10,
        ),
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mappings.json"
    write_last_good(path, SNAPSHOT, schema_revision="0001", source=SOURCE, now_ms=NOW_MS)
    return path


def read(
    path: Path, *, revision: str = "0001", source: str = SOURCE, now_ms: int = NOW_MS
) -> MappingSnapshot:
    return read_last_good(path, schema_revision=revision, source=source, now_ms=now_ms)


def test_what_was_written_comes_back_and_says_that_it_is_a_copy(path: Path) -> None:
    found = read(path, now_ms=NOW_MS + MAX_AGE_MS)
    assert found.mappings == SNAPSHOT.mappings
    assert found.providers == SNAPSHOT.providers
    assert found.loaded_ms == NOW_MS
    assert found.from_cache


def test_only_its_owner_can_read_it_and_nothing_else_is_left_behind(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_no_flipped_or_missing_byte_goes_unnoticed(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x01]) + whole[position + 1 :])
        try:
            found = read(path)
        except LastGoodUnusable:
            continue
        # A flip in the header's time or spacing may pass; what it stands for never changes.
        assert found.mappings == SNAPSHOT.mappings
        assert found.providers == SNAPSHOT.providers
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LastGoodUnusable):
            read(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"null\nnull", b"\xff\xfe\x00", b"{}\n{}", b'{"format":2}\n', b"[1]\n{}"]
)
def test_other_content_is_damage_not_a_crash(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LastGoodUnusable, match="damaged"):
        read(path)


def test_a_copy_that_is_too_old_of_another_schema_or_from_the_future_is_refused(path: Path) -> None:
    with pytest.raises(LastGoodUnusable, match="7 days old"):
        read(path, now_ms=NOW_MS + MAX_AGE_MS + 1)
    with pytest.raises(LastGoodUnusable, match="schema revision 0001"):
        read(path, revision="0002")
    with pytest.raises(LastGoodUnusable, match="future"):
        read(path, now_ms=NOW_MS - 2 * 24 * 3_600_000)


def test_a_copy_of_another_database_or_by_another_version_is_refused(path: Path) -> None:
    with pytest.raises(LastGoodUnusable, match=r"of PostgreSQL at db\.example:5432, database marketd, not"):
        read(path, source="PostgreSQL at db.example:5432, database other")
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":1'))
    with pytest.raises(LastGoodUnusable, match="another version"):
        read(path)


def test_a_copy_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(LastGoodUnusable, match="none yet"):
        read(tmp_path / "none.json")
    with pytest.raises(LastGoodUnusable, match="cannot be read"):
        read(tmp_path)
