"""The quality score: what a day's figures are worth, and which change of the order they speak for."""

from __future__ import annotations

import io
from datetime import date, timedelta

import msgspec
import pytest
from rich.console import Console

from services.quality.figures import PARTS, DayFigures, Score, by_day, score
from services.quality.histogram import Histogram
from services.quality.suggestions import Place, suggestions
from services.quality.views import score_rows, score_view, suggestion_view

DAY = date(2026, 11, 30)


def counts(*values: float) -> list[int]:
    made = Histogram()
    for value in values:
        made.add(value)
    return made.as_list()


def figures(**different: object) -> DayFigures:
    whole = DayFigures(
        DAY,
        "DHAN",
        "NSE",
        minutes=375,
        expected=37_500,
        ticks=1_000_000,
        latency=counts(*[120.0] * 100),
        disagreement=counts(*[1.0] * 100),
    )
    return msgspec.structs.replace(whole, **different)


@pytest.mark.parametrize("value", [0.01, 0.5, 1.0, 7.0, 250.0, 12_345.0, 900_000.0])
def test_a_quantile_is_right_to_a_tenth(value: float) -> None:
    made = Histogram(counts(*[value] * 9, value * 100))
    median = made.quantile(0.5)
    assert median is not None
    assert abs(median / value - 1) < 0.1
    assert made.total == 10


def test_a_histogram_without_values_has_no_quantile_and_takes_another_in() -> None:
    made = Histogram()
    assert made.quantile(0.5) is None
    assert made.as_list() == []
    made.include(counts(5.0, 5.0))
    made.add(0.0)
    made.add(1e12)
    assert made.total == 4


def test_a_day_without_a_fault_is_worth_everything() -> None:
    found = score(figures())
    assert found.score == 100.0
    assert found.parts == dict.fromkeys(PARTS, 100.0)


@pytest.mark.parametrize(
    ("different", "part", "points"),
    [
        ({"faulty": 37_500 // 40}, "freshness", 50.0),
        ({"faulty": 37_500}, "freshness", 0.0),
        ({"missing": 375}, "gaps", 50.0),
        ({"duplicates": 250_000}, "duplicates", 0.0),
        ({"late": 25_000}, "out_of_order", 50.0),
        ({"latency": counts(*[20_000.0] * 10)}, "latency", 0.0),
        ({"disagreement": counts(*[14.1] * 10)}, "disagreement", 50.0),
    ],
)
def test_each_kind_of_damage_costs_its_own_part(
    different: dict[str, object], part: str, points: float
) -> None:
    found = score(figures(**different))
    assert found.parts[part] == pytest.approx(points, abs=2.5)
    assert all(other == 100.0 for name, other in found.parts.items() if name != part)
    weight = PARTS[part].weight / sum(it.weight for it in PARTS.values())
    assert found.score == pytest.approx(100.0 - weight * (100.0 - found.parts[part]), abs=0.1)


def test_what_cannot_be_known_is_left_out() -> None:
    found = score(figures(disagreement=[], latency=[], ticks=0))
    assert found.parts.keys() == {"gaps", "freshness"}
    assert found.score == 100.0


def test_half_an_hour_is_needed_and_a_day_without_a_connection_is_worth_nothing() -> None:
    assert score(figures(minutes=29)).score is None
    assert score(figures(missing=37_500, ticks=0, latency=[], disagreement=[])).score == 0.0
    assert score(DayFigures(DAY, "DHAN", "NSE")).score is None


def test_the_runs_of_one_day_are_added_up() -> None:
    parts = [figures(minutes=100, faulty=3), figures(minutes=50, faulty=4), figures(exchange="BSE")]
    found = by_day(parts)
    assert [(row.exchange, row.minutes, row.faulty) for row in found] == [("BSE", 375, 0), ("NSE", 150, 7)]
    assert Histogram(found[1].latency).total == 200
    assert parts[0].minutes == 100, "what is stored is not touched"


# ---- suggestions ------------------------------------------------------------------------------------


def days(provider: str, *points: float | None, exchange: str = "NSE") -> list[Score]:
    return [
        Score(DAY - timedelta(days=number), provider, exchange, one, {}, {}, 375)
        for number, one in enumerate(points)
    ]


FIRST = Place("NSE", "DHAN", is_primary=True, priority=10)
SECOND = Place("NSE", "YF", is_primary=False, priority=20)


def test_a_provider_that_is_better_day_after_day_is_proposed_with_its_command_and_sql() -> None:
    found = suggestions([*days("DHAN", 70, 75, 80), *days("YF", 95, 96, 97)], [SECOND, FIRST])
    assert [(one.exchange, one.provider, one.instead_of) for one in found] == [("NSE", "YF", "DHAN")]
    assert found[0].command == "python main.py providers priority NSE YF 20 --primary"
    assert found[0].sql.startswith("BEGIN; UPDATE exchange_provider_mappings SET is_primary = false")
    assert "on 3 days both were scored YF had 96.0 points on average, DHAN 75.0" in found[0].reason


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ((70, 75), (95, 96), "two days are a mood"),
        ((90, 90, 90), (93, 94, 94), "a little better is not clearly better"),
        ((90, 90, 10, 90), (89, 89, 99, 89), "one bad day is one bad day"),
        ((70, 75, 80), (None, None, None), "what was not scored says nothing"),
    ],
)
def test_nothing_is_proposed_on_a_mood(first: tuple[float], second: tuple[float | None], why: str) -> None:
    assert suggestions([*days("DHAN", *first), *days("YF", *second)], [FIRST, SECOND]) == [], why


def test_delayed_data_is_never_proposed_in_place_of_real_time() -> None:
    scores = [*days("DHAN", 10, 10, 10), *days("YF", 99, 99, 99)]
    delayed = msgspec.structs.replace(SECOND, delivery="delayed")
    assert suggestions(scores, [FIRST, delayed]) == []
    both = msgspec.structs.replace(FIRST, delivery="delayed")
    assert len(suggestions(scores, [both, delayed])) == 1


def test_without_a_primary_the_better_one_goes_one_place_before_the_first() -> None:
    scores = [*days("DHAN", 10, 10, 10), *days("YF", 99, 99, 99)]
    plain = msgspec.structs.replace(FIRST, is_primary=False)
    found = suggestions(scores, [plain, SECOND])[0]
    assert found.command == "python main.py providers priority NSE YF 9"
    assert "SET priority = 9 WHERE" in found.sql
    foremost = msgspec.structs.replace(plain, priority=0)
    assert suggestions(scores, [foremost, SECOND])[0].command.endswith("20 --primary")


# ---- views ------------------------------------------------------------------------------------------


def shown(view: object) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    console.print(view)
    return console.file.getvalue()


def test_the_table_shows_the_newest_day_and_the_trend() -> None:
    old = msgspec.structs.replace(score(figures(faulty=37_500)), day=DAY - timedelta(days=1))
    text = shown(score_view([old, score(figures(late=10_000))], 14))
    assert "2026-11-30" in text
    assert "1.00%" in text
    assert "1.0 bps" in text
    assert "▅█  mean" in text
    assert "114 ms" in text, "the bucket that 120 falls into"


def test_empty_states_say_what_to_expect() -> None:
    assert "There are no scores of the last 14 days" in shown(score_view([], 14))
    assert "speak for no change" in shown(suggestion_view([]))
    assert "too early" in shown(score_view([score(figures(minutes=3))], 14))


def test_a_proposal_is_shown_as_one() -> None:
    text = shown(
        suggestion_view(suggestions([*days("DHAN", 1, 1, 1), *days("YF", 9, 9, 9)], [FIRST, SECOND]))
    )
    assert "NSE: put YF before DHAN" in text
    assert "Nothing was changed" in text


def test_the_scores_are_json() -> None:
    rows = msgspec.json.decode(msgspec.json.encode(score_rows([score(figures())])))
    assert rows[0]["day"] == "2026-11-30"
    assert rows[0]["score"] == 100.0
