"""Waits and verdicts, without a clock or a socket."""

from __future__ import annotations

import random
import socket
import ssl

import pytest

from services.errors import (
    ConfigurationError,
    ConnectionLimitReached,
    CredentialsRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    SettingsUnusable,
    SubscriptionRefused,
    TemporaryError,
    Verdict,
)
from services.pipeline.backoff import Backoff
from services.provider_frames import DamageMeter
from services.provider_lifecycle import CredentialGate, RetryPolicy, as_provider_error


def policy(seed: int = 1) -> RetryPolicy:
    return RetryPolicy(Backoff(rng=random.Random(seed)), random.Random(seed))


def test_a_connection_that_keeps_failing_is_tried_at_most_twelve_times_in_a_minute() -> None:
    for seed in range(2_000):
        waits = policy(seed)
        elapsed, attempts = 0.0, 1
        while True:
            wait = waits.after(ProviderUnavailable("down"), 5.0)
            assert wait.seconds is not None
            assert 0 <= wait.seconds <= 60
            elapsed += wait.seconds
            if elapsed > 60:
                break
            attempts += 1
        assert attempts <= 12


def test_only_thirty_seconds_of_data_start_the_waits_anew() -> None:
    waits = policy()
    for _ in range(10):
        waits.after(ProviderUnavailable("down"), 29.9)
    assert any((waits.after(ProviderUnavailable("down"), 5.0).seconds or 0) > 5 for _ in range(20))
    for _ in range(20):
        assert (waits.after(ProviderUnavailable("down"), 30.0).seconds or 0) <= 1.0


def test_the_wait_that_the_peer_asks_for_is_the_least_wait() -> None:
    wait = policy().after(ProviderUnavailable("later", retry_after_s=10.0), 0.0)
    assert wait.seconds is not None
    assert 10.0 <= wait.seconds <= 11.0


def test_a_rate_limit_is_waited_out_from_one_to_five_minutes() -> None:
    waits = policy()
    seconds = [waits.after(ProviderRateLimited("429"), 0.0).seconds or 0 for _ in range(5)]
    for wait, expected in zip(seconds, [60, 120, 240, 300, 300], strict=True):
        assert expected <= wait <= expected * 1.1
    exact = waits.after(ProviderRateLimited("429", retry_after_s=7.0), 0.0)
    assert 7.0 <= (exact.seconds or 0) <= 7.7
    assert not exact.parked


def test_too_many_connections_park_for_a_minute_and_twice_as_long_each_time() -> None:
    waits = policy()
    outcomes = [waits.after(ConnectionLimitReached("805"), 0.0) for _ in range(6)]
    assert all(wait.parked for wait in outcomes)
    for wait, expected in zip(outcomes, [60, 120, 240, 480, 960, 960], strict=True):
        assert expected <= (wait.seconds or 0) <= expected * 1.1
    again = waits.after(ConnectionLimitReached("805"), 60.0)
    assert (again.seconds or 0) <= 66


@pytest.mark.parametrize(
    "error", [CredentialsRejected("807"), SettingsUnusable("url"), SubscriptionRefused("804")]
)
def test_what_repeating_cannot_mend_waits_for_a_change(error: ProviderError) -> None:
    assert policy().after(error, 100.0) == (None, True)


def gate_of(settings: dict[str, str]) -> CredentialGate:
    return CredentialGate(
        lambda: settings, code="X", credential_names=("X_ID", "X_TOKEN"), setting_names=("X_URL",)
    )


def test_missing_and_blank_credentials_block_and_are_named() -> None:
    blocked = gate_of({"X_ID": " ", "X_TOKEN": "t"}).blocked()
    assert "X_ID" in str(blocked)
    assert "X_TOKEN" not in str(blocked)
    assert gate_of({"X_ID": "i", "X_TOKEN": "t"}).blocked() is None


@pytest.mark.parametrize("name", ["X_ID", "X_TOKEN", "X_URL"])
def test_refused_credentials_block_until_one_relevant_setting_is_another(name: str) -> None:
    settings = {"X_ID": "i", "X_TOKEN": "t", "X_URL": "u"}
    gate = gate_of(settings)
    error = CredentialsRejected("no")
    gate.condemn(gate.fingerprint(), error)
    assert gate.blocked() is error
    settings["OTHER"] = "changed"
    gate.plan_changed()
    assert gate.blocked() is error
    settings[name] = "changed"
    assert gate.blocked() is None


def test_a_refused_plan_blocks_until_other_symbols_are_wanted() -> None:
    gate = gate_of({"X_ID": "i", "X_TOKEN": "t"})
    error = SubscriptionRefused("no")
    gate.condemn(gate.fingerprint(), error)
    assert gate.blocked() is error
    gate.plan_changed()
    assert gate.blocked() is None


@pytest.mark.parametrize(
    ("cause", "reason", "verdict"),
    [
        (None, "ended", Verdict.RETRY),
        (ConnectionRefusedError(111, "refused"), "refused", Verdict.RETRY),
        (ConnectionResetError(), "reset", Verdict.RETRY),
        (BrokenPipeError(), "reset", Verdict.RETRY),
        (TimeoutError(), "timeout", Verdict.RETRY),
        (socket.gaierror(-2, "unknown"), "name_resolution", Verdict.RETRY),
        (ssl.SSLCertVerificationError(1, "expired"), "tls", Verdict.RETRY),
        (OSError(101, "unreachable"), "network", Verdict.RETRY),
        (RuntimeError("any library"), "error", Verdict.RETRY),
        (TemporaryError("later"), "TemporaryError", Verdict.RETRY),
        (ConfigurationError("wrong"), "configuration", Verdict.PARK),
        (CredentialsRejected("no", reason="http_401"), "http_401", Verdict.PARK),
    ],
)
def test_whatever_ends_a_session_becomes_a_provider_error(
    cause: BaseException | None, reason: str, verdict: Verdict
) -> None:
    error = as_provider_error(cause)
    assert (error.reason, error.verdict) == (reason, verdict)


def test_the_text_of_an_error_is_short_and_holds_no_secret() -> None:
    for cause in (RuntimeError("at tok-123 " * 100), CredentialsRejected("at tok-123 " * 100)):
        error = as_provider_error(cause, ["tok-123"])
        assert "tok-123" not in str(error) + repr(error)
        assert len(str(error)) < 350


def test_damage_counts_as_hopeless_only_when_it_does_not_stop() -> None:
    meter = DamageMeter()
    assert not any(meter.add(10.0 + n / 1_000) for n in range(500))
    assert not any(meter.add(11.0 + n / 100) for n in range(50))
    assert meter.add(11.9)
    calm = DamageMeter()
    assert not any(calm.add(20.0 + n * 0.025) for n in range(2_000))
    interrupted = DamageMeter()
    assert not any(interrupted.add(second + n / 100) for second in (1.0, 3.0, 5.0) for n in range(80))
