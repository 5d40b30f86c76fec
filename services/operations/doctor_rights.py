"""What `doctor` says about the rights of our Redis user and PostgreSQL role: too few fail, too many warn.

Tries harmless commands only: what is refused for want of a right is what we learn from. Redis keeps those
refusals in its `ACL LOG`.
"""

from __future__ import annotations

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from services.catalogue.connection import CONNECT_TIMEOUT_S, DATABASE_ERRORS, database_error
from services.database_url import asyncpg_dsn
from services.errors import MarketdError
from services.operations.doctor import Check
from services.storage.access import TOO_MUCH
from services.storage.client import make_client, storage_error

_REDIS = "redis rights"
_DATABASE = "database rights"
_REDIS_REMEDY = "use the users that deploy/redis/users_acl.py prints"
_DATABASE_REMEDY = "use the role marketd_daemon of deploy/postgres/roles.sql"

_WRITES = (
    ("XADD", "md:marketd-doctor-absent", "NOMKSTREAM", "*", "a", "b"),
    ("TS.MADD", "md:marketd-doctor-absent", "1", "1"),
    ("SET", "md:marketd-doctor-absent", "1", "XX"),
    ("EVAL", "return 1", "0"),
)
"""Commands of the daemon that change nothing, because there is no such key."""

_TABLES = (
    "alembic_version",
    "providers",
    "exchanges",
    "instruments",
    "exchange_provider_mappings",
    "provider_instrument_mappings",
    "mapping_changes",
    "mapping_change_rows",
)
_RIGHTS = """
SELECT r.rolsuper, r.rolcreatedb, r.rolcreaterole,
    has_database_privilege(current_database(), 'CREATE') AS create_schemas,
    has_schema_privilege('public', 'CREATE') AS create_tables,
    to_regclass('public.route_events') IS NULL
        OR (has_table_privilege(to_regclass('public.route_events'), 'INSERT')
            AND has_table_privilege(to_regclass('public.route_events'), 'DELETE')) AS keep_decisions,
    to_regclass('public.quality_scores') IS NULL
        OR (has_table_privilege(to_regclass('public.quality_scores'), 'INSERT')
            AND has_table_privilege(to_regclass('public.quality_scores'), 'UPDATE')) AS keep_scores,
    ARRAY(
        SELECT c.relname::text FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY ($1)
            AND (has_table_privilege(c.oid, 'INSERT') OR has_table_privilege(c.oid, 'UPDATE')
                OR has_table_privilege(c.oid, 'DELETE') OR has_table_privilege(c.oid, 'TRUNCATE'))
        ORDER BY 1
    ) AS may_write
FROM pg_roles r WHERE r.rolname = current_user
"""


async def check_redis_rights(url: str) -> list[Check]:
    """Check that our user may write what the daemon writes, and nothing that could destroy or spy."""
    client = make_client(url, name="marketd:doctor")
    try:
        missing = [command[0] for command in _WRITES if not await _allowed(client, command)]
        too_much = [name for name, command in TOO_MUCH if await _allowed(client, command)]
    except MarketdError as error:
        return [Check(_REDIS, False, str(error), "see the message")]
    finally:
        await client.aclose()
    if missing:
        return [Check(_REDIS, False, f"the user may not {', '.join(missing)} on md:*", _REDIS_REMEDY)]
    if too_much:
        return [
            Check(
                _REDIS,
                True,
                f"the user may more than it needs: {', '.join(too_much)}",
                _REDIS_REMEDY,
                warning=True,
            )
        ]
    return [Check(_REDIS, True, "what the daemon needs and no more")]


async def _allowed(client: Redis, command: tuple[str, ...]) -> bool:
    try:
        await client.execute_command(*command)  # type: ignore[no-untyped-call]
    except NoPermissionError:
        return False
    except ResponseError as error:
        # Let through, and refused for what it said.
        return "no permission" not in str(error).lower()
    except RedisError as error:
        raise storage_error(error) from error
    return True


async def check_database_rights(url: str) -> list[Check]:
    """Check that our role may only read; anything more is a warning."""
    try:
        connection = await asyncpg.connect(
            asyncpg_dsn(url), timeout=CONNECT_TIMEOUT_S, command_timeout=CONNECT_TIMEOUT_S
        )
        try:
            rights = await connection.fetchrow(_RIGHTS, list(_TABLES))
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)
    except DATABASE_ERRORS as error:
        return [Check(_DATABASE, False, str(database_error(error, url)), "see the message")]
    if not rights["keep_decisions"]:
        detail = "the role may not write route_events: what routing decides is not kept"
        return [Check(_DATABASE, True, detail, "run deploy/postgres/roles.sql again", warning=True)]
    if not rights["keep_scores"]:
        detail = "the role may not write quality_scores: how good the data was is not kept"
        return [Check(_DATABASE, True, detail, "run deploy/postgres/roles.sql again", warning=True)]
    too_much = [
        words
        for name, words in (
            ("rolsuper", "is a superuser"),
            ("rolcreatedb", "may create databases"),
            ("rolcreaterole", "may create roles"),
            ("create_schemas", "may create schemas"),
            ("create_tables", "may create tables"),
        )
        if rights[name]
    ]
    if rights["may_write"]:
        too_much.append(f"may write {', '.join(rights['may_write'])}")
    if too_much:
        return [
            Check(
                _DATABASE,
                True,
                f"the role only has to read the mappings: it {', '.join(too_much)}",
                _DATABASE_REMEDY,
                True,
            )
        ]
    return [Check(_DATABASE, True, "the role may read, and write what it keeps itself")]
