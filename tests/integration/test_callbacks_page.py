"""The snippet of docs/callbacks.md, run as printed before a broadcast and a desk."""

from __future__ import annotations

import re

import pytest

from services.data_broadcast import DataBroadcast
from services.data_source import DataSource
from services.market_data.clock import ManualClock
from services.pipeline.supervisor import Supervisor
from tests.support.books import ToldBooks
from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.gateway import Market

PAGE = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")


async def test_the_snippet_hears_trades_quotes_and_books_until_it_is_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    supervisor, broadcast, books = Supervisor(), DataBroadcast(ManualClock(0)), ToldBooks(refused="NSE:NOPE")
    source = DataSource(broadcast, supervisor.spawn, books=books)
    market, said = Market(broadcast), ""
    names: dict[str, object] = {"source": source}
    exec(compile(snippet, "docs/callbacks.md", "exec"), names)
    try:
        tick = market.tick("NSE:RELIANCE", 2456.75, volume=10, bid=2456.5, ask=2457.0)
        market.tick("CRYPTO:BTC-USD", 50_000.0, volume=1)
        books.tell("NSE:RELIANCE", 2456.0)

        def heard(*wanted: str) -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return all(line in said for line in wanted)

        await eventually(
            lambda: heard(
                f"NSE:RELIANCE 2456.75 10 {tick.timestamp * 1000}",
                "CRYPTO:BTC-USD 50000.0 1",
                "NSE:RELIANCE 2456.5 2457.0",
                "NSE:RELIANCE (2456.0, 10, 1) (2457.0, 20, 2)",
            )
        )
        stops = names["stops"]
        assert isinstance(stops, list)
        for stop in stops:
            stop()
        assert broadcast.watched() == frozenset()
        assert books.wanted == []
        assert source.errors == 0
    finally:
        assert await supervisor.stop() == []


def test_the_page_names_every_callback_of_both_sides() -> None:
    from marketd_client import DataSource as ClientSource

    for name in dir(DataSource):
        if name.startswith("subscribe_"):
            assert f"`{name}(" in PAGE
            assert hasattr(ClientSource, name)
