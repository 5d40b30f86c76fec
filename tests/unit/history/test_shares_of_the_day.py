"""A vendor's requests of one day: the backfill leaves what users ask for now, in steps."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from services.errors import ProviderRateLimited
from services.history import backfill
from services.history.planner import Window
from services.operations.terminal_views import status_view
from services.options.source import LEFT_FOR_HISTORY
from services.rest.quota import QuotaLimits
from tests.support.backfill_rig import DAY_MS, BackfillRig

NOW_MS = int(datetime(2026, 11, 26, 6, tzinfo=UTC).timestamp() * 1000)
INSTRUMENTS = [f"NSE:{number}" for number in range(60)]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> BackfillRig:
    monkeypatch.setattr(backfill, "_FOUND_PAUSE_S", 0.0)
    made = BackfillRig(INSTRUMENTS, NOW_MS, QuotaLimits(per_second=1000, burst=1000, per_day=40))
    await made.plan()
    return made


def window(instrument: str) -> Window:
    return Window(instrument=instrument, interval="1d", spans=((NOW_MS - 90 * DAY_MS, NOW_MS - 80 * DAY_MS),))


async def test_the_backfill_leaves_half_of_the_day_and_says_so(rig: BackfillRig) -> None:
    await rig.looks(20, every_s=60.0)
    shares = rig.backfill.status()["sources"]["DHAN"]
    assert shares["used_today"] == shares["left_today"] == 20
    assert (shares["left_for_backfill"], shares["left_for_orders"]) == (0, 10)
    assert shares["refused_here"]["quota_day"] > 0
    assert len(await rig.store.missing(INSTRUMENTS, 1_000)) >= 40, "they wait for the next day"


async def test_the_status_says_for_whom_the_rest_of_the_day_is_kept(rig: BackfillRig) -> None:
    assert "DHAN" not in shown(rig)
    await rig.looks(20, every_s=60.0)
    told = "DHAN was asked for the past and chains 20 times today, 20 requests are left"
    assert f"{told}: the backfill keeps them for what is asked for" in shown(rig)
    for _ in range(20):
        await rig.source.quota.take(1.0)
    assert "40 times today, 0 requests are left" in shown(rig)


def shown(rig: BackfillRig) -> str:
    printed = StringIO()
    answer = {"providers": [], "pipeline": {"backfill": rig.backfill.status()}}
    Console(width=200, file=printed).print(status_view(answer))
    return printed.getvalue()


async def test_an_order_stops_before_chains_and_they_before_whoever_waits_for_a_chart(
    rig: BackfillRig,
) -> None:
    await rig.looks(20, every_s=60.0)
    job = await rig.backfill.ask(INSTRUMENTS, "1d", NOW_MS - 60 * DAY_MS, NOW_MS - 50 * DAY_MS)
    for _ in range(10):
        await rig.steps()
        rig.clock.advance(60.0)
    assert rig.source.quota.used_today == 30
    assert job.failed == job.windows - 10
    assert job.refused["DHAN quota_day"] >= job.failed
    for _ in range(6):
        await rig.source.quota.take(1.0, leave=LEFT_FOR_HISTORY)
    with pytest.raises(ProviderRateLimited, match="36 of its 40 requests of the day are used, 4 are left"):
        await rig.source.quota.take(1.0, leave=LEFT_FOR_HISTORY)
    for instrument in INSTRUMENTS[:4]:
        outcome = await rig.filler.fill(window(instrument))
        assert outcome.sources == ("DHAN",)
    outcome = await rig.filler.fill(window(INSTRUMENTS[4]))
    assert [refusal.reason for refusal in outcome.refusals] == ["quota_day"]


async def test_a_reader_s_request_is_not_held_back_by_the_backfill_s_share(rig: BackfillRig) -> None:
    await rig.looks(20, every_s=60.0)
    await rig.backfill.fetch([window(INSTRUMENTS[0])], within_s=0.01)
    await rig.steps()
    assert rig.source.quota.used_today == 21


async def test_on_the_next_day_the_backfill_goes_on(rig: BackfillRig) -> None:
    await rig.looks(20, every_s=60.0)
    rig.clock.advance(86_400.0)
    await rig.looks(20, every_s=60.0)
    assert rig.source.quota.used_today == 20
    assert len(rig.source.asked) == 40
