"""When to try again and when to wait for a human: the loop around every session with a provider.

Stands beneath `base_provider` and the connection runners, which both keep trying by the same rules:
back-off with full jitter for what passes by itself, longer waits where the vendor asks for them, and
not one attempt with credentials that are known to be missing or refused.
Never opens a connection itself and never shows a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

import structlog

from services.credential_state import CredentialBook, CredentialState
from services.errors import (
    ConfigurationError,
    CredentialsMissing,
    CredentialsRejected,
    MarketdError,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    SettingsUnusable,
    Verdict,
)
from services.pipeline.backoff import Backoff
from services.redaction import redact

_log = structlog.get_logger(__name__)

HEALTHY_AFTER_S = 30.0
"""A session that brought data for this long starts the back-off anew."""
RATE_LIMIT_WAIT_S = 60.0
"""The first wait after "too many requests"; doubled each time it happens again."""
RATE_LIMIT_CAP_S = 300.0
PARKED_LIMIT_CAP_S = 960.0
"""The longest wait where the vendor asks to stop altogether for a while."""
_ERROR_TEXT_LIMIT = 300


class Failure(NamedTuple):
    """How one attempt ended: with what error, after how many seconds with data, with which credentials."""

    error: ProviderError
    healthy_s: float
    fingerprint: int


class Wait(NamedTuple):
    """What to do after a failure. `seconds` None: until the settings change."""

    seconds: float | None
    parked: bool


class RetryPolicy:
    """From an error's verdict to a wait. One per session loop; pure but for the dice."""

    def __init__(self, backoff: Backoff | None = None, rng: random.Random | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()  # noqa: S311 - spreads waits, guards nothing
        self._limited = 0

    def after(self, error: ProviderError, healthy_s: float) -> Wait:
        """Return how long to wait after `error` ended a session that had brought data for `healthy_s`."""
        self._backoff.succeeded(healthy_s)
        if healthy_s >= HEALTHY_AFTER_S:
            self._limited = 0
        parked = error.verdict in (Verdict.PARK, Verdict.FATAL)
        if isinstance(error, ProviderRateLimited):
            return Wait(self._limit_wait_s(error, parked), parked)
        if parked:
            return Wait(error.retry_after_s, True)
        return Wait(self._backoff.next_wait_s(self._spread(error.retry_after_s or 0.0)), False)

    def _limit_wait_s(self, error: ProviderRateLimited, parked: bool) -> float:
        if error.retry_after_s is not None:
            return self._spread(error.retry_after_s)
        cap_s = PARKED_LIMIT_CAP_S if parked else RATE_LIMIT_CAP_S
        wait_s = min(cap_s, RATE_LIMIT_WAIT_S * 2.0 ** min(self._limited, 10))
        self._limited += 1
        return self._spread(wait_s)

    def _spread(self, wait_s: float) -> float:
        """Never earlier than asked, and not all connections in the same instant."""
        return wait_s * self._rng.uniform(1.0, 1.1)


class CredentialGate:
    """Knows whether an attempt makes sense with the settings as they are now.

    `settings` is read anew at every look. Settings are remembered as a hash only. One gate is
    shared by all connections of a provider, so that a credential refused on one is not tried on another.
    `expiry_ms(settings)` is when the credentials end, UTC epoch ms (None: unknown): from then on they are not
    tried at all. `now_ms` is the wall clock.
    """

    def __init__(
        self,
        settings: Callable[[], Mapping[str, str]],
        *,
        code: str,
        credential_names: Iterable[str] = (),
        setting_names: Iterable[str] = (),
        poll_s: float = 3.0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        expiry_ms: Callable[[Mapping[str, str]], int | None] = lambda _: None,
        name: str = "",
    ) -> None:
        self._now_ms = now_ms
        self._expiry_ms = expiry_ms
        self._name = name or code
        self._book = CredentialBook()
        self._settings = settings
        self._code = code
        self._credential_names = tuple(credential_names)
        self._relevant_names = (*self._credential_names, *setting_names)
        self._poll_s = poll_s
        self._last: Mapping[str, str] = {}
        self._problem = ""
        self._poked = asyncio.Event()
        self._plan = 0
        self._refused: tuple[int, ProviderError] | None = None
        self._impossible: tuple[int, int, ProviderError] | None = None

    def read(self) -> Mapping[str, str]:
        """Return the settings as they are now; while they cannot be read, as they were before."""
        try:
            self._last = self._settings()
            self._problem = ""
        except ConfigurationError as error:
            problem = redact(str(error))
            if problem != self._problem:
                self._problem = problem
                _log.warning("provider_settings_unreadable", provider=self._code, problem=problem)
        return self._last

    def fingerprint(self) -> int:
        """Return a number that changes when a relevant setting changes."""
        values = self.read()
        return hash(tuple(values.get(name, "") for name in self._relevant_names))

    def secrets(self) -> tuple[str, ...]:
        """Return the credential values last read, for redaction only."""
        return tuple(self._last.get(name, "") for name in self._credential_names)

    def blocked(self) -> ProviderError | None:
        """Return why an attempt is pointless with the present settings, or None."""
        fingerprint = self.fingerprint()
        missing = [name for name in self._credential_names if not self._last.get(name, "").strip()]
        if missing:
            return CredentialsMissing(
                f"no credentials: set {' and '.join(missing)} in .env or in the environment",
                reason="credentials_missing",
            )
        if self._credential_names and self._is_over():
            return CredentialsRejected(
                f"the {self._name} access token has expired: put a new {self._credential_names[-1]} in .env",
                reason="token_expired",
            )
        if self._refused is not None and self._refused[0] == fingerprint:
            return self._refused[1]
        if self._impossible is not None and self._impossible[:2] == (fingerprint, self._plan):
            return self._impossible[2]
        return None

    def expires_ms(self) -> int | None:
        """Return when the credentials last read end, UTC epoch ms; None where that is unknown."""
        return self._expiry_ms(self._last)

    def state(self) -> CredentialState:
        """Return where the credentials stand that are set now."""
        number = self.fingerprint()
        missing = any(not self._last.get(name, "").strip() for name in self._credential_names)
        return self._book.state(number, missing=missing, expires_ms=self.expires_ms(), now_ms=self._now_ms())

    def proved(self, fingerprint: int) -> None:
        """Remember that the vendor took the credentials of `fingerprint`."""
        self._book.proven(fingerprint)

    def _is_over(self) -> bool:
        expires_ms = self.expires_ms()
        return expires_ms is not None and expires_ms <= self._now_ms()

    def condemn(self, fingerprint: int, error: ProviderError) -> None:
        """Remember that the settings of `fingerprint` led to `error`, for which repeating is pointless.

        After a `PARK` only other settings help, after a `FATAL` also other subscriptions do.
        """
        if error.verdict is Verdict.FATAL:
            self._impossible = (fingerprint, self._plan, error)
        else:
            self._refused = (fingerprint, error)
            if isinstance(error, CredentialsRejected):
                self._book.refused(fingerprint)

    def plan_changed(self) -> None:
        """Say that other symbols are wanted now."""
        self._plan += 1
        if self._impossible is not None:
            self.poke()

    def poke(self) -> None:
        """Have everybody who waits look at the settings at once."""
        poked, self._poked = self._poked, asyncio.Event()
        poked.set()

    async def look_again(self, within_s: float | None = None) -> None:
        """Wait until somebody pokes, at most `within_s` seconds (by default the polling interval)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s or self._poll_s):
                await self._poked.wait()

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, less when the relevant settings change meanwhile and somebody pokes."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        before = self.fingerprint()
        while (remaining_s := until_s - loop.time()) > 0:
            await self.look_again(remaining_s)
            if loop.time() < until_s and self.fingerprint() != before:
                return


async def keep_trying(
    attempt: Callable[[], Awaitable[Failure]],
    *,
    gate: CredentialGate,
    policy: RetryPolicy,
    show: Callable[[bool, ProviderError], None],
    ready: Callable[[], Awaitable[bool]],
) -> None:
    """Make one attempt after another until cancelled, each after the wait its predecessor calls for.

    `ready()` returns True when there is something to do; otherwise it waits and returns False.
    `show(parked, error)` is told of every wait. Nothing is awaited before credentials are judged.
    """
    while True:
        blocked = gate.blocked()
        if blocked is not None:
            show(True, blocked)
            await gate.look_again()
            continue
        if not await ready():
            continue
        failure = await attempt()
        wait = policy.after(failure.error, failure.healthy_s)
        if wait.seconds is None:
            gate.condemn(failure.fingerprint, failure.error)
            continue
        show(wait.parked, failure.error)
        await gate.pause(wait.seconds)


def as_provider_error(cause: BaseException | None, secrets: Iterable[str] = ()) -> ProviderError:
    """Return what ended a session as a `ProviderError` whose text holds no secret.

    Our own errors keep their verdict; a library's own exception types all mean "try again".
    """
    if cause is None:
        return ProviderUnavailable("the session ended", reason="ended")
    text = redact(str(cause), secrets)[:_ERROR_TEXT_LIMIT]
    if isinstance(cause, ProviderError):
        if text != str(cause):
            cause.args = (text,)
        return cause
    if isinstance(cause, ConfigurationError):
        return SettingsUnusable(text, reason="configuration")
    if isinstance(cause, MarketdError):
        return ProviderUnavailable(text, reason=type(cause).__name__)
    reason = _os_reason(cause)
    name = type(cause).__name__
    return ProviderUnavailable(f"{name}: {text}" if text else name, reason=reason)


def _os_reason(cause: BaseException) -> str:
    if isinstance(cause, socket.gaierror):
        return "name_resolution"
    if isinstance(cause, ssl.SSLError):
        return "tls"
    if isinstance(cause, ConnectionRefusedError):
        return "refused"
    if isinstance(cause, (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)):
        return "reset"
    if isinstance(cause, TimeoutError):
        return "timeout"
    if isinstance(cause, OSError):
        return "network"
    return "error"
