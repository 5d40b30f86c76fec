"""Routing, gaps and status of the ProviderManager, with providers that tests drive by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from services.base_provider import BaseMarketDataProvider, ProviderContext, ProviderState
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord, DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager

NOW_MS = 1_790_748_968_000


class HandDrivenProvider(BaseMarketDataProvider):
    """Does nothing by itself; a test sets its state and emits its ticks."""

    async def connect_websocket(self) -> None:
        return None

    async def disconnect_websocket(self) -> None:
        return None

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        return None

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        return None

    def message_handler(self, raw: str | bytes) -> None:
        return None


class Keyless(HandDrivenProvider):
    code = "YF"


class Keyed(HandDrivenProvider):
    code = "DHAN"
    credential_names = ("DHAN_ACCESS_TOKEN",)


class Rig:
    """A manager over two providers that both know NSE:RELIANCE; NASDAQ:AAPL is known to YF alone."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.clock = ManualClock(NOW_MS)
        self.published: list[Record] = []
        self.references: list[DataIngestionFormat] = []
        self.supervisor = Supervisor()
        self.made: dict[str, HandDrivenProvider] = {}
        self.settings = settings
        self.manager = ProviderManager(
            clock=self.clock,
            settings=lambda: self.settings,
            publish=self.published.append,
            supervisor=self.supervisor,
            show_reference=self.references.append,
            factories={"YF": self.factory(Keyless), "DHAN": self.factory(Keyed)},
        )
        self.manager.load(snapshot())

    def factory(self, kind: type[HandDrivenProvider]) -> Any:
        def make(context: ProviderContext) -> HandDrivenProvider:
            self.made[kind.code] = kind(context)
            return self.made[kind.code]

        return make

    def ticks(self) -> list[tuple[str, str, float]]:
        return [
            (record.symbol, record.provider_code, record.price)
            for record in self.published
            if isinstance(record, DataIngestionFormat)
        ]

    def controls(self, kind: str) -> list[ControlRecord]:
        return [r for r in self.published if isinstance(r, ControlRecord) and r.type == kind]

    def emit(self, code: str, symbol: str, price: float, **fields: Any) -> None:
        self.clock.advance(1)
        now_ms = self.clock.now_ms()
        self.made[code].emit(
            ProviderTick(
                provider_symbol=symbol, price=price, event_ms=now_ms, event_resolution_ms=1000, **fields
            ),
            now_ms,
        )


def mapping(instrument: str, code: str, search: str, *, primary: bool, **fields: Any) -> InstrumentMapping:
    exchange, symbol = instrument.split(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=instrument,
        exchange=exchange,
        symbol=symbol,
        name=symbol,
        asset_class=AssetClass.EQUITY,
        currency="INR",
        provider_code=code,
        search_code=search,
        is_primary=primary,
        priority=1 if primary else 2,
        **fields,
    )


def snapshot() -> MappingSnapshot:
    return MappingSnapshot(
        version=1,
        loaded_ms=NOW_MS,
        providers=(ProviderEntry(code="DHAN", name="Dhan"), ProviderEntry(code="YF", name="Yahoo Finance")),
        mappings=(
            mapping("NSE:RELIANCE", "YF", "RELIANCE.NS", primary=False),
            mapping(
                "NSE:RELIANCE", "DHAN", "RELIANCE-EQ", primary=True, segment="NSE_EQ", security_id="2885"
            ),
            mapping("NASDAQ:AAPL", "YF", "AAPL", primary=True),
        ),
    )


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    subject = Rig({"DHAN_ACCESS_TOKEN": "a-token"})
    yield subject
    await subject.supervisor.stop()


async def test_each_instrument_goes_to_the_first_provider_in_its_order(rig: Rig) -> None:
    await rig.manager.reroute()
    assert rig.manager.active_provider("NSE:RELIANCE") == "DHAN"
    assert rig.manager.active_provider("NASDAQ:AAPL") == "YF"
    assert rig.made["DHAN"].wanted == ("NSE_EQ:2885",)
    assert rig.made["YF"].wanted == ("AAPL",)


async def test_only_the_active_providers_ticks_are_let_through(rig: Rig) -> None:
    await rig.manager.reroute()
    rig.emit("DHAN", "NSE_EQ:2885", 1192.3)
    rig.emit("YF", "RELIANCE.NS", 1192.4)
    assert rig.ticks() == [("NSE:RELIANCE", "DHAN", 1192.3)]
    assert rig.manager.ledger()["YF"]["standby"] == 1


async def test_without_a_key_the_next_provider_serves_from_the_start() -> None:
    rig = Rig({})
    await rig.manager.reroute()
    assert rig.manager.active_provider("NSE:RELIANCE") == "YF"
    assert rig.made["YF"].wanted == ("RELIANCE.NS", "AAPL")
    assert rig.made["DHAN"].wanted == ("NSE_EQ:2885",), "it is ready to take over when it gets a key"
    assert rig.controls("switched") == []


async def test_a_parked_provider_is_replaced_and_the_switch_is_in_the_stream(rig: Rig) -> None:
    await rig.manager.reroute()
    rig.made["DHAN"].state = ProviderState.PARKED
    await rig.manager.reroute()
    assert rig.made["YF"].wanted == ("AAPL", "RELIANCE.NS")
    assert rig.controls("switched") == [], "the standby has to prove itself first"
    rig.emit("YF", "RELIANCE.NS", 1192.4)
    (switch,) = rig.controls("switched")
    assert switch.symbol == "NSE:RELIANCE"
    assert switch.fields == {"from_src": "DHAN", "to_src": "YF", "reason": "provider_unavailable"}
    assert rig.published.index(switch) < len(rig.published) - 1, "the switch comes before the first tick"
    assert rig.ticks() == [("NSE:RELIANCE", "YF", 1192.4)]


async def test_the_first_choice_takes_back_only_after_a_clean_overlap(rig: Rig) -> None:
    await rig.manager.reroute()
    dhan = rig.made["DHAN"]
    dhan.state = ProviderState.PARKED
    await rig.manager.reroute()
    rig.emit("YF", "RELIANCE.NS", 1192.4, cumulative_volume=4_000)
    assert rig.manager.active_provider("NSE:RELIANCE") == "YF"
    dhan.state = ProviderState.STREAMING
    rig.clock.advance(30)
    await rig.manager.look()
    sold = 5_000
    for second in range(15):
        if rig.manager.active_provider("NSE:RELIANCE") == "DHAN":
            break
        assert [s.fields["to_src"] for s in rig.controls("switched")] == ["YF"], second
        for code, symbol in (("YF", "RELIANCE.NS"), ("DHAN", "NSE_EQ:2885")):
            sold += 10
            rig.emit(code, symbol, 1192.5, cumulative_volume=sold)
        await rig.manager.look()
    assert second >= 5, "both have to flow for ten seconds"
    assert rig.manager.active_provider("NSE:RELIANCE") == "DHAN"
    assert [s.fields["to_src"] for s in rig.controls("switched")] == ["YF", "DHAN"]
    assert rig.controls("switched")[1].fields["reason"] == "priority"
    ticks = [r for r in rig.published if isinstance(r, DataIngestionFormat)]
    assert [tick.volume for tick in ticks[:2]] == [None, 1_010], (
        "the first quantity after a silence is unknown"
    )
    assert ticks[-1].provider_code == "DHAN"
    assert sum(tick.volume or 0 for tick in ticks) == sold - 4_000, "both count the same, so nothing is lost"


async def test_a_first_choice_whose_price_differs_does_not_take_back(rig: Rig) -> None:
    await rig.manager.reroute()
    rig.made["DHAN"].state = ProviderState.PARKED
    await rig.manager.reroute()
    rig.emit("YF", "RELIANCE.NS", 1192.4)
    rig.made["DHAN"].state = ProviderState.STREAMING
    rig.clock.advance(30)
    for _ in range(30):
        rig.emit("YF", "RELIANCE.NS", 1192.5)
        rig.emit("DHAN", "NSE_EQ:2885", 1210.0)
        await rig.manager.look()
    assert rig.manager.active_provider("NSE:RELIANCE") == "YF"
    (standby,) = rig.manager.route("NSE:RELIANCE")["standbys"]
    assert (standby["provider"], standby["agrees"]) == ("DHAN", False)
    assert 140 < standby["off_bps"] < 150


async def test_a_time_without_data_becomes_one_gap_record_per_instrument(rig: Rig) -> None:
    await rig.manager.reroute()
    context = rig.made["DHAN"].context
    context.connection_lost(["NSE_EQ:2885"], NOW_MS, "closed_1006")
    context.connection_lost(["NSE_EQ:2885"], NOW_MS + 500, "refused")
    context.connection_restored(["NSE_EQ:2885"], NOW_MS + 2_000)
    context.connection_restored(["NSE_EQ:2885"], NOW_MS + 3_000)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS, "to": NOW_MS + 2_000, "reason": "closed_1006"}
    assert (gap.symbol, gap.exchange, gap.provider_code) == ("NSE:RELIANCE", "NSE", "DHAN")


async def test_after_a_restart_the_time_since_the_last_stored_tick_is_a_gap(rig: Rig) -> None:
    stored = DataIngestionFormat(
        "NSE:RELIANCE", 1192.3, None, NOW_MS - 60_000, "DHAN", "NSE_EQ:2885", NOW_MS - 59_000, exchange="NSE"
    )
    rig.manager.seed([stored])
    await rig.manager.reroute()
    rig.made["DHAN"].context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS - 59_000, "to": NOW_MS, "reason": "daemon_down"}


async def test_the_status_has_the_documented_fields_and_measured_figures(rig: Rig) -> None:
    await rig.manager.reroute()
    rig.emit("DHAN", "NSE_EQ:2885", 1192.3)
    status = rig.manager.get_provider_status()["DHAN"]
    assert " ".join(status) == (
        "code name state reason since_ms connections subscribed instruments_live ticks_per_s last_tick_ms "
        "latency_ms reconnects last_error credential_expires_ms credential_state unresolved"
    )
    assert (status["code"], status["name"], status["instruments_live"]) == ("DHAN", "Dhan", 1)
    assert status["last_tick_ms"] == rig.clock.now_ms()
    assert status["latency_ms"] == {"p50": 0, "p99": 0}
    rig.clock.advance(120)
    assert rig.manager.get_provider_status()["DHAN"]["instruments_live"] == 0


async def test_a_provider_nobody_installed_is_shown_as_such() -> None:
    rig = Rig({})
    manager = ProviderManager(
        clock=rig.clock,
        settings=dict,
        publish=rig.published.append,
        supervisor=rig.supervisor,
        show_reference=rig.references.append,
        factories={"YF": rig.factory(Keyless)},
    )
    manager.load(snapshot())
    await manager.reroute()
    status = manager.get_provider_status()["DHAN"]
    assert (status["state"], status["reason"]) == ("closed", "no provider of this code is installed")
    assert manager.active_provider("NSE:RELIANCE") == "YF"


async def test_with_dynamic_interest_only_what_is_wanted_is_subscribed(rig: Rig) -> None:
    await rig.manager.set_interest(frozenset())
    assert rig.made["DHAN"].wanted == rig.made["YF"].wanted == ()
    await rig.manager.set_interest(frozenset({"NASDAQ:AAPL"}))
    assert rig.made["YF"].wanted == ("AAPL",)
    assert rig.made["DHAN"].wanted == ()
    rig.emit("YF", "AAPL", 307.2)
    await rig.manager.set_interest(frozenset({"NSE:RELIANCE"}))
    assert rig.made["YF"].wanted == ()
    assert rig.made["DHAN"].wanted == ("NSE_EQ:2885",)
    rig.emit("YF", "AAPL", 307.3)
    assert rig.ticks() == [("NASDAQ:AAPL", "YF", 307.2)], "what nobody wants is not let through"


def changed(**replaced: InstrumentMapping | None) -> MappingSnapshot:
    """Return the usual snapshot with rows replaced, removed or added, by provider symbol."""
    rows = {row.search_code: row for row in snapshot().mappings}
    for code, row in replaced.items():
        rows.pop(code.replace("_", "-"), None)
        if row is not None:
            rows[row.search_code] = row
    return MappingSnapshot(
        version=2, loaded_ms=NOW_MS, providers=snapshot().providers, mappings=tuple(rows.values())
    )


async def test_a_changed_mapping_touches_only_what_changed(rig: Rig) -> None:
    await rig.manager.reroute()
    new = mapping("NASDAQ:MSFT", "YF", "MSFT", primary=True)
    await rig.manager.apply(changed(MSFT=new))
    assert rig.made["YF"].wanted == ("AAPL", "MSFT")
    assert rig.made["DHAN"].wanted == ("NSE_EQ:2885",)
    rig.emit("YF", "MSFT", 512.3)
    assert rig.ticks() == [("NASDAQ:MSFT", "YF", 512.3)]


async def test_a_removed_mapping_is_let_go_and_its_ticks_are_refused(rig: Rig) -> None:
    await rig.manager.reroute()
    await rig.manager.apply(changed(AAPL=None))
    assert rig.made["YF"].wanted == ()
    rig.emit("YF", "AAPL", 307.2)
    assert rig.ticks() == []
    assert rig.manager.ledger()["YF"]["rejected"] == {"unmapped": 1}


async def test_a_new_security_id_replaces_the_old_one(rig: Rig) -> None:
    await rig.manager.reroute()
    row = mapping("NSE:RELIANCE", "DHAN", "RELIANCE-EQ", primary=True, segment="NSE_EQ", security_id="9999")
    await rig.manager.apply(changed(RELIANCE_EQ=row))
    assert rig.made["DHAN"].wanted == ("NSE_EQ:9999",)


async def test_a_deactivated_provider_ends_and_the_next_one_takes_over(rig: Rig) -> None:
    await rig.manager.reroute()
    without = MappingSnapshot(
        version=2,
        loaded_ms=NOW_MS,
        providers=tuple(entry for entry in snapshot().providers if entry.code == "YF"),
        mappings=tuple(row for row in snapshot().mappings if row.provider_code == "YF"),
    )
    rig.made["DHAN"].context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    await rig.manager.apply(without)
    assert set(rig.manager.get_provider_status()) == {"YF"}
    assert rig.manager.active_provider("NSE:RELIANCE") == "YF"
    (switch,) = rig.controls("switched")
    assert switch.fields == {"from_src": "DHAN", "to_src": "YF", "reason": "provider_deactivated"}
    rig.made["YF"].context.connection_restored(["RELIANCE.NS"], NOW_MS + 700)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS, "to": NOW_MS + 700, "reason": "provider_deactivated"}
    assert (gap.symbol, gap.provider_code) == ("NSE:RELIANCE", "YF")
    await rig.manager.apply(snapshot())
    assert set(rig.manager.get_provider_status()) == {"DHAN", "YF"}


async def test_what_a_parked_provider_lost_is_a_gap_until_the_other_delivers(rig: Rig) -> None:
    await rig.manager.reroute()
    dhan, yahoo = rig.made["DHAN"], rig.made["YF"]
    dhan.context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    dhan.context.connection_lost(["NSE_EQ:2885"], NOW_MS + 100, "disconnect_807")
    dhan.state = ProviderState.PARKED
    await rig.manager.reroute()
    assert rig.controls("gap") == []
    yahoo.context.connection_restored(["RELIANCE.NS"], NOW_MS + 900)
    assert rig.controls("gap") == [], "the standby has to prove itself first"
    rig.emit("YF", "RELIANCE.NS", 1192.4)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS + 100, "to": NOW_MS + 1_000, "reason": "disconnect_807"}
    dhan.context.connection_restored(["NSE_EQ:2885"], NOW_MS + 5_000)
    assert len(rig.controls("gap")) == 1, "the standby's return closes nothing"


async def test_a_source_that_flows_already_takes_over_without_a_gap(rig: Rig) -> None:
    await rig.manager.reroute()
    rig.made["DHAN"].context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    rig.made["YF"].context.connection_restored(["RELIANCE.NS"], NOW_MS)
    rig.made["DHAN"].state = ProviderState.PARKED
    await rig.manager.reroute()
    rig.emit("YF", "RELIANCE.NS", 1192.4)
    assert len(rig.controls("switched")) == 1
    assert rig.controls("gap") == []


async def test_a_provider_that_stays_away_for_half_a_minute_is_replaced(rig: Rig) -> None:
    await rig.manager.reroute()
    dhan = rig.made["DHAN"]
    runtime = rig.manager._runtimes["DHAN"]
    dhan.context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    dhan.context.connection_lost(["NSE_EQ:2885"], NOW_MS + 100, "refused")
    for state in (ProviderState.BACKING_OFF, ProviderState.CONNECTING, ProviderState.STREAMING):
        dhan.state = state
        runtime.look()
        rig.clock.advance(29)
    assert runtime.usable, "a connection in between starts the time anew"
    dhan.state = ProviderState.BACKING_OFF
    runtime.look()
    rig.clock.advance(30)
    await rig.manager.reroute()
    rig.emit("YF", "RELIANCE.NS", 1192.4)
    (switch,) = rig.controls("switched")
    assert switch.fields == {"from_src": "DHAN", "to_src": "YF", "reason": "provider_unavailable"}
    assert dhan.wanted == ("NSE_EQ:2885",), "it goes on trying"


async def test_a_removed_mapping_that_comes_back_declares_the_time_between(rig: Rig) -> None:
    await rig.manager.reroute()
    context = rig.made["YF"].context
    context.connection_restored(["AAPL"], NOW_MS)
    await rig.manager.apply(changed(AAPL=None))
    rig.clock.advance(60)
    await rig.manager.apply(snapshot())
    context.connection_restored(["AAPL"], NOW_MS + 61_000)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS, "to": NOW_MS + 61_000, "reason": "mapping_removed"}


async def test_a_new_security_id_is_a_gap_until_it_delivers(rig: Rig) -> None:
    await rig.manager.reroute()
    context = rig.made["DHAN"].context
    context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    row = mapping("NSE:RELIANCE", "DHAN", "RELIANCE-EQ", primary=True, segment="NSE_EQ", security_id="9999")
    await rig.manager.apply(changed(RELIANCE_EQ=row))
    context.connection_restored(["NSE_EQ:9999"], NOW_MS + 300)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS, "to": NOW_MS + 300, "reason": "remapped"}


async def test_the_gap_of_a_restart_is_declared_whoever_delivered_before(rig: Rig) -> None:
    stored = DataIngestionFormat(
        "NSE:RELIANCE", 1192.3, None, NOW_MS - 60_000, "GONE", "", NOW_MS - 59_000, exchange="NSE"
    )
    rig.manager.seed([stored])
    await rig.manager.reroute()
    rig.made["DHAN"].context.connection_restored(["NSE_EQ:2885"], NOW_MS)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS - 59_000, "to": NOW_MS, "reason": "daemon_down"}


async def test_how_far_a_subscription_got_is_told(rig: Rig) -> None:
    assert rig.manager.subscription_state("NASDAQ:AAPL") == "requested"
    await rig.manager.set_interest(frozenset({"NASDAQ:AAPL"}))
    assert rig.manager.subscription_state("NASDAQ:AAPL") == "requested"
    provider = rig.made["YF"]
    provider._session.subscribed["AAPL"] = None
    provider.session_asking(["AAPL"])
    assert rig.manager.subscription_state("NASDAQ:AAPL") == "acked"
    provider.emit(ProviderTick(provider_symbol="AAPL", price=307.2), NOW_MS)
    assert rig.manager.subscription_state("NASDAQ:AAPL") == "proven"
    assert rig.manager.subscription_state("NASDAQ:NOPE") == "requested"


async def test_the_places_of_an_instrument_are_its_home_and_who_stands_in_for_it(rig: Rig) -> None:
    places = rig.manager.places()
    assert places("NSE:RELIANCE") in (["DHAN"], ["DHAN", "YF"])
    assert places("NASDAQ:AAPL") == ["YF"]
    assert places("NSE:NOPE") == []
    rig.made["DHAN"].state = ProviderState.PARKED
    assert rig.manager.places()("NSE:RELIANCE") == ["DHAN", "YF"]


async def test_where_there_is_no_room_for_both_the_old_goes_before_the_new_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keyless, "capacity", 1)
    assert rig.manager.room() == {"YF": 1}
    most: list[int] = []
    yahoo = rig.made["YF"]
    want = yahoo.want

    async def watched_want(symbols: Iterable[str]) -> None:
        await want(symbols)
        most.append(len(yahoo.wanted))

    monkeypatch.setattr(yahoo, "want", watched_want)
    await rig.manager.apply(changed(MSFT=mapping("NASDAQ:MSFT", "YF", "MSFT", primary=True)))
    await rig.manager.set_interest(frozenset({"NASDAQ:AAPL"}))
    most.clear()
    await rig.manager.set_interest(frozenset({"NASDAQ:MSFT"}))
    assert yahoo.wanted == ("MSFT",)
    assert most == [1]


async def test_the_time_in_which_nobody_wanted_an_instrument_is_a_declared_gap(rig: Rig) -> None:
    context = rig.made["YF"].context
    await rig.manager.set_interest(frozenset({"NASDAQ:AAPL"}))
    context.connection_restored(["AAPL"], NOW_MS)
    await rig.manager.set_interest(frozenset())
    rig.clock.advance(60)
    await rig.manager.set_interest(frozenset({"NASDAQ:AAPL"}))
    assert rig.controls("gap") == []
    context.connection_restored(["AAPL"], NOW_MS + 60_500)
    (gap,) = rig.controls("gap")
    assert gap.fields == {"from": NOW_MS, "to": NOW_MS + 60_500, "reason": "not_subscribed"}
