"""Which changes of the mappings a running daemon takes over, and which it refuses as a whole."""

from __future__ import annotations

from services.catalogue.acceptance import refusal, same_content
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
    assert "no instrument would be left" in str(refusal(snapshot(1), snapshot(0)))


def test_more_than_a_fifth_vanishing_at_once_is_refused_with_examples() -> None:
    why = str(refusal(snapshot(100), snapshot(79)))
    assert "21 of 100" in why
    assert "NYSE:S79" in why
    assert refusal(snapshot(100), snapshot(80)) is None


def test_small_sets_and_additions_pass() -> None:
    assert refusal(snapshot(4), snapshot(1)) is None
    assert refusal(snapshot(0), snapshot(500)) is None
    assert refusal(snapshot(10), snapshot(50)) is None
