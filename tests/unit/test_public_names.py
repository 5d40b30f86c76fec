"""The names that programs of others import, and how they are called."""

from __future__ import annotations

import importlib
import inspect

import pytest

from services.base_provider import (
    BaseMarketDataProvider,
    DataIngestionFormat,
    HistoricalDataProvider,
    OptionsDataProvider,
)
from services.provider_manager import ProviderManager
from services.provider_plugins import ENTRY_POINT_GROUP


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("services.base_provider", "BaseMarketDataProvider"),
        ("services.base_provider", "OptionsDataProvider"),
        ("services.base_provider", "HistoricalDataProvider"),
        ("services.provider_manager", "ProviderManager"),
        ("services.live_data_ingestion", "LiveDataIngestion"),
        ("services.data_broadcast", "DataBroadcast"),
        ("services.base_provider", "DataIngestionFormat"),
        ("services.data_broadcast", "DataIngestionFormat"),
        ("services.live_data_ingestion", "DataIngestionFormat"),
    ],
)
def test_a_name_is_where_programs_import_it_from(module: str, name: str) -> None:
    assert inspect.isclass(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    ("owner", "name", "parameters", "asynchronous"),
    [
        (BaseMarketDataProvider, "connect_websocket", [], True),
        (BaseMarketDataProvider, "disconnect_websocket", [], True),
        (BaseMarketDataProvider, "subscribe_symbols", ["symbols"], True),
        (BaseMarketDataProvider, "unsubscribe_symbols", ["symbols"], True),
        (BaseMarketDataProvider, "message_handler", ["raw"], False),
        (OptionsDataProvider, "get_option_chain", ["symbol", "expiry"], True),
        (OptionsDataProvider, "get_expiry_dates", ["symbol"], True),
        (OptionsDataProvider, "get_oi_data", ["symbol", "expiry", "time_s"], True),
        (HistoricalDataProvider, "get_hist_candles", ["symbol", "interval", "count"], True),
        (ProviderManager, "get_provider_status", [], False),
    ],
)
def test_a_method_takes_what_programs_give(
    owner: type, name: str, parameters: list[str], asynchronous: bool
) -> None:
    method = getattr(owner, name)
    assert list(inspect.signature(method).parameters) == ["self", *parameters]
    assert inspect.iscoroutinefunction(method) is asynchronous


def test_a_tick_is_made_of_five_values_and_everything_else_is_unknown() -> None:
    tick = DataIngestionFormat("NSE:RELIANCE", 2456.75, None, 1_700_000_000_000, "DHAN")
    assert (tick.symbol, tick.price, tick.volume) == ("NSE:RELIANCE", 2456.75, None)
    assert (tick.timestamp, tick.provider_code) == (1_700_000_000_000, "DHAN")
    assert (tick.provider_symbol, tick.received_ms) == ("", 0)
    assert (tick.cumulative_volume, tick.bid, tick.ask, tick.oi) == (None, None, None, None)


def test_the_group_that_packages_add_providers_to_keeps_its_name() -> None:
    assert ENTRY_POINT_GROUP == "market_data.providers"
