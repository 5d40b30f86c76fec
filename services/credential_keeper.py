"""Renews credentials ahead of their end, where the vendor does that; one daemon at a time.

Runs while this daemon leads. Asks each provider whether its credentials will outlast the next session,
has it fetch new ones, and stores them where the next start finds them. Never shows a secret. A renewal
that the vendor refuses is said once and not repeated with the same credentials.

The old credentials end when the vendor gives new ones. So the exchange and the storing are one piece of work
in a task of its own: who stops the keeper, or has it step down, does not cut it. `finish` waits for it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import structlog
from redis.exceptions import RedisError

from services.base_provider import BaseMarketDataProvider
from services.credential_state import CredentialState, MarketHours, renewal_due
from services.errors import ProviderError, StorageError, Verdict
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.redaction import redact
from services.storage.client import make_client

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = 15.0
LOCK_S = 120
"""So long nobody else renews a provider's credentials: longer than a renewal may take."""
AGAIN_AFTER_S = (60.0, 120.0, 300.0, 900.0)
"""Waits after renewals whose outcome is not known or that came to nothing."""
_A_DAY_MS = 24 * 3_600_000


def lock_key(code: str) -> str:
    """Return the key in Redis that says who renews a provider's credentials."""
    return f"md:credentials:{code}:renewing"


def market_hours(calendar: MarketCalendar, exchanges: Iterable[str], now_ms: int) -> MarketHours:
    """Return the sessions of these exchanges around `now_ms`."""
    exchanges = list(exchanges)
    if calendar.open_among(exchanges, now_ms):
        running = [calendar.session_at(exchange, now_ms) for exchange in exchanges]
        ends = [session.close_ms for session in running if session is not None]
        return MarketHours(open=True, closes_ms=max(ends, default=None))
    coming = [
        session for exchange in exchanges if (session := calendar.next_session(exchange, now_ms)) is not None
    ]
    first = min(coming, key=lambda session: session.open_ms, default=None)
    if first is None:
        return MarketHours(open=False)
    # What opens on the same day counts as one: MCX trades on when the others have closed.
    same_day = [session.close_ms for session in coming if session.open_ms - first.open_ms < _A_DAY_MS]
    return MarketHours(open=False, next_open_ms=first.open_ms, closes_ms=max(same_day))


def _go_on_unless_cancelled() -> None:
    """Raise a cancellation that was swallowed, as `wait_for` of Python 3.11 does beneath redis-py."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class CredentialKeeper:
    """Looks after the credentials of all providers. `run` until cancelled.

    `hours(code)` tells the sessions of a provider's exchanges. `save(values)` stores new values of
    settings, so that `settings()` of the providers gives them from then on; it may block, and raises
    `OSError`. `problems` are what an administrator should know, by provider code.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        redis_url: str,
        providers: Callable[[], Iterable[BaseMarketDataProvider]],
        hours: Callable[[str], MarketHours],
        save: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._clock = clock
        self._redis_url = redis_url
        self._providers = providers
        self._hours = hours
        self._save = save
        self._not_before_s: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._given_up: dict[str, int] = {}
        self._unsaved: dict[str, Mapping[str, str]] = {}
        self._whole: asyncio.Task[None] | None = None
        self.problems: dict[str, str] = {}
        self.renewals: dict[str, int] = {}

    async def run(self) -> None:
        """Look at the credentials now and then until cancelled."""
        while True:
            await self.look()
            _go_on_unless_cancelled()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Renew what is due now."""
        if self._whole is not None:
            # Begun before this daemon stepped down; it leads again.
            await asyncio.wait([self._whole])
        for provider in list(self._providers()):
            if provider.renews_credentials:
                if provider.code in self._unsaved:
                    await self._as_a_whole(self._store(provider, self._unsaved[provider.code]))
                elif self._is_due(provider):
                    await self._renew(provider)

    async def finish(self, within_s: float) -> None:
        """Wait for a renewal under way, at most `within_s` seconds; the keeper runs no more.

        Stores what could not be stored before, if it can be now.
        """
        try:
            async with asyncio.timeout(within_s):
                if self._whole is not None:
                    await asyncio.wait([self._whole])
                for provider in list(self._providers()):
                    if provider.code in self._unsaved:
                        await self._as_a_whole(self._store(provider, self._unsaved[provider.code]))
        except TimeoutError:
            _log.error("credentials_renewal_cut_short", within_s=within_s)

    async def _as_a_whole(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; it goes on to its end when the caller is cancelled."""
        task = self._whole = asyncio.create_task(work, name="credentials:whole")
        task.add_done_callback(self._whole_done)
        await asyncio.shield(task)

    def _whole_done(self, task: asyncio.Task[None]) -> None:
        if self._whole is task:
            self._whole = None
        if task.cancelled():
            _log.error("credentials_renewal_cut_short")
        elif (error := task.exception()) is not None:
            _log.error("credentials_renewal_failed", error=type(error).__name__)

    def _is_due(self, provider: BaseMarketDataProvider) -> bool:
        code, state = provider.code, provider.credential_state
        if state is None or self._clock.monotonic_s() < self._not_before_s.get(code, 0.0):
            return False
        number = provider.credential_number
        if self._given_up.get(code, number) != number:
            # An operator has put in others.
            del self._given_up[code]
            self.problems.pop(code, None)
        if code in self._given_up:
            return False
        if not renewal_due(state, provider.credential_expires_ms, self._hours(code), self._clock.now_ms()):
            if state in (CredentialState.VALID, CredentialState.UNTESTED):
                self.problems.pop(code, None)
            return False
        return True

    async def _renew(self, provider: BaseMarketDataProvider) -> None:
        code = provider.code
        number = provider.credential_number
        try:
            alone = await self._take_lock(code)
        except (RedisError, StorageError, OSError) as error:
            self._try_later(code, f"who renews cannot be agreed on while Redis is away: {redact(str(error))}")
            return
        _go_on_unless_cancelled()
        if not alone:
            # Another daemon of this account does it; its token comes to us by the file that we share.
            self._not_before_s[code] = self._clock.monotonic_s() + LOCK_S
            return
        if provider.credential_number == number and self._is_due(provider):
            await self._as_a_whole(self._exchange(provider, number))

    async def _exchange(self, provider: BaseMarketDataProvider, number: int) -> None:
        """Have the vendor give new credentials for those with this number, and store them."""
        code = provider.code
        try:
            values = await provider.renew_credentials()
        except ProviderError as error:
            if error.verdict is Verdict.RETRY:
                self._try_later(code, str(error), error.retry_after_s)
            else:
                self._given_up[code] = number
                self.problems[code] = f"its credentials cannot be renewed: {error}"
                _log.error("credentials_not_renewed", provider=code, reason=str(error))
            return
        self._failures.pop(code, None)
        await self._store(provider, values)

    async def _store(self, provider: BaseMarketDataProvider, values: Mapping[str, str]) -> None:
        """Store new credentials; while that fails they are kept here, because the old ones are dead."""
        code = provider.code
        try:
            await asyncio.to_thread(self._save, values)
        except OSError as error:
            self._unsaved[code] = values
            self.problems[code] = f"its new credentials cannot be stored ({error.strerror}): free the disk"
            _log.error("credentials_not_stored", provider=code, reason=error.strerror)
            return
        self._unsaved.pop(code, None)
        self.problems.pop(code, None)
        self.renewals[code] = self.renewals.get(code, 0) + 1
        provider.credentials_changed()
        _log.info("credentials_renewed", provider=code, expires_ms=provider.credential_expires_ms)

    def _try_later(self, code: str, reason: str, wait_s: float | None = None) -> None:
        failures = self._failures.get(code, 0)
        self._failures[code] = failures + 1
        wait_s = max(wait_s or 0.0, AGAIN_AFTER_S[min(failures, len(AGAIN_AFTER_S) - 1)])
        self._not_before_s[code] = self._clock.monotonic_s() + wait_s
        self.problems[code] = f"its credentials are not renewed yet: {reason}"
        _log.warning("credentials_not_renewed_yet", provider=code, reason=reason, again_in_s=wait_s)

    async def _take_lock(self, code: str) -> bool:
        client = make_client(self._redis_url, name="marketd:credentials")
        try:
            return bool(await client.set(lock_key(code), secrets.token_hex(8), nx=True, ex=LOCK_S))
        finally:
            await client.aclose()
