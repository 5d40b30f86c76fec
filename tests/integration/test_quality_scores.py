"""Quality scores in a real PostgreSQL: written again and again, read as a trend, shown by the commands."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from typer.testing import CliRunner

import main
from data_migration.setup_providers import setup
from services.errors import ConfigurationError, TemporaryError
from services.market_data.clock import ManualClock
from services.quality.figures import DayFigures
from services.quality.reader import stored_scores
from services.quality.writer import KEPT_DAYS, QualityWriter

TODAY = datetime.now(UTC).date()


class Collected:
    """Stands for the collector: hands out what a test puts in."""

    def __init__(self, *figures: DayFigures) -> None:
        self.all = list(figures)
        self.released = 0

    def figures(self) -> list[DayFigures]:
        return list(self.all)

    def let_go(self, written: list[DayFigures]) -> None:
        self.released += 1


def day(days_ago: int, provider: str, faulty: int, minutes: int = 375) -> DayFigures:
    return DayFigures(
        TODAY - timedelta(days=days_ago),
        provider,
        "NSE",
        minutes=minutes,
        expected=1_000 * minutes,
        faulty=faulty * minutes,
        ticks=5_000,
        latency=[0] * 50 + [10],
    )


def writer_of(collected: Collected, url: str) -> QualityWriter:
    return QualityWriter(collected, url, ManualClock())  # type: ignore[arg-type]


@pytest.fixture
async def filled(database_url: str) -> str:
    await setup(database_url)
    return database_url


async def fetch(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()


async def test_a_day_is_one_row_however_often_it_is_written_and_runs_are_added_up(filled: str) -> None:
    figures = day(0, "DHAN", 0, minutes=10)
    collected = Collected(figures)
    first = writer_of(collected, filled)
    await first.write_all()
    figures.minutes, figures.expected, figures.ticks = 40, 40_000, 9_000
    await first.write_all()
    # The outcome of a write may not be known: it is repeated as it was.
    first._written.clear()
    await first.write_all()
    rows = await fetch(filled, "select * from quality_scores")
    assert [(row["minutes"], row["ticks"], row["score"]) for row in rows] == [(40, 9_000, 100.0)]
    second = writer_of(Collected(day(0, "DHAN", 50, minutes=40)), filled)
    await second.write_all()
    scores, places = await stored_scores(filled, days=3)
    assert [(one.provider, one.minutes, one.parts["freshness"]) for one in scores] == [("DHAN", 80, 50.0)]
    assert {"DHAN", "YF"} <= {place.provider for place in places if place.exchange == "NSE"}
    assert (await stored_scores(filled, days=3, exchange="BSE"))[0] == []
    await first.close()
    await second.close()


async def test_an_absent_server_loses_nothing_and_old_rows_go(filled: str) -> None:
    collected = Collected(day(0, "DHAN", 0), day(KEPT_DAYS + 1, "DHAN", 0))
    writer = writer_of(collected, "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TemporaryError):
        await writer.write_all()
    assert collected.released == 0
    await writer.use_url(filled)
    await writer.write_all()
    assert len(await fetch(filled, "select 1 from quality_scores")) == 2
    await writer.prune()
    assert len(await fetch(filled, "select 1 from quality_scores")) == 1
    await writer.close()


async def test_a_schema_without_the_table_is_said_with_the_remedy(database_url: str) -> None:
    writer = writer_of(Collected(day(0, "DHAN", 0)), database_url)
    with pytest.raises(ConfigurationError, match="setup_providers"):
        await writer.write_all()
    await writer.close()


async def test_the_commands_show_the_trend_and_propose(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    figures = [day(ago, "DHAN", 40) for ago in range(4)] + [day(ago, "YF", 0) for ago in range(4)]
    writer = writer_of(Collected(*figures), filled)
    await writer.write_all()
    await writer.close()
    # Real-time on both sides: Yahoo's Indian data is marked as delayed otherwise, and never proposed.
    connection = await asyncpg.connect(filled)
    await connection.execute("update exchange_provider_mappings set delivery = 'real_time'")
    await connection.close()
    monkeypatch.setenv("DATABASE_URL", filled)

    def run(*words: str) -> str:
        result = CliRunner().invoke(main.app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    told = json.loads(await asyncio.to_thread(run, "providers", "score", "--json"))
    assert len(told) == 8
    assert {one["provider"]: one["score"] for one in told}["YF"] == 100.0
    proposed = json.loads(await asyncio.to_thread(run, "mappings", "suggest", "--json"))
    assert [(one["exchange"], one["provider"]) for one in proposed] == [("NSE", "YF")]
    # What is proposed works as it stands, and then there is nothing more to propose.
    connection = await asyncpg.connect(filled)
    await connection.execute(proposed[0]["sql"])
    await connection.close()
    assert json.loads(await asyncio.to_thread(run, "mappings", "suggest", "--json")) == []
