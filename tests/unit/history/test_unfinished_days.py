"""Days whose bars are not to be had yet: what of them the backfill looks for, how often, when it comes."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from services.history import backfill
from services.market_data.bars import MINUTE_MS
from services.market_data.coverage import HAVE
from services.rest.quota import QuotaLimits
from tests.support.backfill_rig import DAY_MS, BackfillRig


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


async def rig(instrument: str, now: str, monkeypatch: pytest.MonkeyPatch) -> BackfillRig:
    monkeypatch.setattr(backfill, "_FOUND_PAUSE_S", 0.0)
    made = BackfillRig([instrument], at(now), QuotaLimits(per_second=1000, burst=1000))
    await made.plan()
    return made


@pytest.mark.parametrize(
    ("instrument", "now"),
    [
        ("NSE:RELIANCE", "2026-11-26T18:31"),
        ("BSE:TCS", "2026-11-26T18:50"),
        ("CRYPTO:BTC-USD", "2026-11-26T00:05"),
    ],
)
async def test_after_midnight_the_day_s_end_is_not_looked_for_over_and_over(
    instrument: str, now: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = await rig(instrument, now, monkeypatch)
    assert await subject.looks(1) == 1
    assert len(subject.source.asked) == 1
    assert await subject.looks(60) <= 2, "five minutes of looks"


@pytest.mark.parametrize(
    ("instrument", "now", "last"),
    [
        ("NSE:RELIANCE", "2026-11-26T18:31", "2026-11-26T10:00"),
        ("CRYPTO:BTC-USD", "2026-11-26T00:05", "2026-11-26T00:00"),
    ],
)
async def test_every_day_is_had_in_the_end_and_nothing_stays_missing(
    instrument: str, now: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = await rig(instrument, now, monkeypatch)
    assert await subject.looks(70, every_s=MINUTE_MS / 1000) <= 5
    assert await subject.store.missing([instrument], 10) == []
    had = [row for row in subject.store.rows if row.source == "DHAN"]
    assert max(row.to_ms for row in had) == at(last)
    spans = sorted((row.from_ms, row.to_ms) for row in subject.store.rows if row.state == HAVE)
    assert all(end == begin for (_, end), (begin, _) in pairwise(spans))


async def test_a_day_asked_for_while_it_trades_comes_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = await rig("NSE:RELIANCE", "2026-11-26T06:00", monkeypatch)
    await subject.looks(2)
    now_ms = subject.clock.now_ms()
    await subject.backfill.ask(["NSE:RELIANCE"], "1d", now_ms - 3 * DAY_MS, now_ms)
    # Until half an hour after the close: 10:30 UTC.
    assert await subject.looks(200, every_s=60.0) <= 3
    asked = len(subject.source.asked)
    assert await subject.looks(120, every_s=60.0) >= 1
    assert len(subject.source.asked) == asked + 1
    assert subject.source.asked[-1] == (at("2026-11-26T03:45"), at("2026-11-26T10:00"))
