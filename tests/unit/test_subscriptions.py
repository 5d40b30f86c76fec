"""Dynamic subscriptions: claims, room, what is remembered over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.market_data.clock import ManualClock
from services.subscriptions import FILE, DynamicSubscriptions

NOW_MS = 1_790_748_968_000
KNOWN = {f"NSE:S{n}": None for n in range(10)} | {"NASDAQ:AAPL": None}


class Providers:
    """NSE is at DHAN, the rest at YF; `limits` is the room there is."""

    def __init__(self) -> None:
        self.calls: list[frozenset[str]] = []
        self.limits: dict[str, int] = {}

    async def set_interest(self, instruments: frozenset[str]) -> None:
        if not self.calls or self.calls[-1] != instruments:
            self.calls.append(instruments)

    def places(self) -> Callable[[str], Iterable[str]]:
        return lambda key: ["DHAN" if key.startswith("NSE:") else "YF"]

    def room(self) -> Mapping[str, int]:
        return self.limits

    def subscription_state(self, instrument: str) -> str:
        return "proven" if instrument.startswith("NSE:") else "acked"


class Rig:
    def __init__(self, folder: Path, pinned: Iterable[str] = ()) -> None:
        self.providers = Providers()
        self.clock = ManualClock(NOW_MS)
        self.watched: set[str] = set()
        self.folder = folder
        self.subscriptions = self.made(pinned)

    def made(self, pinned: Iterable[str] = ()) -> DynamicSubscriptions:
        return DynamicSubscriptions(
            self.providers,
            redis_url="redis://127.0.0.1:1/0",
            clock=self.clock,
            watched=lambda: self.watched,
            known=lambda: KNOWN,
            pinned=pinned,
            file=self.folder / FILE,
        )


async def test_pinned_and_watched_instruments_are_subscribed_and_what_is_unknown_is_not(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, pinned=["NASDAQ:*"])
    rig.watched = {"NSE:S1", "NSE:NOPE"}
    await rig.subscriptions.follow()
    assert rig.providers.calls == [{"NASDAQ:AAPL", "NSE:S1"}]
    status = rig.subscriptions.status()
    assert status["by_claim"] == {"pinned": 1, "watched": 1}
    assert status["by_state"] == {"requested": 0, "acked": 1, "proven": 1}
    assert (status["subscribed"], status["shed"]) == (2, 0)


async def test_what_finds_no_room_is_said_once_and_comes_in_when_there_is_room(tmp_path: Path) -> None:
    rig = Rig(tmp_path, pinned=["NSE:S9"])
    rig.providers.limits = {"DHAN": 3}
    rig.watched = {"NSE:S1", "NSE:S2"}
    await rig.subscriptions.follow()
    rig.watched |= {"NSE:S3", "NASDAQ:AAPL"}
    with capture_logs() as logs:
        await rig.subscriptions.follow()
        await rig.subscriptions.follow()
    assert rig.providers.calls[-1] == {"NSE:S9", "NSE:S1", "NSE:S2", "NASDAQ:AAPL"}
    assert [entry["event"] for entry in logs] == ["interest_beyond_capacity"]
    assert logs[0]["first"] == ["NSE:S3"]
    assert logs[0]["at"] == {"DHAN": 1}
    assert rig.subscriptions.status()["shed_instruments"] == ["NSE:S3"]
    rig.watched -= {"NSE:S1"}
    with capture_logs() as logs:
        await rig.subscriptions.follow()
    assert rig.providers.calls[-1] == {"NSE:S9", "NSE:S3", "NSE:S2", "NASDAQ:AAPL"}, "who lingers gives way"
    assert rig.subscriptions.status()["by_claim"]["lingering"] == 1


async def test_what_clients_watched_is_subscribed_after_a_restart_before_they_are_back(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.watched = {"NSE:S1", "NASDAQ:*"}
    await rig.subscriptions.follow()
    rig.subscriptions.save()
    rig.watched = set()
    after = rig.made()
    await after.follow()
    assert rig.providers.calls[-1] == {"NSE:S1", "NASDAQ:AAPL"}
    # A second restart before anybody is back forgets nobody.
    after.save()
    again = rig.made()
    await again.follow()
    assert rig.providers.calls[-1] == {"NSE:S1", "NASDAQ:AAPL"}
    rig.clock.advance(61)
    await again.follow()
    rig.clock.advance(31)
    await again.follow()
    assert rig.providers.calls[-1] == frozenset(), "nobody came back"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\x00"])
async def test_a_damaged_memory_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with capture_logs() as logs:
        rig = Rig(tmp_path)
    await rig.subscriptions.follow()
    assert rig.providers.calls == [frozenset()]
    assert [entry["event"] for entry in logs] == ["saved_interest_not_read"]


async def test_clients_that_come_and_go_a_thousand_times_a_second_cause_few_changes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.subscriptions = DynamicSubscriptions(
        rig.providers,
        redis_url="redis://127.0.0.1:1/0",
        clock=rig.clock,
        watched=lambda: rig.watched,
        known=lambda: KNOWN,
        linger_s=0.0,
    )
    task = asyncio.create_task(rig.subscriptions.run())
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    churned = 0
    while loop.time() - began_s < 1.0:
        rig.clock.advance(0.001)
        rig.watched ^= {f"NSE:S{churned % 10}"}
        rig.subscriptions.changed()
        churned += 1
        await asyncio.sleep(0)
    took_s = loop.time() - began_s
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert churned > 500
    assert 2 <= len(rig.providers.calls) <= took_s / 0.1 + 3
