"""Databases that live as long as a test, on the session's PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def temporary_database(server_url: str, *, template_url: str | None = None) -> AsyncIterator[str]:
    """Give the URL of a new database, empty or a copy of another, and drop it afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    copied = f" TEMPLATE {template_url.rpartition('/')[2]}" if template_url else ""
    await _execute(server_url, f"CREATE DATABASE {name}{copied}")
    try:
        yield f"{server_url.rpartition('/')[0]}/{name}"
    finally:
        await _drop(server_url, name)


async def _drop(server_url: str, name: str) -> None:
    for attempt in range(10):
        try:
            await _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")
            return
        except asyncpg.InsufficientPrivilegeError:
            # A cleaning worker of the server's own is in it, which the test's role may not end.
            if attempt == 9:
                raise
            await asyncio.sleep(0.2)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
