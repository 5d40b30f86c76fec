"""What a benchmark of the whole product needs: servers, a mapped database, the load, the daemon as a process.

    async with Rig(instruments=1_000) as rig:
        told = await rig.load.run(rate=50_000, seconds=5)
        used = await rig.usage()

Redis is fresh for every rig, PostgreSQL is shared by all rigs of a run. Everything is on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import asyncpg

from benchmarks.machine import ROOT
from benchmarks.path import instrument_key
from benchmarks.ticks import Mode, Stamp
from config.settings import setting_names
from data_migration.populate_instrument_mappings import Sources, populate_from
from data_migration.setup_providers import setup
from data_migration.sources.dhan_scrip_master import ScripMaster
from services.operations.embedded_postgres import EmbeddedPostgres
from services.operations.embedded_redis import EmbeddedRedis
from services.operations.state_dir import StateDirectory

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
READY_WITHIN_S = 120.0


class Usage(NamedTuple):
    """What one process has used: CPU seconds so far, resident bytes, open files."""

    cpu_s: float
    rss_bytes: int
    files: int


def usage(pid: int) -> Usage:
    """Return what a process uses now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    # The process's own clock, which `clock_getcpuclockid` of the C library names like this: to the
    # nanosecond, where /proc/PID/stat counts in hundredths of a second.
    return Usage(time.clock_gettime(~pid << 3 | 2), pages * _PAGE_BYTES, files)


class Helper:
    """A process of this package that answers one line of JSON for each it is given."""

    def __init__(self, module: str, *arguments: str, program: str = sys.executable) -> None:
        self._command = (program, "-m", f"benchmarks.{module}", *arguments)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def hear(self) -> dict[str, Any]:
        """Return the next line it says."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended")
        return dict(json.loads(line))

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Give one command and return its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self.hear()


class LoadProcess(Helper):
    """`benchmarks.load`; `base_s` is what its stamps count from."""

    def __init__(self, mode: Mode, stamp: Stamp) -> None:
        super().__init__("load", mode, stamp)
        self.port = 0
        self.base_s = 0.0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        told = await self.hear()
        self.port, self.base_s = told["port"], told["base_s"]
        return self

    async def run(self, *, rate: float, seconds: float) -> dict[str, Any]:
        """Send at `rate` a second (0: as fast as it is taken); return `sent`, `seconds`, `most_behind`."""
        return await self.ask(rate=rate, seconds=seconds)


class Servers:
    """The PostgreSQL that all rigs of one run share, one database for each number of instruments."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._server_url = ""
        self._databases: dict[int, str] = {}

    def use(self, server_url: str) -> None:
        """Make databases on a server that runs already, instead of starting one."""
        if server_url != self._server_url:
            self._server_url, self._databases = server_url, {}

    async def empty(self, name: str) -> str:
        """Return the URL of a new database of that name, without any table."""
        if not self._server_url:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="marketd-bench-"))
            server = await self._stack.enter_async_context(EmbeddedPostgres(Path(folder)))
            self._server_url = await server.start()
        await self._execute(self._server_url, f"CREATE DATABASE bench_{name}")
        return f"{self._server_url.rpartition('/')[0]}/bench_{name}"

    async def database(self, instruments: int) -> str:
        """Return the URL of a database in which that many instruments are mapped to Dhan alone."""
        if instruments not in self._databases:
            url = await self.empty(str(instruments))
            await setup(url)
            with tempfile.TemporaryDirectory() as folder:
                listing = Path(folder) / "instruments.csv"
                listing.write_text(_listing(instruments), encoding="utf-8")
                master = ScripMaster.read(_scrip_master(instruments))
                await populate_from(url, Sources(instruments=listing, scrip_master=master))
            await self._execute(url, "UPDATE providers SET is_active = false WHERE code <> 'DHAN'")
            self._databases[instruments] = url
        return self._databases[instruments]

    async def stop(self) -> None:
        """Stop the server, if it was started."""
        await self._stack.aclose()
        self._server_url, self._databases = "", {}

    @staticmethod
    async def _execute(url: str, statement: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


SERVERS = Servers()


def _listing(instruments: int) -> str:
    rows = ["exchange,symbol,name,asset_class,currency"]
    rows += [f"NSE,SYM{number:05d},Made up {number},equity,INR" for number in range(1, instruments + 1)]
    return "\n".join(rows) + "\n"


def _scrip_master(instruments: int) -> list[str]:
    shipped = ROOT / "simulators" / "data" / "dhan-scrip-master.csv"
    with shipped.open(encoding="utf-8", newline="") as file:
        names = next(csv.reader(file))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="")
    writer.writeheader()
    for number in range(1, instruments + 1):
        writer.writerow(
            {
                "SEM_EXM_EXCH_ID": "NSE",
                "SEM_SEGMENT": "E",
                "SEM_SMST_SECURITY_ID": number,
                "SEM_INSTRUMENT_NAME": "EQUITY",
                "SEM_EXPIRY_CODE": 0,
                "SEM_TRADING_SYMBOL": f"SYM{number:05d}",
                "SEM_LOT_UNITS": "1.0",
                "SEM_CUSTOM_SYMBOL": f"Made up {number}",
                "SEM_TICK_SIZE": "5.0000",
                "SEM_EXPIRY_FLAG": "NA",
                "SEM_EXCH_INSTRUMENT_TYPE": "ES",
                "SEM_SERIES": "EQ",
                "SM_SYMBOL_NAME": f"MADE UP {number}",
            }
        )
    return out.getvalue().splitlines(keepends=True)


class DaemonProcess:
    """`main.py run` as a process, with settings of its own and none of the environment's.

    `options` are further arguments, such as `--demo`.
    """

    def __init__(self, state_dir: Path, *options: str, **settings: object) -> None:
        self._state_dir = state_dir
        self._options = options
        self._settings = settings
        self._log_path = state_dir.parent / f"{state_dir.name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self.api_url = ""

    async def __aenter__(self) -> Self:
        ours = {name + end for name in setting_names() for end in ("", "_FILE")}
        # An installation has its bytecode, whatever the shell says that the benchmark was started from.
        ours.add("PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if name.upper() not in ours}
        settings = {"STATE_DIR": self._state_dir, "API_PORT": 0, "LOG_FORMAT": "json", **self._settings}
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "main.py", "run", *self._options),
                cwd=ROOT,
                env=kept | {name: str(value) for name, value in settings.items()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._session = aiohttp.ClientSession()
        async with asyncio.timeout(READY_WITHIN_S):
            while not await self._is_up():
                if self._process.returncode is not None:
                    raise RuntimeError(f"the daemon ended:\n{self.log()[-3000:]}")
                await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 25)
            except TimeoutError:
                process.kill()
                await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def _is_up(self) -> bool:
        runtime = StateDirectory.read_runtime(self._state_dir)
        if runtime is None or runtime.get("pid") != self.pid:
            return False
        self.api_url = runtime["api_url"]
        return True

    async def get(self, path: str) -> Any:
        """Return the JSON of one request."""
        assert self._session is not None
        async with self._session.get(f"{self.api_url}{path}") as response:
            return await response.json(content_type=None)

    async def text(self, path: str) -> str:
        """Return the text of one request."""
        assert self._session is not None
        async with self._session.get(f"{self.api_url}{path}") as response:
            return await response.text()

    def log(self) -> str:
        """Return all it has logged."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")


class Rig:
    """Redis, the load and the daemon, with `instruments` subscribed. `settings` are the daemon's."""

    def __init__(
        self, *, instruments: int = 1_000, mode: Mode = "quote", stamp: Stamp = "", **settings: object
    ) -> None:
        self.instruments = instruments
        self._mode, self._stamp = mode, stamp
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self.redis: EmbeddedRedis
        self.redis_url = ""
        self.load: LoadProcess
        self.daemon: DaemonProcess
        self.started_in_s = self.start_cpu_s = 0.0
        """How long the daemon took from its start until every instrument was subscribed, and computed."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _start(self) -> None:
        enter = self._stack.enter_async_context
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="marketd-bench-")))
        database_url = await SERVERS.database(self.instruments)
        self.redis = await enter(EmbeddedRedis(folder / "redis"))
        self.redis_url = await self.redis.start()
        self.load = await enter(LoadProcess(self._mode, self._stamp))
        self._state_dir = folder / "state"
        self._settings = {
            "DATABASE_URL": database_url,
            "REDIS_URL": self.redis_url,
            "DHAN_FEED_URL": f"ws://127.0.0.1:{self.load.port}",
            "DHAN_CLIENT_ID": "1000000001",
            "DHAN_ACCESS_TOKEN": "benchmark",
            "DHAN_FEED_MODE": self._mode,
            "MARKET_CALENDAR": "always_open",
            **self._settings,
        }
        await self._start_daemon()

    async def _start_daemon(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        daemon = DaemonProcess(self._state_dir, **self._settings)
        self.daemon = await self._stack.enter_async_context(daemon)
        await self.subscribed()
        self.started_in_s = loop.time() - began_s
        self.start_cpu_s = usage(self.daemon.pid).cpu_s

    async def restart(self) -> None:
        """Stop the daemon as an operator does, and start it again with all that it has stored."""
        await self.daemon.__aexit__()
        await self._start_daemon()

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def instrument(self, number: int) -> str:
        """Return the key of the instrument with this number, from 1."""
        return instrument_key(number)

    async def status(self) -> dict[str, Any]:
        """Return `/api/providers/status`, with Dhan's row under `dhan` and the sinks by name."""
        body = await self.daemon.get("/api/providers/status")
        pipeline = body.get("pipeline", body)
        return {
            "dhan": next(row for row in body["providers"] if row["code"] == "DHAN"),
            "pipeline": pipeline,
            "sinks": {sink["name"]: sink for sink in pipeline["sinks"]},
        }

    async def subscribed(self) -> None:
        """Wait until every instrument is subscribed and has had its first tick."""
        async with asyncio.timeout(READY_WITHIN_S):
            while True:
                dhan = (await self.status())["dhan"]
                if dhan["subscribed"] == self.instruments == dhan["instruments_live"]:
                    return
                await asyncio.sleep(0.1)

    async def settled(self, within_s: float = 60.0, *, every_s: float = 0.1) -> dict[str, Any]:
        """Wait until every sink has settled all it was offered; return the status then."""
        async with asyncio.timeout(within_s):
            while True:
                status = await self.status()
                if not any(sink["queued"] or sink["spooled"] for sink in status["sinks"].values()):
                    return status
                await asyncio.sleep(every_s)

    def used(self) -> dict[str, Usage]:
        """Return what daemon, Redis and load have used so far."""
        redis_pid = self.redis.live_pid()
        assert redis_pid is not None
        return {
            "daemon": usage(self.daemon.pid),
            "redis": usage(redis_pid),
            "load": usage(self.load.pid),
        }
