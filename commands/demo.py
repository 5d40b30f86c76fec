"""What `run --demo` adds to a daemon: simulators as its providers, and a database filled for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from commands.context import err
from config.settings import PROJECT_ROOT

DEMO_SCRIP_MASTER = PROJECT_ROOT / "simulators" / "data" / "dhan-scrip-master.csv"


async def demo_providers(
    stack: contextlib.AsyncExitStack, base: Callable[[], Mapping[str, str]], database_url: str
) -> Callable[[], Mapping[str, str]]:
    """Start the simulators, fill the database, and return settings that point at the simulators."""
    from services.operations.demo import DemoSimulators

    urls = await stack.enter_async_context(DemoSimulators(PROJECT_ROOT))
    await _fill_database(database_url)
    pointed = {
        "DHAN_FEED_URL": urls.dhan_feed_url,
        "DHAN_REST_URL": urls.dhan_rest_url,
        "DHAN_DEPTH_20_URL": urls.dhan_depth_20_url,
        "DHAN_DEPTH_200_URL": urls.dhan_depth_200_url,
        "DHAN_CLIENT_ID": urls.dhan_client_id,
        "DHAN_ACCESS_TOKEN": urls.dhan_access_token,
        "YAHOO_STREAM_URL": urls.yahoo_stream_url,
        "YAHOO_REST_URL": urls.yahoo_rest_url,
        "NSE_REST_URL": urls.nse_rest_url,
    }
    return lambda: {**base(), **pointed}


async def _fill_database(database_url: str) -> None:
    """Bring the demo's database to the shipped instruments, under the security ids of the simulator."""
    from data_migration import scrip_master_file
    from data_migration.populate_instrument_mappings import Sources, populate_from
    from data_migration.setup_providers import setup

    await setup(database_url)
    master = await asyncio.to_thread(scrip_master_file.read, DEMO_SCRIP_MASTER, err)
    await populate_from(database_url, Sources(scrip_master=master))
