"""The table of an instrument's mappings, and the gaps that are kept of very many instruments."""

from __future__ import annotations

from services.market_data.flow_gaps import FlowGaps
from services.market_data.instruments import AssetClass, InstrumentMapping, candidates_of

HOUR_MS = 3_600_000


def mapping(
    instrument: str, provider: str, *, priority: int = 100, primary: bool = False
) -> InstrumentMapping:
    exchange, _, symbol = instrument.partition(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=instrument,
        exchange=exchange,
        symbol=symbol,
        name=symbol,
        asset_class=AssetClass.EQUITY,
        currency="INR",
        provider_code=provider,
        search_code=symbol,
        priority=priority,
        is_primary=primary,
    )


def test_the_primary_comes_first_then_the_priority_then_the_code() -> None:
    rows = (
        mapping("NSE:A", "C", priority=5),
        mapping("NSE:B", "B"),
        mapping("NSE:A", "B", priority=5),
        mapping("NSE:A", "Z", priority=9, primary=True),
    )
    table = candidates_of(rows)
    assert [row.provider_code for row in table["NSE:A"]] == ["Z", "B", "C"]
    assert list(table) == ["NSE:A", "NSE:B"]


def test_one_snapshot_has_one_table_and_the_next_its_own() -> None:
    rows = (mapping("NSE:A", "B"),)
    other = (mapping("NSE:A", "B"), mapping("NSE:C", "B"))
    assert candidates_of(rows) is candidates_of(rows)
    assert list(candidates_of(other)) == ["NSE:A", "NSE:C"]
    assert list(candidates_of(rows)) == ["NSE:A"]


def test_gaps_of_an_instrument_and_of_its_exchange_count_once() -> None:
    gaps = FlowGaps()
    gaps.add("NSE:A", 10, 20)
    gaps.add("NSE:A", 50, 60)
    gaps.add("NSE:", 15, 30)
    assert gaps.covered_ms("NSE:A", "NSE", 0, 100) == 100 - 20 - 10
    assert gaps.covered_ms("NSE:B", "NSE", 0, 100) == 100 - 15
    assert gaps.covered_ms("BSE:A", "BSE", 0, 100) == 100


def test_what_was_declared_long_ago_is_forgotten_bit_by_bit() -> None:
    gaps = FlowGaps()
    for number in range(100):
        gaps.add(f"NSE:{number}", 0, 1_000)
    later_ms = 40 * HOUR_MS
    for number in range(150):
        gaps.add("NSE:0", later_ms + number * 10, later_ms + number * 10 + 5)
    assert gaps.covered_ms("NSE:7", "NSE", 0, 1_000) == 1_000
    assert gaps.covered_ms("NSE:0", "NSE", later_ms + 1_480, later_ms + 1_500) == 10
    assert list(gaps._of) == ["NSE:0"]
