"""Hears that the mapping tables changed: PostgreSQL's notices, with a look now and then as the net.

Beside the loader; never reads a table itself. While PostgreSQL is away it keeps trying, and counts
the return as a possible change, because notices of that time are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import structlog

from services.catalogue.connection import CONNECT_TIMEOUT_S, DATABASE_ERRORS, database_error
from services.database_url import asyncpg_dsn
from services.pipeline.backoff import Backoff

_log = structlog.get_logger(__name__)

CHANNEL = "marketd_mappings"
SETTLE_S = 0.1
"""Changes within this time are taken as one."""
NET_S = 30.0
"""A change whose notice was lost is found after this time at the latest."""


class MappingWatch:
    """Says when it is worth reading the mappings again."""

    def __init__(self, database_url: str, *, net_s: float = NET_S) -> None:
        self._database_url = database_url
        self._net_s = net_s

    async def changes(self) -> AsyncIterator[str]:
        """Yield why to look: `notified`, `net` (a quiet while) or `reconnected`. Never ends."""
        backoff = Backoff(base_s=0.5, cap_s=10.0, floor_s=0.2, reset_after_s=5.0)
        first = True
        while True:
            started_s = asyncio.get_running_loop().time()
            try:
                async for reason in self._listen():
                    if reason != "reconnected" or not first:
                        yield reason
                    first = False
            except DATABASE_ERRORS as error:
                if not first:
                    _log.info("mapping_notices_lost", error=str(database_error(error, self._database_url)))
            first = False
            backoff.succeeded(asyncio.get_running_loop().time() - started_s)
            await asyncio.sleep(backoff.next_wait_s())

    async def _listen(self) -> AsyncIterator[str]:
        connection = await asyncpg.connect(
            asyncpg_dsn(self._database_url),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": "marketd-watch"},
        )
        heard = asyncio.Event()

        def notice(*_: Any) -> None:
            heard.set()

        def ended(_: Any) -> None:
            heard.set()

        try:
            connection.add_termination_listener(ended)
            await connection.add_listener(CHANNEL, notice)
            yield "reconnected"
            while not connection.is_closed():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), self._net_s)
                if connection.is_closed():
                    return
                if not heard.is_set():
                    # A half-open connection hears nothing: asking it finds out.
                    await connection.fetchval("SELECT 1")
                    yield "net"
                    continue
                await asyncio.sleep(SETTLE_S)
                heard.clear()
                yield "notified"
        finally:
            connection.terminate()
