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

from services.catalogue.database_errors import CONNECT_TIMEOUT_S, DRIVER_ERRORS, database_error
from services.database_url import asyncpg_dsn
from services.errors import ConfigurationError, MarketdError
from services.pipeline.backoff import Backoff

CHANNEL = "marketd_mappings"
SETTLE_S = 0.1
"""Changes within this time are taken as one."""
NET_S = 30.0
"""A change whose notice was lost is found after this time at the latest."""


PARKED_RETRY_S = 30.0
"""While the server refuses the login itself, it is asked again after this time."""


class MappingWatch:
    """Says when it is worth reading the mappings again.

    `problem` is why no notices are heard just now, None while they are. `look_within_s` shortens the
    next quiet while once: set it after a reading that failed.
    """

    def __init__(
        self, database_url: str, *, net_s: float = NET_S, parked_retry_s: float = PARKED_RETRY_S
    ) -> None:
        self._database_url = database_url
        self._net_s = net_s
        self._parked_retry_s = parked_retry_s
        self._poked = asyncio.Event()
        self.problem: MarketdError | None = None
        self.look_within_s: float | None = None

    def use_url(self, database_url: str) -> None:
        """Listen by another URL from now on, as after a changed password, and look at once."""
        self._database_url = database_url
        self.poke()

    def poke(self) -> None:
        """End whatever wait there is."""
        self._poked.set()

    async def changes(self) -> AsyncIterator[str]:
        """Yield why to look: `connected`, `notified`, `net` (a quiet while), or `lost`. Never ends.

        `lost` comes once per trouble; `problem` then says what it is.
        """
        backoff = Backoff(base_s=0.5, cap_s=10.0, floor_s=0.2, reset_after_s=5.0)
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            try:
                async for reason in self._listen():
                    yield reason
            except DRIVER_ERRORS as error:
                problem = database_error(error, self._database_url)
            except ConfigurationError as error:
                problem = error
            else:
                # A connection that was closed is no trouble yet: the next one tells whether there is any.
                backoff.succeeded(loop.time() - started_s)
                await self._pause(backoff.next_wait_s())
                continue
            told, self.problem = self.problem, problem
            if told is None or type(told) is not type(problem):
                yield "lost"
            backoff.succeeded(loop.time() - started_s)
            parked = isinstance(problem, ConfigurationError)
            await self._pause(self._parked_retry_s if parked else backoff.next_wait_s())

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._poked.wait()
        self._poked.clear()

    async def _listen(self) -> AsyncIterator[str]:
        connection = await asyncpg.connect(
            asyncpg_dsn(self._database_url),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": "marketd-watch"},
        )
        heard = False

        def notice(*_: Any) -> None:
            nonlocal heard
            heard = True
            self._poked.set()

        def ended(_: Any) -> None:
            self._poked.set()

        url = self._database_url
        try:
            connection.add_termination_listener(ended)
            await connection.add_listener(CHANNEL, notice)
            self.problem = None
            yield "connected"
            while not connection.is_closed():
                wait_s, self.look_within_s = self.look_within_s or self._net_s, None
                await self._pause(min(wait_s, self._net_s))
                if connection.is_closed():
                    return
                if self._database_url != url:
                    return
                if not heard:
                    # A half-open connection hears nothing: asking it finds out.
                    await connection.fetchval("SELECT 1")
                    yield "net"
                    continue
                await asyncio.sleep(SETTLE_S)
                heard = False
                yield "notified"
        finally:
            connection.terminate()
