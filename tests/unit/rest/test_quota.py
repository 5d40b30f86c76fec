"""The quota of a provider: spacing, the day's number, pauses; by a manual clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.errors import ProviderRateLimited
from services.market_data.clock import ManualClock
from services.rest.quota import Quota, QuotaLimits


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


async def test_requests_are_spaced_evenly_and_below_the_limit(slept: list[float]) -> None:
    quota = Quota("DHAN", QuotaLimits(per_second=5), ManualClock())
    for _ in range(4):
        await quota.take(10)
    spacing = 1 / (5 * 0.9)
    assert slept == pytest.approx([spacing, 2 * spacing, 3 * spacing])


async def test_after_a_rest_a_burst_goes_at_once_and_the_rate_holds_behind_it(slept: list[float]) -> None:
    clock = ManualClock()
    quota = Quota("YF", QuotaLimits(per_second=1, burst=3), clock)
    clock.advance(100)
    for _ in range(5):
        await quota.take(10)
    spacing = 1 / 0.9
    assert slept == pytest.approx([spacing, 2 * spacing])
    # Nothing is saved up beyond the burst.
    clock.advance(1_000)
    slept.clear()
    for _ in range(4):
        await quota.take(10)
    assert [wait_s for wait_s in slept if wait_s > 1e-9] == pytest.approx([spacing])


async def test_who_leaves_a_part_of_the_day_is_refused_before_the_others(slept: list[float]) -> None:
    quota = Quota("DHAN", QuotaLimits(per_second=1000, per_day=20), ManualClock())
    for _ in range(18):
        await quota.take(10, leave=0.1)
    with pytest.raises(ProviderRateLimited, match="2 are left") as caught:
        await quota.take(10, leave=0.1)
    assert caught.value.reason == "quota_day"
    await quota.take(10)


async def test_who_has_no_patience_is_told_and_takes_nothing(slept: list[float]) -> None:
    quota = Quota("YF", QuotaLimits(per_second=1), ManualClock())
    await quota.take(0)
    with pytest.raises(ProviderRateLimited) as caught:
        await quota.take(0.5)
    assert caught.value.reason == "quota_second"
    assert quota.taken == 1


async def test_a_pause_holds_back_everything(slept: list[float]) -> None:
    clock = ManualClock()
    quota = Quota("YF", QuotaLimits(per_second=1), clock)
    quota.pause(60, "too many requests")
    with pytest.raises(ProviderRateLimited, match="too many requests") as caught:
        await quota.take(30)
    assert caught.value.retry_after_s == pytest.approx(60)
    clock.advance(61)
    await quota.take(0)


async def test_the_number_of_the_day_holds_over_restarts_and_begins_anew_at_the_vendors_midnight(
    tmp_path: Path, slept: list[float]
) -> None:
    clock = ManualClock()
    limits = QuotaLimits(per_second=1000, per_day=25, day_offset_s=19_800)
    file = tmp_path / "quota.json"
    first = Quota("DHAN", limits, clock, file)
    for _ in range(12):
        await first.take(10)
    # Killed without a word: what the file says is never less than what was used.
    second = Quota("DHAN", limits, clock, file)
    assert 12 <= second.used_today <= 21
    for _ in range(25 - second.used_today):
        await second.take(10)
    with pytest.raises(ProviderRateLimited, match="of the day"):
        await second.take(10)
    clock.advance(86_400)
    await second.take(10)
    assert second.used_today == 1
