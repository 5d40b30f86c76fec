"""What a chaos run plays with: own servers, own simulators, a proxy before each, the daemon kept running.

Everything listens on loopback and ends with the context.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Self

import redis.asyncio

from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.stream import StreamSimulator
from simulators.yahoo import YahooSimulator
from tests.support.fault_proxy import FaultProxy
from tests.support.keeper import Keeper
from tests.support.market_rig import YAHOO_NAMES, dhan_names, map_database
from tests.support.postgres import PrivatePostgres
from tests.support.servers import PrivateRedis


class ChaosStack:
    """The servers, proxies, simulators and the daemon; `journal` holds every tick that was sent."""

    def __init__(
        self,
        folder: Path,
        *,
        dhan_instruments: int = 30,
        dhan_rate: float = 12.0,
        yahoo_rate: float = 6.0,
        journal: Journal | None = None,
        stream_max_entries: int = 10_000_000,
        **settings: object,
    ) -> None:
        self.folder = folder
        self.dhan_names = dhan_names(dhan_instruments)
        self.names = self.dhan_names | YAHOO_NAMES
        self.rates = {"dhan": dhan_rate, "yahoo": yahoo_rate}
        self.journal = Journal(limit=50_000_000) if journal is None else journal
        self.postgres = PrivatePostgres(folder)
        self.redis = PrivateRedis(folder)
        self._settings = {"STREAM_MAX_ENTRIES": stream_max_entries} | settings
        # A slow machine may not have started a server again when the next fault would end it.
        self.restarts = {"redis": asyncio.Lock(), "postgres": asyncio.Lock()}
        self._stack = contextlib.AsyncExitStack()
        self.simulators: dict[str, StreamSimulator] = {}
        self.proxies: dict[str, FaultProxy] = {}
        self.secrets: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        stack = self._stack
        try:
            await self._start(stack)
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        stack.push_async_callback(self.postgres.stop)
        await self.postgres.start()
        stack.push_async_callback(self.redis.stop)
        await self.redis.start()
        await map_database(self.postgres.url, self.folder / "scripts", self.dhan_names)
        dhan = DhanSimulator(rate=self.rates["dhan"], market=Market(identity=True), journal=self.journal)
        yahoo = YahooSimulator(rate=self.rates["yahoo"], market=Market(identity=True), journal=self.journal)
        self.simulators = {"dhan": dhan, "yahoo": yahoo}
        ports = {"redis": self.redis.port, "postgres": self.postgres.port}
        for name, simulator in self.simulators.items():
            await stack.enter_async_context(simulator)
            ports[name] = simulator.port
        for name, port in ports.items():
            self.proxies[name] = await stack.enter_async_context(FaultProxy("127.0.0.1", port))
        self.keeper = Keeper(
            self.folder / "state",
            DATABASE_URL=self._through("postgres", self.postgres.url, self.postgres.port),
            REDIS_URL=self._through("redis", self.redis.url, self.redis.port),
            DHAN_FEED_URL=self._through("dhan", dhan.url, dhan.port),
            DHAN_REST_URL=dhan.rest_url,
            DHAN_CLIENT_ID=dhan.client_id,
            DHAN_ACCESS_TOKEN=dhan.access_token,
            YAHOO_STREAM_URL=self._through("yahoo", yahoo.url, yahoo.port),
            MARKET_CALENDAR="always_open",
            **self._settings,
        )
        self.secrets = {
            "the password of Redis": self.redis.url.partition("://:")[2].partition("@")[0],
            "the password of PostgreSQL": self.postgres.secret,
            "the access token": dhan.access_token,
        }
        await stack.enter_async_context(self.keeper)

    def _through(self, name: str, url: str, port: int) -> str:
        return url.replace(f":{port}", f":{self.proxies[name].port}", 1)

    def redis_client(self) -> redis.asyncio.Redis:
        """Return a client of the real Redis, past the proxy."""
        return redis.asyncio.from_url(self.redis.url, decode_responses=True)

    def set_rates(self, factor: float) -> None:
        """Let the market run at `factor` times its ordinary rate; 0 stops it."""
        for name, simulator in self.simulators.items():
            simulator.schedule.set_rate(self.rates[name] * factor)

    def choice(self, seed: object) -> random.Random:
        """Return a source of random numbers that depends on `seed` alone."""
        return random.Random(str(seed))
