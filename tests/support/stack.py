"""The whole stack on loopback: both simulators, a mapped database, an empty Redis, the daemon as a process.

`tests/conftest.py` makes the fixtures `mapped_template` and `stack` of it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.yahoo import YahooSimulator
from tests.support.daemon import ROOT, Daemon, clean_environment, run_script

INSTRUMENTS = """exchange,symbol,name,asset_class,currency
NSE,RELIANCE,Reliance Industries,equity,INR
NSE,HDFCBANK,HDFC Bank,equity,INR
NSE,TCS,Tata Consultancy Services,equity,INR
NSE,M&M,Mahindra & Mahindra,equity,INR
NSE,BAJAJ-AUTO,Bajaj Auto,equity,INR
NSE,NIFTY,Nifty 50,index,INR
NASDAQ,AAPL,Apple,equity,USD
NASDAQ,MSFT,Microsoft,equity,USD
NYSE,JPM,JPMorgan Chase,equity,USD
CRYPTO,BTC-USD,Bitcoin,crypto,USD
"""
SCRIP_MASTER = ROOT / "simulators" / "data" / "dhan-scrip-master.csv"
DHAN_NAMES = {
    "NSE_EQ:2885": "NSE:RELIANCE",
    "NSE_EQ:1333": "NSE:HDFCBANK",
    "NSE_EQ:11536": "NSE:TCS",
    "NSE_EQ:2031": "NSE:M&M",
    "NSE_EQ:16669": "NSE:BAJAJ-AUTO",
    "IDX_I:13": "NSE:NIFTY",
}
YAHOO_NAMES = {"AAPL": "NASDAQ:AAPL", "MSFT": "NASDAQ:MSFT", "JPM": "NYSE:JPM", "BTC-USD": "CRYPTO:BTC-USD"}
NAMES = DHAN_NAMES | YAHOO_NAMES


class Stack:
    """Both simulators in identity mode, a mapped database, an empty Redis, and how to start the daemon."""

    def __init__(
        self, dhan: DhanSimulator, yahoo: YahooSimulator, journal: Journal, database_url: str, redis_url: str
    ) -> None:
        self.dhan, self.yahoo, self.journal = dhan, yahoo, journal
        self.database_url, self.redis_url = database_url, redis_url

    def daemon(self, state_dir: Path, *arguments: str, **more: object) -> Daemon:
        """Return a daemon for this stack; `arguments` replace `run`, `more` are settings or `Daemon`'s."""
        settings = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "DHAN_FEED_URL": self.dhan.url,
            "DHAN_REST_URL": self.dhan.rest_url,
            "DHAN_CLIENT_ID": self.dhan.client_id,
            "DHAN_ACCESS_TOKEN": self.dhan.access_token,
            "YAHOO_STREAM_URL": self.yahoo.url,
            # Nothing leaves this machine: what a test wants of these it names itself.
            "YAHOO_REST_URL": "http://127.0.0.1:1",
            "NSE_REST_URL": "http://127.0.0.1:1",
            "MARKET_CALENDAR": "always_open",
        }
        return Daemon(state_dir, *arguments, **(settings | more))  # type: ignore[arg-type]

    def ingest(self, state_dir: Path, *exchanges: str, **more: object) -> Daemon:
        """Return a daemon that only ingests, all exchanges or these."""
        shard = ("--exchanges", ",".join(exchanges)) if exchanges else ()
        return self.daemon(state_dir, "run", "--role", "ingest", *shard, **more)

    def gateway(self, state_dir: Path, **more: object) -> Daemon:
        """Return a gateway: it knows the servers and nothing of providers."""
        settings = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        settings |= {"MARKET_CALENDAR": "always_open"}
        return Daemon(state_dir, "run", "--role", "gateway", **(settings | more))  # type: ignore[arg-type]

    async def quiet(self) -> None:
        """Stop the market, and wait until what was sent has been read."""
        self.dhan.schedule.set_rate(0)
        self.yahoo.schedule.set_rate(0)
        await asyncio.sleep(0.5)


async def fill_mappings(database_url: str, folder: Path) -> None:
    """Run the two migration scripts on an empty database, with the instruments above."""
    listing = folder / "instruments.csv"
    listing.write_text(INSTRUMENTS, encoding="utf-8")
    environment = clean_environment(DATABASE_URL=database_url, STATE_DIR=folder)
    for script in (
        ["data_migration/setup_providers.py"],
        [
            "data_migration/populate_instrument_mappings.py",
            *("--instruments", listing, "--dhan-scrip-master", SCRIP_MASTER),
        ],
    ):
        code, _, errors = await run_script(*script, environment=environment)
        assert code == 0, errors
