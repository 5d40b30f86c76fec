"""Keeps one provider socket open: connect, subscribe its share, watch, back off, begin again.

Stands between the provider's pool of connections and the transport. Never touches another connection,
and never makes an attempt with credentials that are known to be refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from services.base_provider import ProviderState
from services.connection.link import Link, silent
from services.connection.liveness import Liveness, Pulse
from services.connection.muteness import MuteRules, MuteWatch
from services.connection.rules import ConnectionEnd, ConnectionRules
from services.connection.share import Share, ShareHost
from services.connection.transport import Connector, Endpoint
from services.errors import (
    ProviderError,
    ProviderUnavailable,
    SubscriptionRefused,
    TooManySymbols,
    UnexpectedAnswer,
)
from services.market_data.clock import Clock
from services.provider_lifecycle import (
    HEALTHY_AFTER_S,
    CredentialGate,
    Failure,
    RetryPolicy,
    as_provider_error,
    keep_trying,
)
from services.provider_session import QUIET_SUCCESS_S

_log = structlog.get_logger(__name__)

_FLAPPING_AFTER = 5


class ConnectionHost(ShareHost, Protocol):
    """What a connection asks of its provider."""

    mute_rules: MuteRules

    @property
    def open_markets(self) -> frozenset[str]:
        """Which exchanges among those of its symbols are in session now."""
        ...

    @property
    def code(self) -> str:
        """The provider code."""
        ...

    @property
    def has_credentials(self) -> bool:
        """Whether an operator can do something about a refusal."""
        ...

    def endpoint(self) -> Endpoint:
        """Where to connect now."""
        ...

    def farewell(self) -> list[str | bytes]:
        """The messages before a wanted end."""
        ...

    def explain_end(self, end: ConnectionEnd) -> ProviderError:
        """Why the peer may have ended the connection."""
        ...

    def connection_opened(self, runner: ConnectionRunner) -> None:
        """A socket is open."""

    def connection_changed(self, runner: ConnectionRunner) -> None:
        """A connection's state is another."""

    def connection_lost(self, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        """These symbols bring nothing any more."""

    def connection_overfull(self, runner: ConnectionRunner) -> None:
        """The server takes fewer symbols than the rules say."""


class Turnstile:
    """Lets the connection attempts of one provider through one by one, `interval_s` apart.

    Before the first attempt of a connection `first_interval_s` is enough.
    """

    def __init__(self, clock: Clock, interval_s: float, first_interval_s: float | None = None) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._first_interval_s = interval_s if first_interval_s is None else first_interval_s
        self._last_s = -interval_s

    async def turn(self, *, first: bool = False) -> None:
        """Wait for one's turn."""
        now_s = self._clock.monotonic_s()
        at_s = max(now_s, self._last_s + (self._first_interval_s if first else self._interval_s))
        self._last_s = at_s
        if at_s > now_s:
            await asyncio.sleep(at_s - now_s)


class ConnectionRunner:
    """One connection and its share of the symbols. `handle` takes each message, as `FrameIntake.handle`."""

    def __init__(
        self,
        index: int,
        host: ConnectionHost,
        *,
        handle: Callable[[str | bytes], int],
        rules: ConnectionRules,
        connector: Connector,
        clock: Clock,
        gate: CredentialGate,
        policy: RetryPolicy,
        turnstile: Turnstile,
    ) -> None:
        self.index = index
        self.share = Share(host, rules, clock)
        self.state = ProviderState.IDLE
        self.reason = ""
        self.open = False
        self._host = host
        self._handle = handle
        self._rules = rules
        self._connector = connector
        self._clock = clock
        self._gate = gate
        self._policy = policy
        self._turnstile = turnstile
        self._first: asyncio.Future[ProviderError | None] = asyncio.get_running_loop().create_future()
        self._link: Link | None = None
        self._assigned = asyncio.Event()
        self._stale = ""
        self._mute = MuteWatch()
        self._failures = 0
        self._logged_reason = ""

    # ---- what the pool calls ------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the connection open until cancelled."""
        await keep_trying(
            self._attempt, gate=self._gate, policy=self._policy, show=self._show_wait, ready=self._has_work
        )

    async def first_outcome(self) -> ProviderError | None:
        """Wait for the first attempt; return None when the socket opened, else what went wrong."""
        return await asyncio.shield(self._first)

    def change(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """Change this connection's share; what changes is asked for at once when it is open."""
        self.share.change(added, removed)
        if self.share.assigned:
            self._assigned.set()
        else:
            self._assigned.clear()
        if self._link is not None:
            self._link.wake()

    # ---- one attempt --------------------------------------------------------------------------------

    async def _has_work(self) -> bool:
        # The very first connection is opened before anything is assigned: opening it is the test.
        if self.share.assigned or not self._first.done():
            return True
        await self._wait_for_symbols()
        return False

    async def _wait_for_symbols(self) -> None:
        self._show(ProviderState.IDLE, "no symbols")
        await self._assigned.wait()

    async def _attempt(self) -> Failure:
        while (failure := await self._one_connection()) is None:
            await self._wait_for_symbols()
        return failure

    async def _one_connection(self) -> Failure | None:
        """Open the socket and serve it to its end; None when we closed it because it had no symbols left."""
        self._show(ProviderState.CONNECTING)
        await self._turnstile.turn(first=not self._first.done())
        fingerprint = self._gate.fingerprint()
        link = self._link = Link(self._handle, self._host.counters, self._clock)
        error: ProviderError | None = None
        began_s, opened_ms = self._clock.monotonic_s(), 0
        try:
            link.transport = await self._connector.open(
                self._host.endpoint(), link, self._rules.transport, has_credentials=self._host.has_credentials
            )
            began_s, opened_ms = self._clock.monotonic_s(), self._clock.now_ms()
            error = await self._serve(link, began_s)
        except ProviderError as failure:
            error = as_provider_error(failure, self._gate.secrets())
        finally:
            await self._leave(link, error, max(opened_ms, link.last_data_ms))
        if error is None:
            return None
        uptime_s = self._clock.monotonic_s() - began_s if opened_ms else 0.0
        healthy_s = uptime_s if link.data_frames or uptime_s >= QUIET_SUCCESS_S else 0.0
        error = self._make_smaller(error)
        if not self._first.done():
            self._first.set_result(error)
        self._note_failure(error, healthy_s)
        return Failure(error, healthy_s, fingerprint)

    async def _serve(self, link: Link, began_s: float) -> ProviderError | None:
        """Subscribe and watch until the connection is over; return why it is, None without symbols."""
        self.open = True
        self._host.connection_opened(self)
        if not self._first.done():
            self._first.set_result(None)
        self._show(ProviderState.SUBSCRIBING)
        rules = self._rules
        liveness = Liveness(
            self._clock.monotonic_s(), ping_after_s=rules.ping_after_s, pong_within_s=rules.pong_within_s
        )
        repeated_s = self._clock.monotonic_s()
        self._mute.connected(repeated_s)
        while not link.over:
            await self.share.bring_in_line(link)
            if not self.share.assigned and self.index:
                return None
            self._show_open(link)
            await link.nap(liveness.look_every_s)
            self._judge(link, liveness)
            now_s = self._clock.monotonic_s()
            if rules.resubscribe_every_s is not None and now_s - repeated_s >= rules.resubscribe_every_s:
                repeated_s = now_s
                await self.share.repeat_all(link)
            await self.share.repeat_unheard(link)
        if link.error is not None:
            return as_provider_error(link.error, self._gate.secrets())
        return await self._explain_end(link, began_s)

    async def _explain_end(self, link: Link, began_s: float) -> ProviderError:
        if link.transport is None:
            return ProviderUnavailable("the connection was closed", reason="closed")
        info = await link.transport.wait_closed()
        if info.failure is not None:
            _log.error(
                "connection_broken_by_us",
                provider=self._host.code,
                connection=self.index,
                exc_info=info.failure,
            )
        end = ConnectionEnd(info, link.frames, self._clock.monotonic_s() - began_s)
        return as_provider_error(self._host.explain_end(end), self._gate.secrets())

    async def _leave(self, link: Link, error: ProviderError | None, since_ms: int) -> None:
        """Say which symbols bring nothing any more, and close the socket, politely where the peer listens."""
        was_open, self.open = self.open, False
        if error is None:
            for message in self._host.farewell():
                link.send(message)
        link.over = True
        asked = self.share.connection_lost()
        if asked:
            self._host.connection_lost(asked, since_ms, error.reason if error is not None else "stopped")
        if link.transport is not None:
            dead = error is not None and error.reason in ("silent", "mute")
            await link.transport.close(0.0 if dead else self._rules.close_within_s)
        if was_open:
            self._host.connection_changed(self)

    def _judge(self, link: Link, liveness: Liveness) -> None:
        if link.over:
            return
        if link.data_frames:
            self._stale = ""
        now_s = self._clock.monotonic_s()
        markets = self._host.open_markets if self.share.asked else frozenset()
        mute_after_s = self._mute.limit_s(self._host.mute_rules, now_s, link.data_frames, markets)
        pulse = liveness.look(
            now_s,
            link.signs,
            link.data_frames,
            mute_after_s=mute_after_s,
            overslept=link.overslept,
        )
        if pulse is Pulse.PING:
            link.ping()
        elif pulse is Pulse.DEAD:
            link.finish(silent())
        elif pulse is Pulse.MUTE:
            self._mute.gave_up()
            self._stale = f"subscribed, but no data for {mute_after_s:g} s"
            if self._mute.futile > 1:
                self._stale += f", {self._mute.futile} connections in a row"
            link.finish(ProviderUnavailable(self._stale, reason="mute"))

    def _make_smaller(self, error: ProviderError) -> ProviderError:
        """Turn a refused plan into a smaller one, and the connection's end into a reason to try again."""
        if not isinstance(error, SubscriptionRefused):
            return error
        if isinstance(error, TooManySymbols):
            self._host.connection_overfull(self)
        else:
            self.share.judge_refusal(error)
        return UnexpectedAnswer(str(error), reason=error.reason)

    # ---- state --------------------------------------------------------------------------------------

    def _show_open(self, link: Link) -> None:
        if link.over:
            return
        if self._stale:
            self._show(ProviderState.STALE, self._stale)
        elif self.share.asked:
            self._show(ProviderState.STREAMING)
        else:
            self._show(ProviderState.SUBSCRIBING, "" if self.share.assigned else "no symbols")

    def _show_wait(self, parked: bool, error: ProviderError) -> None:
        if parked:
            self._show(ProviderState.PARKED, str(error))
        elif self._stale:
            self._show(ProviderState.STALE, self._stale)
        else:
            self._show(ProviderState.BACKING_OFF, str(error))

    def _show(self, state: ProviderState, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._host.connection_changed(self)

    def _note_failure(self, error: ProviderError, healthy_s: float) -> None:
        self._failures = 1 if healthy_s >= HEALTHY_AFTER_S else self._failures + 1
        if error.reason != self._logged_reason or self._failures == 1:
            self._logged_reason = error.reason
            getattr(_log, "error" if isinstance(error, UnexpectedAnswer) else "warning")(
                "connection_ended",
                provider=self._host.code,
                connection=self.index,
                reason=error.reason,
                error=str(error),
            )
        if self._failures == _FLAPPING_AFTER:
            _log.error(
                "connection_keeps_failing",
                provider=self._host.code,
                connection=self.index,
                reason=error.reason,
                failures=self._failures,
            )
