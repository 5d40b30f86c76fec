"""What is wrong in the tables as a whole is found, with the ids of the rows."""

from __future__ import annotations

from typing import Any

import pytest

from services.catalogue.validation import MappingsInvalid, Route, find_problems
from services.market_data.instruments import AssetClass, InstrumentMapping


def row(number: int, instrument: str = "NFO:A", **more: Any) -> InstrumentMapping:
    exchange, _, symbol = instrument.partition(":")
    values: dict[str, Any] = {
        "mapping_id": number,
        "instrument": instrument,
        "exchange": exchange,
        "symbol": symbol,
        "name": symbol,
        "asset_class": AssetClass.FUTURE,
        "currency": "INR",
        "provider_code": "DHAN",
        "search_code": f"S{number}",
        "segment": "NSE_FNO",
        "security_id": str(number),
    }
    return InstrumentMapping(**(values | more))


PROBLEMS: list[tuple[list[InstrumentMapping], list[Route], list[int], str | None, tuple[int, ...]]] = [
    ([row(1), row(2, "NFO:B")], [], [], None, ()),
    ([row(1), row(2, "NFO:B", security_id="1")], [], [], "duplicate_symbol", (1, 2)),
    # The same name by another way: what is subscribed counts, not in which columns it stands.
    (
        [
            row(1, provider_code="YF", segment=None, security_id=None, search_code="X"),
            row(2, "NFO:B", provider_code="YF", segment="US", security_id=None, search_code="X"),
        ],
        [],
        [],
        "duplicate_symbol",
        (1, 2),
    ),
    ([row(1), row(2)], [], [], "two_mappings", (1, 2)),
    ([row(1), row(2, provider_code="YF")], [], [], None, ()),
    ([row(1, valid_to_ms=5_000), row(2, valid_from_ms=5_000)], [], [], None, ()),
    ([row(1, valid_to_ms=5_001), row(2, valid_from_ms=5_000)], [], [], "two_mappings", (1, 2)),
    (
        [row(1, valid_to_ms=5_000), row(2, "NFO:B", security_id="1", valid_from_ms=5_000)],
        [],
        [],
        None,
        (),
    ),
    (
        [row(1, valid_to_ms=5_001), row(2, "NFO:B", security_id="1", valid_from_ms=5_000)],
        [],
        [],
        "duplicate_symbol",
        (1, 2),
    ),
    ([], [], [3, 4], "dangling", (3, 4)),
    ([], [Route(1, "NSE", "DHAN", True), Route(2, "NSE", "YF", False)], [], None, ()),
    ([], [Route(1, "NSE", "DHAN", True), Route(2, "NSE", "YF", True)], [], "two_primaries", (1, 2)),
    ([], [Route(1, "NSE", "DHAN", True), Route(2, "BSE", "DHAN", True)], [], None, ()),
]


@pytest.mark.parametrize(("mappings", "routes", "dangling", "kind", "rows"), PROBLEMS)
def test_every_wrong_whole_is_named_with_its_rows(
    mappings: list[InstrumentMapping],
    routes: list[Route],
    dangling: list[int],
    kind: str | None,
    rows: tuple[int, ...],
) -> None:
    found = find_problems(mappings, routes, dangling)
    assert [(problem.kind, problem.rows) for problem in found] == ([] if kind is None else [(kind, rows)])
    for problem in found:
        assert all(str(number) in problem.text for number in rows)


def test_many_problems_make_one_sentence() -> None:
    rows = [row(number, f"NFO:A{number}", security_id="1") for number in range(40)]
    found = find_problems(rows, [], list(range(50)))
    text = str(MappingsInvalid(found * 8))
    assert "and 11 more" in text
    assert len(text) < 1_500
