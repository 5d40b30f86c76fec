"""A real PostgreSQL of a test's own: stop it at once, start it again, change who may log in."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from services.operations.embedded_postgres import EmbeddedPostgres, program_folder
from tests.support.daemon import ROOT

ROLES_SCRIPT = ROOT / "deploy" / "postgres" / "roles.sql"


class PrivatePostgres:
    """An embedded server whose role is a superuser, and that lets every role in by password."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedPostgres(folder)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def secret(self) -> str:
        """The password of its superuser."""
        return self._server.secret

    async def start(self) -> str:
        """Start it; the first time, open it to further roles."""
        url = await self._server.start()
        if not await self._is_open():
            await self._server.stop()
            account = self._server._account
            assert account is not None
            data = account.home / "data"
            await self._server._administer(account, data, "ALTER ROLE marketd SUPERUSER;\n")
            with (data / "pg_hba.conf").open("a", encoding="ascii") as rules:
                rules.write("host all all 127.0.0.1/32 scram-sha-256\n")
            url = await self._server.start()
        return url

    async def stop(self) -> None:
        await self._server.stop()

    async def stop_immediately(self) -> None:
        """Do what `pg_ctl stop -m immediate` does: SIGQUIT; nothing is written, sessions are cut."""
        pid = self._server.live_pid()
        assert pid is not None, "the server does not run"
        os.kill(pid, self._server.abort_signal)
        while self._server.live_pid() is not None:
            await asyncio.sleep(0.01)
        await self._server.stop()

    async def sql(self, statement: str, *, database: str = "marketd") -> None:
        """Run statements as superuser."""
        connection = await asyncpg.connect(with_database(self.url, database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def make_roles(self, database: str, password: str) -> None:
        """Run the shipped script as documented, with psql, and give both roles this password."""
        process = await asyncio.create_subprocess_exec(
            str(program_folder() / "psql"),
            *("-X", "-q", "-f", str(ROLES_SCRIPT)),
            *("-h", "127.0.0.1", "-p", str(self.port), "-U", "marketd", "-d", database),
            env={"PGPASSWORD": self._server.secret, "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        for role in ("marketd_daemon", "marketd_loader"):
            await self.sql(f"ALTER ROLE {role} PASSWORD '{password}'")

    async def _is_open(self) -> bool:
        connection = await asyncpg.connect(self._server.url)
        try:
            return bool(
                await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
            )
        finally:
            await connection.close()


def with_database(url: str, database: str) -> str:
    """Return the URL of another database of the same server."""
    return f"{url.rpartition('/')[0]}/{database}"


def with_login(url: str, user: str, password: str) -> str:
    """Return the URL with another user and password."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    return url.replace(urlsplit(url).netloc, f"{user}:{password}@{host}")
