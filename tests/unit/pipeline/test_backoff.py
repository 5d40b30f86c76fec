"""Waits between attempts."""

from __future__ import annotations

import random

from services.pipeline.backoff import Backoff


def attempts_in_first_minute(seed: int) -> int:
    waits = Backoff(rng=random.Random(seed))
    elapsed_s, attempts = 0.0, 1
    while (elapsed_s := elapsed_s + waits.next_wait_s()) < 60.0:
        attempts += 1
    return attempts


def test_a_refusing_peer_is_asked_at_most_thirteen_times_in_the_first_minute() -> None:
    assert max(attempts_in_first_minute(seed) for seed in range(2_000)) <= 13


def test_waits_never_exceed_the_cap_and_never_undercut_what_the_peer_asked_for() -> None:
    waits = Backoff(rng=random.Random(1))
    assert all(waits.next_wait_s() <= 60.0 for _ in range(100))
    assert waits.next_wait_s(minimum_s=90.0) == 90.0


def test_only_a_lasting_success_starts_the_series_anew() -> None:
    waits = Backoff()
    for _ in range(5):
        waits.next_wait_s()
    waits.succeeded(uptime_s=29.9)
    assert waits.attempts == 5
    waits.succeeded(uptime_s=30.0)
    assert waits.attempts == 0
