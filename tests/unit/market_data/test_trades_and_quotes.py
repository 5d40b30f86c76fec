"""What of a tick is a trade, what a quote, and when a quote is news."""

from __future__ import annotations

from typing import Any

import pytest

from services.market_data.records import FLAG_LATE, FLAG_SNAPSHOT, DataIngestionFormat
from services.market_data.trades_and_quotes import is_same_quote, quote_of, trade_of


def tick(**fields: Any) -> DataIngestionFormat:
    values: dict[str, Any] = {"volume": 3, "timestamp": 1_700_000_000_123, "bid": 9.5, "ask": 10.5} | fields
    return DataIngestionFormat(
        "NSE:TCS", 10.0, provider_code="DHAN", exchange="NSE", position_ms=5, position_seq=2, **values
    )


def test_a_traded_quantity_is_a_trade_at_its_price_in_microseconds() -> None:
    trade = trade_of(tick(received_ms=7, flags=FLAG_LATE))
    assert trade is not None
    assert (trade.symbol, trade.price, trade.quantity) == ("NSE:TCS", 10.0, 3)
    assert trade.timestamp == 1_700_000_000_123_000
    assert (trade.position, trade.received_ms, trade.flags) == ("5-2", 7, FLAG_LATE)


@pytest.mark.parametrize("fields", [{"volume": None}, {"volume": 0}, {"volume": 9, "flags": FLAG_SNAPSHOT}])
def test_no_quantity_and_no_news_is_no_trade(fields: dict[str, Any]) -> None:
    assert trade_of(tick(**fields)) is None


def test_a_quote_is_what_a_tick_says_of_bid_and_ask_unless_it_comes_late() -> None:
    quote = quote_of(tick(bid_size=4, ask=None))
    assert quote is not None
    assert (quote.bid, quote.ask, quote.bid_size, quote.ask_size) == (9.5, None, 4, None)
    assert quote.position == "5-2"
    assert quote_of(tick(bid=None, ask=None)) is None
    assert quote_of(tick(flags=FLAG_LATE)) is None


def test_a_quote_is_news_when_a_price_or_a_size_is_another() -> None:
    quote = quote_of(tick(bid_size=1, ask_size=2))
    assert is_same_quote(quote, tick(bid_size=1, ask_size=2, volume=99))
    for fields in ({"bid": 9.0}, {"ask": 11.0}, {"bid_size": 7}, {"ask_size": None}):
        assert not is_same_quote(quote, tick(**({"bid_size": 1, "ask_size": 2} | fields)))
    assert not is_same_quote(None, tick())
