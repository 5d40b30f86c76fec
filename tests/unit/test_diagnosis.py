"""`why`: the first thing that stands in a tick's way, and what to do about it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from services.diagnosis import Diagnosis, Sources
from services.errors import StorageUnavailable
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.market_data.records import ControlRecord, DataIngestionFormat
from services.operations.terminal_views import why_view
from services.pipeline.sink import SinkState
from services.storage.entry import EntryEncoder
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.lookup import StoredNewest

NOW_MS = 1_795_147_200_000  # 2026-11-20T04:00Z, a Friday: 09:30 in India
KEY = "NSE:RELIANCE"


def candidate(**different: Any) -> dict[str, Any]:
    return {
        "provider": "DHAN",
        "symbol": "NSE_EQ:2885",
        "search_code": "RELIANCE-EQ",
        "primary": True,
        "priority": 1,
        "usable": True,
        "state": "streaming",
        "reason": "",
        "last_error": None,
        "subscription": "proven",
        "refused": None,
        "flowing": True,
        "last_tick_ms": NOW_MS - 400,
        "provider_last_tick_ms": NOW_MS - 100,
        "credential_expires_ms": None,
        "delivery": "real_time",
        "allowed": True,
        "silence": "flowing",
        "trouble": None,
        "held_down_ms": None,
    } | different


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock(NOW_MS)
        self.route: dict[str, Any] = {
            "active": "DHAN",
            "pending": None,
            "open_gap": None,
            "trouble": None,
            "stale_since_ms": None,
            "standbys": [],
            "candidates": [candidate()],
            "decisions": [],
        }
        self.claim: str | None = "static"
        self.stored: StoredNewest | StorageUnavailable = StoredNewest(
            NOW_MS - 350, NOW_MS - 500, NOW_MS - 500
        )
        self.not_ready: list[str] = []
        self.dispute: str | None = None
        self.sink = LatestValueWriter("redis://127.0.0.1:1/0", encoder=EntryEncoder())
        self.sink.state = SinkState.READY
        mapping = InstrumentMapping(
            mapping_id=1,
            instrument=KEY,
            exchange="NSE",
            symbol="RELIANCE",
            name="Reliance Industries",
            asset_class=AssetClass.EQUITY,
            currency="INR",
            provider_code="DHAN",
            search_code="RELIANCE-EQ",
        )
        newest = DataIngestionFormat(KEY, 1192.3, 5, NOW_MS - 500, "DHAN", received_ms=NOW_MS - 400)
        self.diagnosis = Diagnosis(
            self.clock,
            MarketCalendar(),
            Sources(
                instruments=lambda: {KEY: mapping},
                route=lambda _: self.route,
                claim=lambda _: self.claim,
                newest=lambda _: newest,
                stored=self._stored,
                not_ready=lambda: self.not_ready,
                sinks=[self.sink],
                dispute=lambda _: self.dispute,
            ),
        )

    async def _stored(self, instrument: str) -> StoredNewest:
        if isinstance(self.stored, StorageUnavailable):
            raise self.stored
        return self.stored

    async def says(self) -> tuple[str, str]:
        answer = await self.diagnosis.explain(KEY)
        assert answer is not None
        return answer["verdict"], answer["next_action"]


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_source_in_trouble_is_named_with_what_is_tried_or_what_would_help(rig: Rig) -> None:
    rig.route |= {"trouble": "mute", "stale_since_ms": NOW_MS - 60_000}
    rig.route["candidates"] = [candidate(silence="mute: no tick for 40 s", trouble="mute")]
    assert await rig.says() == (
        "DHAN does not deliver it (mute: no tick for 40 s); stale for 60.0 s",
        "map another provider to it, or mend this one; it is listened to all the time",
    )
    barred = candidate(provider="YF", delivery="delayed", allowed=False)
    rig.route["candidates"].append(barred)
    assert "YF could stand in with delayed data: set allow_delayed" in (await rig.says())[1]
    barred["allowed"] = True
    rig.route["standbys"] = [{"provider": "YF", "fresh_ticks": 1, "agrees": False, "off_bps": 812.0}]
    assert "(YF: 1 fresh ticks, its price is 812.0 bps off)" in (await rig.says())[1]
    rig.route["decisions"] = [
        {"at_ms": NOW_MS, "action": "warm_up", "from": "DHAN", "to": "YF", "reason": "mute", "details": {}}
    ]
    answer = await rig.diagnosis.explain(KEY)
    assert answer is not None
    screen = io.StringIO()
    Console(file=screen, width=200).print(why_view(answer))
    assert "DHAN -> YF: mute" in screen.getvalue()


async def test_all_is_well_and_every_hop_has_its_age(rig: Rig) -> None:
    assert await rig.says() == ("all is well: the last tick came 0.4 s ago", "nothing to do")
    answer = await rig.diagnosis.explain(KEY)
    assert answer is not None
    assert [(hop["hop"], hop["age_ms"]) for hop in answer["hops"]] == [
        ("received from the provider", 400),
        ("given to clients", 400),
        ("newest value in Redis", 350),
        ("time series in Redis", 500),
    ]
    assert answer["session"]["open"]


async def test_an_unknown_instrument_is_told_with_its_likes(rig: Rig) -> None:
    assert await rig.diagnosis.explain("NSE:RELIANC") is None
    assert rig.diagnosis.suggest("NSE:RELIANC") == [KEY]
    assert rig.diagnosis.suggest("BSE:RELIANCE")[0] == KEY
    assert rig.diagnosis.suggest("X") == []


@pytest.mark.parametrize(
    ("different", "verdict", "action"),
    [
        (
            {"usable": False, "state": "parked", "reason": "DHAN_ACCESS_TOKEN is not set"},
            "no provider can serve it (DHAN is parked: DHAN_ACCESS_TOKEN is not set)",
            "correct the settings",
        ),
        (
            {"usable": False, "state": "backing_off", "reason": "refused"},
            "no provider can serve it just now",
            "wait",
        ),
        (
            {"refused": "not a Dhan symbol"},
            "DHAN refuses its symbol NSE_EQ:2885: not a Dhan symbol",
            "correct the",
        ),
        ({"flowing": False, "state": "connecting"}, "DHAN does not deliver just now (connecting)", "wait"),
        ({"last_tick_ms": None}, "subscribed at DHAN, but no tick has come yet", "right symbol"),
        ({"last_tick_ms": NOW_MS - 200_000}, "quiet: the last tick came 3.3 min ago", "exchange's own page"),
        ({"credential_expires_ms": NOW_MS + 3_600_000}, "all is well for now", "they end in 60.0 min"),
    ],
)
async def test_what_stands_in_the_way_at_the_provider(
    rig: Rig, different: dict[str, Any], verdict: str, action: str
) -> None:
    rig.route["candidates"] = [candidate(**different)]
    said = await rig.says()
    assert verdict in said[0]
    assert action in said[1]


async def test_providers_that_do_not_agree_about_the_price_are_told() -> None:
    rig = Rig()
    rig.dispute = f"{KEY}: DHAN 2450 and YF 1200 are 6849 bps apart for 12 min"
    verdict, action = await rig.says()
    assert verdict.startswith(
        "ticks arrive, but its providers do not agree about the price: NSE:RELIANCE: DHAN"
    )
    assert "provider_instrument_mappings" in action
    answer = await rig.diagnosis.explain(KEY)
    assert answer is not None
    assert answer["dispute"] == rig.dispute
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(why_view(answer))
    assert "6849 bps apart" in console.export_text()


async def test_nobody_wants_it(rig: Rig) -> None:
    rig.claim = None
    verdict, action = await rig.says()
    assert verdict.startswith("nobody wants it")
    assert f"ZADD md:interest EXPIRY_MS {KEY}" in action


async def test_a_closed_market_is_no_fault_and_its_opening_is_told(rig: Rig) -> None:
    rig.clock.advance(10 * 3_600)
    rig.route["candidates"] = [candidate(last_tick_ms=NOW_MS + 6 * 3_600_000)]
    verdict, action = await rig.says()
    assert verdict == "its market is closed; the last tick is 4.0 h old"
    assert action == "nothing to do: it opens Mon 2026-11-23 03:45 UTC, in 2.6 days"


async def test_a_store_that_takes_nothing_is_told(rig: Rig) -> None:
    rig.sink.state, rig.sink.reason = SinkState.UNAVAILABLE, "connection refused"
    rig.stored = StorageUnavailable("connection refused")
    verdict, action = await rig.says()
    assert (
        verdict == "ticks arrive but are not stored just now (latest_value unavailable: connection refused)"
    )
    assert "kept on disk" in action


async def test_the_events_of_today_are_listed_and_older_ones_are_not(rig: Rig) -> None:
    for at_ms, kind in ((NOW_MS - 90_000_000, "gap"), (NOW_MS - 60_000, "gap"), (NOW_MS - 1_000, "bar")):
        rig.diagnosis.note(
            ControlRecord(
                kind, KEY, "NSE", at_ms, at_ms, "DHAN", {"from": at_ms - 5, "to": at_ms, "reason": "cut"}
            )
        )
    answer = await rig.diagnosis.explain(KEY)
    assert answer is not None
    assert answer["events"] == [
        {
            "type": "gap",
            "at_ms": NOW_MS - 60_000,
            "from": NOW_MS - 60_005,
            "to": NOW_MS - 60_000,
            "reason": "cut",
        }
    ]


async def test_it_fits_one_screen(rig: Rig) -> None:
    rig.route["candidates"] = [
        candidate(),
        candidate(provider="YF", symbol="RELIANCE.NS", reason="[standby]"),
    ]
    rig.route["open_gap"] = {"from": NOW_MS - 5_000, "reason": "mute"}
    console = Console(width=100, record=True, file=io.StringIO())
    answer = await rig.diagnosis.explain(KEY)
    assert answer is not None
    console.print(why_view(answer))
    text = console.export_text()
    assert len(text.splitlines()) < 25
    for words in (KEY, "all is well", "-> nothing to do", "[standby]", "gap", "mute", "open (regular)"):
        assert words in text
