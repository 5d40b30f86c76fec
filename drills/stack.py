"""What a drill plays with: PostgreSQL, Redis, both simulators and the daemon, all its own, on loopback.

Lives in a temporary folder and ends with the context; touches no setting, key or table of anybody else.
Never used by the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import redis.asyncio
from rich.console import Console

from services.errors import TemporaryError
from services.operations.embedded import EmbeddedPostgres, EmbeddedRedis
from services.operations.state_dir import StateDirectory
from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.yahoo import YahooSimulator

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "NSE_EQ:2885": "NSE:RELIANCE",
    "NSE_EQ:1333": "NSE:HDFCBANK",
    "NSE_EQ:11536": "NSE:TCS",
    "NSE_EQ:2031": "NSE:M&M",
    "NSE_EQ:16669": "NSE:BAJAJ-AUTO",
    "AAPL": "NASDAQ:AAPL",
    "MSFT": "NASDAQ:MSFT",
    "JPM": "NYSE:JPM",
    "BTC-USD": "CRYPTO:BTC-USD",
}
"""Provider symbol to instrument key; every instrument has one provider, so each tick has one place."""
DHAN_RATE, YAHOO_RATE = 20.0, 10.0
_LISTING = """exchange,symbol,name,asset_class,currency
NSE,RELIANCE,Reliance Industries,equity,INR
NSE,HDFCBANK,HDFC Bank,equity,INR
NSE,TCS,Tata Consultancy Services,equity,INR
NSE,M&M,Mahindra & Mahindra,equity,INR
NSE,BAJAJ-AUTO,Bajaj Auto,equity,INR
NASDAQ,AAPL,Apple,equity,USD
NASDAQ,MSFT,Microsoft,equity,USD
NYSE,JPM,JPMorgan Chase,equity,USD
CRYPTO,BTC-USD,Bitcoin,crypto,USD
"""
_ONE_PROVIDER_EACH = """
UPDATE provider_instrument_mappings SET is_active = false
WHERE provider_id = (SELECT id FROM providers WHERE code = 'YF')
  AND instrument_id IN (
    SELECT instrument_id FROM provider_instrument_mappings
    WHERE provider_id = (SELECT id FROM providers WHERE code = 'DHAN'))
"""
_READY_WITHIN_S = 60.0
_STOP_WITHIN_S = 25.0
_POLL_S = 0.1


class DrillFailed(Exception):
    """The stack did not do what was expected; the text says what was waited for."""


class DrillStack:
    """The servers, the simulators in identity mode, and the daemon as a process.

    `settings` go to the daemon. `say(text)` is told of every step.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        settings: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.say = say
        self.journal = Journal(limit=20_000_000)
        self.dhan = DhanSimulator(rate=DHAN_RATE, market=Market(identity=True), journal=self.journal)
        self.yahoo = YahooSimulator(rate=YAHOO_RATE, market=Market(identity=True), journal=self.journal)
        self.postgres = EmbeddedPostgres(folder)
        self.redis = EmbeddedRedis(folder)
        self.state_dir = folder / "daemon"
        self.token_file = folder / "dhan-token"
        self.kills_ms: list[int] = []
        self._environment = dict(environment)
        self._settings = dict(settings)
        self._process: asyncio.subprocess.Process | None = None
        self._runtime: dict[str, Any] = {}
        self._http: aiohttp.ClientSession | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        stack = self._stack
        self.say("starting PostgreSQL, Redis and the simulators")
        for server in (self.postgres, self.redis):
            await stack.enter_async_context(server)
            await server.start()
        await self._map()
        await stack.enter_async_context(self.dhan)
        await stack.enter_async_context(self.yahoo)
        self.write_token(self.dhan.access_token)
        self._http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        )
        stack.push_async_callback(self.stop_daemon)
        self.say("starting the daemon")
        await self.start_daemon()

    async def _map(self) -> None:
        from data_migration import scrip_master_file
        from data_migration.populate_instrument_mappings import Sources, populate_from
        from data_migration.setup_providers import setup

        listing = self.folder / "instruments.csv"
        listing.write_text(_LISTING, encoding="utf-8")
        quiet = Console(quiet=True)
        await setup(self.postgres.url)
        master = await asyncio.to_thread(
            scrip_master_file.read, ROOT / "simulators" / "data" / "dhan-scrip-master.csv", quiet
        )
        await populate_from(self.postgres.url, Sources(listing, master))
        connection = await asyncpg.connect(self.postgres.url)
        try:
            await connection.execute(_ONE_PROVIDER_EACH)
        finally:
            await connection.close()

    # ---- the daemon -----------------------------------------------------------------------------

    async def start_daemon(self) -> None:
        """Start the daemon and wait until data flows. Raises `DrillFailed`."""
        given = {
            "STATE_DIR": str(self.state_dir),
            "API_PORT": "0",
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.redis.url,
            "DHAN_FEED_URL": self.dhan.url,
            "DHAN_REST_URL": self.dhan.rest_url,
            "DHAN_CLIENT_ID": self.dhan.client_id,
            "DHAN_ACCESS_TOKEN_FILE": str(self.token_file),
            "YAHOO_STREAM_URL": self.yahoo.url,
            "MARKET_CALENDAR": "always_open",
            "STREAM_MAX_ENTRIES": "10000000",
        }
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "main.py", "run"),
                cwd=ROOT,
                env=self._environment | given | self._settings,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await self.until("the daemon is ready", self._is_ready, _READY_WITHIN_S)
        await self.until("both providers stream", self._both_stream, _READY_WITHIN_S)

    async def stop_daemon(self) -> None:
        """End the daemon with SIGTERM, as an operator does; harmless when it does not run."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def kill_daemon(self) -> None:
        """End the daemon with SIGKILL, and note when."""
        if self._process is None:
            return
        self.kills_ms.append(time.time_ns() // 1_000_000)
        self._process.kill()
        await self._process.wait()

    def hang_up(self) -> None:
        """Send SIGHUP: the daemon looks at its secrets."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def write_token(self, token: str) -> None:
        """Put Dhan's access token where the daemon reads it."""
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token, encoding="ascii")

    @property
    def api_url(self) -> str:
        """Where the daemon serves."""
        return str(self._runtime["api_url"])

    async def get(self, path: str) -> tuple[int, Any]:
        """Return status and body of a request to the daemon; status 0 when it does not answer."""
        if self._http is None:
            return 0, None
        try:
            async with self._http.get(f"{self.api_url}{path}") as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError, KeyError):
            return 0, None

    async def provider(self, code: str) -> dict[str, Any]:
        """Return the status of one provider, empty while the daemon does not answer."""
        _, body = await self.get("/api/providers/status")
        rows = body["providers"] if body else []
        return next((row for row in rows if row["code"] == code), {})

    async def pipeline(self) -> dict[str, Any]:
        """Return the status of the pipeline, empty while the daemon does not answer."""
        _, body = await self.get("/api/providers/status")
        return dict(body["pipeline"]) if body else {}

    async def until(self, what: str, is_so: Callable[[], Awaitable[bool]], within_s: float = 60.0) -> float:
        """Wait until `is_so`; return after how many seconds. Raises `DrillFailed` when it does not come."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while not await is_so():
            if self._process is not None and self._process.returncode is not None and not self.kills_ms:
                raise DrillFailed(f"the daemon ended with exit code {self._process.returncode}")
            if loop.time() - began_s > within_s:
                raise DrillFailed(f"not within {within_s:.0f} s: {what}")
            await asyncio.sleep(_POLL_S)
        took_s = loop.time() - began_s
        self.say(f"{what}, after {took_s:.1f} s")
        return took_s

    async def all_is_well(self) -> bool:
        """Whether data flows from both providers to Redis, with nothing waiting on disk."""
        pipeline = await self.pipeline()
        sinks = pipeline.get("sinks", [])
        return (
            await self._is_ready()
            and await self._both_stream()
            and bool(sinks)
            and all(sink["state"] == "ready" and not sink["spooled"] for sink in sinks)
        )

    async def quiet(self) -> None:
        """Stop the market, and wait until all that was sent is settled."""
        self.dhan.set_rate(0)
        self.yahoo.set_rate(0)
        before = -1

        async def is_settled() -> bool:
            nonlocal before
            pipeline = await self.pipeline()
            passed = sum(int(row["records"]) for row in pipeline.get("ledger", {}).values())
            still = passed == before
            before = passed
            await asyncio.sleep(0.5)
            return still and all(not sink["queued"] and not sink["spooled"] for sink in pipeline["sinks"])

        await self.until("all that was sent is settled", is_settled)

    def redis_client(self) -> redis.asyncio.Redis:
        """Return a client of the drill's Redis."""
        return redis.asyncio.from_url(self.redis.url, decode_responses=True)

    async def _is_ready(self) -> bool:
        runtime = StateDirectory.read_runtime(self.state_dir)
        if runtime is None or self._process is None or runtime.get("pid") != self._process.pid:
            return False
        self._runtime = runtime
        status, _ = await self.get("/readyz")
        return status == 200

    async def _both_stream(self) -> bool:
        return all([(await self.provider(code)).get("state") == "streaming" for code in ("DHAN", "YF")])

    # ---- the servers ----------------------------------------------------------------------------

    async def kill_redis(self) -> None:
        """End Redis with SIGKILL."""
        os.kill(self._pid(self.redis), signal.SIGKILL)
        await _gone(self.redis)
        await self.redis.stop()

    def pause_redis(self) -> None:
        """Keep Redis from answering, its connections open (SIGSTOP)."""
        os.kill(self._pid(self.redis), signal.SIGSTOP)

    def resume_redis(self) -> None:
        """Let a paused Redis go on; harmless when it does not run."""
        pid = self.redis.live_pid()
        if pid is not None:
            os.kill(pid, signal.SIGCONT)

    async def kill_postgres(self) -> None:
        """End PostgreSQL at once, as a power cut of the process does."""
        os.kill(self._pid(self.postgres), self.postgres.abort_signal)
        await _gone(self.postgres)
        await self.postgres.stop()

    @staticmethod
    def _pid(server: EmbeddedPostgres | EmbeddedRedis) -> int:
        pid = server.live_pid()
        if pid is None:
            raise TemporaryError(f"the drill's {server.title} ended by itself")
        return pid


async def _gone(server: EmbeddedPostgres | EmbeddedRedis) -> None:
    while server.live_pid() is not None:  # noqa: ASYNC110 - another process, which tells nobody
        await asyncio.sleep(0.01)
