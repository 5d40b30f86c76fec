"""Brings the schema of a database to the newest revision.

Called by `setup_providers.py`, the demo and the tests. The daemon never does: it only checks.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.catalogue.connection import DATABASE_ERRORS, database_error, make_engine
from services.errors import ConfigurationError

ADVISORY_LOCK = 0x6D61_726B_6574_64
"""The key of the PostgreSQL advisory lock every writer of the catalogue holds: `marketd` in ASCII."""

LOCK_WAIT_S = 30.0
"""How long a second writer waits for the first by default, in seconds."""

OLDEST_SERVER = 15


def alembic_config(connection: Connection | None = None) -> Config:
    """Return alembic's configuration; migrations join the transaction of `connection` when given."""
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).resolve().parent / "alembic").replace("%", "%%")
    )
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Return the newest revision among the migration files."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise ConfigurationError("the installation has no migration files: install it again")
    return head


async def migrate(database_url: str, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
    """Bring the database to the newest revision, in one transaction, one process at a time.

    A second process waits up to `lock_wait_s` for the first; within a process, alembic knows one
    migration at a time. Raises `TemporaryError` when that time is over or the server cannot be
    reached, `ConfigurationError` when the schema is newer than the program or the server too old.
    """
    engine = make_engine(database_url, application_name="marketd-migrate", connect_timeout_s=10)
    try:
        async with engine.begin() as connection:
            await take_lock(connection, lock_wait_s)
            await upgrade(connection)
    except DATABASE_ERRORS as error:
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()


async def take_lock(connection: AsyncConnection, wait_s: float = LOCK_WAIT_S) -> None:
    """Take the writers' lock until the end of the transaction, waiting at most `wait_s` seconds for it."""
    await connection.execute(text(f"SET LOCAL lock_timeout = '{max(1, round(wait_s * 1000))}ms'"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


async def current_revision(connection: AsyncConnection) -> str | None:
    """Return the revision the database is at, None for a database without our schema."""
    return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def upgrade(connection: AsyncConnection) -> tuple[str | None, str]:
    """Bring the schema to head inside the transaction of `connection`; return the revisions before and after.

    Raises `ConfigurationError` when the database is at a revision this program does not know, or the
    server is older than PostgreSQL 15.
    """
    version = int((await connection.execute(text("SHOW server_version_num"))).scalar_one()) // 10_000
    if version < OLDEST_SERVER:
        raise ConfigurationError(
            f"the server is PostgreSQL {version}: marketd needs {OLDEST_SERVER} or newer"
        )
    before = await current_revision(connection)
    head = head_revision()
    if before == head:
        return before, head
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if before is not None and before not in known:
        raise ConfigurationError(
            f"the database is at schema revision {before}, which this program does not know: "
            "it was set up by a newer version; update this installation"
        )
    await connection.run_sync(lambda sync: command.upgrade(alembic_config(sync), "head"))
    return before, head
