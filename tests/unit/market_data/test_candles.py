"""Intervals as they are asked for, and days folded into weeks and months. No I/O."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.market_data.candles import fold_days, parse_resolution

DAY_S = 86_400
MONDAY_S = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("text", "minutes", "base"),
    [
        ("1m", 1, "1m"),
        ("3m", 3, "1m"),
        ("45m", 45, "1m"),
        ("2h", 120, "1m"),
        ("1d", 0, "1d"),
        ("1w", 0, "1d"),
    ],
)
def test_an_interval_is_read(text: str, minutes: int, base: str) -> None:
    resolution = parse_resolution(text)
    assert (resolution.minutes, resolution.base) == (minutes, base)


@pytest.mark.parametrize("text", ["", "0m", "m", "1", "-5m", "13h", "1000m", "2d", "2w", "1y", "1M", "１m"])
def test_what_is_no_interval_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="interval|days, weeks"):
        parse_resolution(text)


def test_days_fold_into_weeks_from_monday_and_into_months() -> None:
    days = [(MONDAY_S + at * DAY_S, 10.0 + at, 20.0 + at, 5.0, 11.0 + at, 100) for at in (0, 2, 4, 7, 30)]

    def day_of(at_ms: int) -> object:
        return datetime.fromtimestamp(at_ms / 1000, UTC).date()

    weeks = fold_days(days, day_of, parse_resolution("1w"))  # type: ignore[arg-type]
    assert [week[0] for week in weeks] == [MONDAY_S, MONDAY_S + 7 * DAY_S, MONDAY_S + 30 * DAY_S]
    assert weeks[0] == (MONDAY_S, 10.0, 24.0, 5.0, 15.0, 300)
    months = fold_days(days, day_of, parse_resolution("1mo"))  # type: ignore[arg-type]
    assert [month[5] for month in months] == [400, 100]


def test_volume_that_is_known_in_part_is_the_part_that_is_known() -> None:
    days = [(MONDAY_S, 1.0, 1.0, 1.0, 1.0, None), (MONDAY_S + DAY_S, 1.0, 1.0, 1.0, 1.0, 7)]

    def day_of(at_ms: int) -> object:
        return datetime.fromtimestamp(at_ms / 1000, UTC).date()

    assert fold_days(days, day_of, parse_resolution("1w"))[0][5] == 7  # type: ignore[arg-type]
    assert fold_days(days[:1], day_of, parse_resolution("1w"))[0][5] is None  # type: ignore[arg-type]
