"""The environment alembic runs a migration in.

With a connection handed over in `config.attributes` (as `data_migration.schema` does) the migration
joins that connection's transaction; from alembic's own command line it opens one on DATABASE_URL.
"""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from config.settings import load_settings
from models import Base
from services.catalogue.connection import make_engine
from services.errors import ConfigurationError


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


async def _run_on_own_connection() -> None:
    url = load_settings().database_url
    if url is None:
        raise ConfigurationError("set DATABASE_URL to the database to migrate")
    engine = make_engine(url.get_secret_value(), application_name="marketd-alembic")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run)
    finally:
        await engine.dispose()


handed_over: Connection | None = context.config.attributes.get("connection")
if handed_over is not None:
    _run(handed_over)
elif context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        target_metadata=Base.metadata,
        literal_binds=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(_run_on_own_connection())
