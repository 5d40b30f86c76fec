"""Credentials as a state machine: where they stand, what that allows, when they are renewed."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from services.credential_keeper import market_hours
from services.credential_state import (
    EXPIRING_MS,
    CredentialBook,
    CredentialState,
    MarketHours,
    credential_expiry_ms,
    renewal_due,
)
from services.errors import CredentialsMissing, CredentialsRejected, ProviderError
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.operations.troubles import ProviderCondition, troubles
from services.provider_lifecycle import CredentialGate, Failure, RetryPolicy, keep_trying

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
WEEK_MINUTES = 7 * 24 * 60
MONDAY_MS = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp() * 1000)
"""A week without holidays in India."""


def token(expires_ms: int) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"exp": expires_ms // 1000}).encode()).rstrip(b"=").decode()
    return f"h.{body}.s"


class Rig:
    def __init__(self, now_ms: int = MONDAY_MS) -> None:
        self.clock = ManualClock(now_ms)
        self.settings = {"DHAN_CLIENT_ID": "1", "DHAN_ACCESS_TOKEN": ""}
        self.gate = CredentialGate(
            lambda: self.settings,
            code="DHAN",
            credential_names=("DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN"),
            poll_s=0.001,
            now_ms=self.clock.now_ms,
            expiry_ms=lambda values: credential_expiry_ms(values.get("DHAN_ACCESS_TOKEN", "")),
            name="Dhan",
        )

    def set(self, value: str) -> None:
        self.settings = {**self.settings, "DHAN_ACCESS_TOKEN": value}

    def at(self, at_ms: int) -> None:
        self.clock.step_wall(at_ms - self.clock.now_ms())


def test_from_missing_to_refused_and_back() -> None:
    rig = Rig()
    gate = rig.gate
    assert gate.state() is CredentialState.MISSING
    assert isinstance(gate.blocked(), CredentialsMissing)
    rig.set(token(MONDAY_MS + 24 * HOUR_MS))
    assert (gate.state(), gate.blocked()) == (CredentialState.UNTESTED, None)
    gate.proved(gate.fingerprint())
    assert gate.state() is CredentialState.VALID
    rig.at(MONDAY_MS + 24 * HOUR_MS - EXPIRING_MS)
    assert (gate.state(), gate.blocked()) == (CredentialState.EXPIRING, None)
    rig.at(MONDAY_MS + 24 * HOUR_MS)
    assert gate.state() is CredentialState.EXPIRED
    blocked = gate.blocked()
    assert isinstance(blocked, CredentialsRejected)
    assert blocked.reason == "token_expired"
    assert "put a new DHAN_ACCESS_TOKEN in .env" in str(blocked)
    rig.set(token(MONDAY_MS + 48 * HOUR_MS))
    assert (gate.state(), gate.blocked()) == (CredentialState.UNTESTED, None)
    gate.condemn(gate.fingerprint(), CredentialsRejected("no", reason="disconnect_809"))
    assert gate.state() is CredentialState.REFUSED
    assert gate.blocked() is not None
    rig.set("a-token-without-an-end")
    assert (gate.state(), gate.blocked()) == (CredentialState.UNTESTED, None)


def test_a_proof_of_old_credentials_says_nothing_of_new_ones() -> None:
    book = CredentialBook()
    book.proven(1)
    assert book.state(2, missing=False, expires_ms=None, now_ms=0) is CredentialState.UNTESTED
    book.refused(1)
    assert book.state(1, missing=False, expires_ms=None, now_ms=0) is CredentialState.REFUSED


def test_an_expiry_at_any_minute_of_a_week_lets_no_attempt_through_from_that_minute_on() -> None:
    rig = Rig()
    dice = random.Random(5)
    for minute in range(WEEK_MINUTES):
        expires_ms = MONDAY_MS + minute * MINUTE_MS
        rig.set(token(expires_ms))
        rig.at(expires_ms - 1)
        assert rig.gate.blocked() is None, minute
        for later_ms in (0, 1, dice.randrange(7 * 24 * HOUR_MS)):
            rig.at(expires_ms + later_ms)
            assert rig.gate.blocked() is not None, (minute, later_ms)
            assert rig.gate.state() is CredentialState.EXPIRED
        rig.set(token(rig.clock.now_ms() + 24 * HOUR_MS))
        assert rig.gate.blocked() is None, minute


async def test_a_week_of_attempts_makes_none_with_a_dead_token_and_wakes_for_a_new_one() -> None:
    """The real loop: a vendor that ends every session; tokens of a day, put in late by a human."""
    rig = Rig()
    attempts: list[tuple[int, int]] = []
    shown: list[ProviderError] = []

    async def attempt() -> Failure:
        now_ms, expires_ms = rig.clock.now_ms(), rig.gate.expires_ms()
        assert expires_ms is not None
        attempts.append((now_ms, expires_ms))
        rig.clock.advance(60)
        if expires_ms <= rig.clock.now_ms():
            error: ProviderError = CredentialsRejected("807", reason="disconnect_807")
        else:
            error = ProviderError("ended", retry_after_s=0.0)
        return Failure(error, 60.0, rig.gate.fingerprint())

    async def ready() -> bool:
        return True

    class AtOnce(RetryPolicy):
        def after(self, error: ProviderError, healthy_s: float):  # type: ignore[no-untyped-def]
            return (
                super()
                .after(error, healthy_s)
                ._replace(seconds=None if error.verdict.name == "PARK" else 0.0)
            )

    rig.set(token(MONDAY_MS + 24 * HOUR_MS))
    task = asyncio.create_task(
        keep_trying(
            attempt,
            gate=rig.gate,
            policy=AtOnce(),
            show=lambda parked, error: shown.append(error),
            ready=ready,
        )
    )
    end_ms = MONDAY_MS + WEEK_MINUTES * MINUTE_MS
    dead_hours = 0
    while rig.clock.now_ms() < end_ms:
        await asyncio.sleep(0)
        if rig.gate.state() in (CredentialState.EXPIRED, CredentialState.REFUSED):
            before = len(attempts)
            rig.clock.advance(3600)
            dead_hours += 1
            await asyncio.sleep(0.004)
            assert len(attempts) == before, "an attempt with a dead token"
            if dead_hours % 5 == 0:
                rig.set(token(rig.clock.now_ms() + 24 * HOUR_MS))
                rig.gate.poke()
    task.cancel()
    assert dead_hours > 10
    assert len(attempts) > 1_000
    assert all(now_ms < expires_ms for now_ms, expires_ms in attempts)
    assert all(isinstance(error, ProviderError) for error in shown)


@pytest.mark.parametrize("first_left_h", range(3, 25, 3))
def test_renewed_tokens_live_through_a_week_and_through_every_session(first_left_h: int) -> None:
    calendar = MarketCalendar()
    step_ms = 15 * MINUTE_MS
    for start_h in range(0, 168, 5):
        now_ms = MONDAY_MS + start_h * HOUR_MS
        expires_ms = now_ms + first_left_h * HOUR_MS
        renewals = in_session = 0
        for _ in range(7 * 24 * 4):
            hours = market_hours(calendar, ["NSE", "BSE", "NFO"], now_ms)
            if renewal_due(CredentialState.VALID, expires_ms, hours, now_ms):
                renewals += 1
                in_session += hours.open
                expires_ms = now_ms + 24 * HOUR_MS
            assert expires_ms > now_ms, "it never ends"
            now_ms += step_ms
        assert renewals <= 10, "once a day, no more"
        # A start in the middle of a session with little left cannot be helped.
        assert in_session <= 1


def test_what_is_dead_or_without_an_end_is_not_renewed() -> None:
    hours = MarketHours(open=True, closes_ms=10 * HOUR_MS)
    assert renewal_due(CredentialState.EXPIRING, HOUR_MS, hours, 0)
    assert not renewal_due(CredentialState.EXPIRED, HOUR_MS, hours, 2 * HOUR_MS)
    assert not renewal_due(CredentialState.REFUSED, HOUR_MS, hours, 0)
    assert not renewal_due(CredentialState.VALID, None, hours, 0)


# ---- what an administrator hears -------------------------------------------------------------------


def told(at: datetime, expires: datetime, *, renews: bool = False) -> list[str]:
    """Return the keys of the troubles for a token that ends at `expires`, told at `at`."""
    now_ms, expires_ms = (int(moment.timestamp() * 1000) for moment in (at, expires))
    hours = market_hours(MarketCalendar(), ["NSE"], now_ms)
    dead = expires_ms <= now_ms
    condition = ProviderCondition(
        code="DHAN",
        state="parked" if dead else "streaming",
        reason="the Dhan access token has expired" if dead else "",
        credential_expires_ms=expires_ms,
        credential_state=CredentialState.EXPIRED if dead else CredentialState.VALID,
        renews=renews,
        hours=hours,
        quiet=hours.is_quiet(now_ms),
    )
    return sorted(
        troubles(now_ms=now_ms, providers=[condition], sinks=(), spool=(), not_ready=(), degraded=())
    )


def day(number: int, hour: int, minute: int = 0) -> datetime:
    """A time in UTC of the week of 23 November 2026; NSE trades from 03:45 to 10:00."""
    return datetime(2026, 11, number, hour, minute, tzinfo=UTC)


QUIET: Mapping[str, tuple[datetime, datetime, list[str]]] = {
    "expired on Saturday, looked at on Saturday": (day(28, 12), day(28, 6), []),
    "expires on Saturday in an hour": (day(28, 12), day(28, 13), []),
    "expired on Saturday, Sunday evening": (day(29, 23), day(28, 6), []),
    "expired on Saturday, Monday before the session": (day(30, 0), day(28, 6), ["provider:DHAN"]),
    "expired in the session": (day(27, 5), day(27, 4), ["provider:DHAN"]),
    "expired after the close": (day(26, 11), day(26, 10, 30), []),
    "ends in the session that is near": (day(26, 1), day(26, 8), ["credentials:DHAN"]),
    "outlasts the session that is near": (day(26, 1), day(26, 11), []),
    "ends in an hour of the session": (day(26, 6), day(26, 7), ["credentials:DHAN"]),
}


@pytest.mark.parametrize("name", QUIET)
def test_nobody_is_woken_before_a_session_is_near(name: str) -> None:
    at, expires, keys = QUIET[name]
    assert told(at, expires) == keys


def test_what_renews_itself_is_warned_of_only_when_that_did_not_happen() -> None:
    assert told(day(26, 5), day(26, 6, 45), renews=True) == []
    assert told(day(26, 5), day(26, 6, 20), renews=True) == ["credentials:DHAN"]
    assert told(day(26, 5), day(26, 9), renews=True) == []
