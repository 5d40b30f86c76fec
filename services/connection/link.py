"""One open connection as its runner sees it: counts on the way in, waiting, and how it came to its end.

Stands between the transport, which calls it, and the runner, which waits on it. `on_frame` is the hot
path: no await, no log, no clock. Made anew for every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from services.base_provider import ProviderCounters
from services.compiled import in_place_of
from services.connection.transport import Transport
from services.errors import ProviderError, ProviderUnavailable
from services.market_data.clock import Clock
from services.provider_frames import DamageMeter

_STOOD_STILL_S = 2.0


def silent() -> ProviderError:
    """Return the error of a peer that gives no sign of life."""
    return ProviderUnavailable("no sign of life: a ping was not answered in time", reason="silent")


class Link:
    """`signs` counts every sign of life, `data_frames` the frames that brought ticks.

    `over` says that the connection has ended or is to be ended; `error` why, where we know it.
    `overslept` says that our own process stood still during the last wait.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_controls",
        "_counters",
        "_damage",
        "_handle",
        "_pongs",
        "_wake",
        "data_frames",
        "error",
        "frames",
        "last_data_ms",
        "over",
        "overslept",
        "transport",
    )

    def __init__(
        self, handle: Callable[[str | bytes], int], counters: ProviderCounters, clock: Clock
    ) -> None:
        self.transport: Transport | None = None
        self.over = False
        self.error: ProviderError | None = None
        self.frames = 0
        self.data_frames = 0
        self.last_data_ms = 0
        self.overslept = False
        self._handle = handle
        self._counters = counters
        self._clock = clock
        self._controls = 0
        self._pongs = 0
        self._wake = asyncio.Event()
        self._damage = DamageMeter()

    @property
    def signs(self) -> int:
        """How many signs of life there have been."""
        return self.frames + self._controls

    @in_place_of("intake", "on_frame")
    def on_frame(self, raw: str | bytes) -> None:
        """Take one message."""
        if self.over:
            return
        self.frames += 1
        counters = self._counters
        ticks = counters.ticks
        try:
            received_ms = self._handle(raw)
        except ProviderError as error:
            self.finish(error)
            return
        if counters.ticks != ticks:
            self.data_frames += 1
            self.last_data_ms = received_ms or self.last_data_ms
        elif not received_ms and self._damage.add(self._clock.monotonic_s()):
            self.finish(ProviderUnavailable("the connection brings only damaged data", reason="garbage"))

    def on_sign_of_life(self) -> None:
        """Take note of the peer's ping."""
        self._controls += 1

    def on_pong(self) -> None:
        """Take note of the answer to our ping."""
        self._controls += 1
        self._pongs += 1
        self._wake.set()

    def on_closed(self) -> None:
        """Take note that the socket is closed."""
        self.over = True
        self._wake.set()

    def finish(self, error: ProviderError) -> None:
        """Say that the connection is to end because of `error`; the first reason counts."""
        if self.error is None:
            self.error = error
        self.over = True
        self._wake.set()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._wake.set()

    def send(self, payload: str | bytes) -> None:
        """Send one message, unless the connection is over."""
        if self.transport is not None and not self.over:
            self.transport.send(payload)

    def ping(self) -> None:
        """Send a ping, unless the connection is over."""
        if self.transport is not None and not self.over:
            self.transport.ping()

    async def nap(self, at_most_s: float) -> None:
        """Wait until something happens, at most `at_most_s` seconds."""
        began_s = self._clock.monotonic_s()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._wake.wait()
        self._wake.clear()
        self.overslept = self._clock.monotonic_s() - began_s > at_most_s + _STOOD_STILL_S

    async def hear(self, within_s: float, settle_s: float) -> None:
        """Wait until the server has answered a ping, and so has read what was sent before it.

        Then wait `settle_s` for what it may say about that. Without an answer within `within_s` and
        without any other sign of life the connection is over.
        """
        pongs, signs = self._pongs, self.signs
        until_s = self._clock.monotonic_s() + within_s
        self.ping()
        while self._pongs == pongs and not self.over:
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                if self.signs == signs and not self.overslept:
                    self.finish(silent())
                return
            await self.nap(left_s)
        until_s = self._clock.monotonic_s() + settle_s
        while not self.over and (left_s := until_s - self._clock.monotonic_s()) > 0:
            await self.nap(left_s)
