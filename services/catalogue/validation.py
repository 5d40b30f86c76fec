"""What is wrong in the mapping tables as a whole, with the ids of the rows. Pure.

The tables' constraints and triggers refuse most of it when it is written; this is the net beneath them,
for tables whose constraints were dropped, switched off or never restored. What it finds is not taken over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from services.errors import ConfigurationError
from services.market_data.instruments import InstrumentMapping

MAPPINGS = "provider_instrument_mappings"
ROUTES = "exchange_provider_mappings"
SHOWN_ROWS = 20
SHOWN_PROBLEMS = 5


class MappingProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong: in which rows (ids) of which table, and what in words.

    `kind` is `duplicate_symbol`, `two_mappings`, `dangling`, `two_primaries`, `emptied` or `mass_removal`.
    """

    kind: str
    table: str
    rows: tuple[int, ...]
    text: str


class MappingsInvalid(ConfigurationError):
    """The tables say something that cannot be meant; `problems` say what and in which rows."""

    def __init__(self, problems: Sequence[MappingProblem]) -> None:
        super().__init__(in_words(problems))
        self.problems = tuple(problems)


class Route(msgspec.Struct, frozen=True, gc=False):
    """One row of `exchange_provider_mappings`; `is_active` with its exchange and its provider."""

    row_id: int
    exchange: str
    provider: str
    is_primary: bool
    is_active: bool = True


def in_words(problems: Sequence[MappingProblem]) -> str:
    """Return one sentence about all problems; the first few in full."""
    shown = "; ".join(problem.text for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    return shown + (f"; and {more} more" if more > 0 else "")


def named_rows(rows: Sequence[int]) -> str:
    """Return `row 7` or `rows 7, 8, …`."""
    shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}"


def find_problems(
    mappings: Iterable[InstrumentMapping], routes: Iterable[Route], dangling: Sequence[int]
) -> list[MappingProblem]:
    """Return everything that is wrong with active rows, those that begin to hold later included.

    `dangling` are the ids of active mappings that refer to rows which do not exist.
    """
    problems = []
    if dangling:
        problems.append(
            MappingProblem(
                "dangling",
                MAPPINGS,
                tuple(dangling),
                f"{named_rows(dangling)} of {MAPPINGS}: the instrument, its exchange or the provider "
                "does not exist",
            )
        )
    rows = list(mappings)
    by_symbol = _doubled(rows, lambda row: (row.provider_code, row.provider_symbol))
    for (provider, symbol), claims in by_symbol.items():
        clash = _overlap(claims)
        if clash is not None:
            one, other = clash
            problems.append(
                MappingProblem(
                    "duplicate_symbol",
                    MAPPINGS,
                    (one.mapping_id, other.mapping_id),
                    f"{named_rows((one.mapping_id, other.mapping_id))} of {MAPPINGS}: {symbol} of {provider} "
                    f"means {one.instrument} and {other.instrument} at the same time",
                )
            )
    by_instrument = _doubled(rows, lambda row: (row.provider_code, row.instrument))
    for (provider, instrument), claims in by_instrument.items():
        clash = _overlap(claims)
        if clash is not None:
            ids = (clash[0].mapping_id, clash[1].mapping_id)
            problems.append(
                MappingProblem(
                    "two_mappings",
                    MAPPINGS,
                    ids,
                    f"{named_rows(ids)} of {MAPPINGS}: {instrument} has two names at {provider} "
                    f"at the same time",
                )
            )
    problems += _two_primaries(routes)
    return problems


def _two_primaries(routes: Iterable[Route]) -> list[MappingProblem]:
    primaries: dict[str, list[Route]] = {}
    for route in routes:
        if route.is_primary:
            primaries.setdefault(route.exchange, []).append(route)
    return [
        MappingProblem(
            "two_primaries",
            ROUTES,
            tuple(route.row_id for route in found),
            f"{named_rows([route.row_id for route in found])} of {ROUTES}: {exchange} has "
            f"{len(found)} primary providers ({', '.join(route.provider for route in found)})",
        )
        for exchange, found in primaries.items()
        if len(found) > 1
    ]


def _doubled(
    rows: Sequence[InstrumentMapping], name_of: Callable[[InstrumentMapping], tuple[str, str]]
) -> dict[tuple[str, str], list[InstrumentMapping]]:
    """Return the names that several rows have, with those rows; hardly ever any, among very many."""
    names = list(map(name_of, rows))
    if len(set(names)) == len(names):
        return {}
    doubled = {name for name, count in Counter(names).items() if count > 1}
    found: dict[tuple[str, str], list[InstrumentMapping]] = {}
    for name, row in zip(names, rows, strict=True):
        if name in doubled:
            found.setdefault(name, []).append(row)
    return found


def _overlap(rows: list[InstrumentMapping]) -> tuple[InstrumentMapping, InstrumentMapping] | None:
    """Return two rows that hold at the same moment, None when there are none."""
    ordered = sorted(rows, key=lambda row: (row.valid_from_ms or 0, row.mapping_id))
    longest = ordered[0]
    for row in ordered[1:]:
        if longest.valid_to_ms is None or (row.valid_from_ms or 0) < longest.valid_to_ms:
            return longest, row
        longest = row
    return None
