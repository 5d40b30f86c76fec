"""One session with a provider: open it, keep what is wanted subscribed, notice its end, close it.

Stands under `BaseMarketDataProvider.run`, which repeats it. Works with any adapter: whatever a
method or a reader task raises ends the session with that error. Never decides what happens next.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

import structlog

from services.errors import ProviderUnavailable
from services.market_data.clock import Clock
from services.pipeline.bounded import finishes_within
from services.pipeline.ending import end_tasks
from services.provider_lifecycle import HEALTHY_AFTER_S, CredentialGate, Failure, as_provider_error

_log = structlog.get_logger(__name__)

QUIET_SUCCESS_S = 10 * HEALTHY_AFTER_S
"""A session that stood for this long counts as healthy even when nothing came, as on a holiday."""


class SessionHost(Protocol):
    """What a session asks of its provider."""

    connect_timeout_s: float
    request_timeout_s: float
    close_timeout_s: float

    @property
    def code(self) -> str:
        """The provider code."""
        ...

    @property
    def wanted(self) -> tuple[str, ...]:
        """The symbols that should be subscribed."""
        ...

    @property
    def messages_seen(self) -> int:
        """How many messages have come in all."""
        ...

    async def connect_websocket(self) -> None:
        """Open the connection."""

    async def disconnect_websocket(self) -> None:
        """Close it."""

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Ask for symbols."""

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Stop asking for symbols."""

    def session_opening(self) -> None:
        """An attempt begins."""

    def session_opened(self) -> None:
        """The connection is open, subscriptions follow."""

    def session_asking(self, symbols: Iterable[str]) -> None:
        """These symbols are asked for now."""

    def session_asked(self, symbols: Iterable[str]) -> None:
        """These symbols have been asked for."""

    def session_streaming(self) -> None:
        """Everything wanted at the beginning has been asked for."""

    def session_lost(self, symbols: Iterable[str], began_ms: int, reason: str) -> None:
        """An open session ended; these symbols had been asked for."""


class ProviderSession:
    """The sessions of one provider, one at a time."""

    def __init__(
        self,
        host: SessionHost,
        *,
        clock: Clock,
        gate: CredentialGate,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self.up = False
        self.subscribed: dict[str, None] = {}
        self._host = host
        self._clock = clock
        self._gate = gate
        self._spawn = spawn
        self._requests = asyncio.Lock()
        self._to_add: dict[str, None] = {}
        self._to_drop: dict[str, None] = {}
        self._ended: asyncio.Future[BaseException | None] | None = None
        self._began_ms = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def attempt(self) -> Failure:
        """Open a session, wait until it ends, close it; return how it ended."""
        fingerprint = self._gate.fingerprint()
        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._ended = ended
        seen = self._host.messages_seen
        began_s = self._clock.monotonic_s()
        self._host.session_opening()
        opening = asyncio.ensure_future(self._open())
        cause: BaseException | None = None
        reason = "stopped"
        try:
            either: list[asyncio.Future[Any]] = [opening, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and (cause := _outcome(opening)) is None:
                await ended
            if ended.done():
                cause = ended.result()
            error = as_provider_error(cause, self._gate.secrets())
            reason = error.reason
        finally:
            await self._close(opening, reason)
        uptime_s = self._clock.monotonic_s() - began_s
        brought_data = self._host.messages_seen != seen
        healthy_s = uptime_s if brought_data or uptime_s >= QUIET_SUCCESS_S else 0.0
        return Failure(error, healthy_s, fingerprint)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task of the present session; when it ends or raises, so has the session."""
        ended = self._ended
        task = self._spawn(self._watch(work, name, ended), f"{self._host.code}:{name}")
        self._tasks.add(task)

        def settle(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            died = done.cancelled() or done.exception() is not None
            if died and self.up and self._ended is ended:
                # Nobody ends the tasks of an open session but its end: without one it would be deaf.
                self.end(ProviderUnavailable(f"{name} was cancelled", reason="cancelled"))
            # A task that is cancelled before its first step never came to its work.
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()

        task.add_done_callback(settle)
        return task

    def end(self, cause: BaseException | None) -> None:
        """End the present session because of `cause`."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(cause)

    async def wanted_changed(self, more: Iterable[str], less: Iterable[str]) -> None:
        """Bring the open session's subscriptions in line; a failure ends the session, not the caller."""
        if not self.up:
            return
        for symbol in more:
            if symbol in self._to_drop:
                del self._to_drop[symbol]
            elif symbol not in self.subscribed:
                self._to_add[symbol] = None
        for symbol in less:
            if symbol in self._to_add:
                del self._to_add[symbol]
            elif symbol in self.subscribed:
                self._to_drop[symbol] = None
        outcome = await _fate(self._reconcile())
        if outcome is not None:
            self.end(outcome)

    async def _open(self) -> None:
        timeout_s = self._host.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await _settled(self._host.connect_websocket())
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ProviderUnavailable(
                f"connect_websocket did not return within {timeout_s:g} s", reason="timeout"
            ) from error
        self._began_ms = self._clock.now_ms()
        self._to_add, self._to_drop = dict.fromkeys(self._host.wanted), {}
        self.up = True
        self._host.session_opened()
        await self._reconcile()
        self._host.session_streaming()

    async def _reconcile(self) -> None:
        """Do what has gathered since the last time, one at a time, additions first."""
        async with self._requests:
            add, self._to_add = list(self._to_add), {}
            drop, self._to_drop = list(self._to_drop), {}
            if not self.up or not (add or drop):
                return
            async with asyncio.timeout(self._host.request_timeout_s):
                if add:
                    self.subscribed.update(dict.fromkeys(add))
                    self._host.session_asking(add)
                    await _settled(self._host.subscribe_symbols(add))
                if drop:
                    for symbol in drop:
                        del self.subscribed[symbol]
                    await _settled(self._host.unsubscribe_symbols(drop))
            self._host.session_asked(add)

    async def _close(self, opening: asyncio.Future[None], reason: str) -> None:
        was_up, self.up = self.up, False
        opening.cancel()
        timeout_s = self._host.close_timeout_s
        if not await finishes_within(self._leave(opening), timeout_s):
            _log.warning("provider_close_timed_out", provider=self._host.code, after_s=timeout_s)
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        if was_up:
            self._host.session_lost(list(self.subscribed), self._began_ms, reason)
        self.subscribed.clear()

    async def _leave(self, opening: asyncio.Future[None]) -> None:
        await asyncio.gather(opening, return_exceptions=True)
        await self._disconnect()

    async def _disconnect(self) -> None:
        (outcome,) = await asyncio.gather(_called(self._host.disconnect_websocket), return_exceptions=True)
        if outcome is not None:
            error = as_provider_error(outcome, self._gate.secrets())
            _log.warning("provider_close_failed", provider=self._host.code, error=str(error))

    async def _watch(
        self,
        work: Coroutine[Any, Any, None],
        name: str,
        ended: asyncio.Future[BaseException | None] | None,
    ) -> None:
        cause = await _fate(work) or ProviderUnavailable(
            f"the connection was closed ({name} ended)", reason="closed"
        )
        if ended is None:
            error = as_provider_error(cause, self._gate.secrets())
            _log.warning("provider_task_ended", provider=self._host.code, task=name, error=str(error))
        elif not ended.done():
            ended.set_result(cause)


def _outcome(task: asyncio.Future[None]) -> BaseException | None:
    if task.cancelled():
        return ProviderUnavailable("connecting was cancelled", reason="cancelled")
    return task.exception()


async def _fate(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """Await `work` and return what it raised, whatever library's exception that is; None when nothing."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    except BaseException:
        # However this ends, the work ends with it: it must never go on unwatched.
        await end_tasks([task])
        raise
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def _called(method: Callable[[], Any]) -> None:
    """Call `method` and await what it returns; nothing is left unawaited when this is cancelled before."""
    await _settled(method())


async def _settled(result: Any) -> None:
    """Await what a method returned; adapters that forgot `async` return None."""
    if inspect.isawaitable(result):
        await result
