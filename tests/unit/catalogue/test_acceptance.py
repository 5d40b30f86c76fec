"""Which changes of the mappings a running daemon takes over, and which it refuses as a whole."""

from __future__ import annotations

import msgspec

from services.catalogue.acceptance import at_time, next_date_ms, refusal, same_content
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry


def snapshot(count: int, *, version: int = 1, name: str = "x") -> MappingSnapshot:
    return MappingSnapshot(
        version=version,
        loaded_ms=version,
        providers=(ProviderEntry(code="YF", name="Yahoo"),),
        mappings=tuple(
            InstrumentMapping(
                mapping_id=number,
                instrument=f"NYSE:S{number}",
                exchange="NYSE",
                symbol=f"S{number}",
                name=name,
                asset_class=AssetClass.EQUITY,
                currency="USD",
                provider_code="YF",
                search_code=f"S{number}",
            )
            for number in range(count)
        ),
    )


def test_the_same_rows_read_again_are_no_change() -> None:
    assert same_content(snapshot(3), snapshot(3, version=2))
    assert not same_content(snapshot(3), snapshot(3, name="renamed"))


def test_an_emptied_table_is_refused_however_small_it_was() -> None:
    why = refusal(snapshot(1), snapshot(0))
    assert why is not None
    assert (why.kind, why.rows) == ("emptied", (0,))
    assert "no instrument would be left" in why.text


def test_more_than_a_fifth_vanishing_at_once_is_refused_with_examples() -> None:
    why = refusal(snapshot(100), snapshot(79))
    assert why is not None
    assert (why.kind, why.rows) == ("mass_removal", tuple(range(79, 100)))
    assert "21 of 100" in why.text
    assert "NYSE:S79" in why.text
    assert "rows 79, 80, " in why.text
    assert refusal(snapshot(100), snapshot(80)) is None


def test_small_sets_and_additions_pass() -> None:
    assert refusal(snapshot(4), snapshot(1)) is None
    assert refusal(snapshot(0), snapshot(500)) is None
    assert refusal(snapshot(10), snapshot(50)) is None


def test_what_was_switched_off_is_no_loss_but_nothing_left_is() -> None:
    off = msgspec.structs.replace(snapshot(50), switched_off=(("NYSE", "YF"),))
    assert refusal(snapshot(100), off) is None
    other = msgspec.structs.replace(snapshot(50), switched_off=(("NYSE", "DHAN"), ("NSE", "YF")))
    assert refusal(snapshot(100), other) is not None
    emptied = msgspec.structs.replace(snapshot(0), switched_off=(("NYSE", "YF"),))
    why = refusal(snapshot(100), emptied)
    assert why is not None
    assert why.kind == "emptied"


def test_a_permission_lets_one_removal_through_and_no_second() -> None:
    permitted = msgspec.structs.replace(snapshot(0), permit=7)
    assert refusal(snapshot(100), permitted) is None
    later = msgspec.structs.replace(snapshot(100), permit=7)
    assert refusal(later, permitted) is not None


def dated(snap: MappingSnapshot, number: int, **dates: int) -> MappingSnapshot:
    rows = list(snap.mappings)
    rows[number] = msgspec.structs.replace(rows[number], **dates)
    return msgspec.structs.replace(snap, mappings=tuple(rows))


def test_what_ends_by_its_date_is_no_loss() -> None:
    before = snapshot(20)
    for number in range(5, 20):
        before = dated(before, number, valid_to_ms=1_000)
    after = msgspec.structs.replace(snapshot(5), loaded_ms=1_000)
    assert refusal(before, after) is None
    assert refusal(before, msgspec.structs.replace(after, loaded_ms=999)) is not None


def test_a_date_takes_out_what_ends_and_brings_in_what_begins_in_the_same_moment() -> None:
    old = dated(snapshot(3), 1, valid_to_ms=5_000)
    follower = msgspec.structs.replace(
        old.mappings[1], mapping_id=9, search_code="NEW", valid_from_ms=5_000, valid_to_ms=9_000
    )
    both = msgspec.structs.replace(old, upcoming=(follower,))
    assert next_date_ms(both) == 5_000
    assert at_time(both, 4_999) == both
    after = at_time(both, 5_000)
    assert [mapping.mapping_id for mapping in after.mappings] == [0, 9, 2]
    assert after.upcoming == ()
    assert next_date_ms(after) == 9_000
    assert [mapping.mapping_id for mapping in at_time(both, 10_000).mappings] == [0, 2]
    assert next_date_ms(snapshot(3)) is None
