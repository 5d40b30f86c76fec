"""Faults of a provider's data: from the bytes on the wire to the published record, through the real path."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.base_provider import ProviderState
from services.errors import ProviderError
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass
from services.market_data.normaliser import IST_OFFSET_MS, ZONE_ALARM_AFTER
from services.market_data.records import FLAG_LATE, FLAG_SKEWED, FLAG_SNAPSHOT, FLAG_SUSPECT
from services.storage.entry import EntryEncoder
from services.wire import dhan as dhan_wire
from services.wire import yahoo as yahoo_wire
from simulators import DhanSimulator
from simulators import faults as f
from simulators.universe import dhan_specs
from tests.support.eventually import FACTOR, eventually
from tests.support.provider_fault_rig import (
    EQUITY,
    INDIAN,
    FaultRig,
    Simulator,
    dhan,
    fault_rig,
    yahoo,
)
from tests.support.row_report import report_row

Vendor = Callable[..., Simulator]
FRAMES = Path(__file__).resolve().parents[1] / "frames"


@pytest.fixture(params=[dhan, yahoo])
def vendor(request: pytest.FixtureRequest) -> Vendor:
    """How to make the simulator of each vendor."""
    made: Vendor = request.param
    return made


class ShiftedClock(SystemClock):
    """The machine's clock, so many milliseconds ahead; it may be set to any moment."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def set_to(self, at_ms: int) -> None:
        self.ahead_ms += at_ms - self.now_ms()


def recorded(code: str) -> list[bytes]:
    """Frames captured from the vendor or built by its documentation."""
    rows = json.loads((FRAMES / f"{code}.json").read_text(encoding="utf-8"))
    if code == "dhan":
        return [bytes.fromhex(row["hex"]) for row in rows["vectors"] if row["feed"] == "live"]
    messages = [row["b64"] for row in (*rows["vectors"], *rows["captured_reference"])]
    return [json.dumps({"type": "pricing", "message": message}).encode() for message in messages]


def flipped(frame: bytes) -> Iterator[bytes]:
    """The frame with one bit wrong, at every place."""
    for index in range(len(frame)):
        for bit in range(8):
            yield frame[:index] + bytes([frame[index] ^ (1 << bit)]) + frame[index + 1 :]


def feed_in(rig: FaultRig, frames: Iterator[bytes]) -> int:
    """Hand frames to the provider as its socket does; only an announced end of the session may be raised."""
    count = 0
    for frame in frames:
        count += 1
        try:
            rig.provider.handle(frame)
        except ProviderError:
            continue
    return count


def assert_sane(rig: FaultRig) -> None:
    """Whatever was published could be stored."""
    for tick in rig.ticks:
        assert 0 < abs(tick.price) <= 1e9, tick
        assert tick.timestamp <= tick.received_ms + 5_000, tick


async def traded(rig: FaultRig, count: int = 20) -> None:
    """Wait until so many more ticks were published."""
    until = len(rig.ticks) + count
    await eventually(lambda: len(rig.ticks) >= until, within_s=15)


# ---- N1 to N3: bytes ---------------------------------------------------------------------------------


async def test_n1_garbage_is_counted_and_the_connection_kept(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        await traded(rig)
        with capture_logs() as logs:
            for garbage in ("ff00ff00", "04", "0410000100", "7b7b7b7b"):
                await sim.inject(f.Garbage(data=garbage, count=5))
            await traded(rig)
        errors = rig.ledger["wire_errors"]
        assert sum(errors.values()) >= 15, errors
        dumps = [entry for entry in logs if entry["event"] == "frame_damaged"]
        assert 0 < len(dumps) <= len(errors), "one dump of a kind, not one a frame"
        assert all(len(entry["frame"]) <= 128 for entry in dumps)
        verdict = await rig.settled()
        assert (sim.handshakes, verdict.in_gaps) == (1, 0)
        report_row("N1", lost=f"{sum(errors.values())} damaged frames, 0 ticks", allowed="the damaged frames")


@pytest.mark.parametrize("code", ["dhan", "yahoo"])
async def test_n1_no_wrong_bit_in_any_recorded_frame_ends_or_blocks_anything(code: str) -> None:
    async with dhan(0) if code == "dhan" else yahoo(0) as sim, fault_rig(sim) as rig:
        for frame in recorded(code):
            feed_in(rig, flipped(frame))
            await asyncio.sleep(0)
        assert rig.ledger["wire_errors"], "some of it was damage"
        assert_sane(rig)
        assert rig.provider.state is ProviderState.STREAMING
        report_row("N1", lost="the damaged frames", allowed="the damaged frames")


async def test_n1_a_connection_that_brings_only_garbage_is_opened_anew(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        await traded(rig)

        async def pour() -> None:
            while sim.handshakes == 1:
                await sim.inject(f.Garbage(data="ff00ff00", count=8))
                await asyncio.sleep(0.05)

        await asyncio.wait_for(pour(), 15 * FACTOR)
        await rig.gap_of_each("garbage")
        await rig.streaming()
        verdict = await rig.settled()
        report_row(
            "N1", lost=f"{verdict.in_words}; {rig.gap_text()}", allowed="the reconnect after 2 s of it"
        )


@pytest.mark.parametrize("code", ["dhan", "yahoo"])
async def test_n2_a_frame_cut_anywhere_gives_what_was_complete_and_one_counted_error(code: str) -> None:
    async with dhan(0) if code == "dhan" else yahoo(0) as sim, fault_rig(sim) as rig:
        for frame in recorded(code):
            before = dict(rig.ledger)
            cuts = feed_in(rig, (frame[:size] for size in range(len(frame))))
            after = rig.ledger
            assert after["frames"] - before["frames"] == cuts
            if code == "dhan":
                packets, _ = dhan_wire.decode_frame(frame)
                if len(packets) == 1:
                    assert sum(after["wire_errors"].values()) - sum(before["wire_errors"].values()) == cuts
            await asyncio.sleep(0)
        assert_sane(rig)
        report_row("N2", lost="the torn packets", allowed="the torn packets")


async def test_n2_a_torn_packet_on_the_wire_costs_itself_alone(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        await traded(rig)
        for symbol in rig.first.symbols:
            await sim.inject(f.Truncated(symbol=symbol))
        await eventually(lambda: sim.fault_counts["truncated"] == 2)
        verdict = await rig.settled()
        assert sum(rig.ledger["wire_errors"].values()) == 2
        assert (sim.handshakes, verdict.in_gaps) == (1, 0)
        report_row("N2", lost="2 torn packets", allowed="the torn packets")


async def test_n2_a_whole_packet_before_the_tear_is_used() -> None:
    async with dhan(0) as sim, fault_rig(sim) as rig:
        whole = next(frame for frame in recorded("dhan") if len(dhan_wire.decode_frame(frame)[0]) == 1)
        records = rig.ledger["records"]
        rig.provider.handle(whole + whole[:-1])
        assert rig.ledger["records"] == records + 1
        assert sum(rig.ledger["wire_errors"].values()) == 1
        report_row("N2", lost="1 torn packet", allowed="the torn packet")


async def test_n3_many_packets_in_one_frame_are_read_in_order_and_unknown_ones_skipped() -> None:
    async with dhan(100) as sim, fault_rig(sim) as rig:
        await sim.inject(f.Stacked(packets=5))
        await traded(rig, 60)
        with capture_logs() as logs:
            for _ in range(3):
                await sim.inject(f.UnknownPacket(code=99, length=24))
            await traded(rig, 20)
        assert rig.ledger["frames"] < len(rig.ticks), "frames really held several packets"
        assert rig.ledger["ignored"]["code_99"] == 3
        assert [entry["code"] for entry in logs if entry["event"] == "packet_unknown"] == [99]
        verdict = await rig.settled()
        assert verdict.in_gaps == 0
        report_row("N3", lost="0", allowed="0")


# ---- N4, N5, N12: prices -------------------------------------------------------------------------------


async def test_n4_prices_come_out_of_float32_on_the_grid_and_off_grid_ones_are_kept_and_counted() -> None:
    names = {EQUITY: "NSE:RELIANCE"}
    for tick_size, prices in (
        (0.0025, ("83.4925", "83.4950")),
        (0.05, ("183467.05", "183467.10", "1192.30")),
    ):
        async with (
            dhan(0) as sim,
            fault_rig(sim, symbols=names, tick_sizes={"NSE:RELIANCE": tick_size}) as rig,
        ):
            for price in prices:
                sim.emit(EQUITY, price=price)
                await eventually(lambda price=price: rig.ticks[-1].price == float(price))
            assert "off_tick" not in rig.ledger["noted"]
            sim.emit(EQUITY, price=str(round(float(prices[-1]) + tick_size * 0.8, 4)))
            await eventually(lambda: rig.ledger["noted"].get("off_tick") == 1)
    report_row("N4", lost="0 ticks; prices exact on the grid", allowed="0")


@pytest.mark.parametrize("damage", ["nan", "inf", "-inf", "zero", "negative", "absurd"])
async def test_n5_a_price_that_is_none_is_refused_and_costs_that_tick_alone(
    vendor: Vendor, damage: str
) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        await traded(rig)
        await sim.inject(f.BadPrice(value=damage, count=3))  # type: ignore[arg-type]
        await eventually(lambda: sim.fault_counts["bad_price"] == 3)
        verdict = await rig.settled()
        refused = rig.ledger["rejected"]
        expected = {
            "zero": "zero_price",
            "negative": "negative_price",
            "absurd": "absurd_price",
        }.get(damage, "not_finite")
        assert refused.get(expected) == 3, refused
        assert_sane(rig)
        assert verdict.in_gaps == 0
        report_row("N5", lost="the damaged ticks, counted", allowed="the damaged ticks")


async def test_n5_a_class_that_may_trade_below_zero_does() -> None:
    async with (
        dhan(0) as sim,
        fault_rig(sim, kinds={"NSE:RELIANCE": AssetClass.FUTURE}, symbols={EQUITY: "NSE:RELIANCE"}) as rig,
    ):
        await sim.inject(f.BadPrice(value="negative", count=1))
        sim.emit(EQUITY)
        await eventually(lambda: rig.ticks and rig.ticks[-1].price < 0)
        assert "negative_price" not in rig.ledger["rejected"]
        report_row("N5", lost="0 of a class that may be negative", allowed="0")


async def test_n12_a_bad_print_is_kept_flagged_and_blocks_nothing(vendor: Vendor) -> None:
    async with vendor(0) as sim, fault_rig(sim) as rig:
        symbol, key = next(iter(rig.first.symbols.items()))
        for _ in range(5):
            sim.emit(symbol)
        await eventually(lambda: len(rig.ticks_of(key)) >= 5)
        usual = rig.ticks_of(key)[-1].price
        sim.emit(symbol, price=round(usual * 10, 2))
        await eventually(lambda: rig.ticks_of(key)[-1].price == round(usual * 10, 2))
        assert rig.ticks_of(key)[-1].flags & FLAG_SUSPECT
        latest = rig.broadcast.latest(key)
        assert latest is not None
        assert latest.flags & FLAG_SUSPECT, "it is sent to clients, with its flag"
        sim.emit(symbol, price=round(usual, 2))
        await eventually(lambda: rig.ticks_of(key)[-1].price == round(usual, 2))
        assert not rig.ticks_of(key)[-1].flags & FLAG_SUSPECT
        report_row("N12", lost="0", allowed="0")


# ---- N6, N7, N8, N14: time and repetition ----------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [60, IST_OFFSET_MS // 1000])
async def test_n6_times_in_the_future_are_replaced_flagged_and_never_reach_the_store(
    vendor: Vendor, ahead_s: int
) -> None:
    async with vendor(60) as sim, fault_rig(sim) as rig:
        await traded(rig, 10)
        with capture_logs() as logs:
            await sim.inject(f.Skew(ms=ahead_s * 1000))
            noted = len(rig.ticks)
            await traded(rig, ZONE_ALARM_AFTER + 40)
        await sim.inject(f.Skew(ms=0))
        skewed = [tick for tick in rig.ticks[noted:] if tick.flags & FLAG_SKEWED]
        assert len(skewed) > ZONE_ALARM_AFTER
        assert all(abs(tick.timestamp - tick.received_ms) < 5_000 for tick in skewed)
        alarms = [entry for entry in logs if entry["event"] == "provider_time_zone_wrong"]
        assert len(alarms) == (1 if ahead_s * 1000 == IST_OFFSET_MS else 0)
        assert_sane(rig)
        sim.set_rate(0)
        sent = {tick.price for tick in sim.journal.ticks}
        await eventually(lambda: {tick.price for tick in rig.ticks} == sent)
        report_row("N6", lost="0 ticks; their times are the receive times", allowed="0 ticks; time quality")


async def test_n6_times_shifted_into_the_past_by_the_offset_raise_the_alarm_and_are_replaced() -> None:
    async with dhan(100) as sim, fault_rig(sim) as rig:
        await traded(rig, 10)
        with capture_logs() as logs:
            await sim.inject(f.Skew(ms=-IST_OFFSET_MS))
            await eventually(lambda: rig.ledger["noted"].get("skewed", 0) > 20, within_s=10)
        assert [e["event"] for e in logs if e["log_level"] == "error"] == ["provider_time_zone_wrong"]
        refused = rig.ledger["rejected"]["stale"]
        assert refused < ZONE_ALARM_AFTER + 5
        assert_sane(rig)
        report_row(
            "N6", lost=f"{refused} ticks refused as stale, counted, until the alarm", allowed="0 ticks"
        )


async def test_n7_ticks_out_of_order_are_stored_at_their_own_time_and_nobody_goes_back() -> None:
    clock = ShiftedClock()
    clock.ahead_ms = -600_000
    sim = dhan(0, now_ms=clock.now_ms)
    async with sim, fault_rig(sim, symbols={EQUITY: "NSE:RELIANCE"}, clock=clock) as rig:
        await eventually(lambda: rig.ticks)
        clock.ahead_ms = 0
        now_s = clock.now_ms() // 1000
        newest: list[int] = []
        order = [0, 1, 3, 2, 4, 6, 5, 7, 10, 8, 9, 11]
        for offset in order:
            sim.emit(EQUITY, price=1200 + offset, event_ms=(now_s - 60 + offset) * 1000)
            await eventually(lambda offset=offset: rig.ticks[-1].price == 1200 + offset)
            latest = rig.broadcast.latest("NSE:RELIANCE")
            assert latest is not None
            newest.append(latest.timestamp)
        ticks = rig.ticks_of("NSE:RELIANCE")[-len(order) :]
        assert [tick.timestamp // 1000 - now_s + 60 for tick in ticks] == order
        assert [bool(tick.flags & FLAG_LATE) for tick in ticks] == [
            offset < max(order[:place], default=0) for place, offset in enumerate(order)
        ]
        assert newest == sorted(newest), "the newest value never moves back"
        assert rig.ledger["noted"]["late"] == 4
        report_row("N7", lost="0", allowed="0")


async def test_n8_every_frame_three_times_is_published_once(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        await sim.inject(f.Duplicate(copies=3))
        # What was on its way already has no copies.
        sent = len(sim.journal.ticks)
        await eventually(lambda: len(sim.journal.ticks) >= sent + 40, within_s=15)
        verdict = await rig.settled()
        assert rig.ledger["rejected"]["duplicate"] >= 2 * 40
        assert rig.ledger["frames"] >= 3 * 40
        assert verdict.in_gaps == 0
        report_row("N8", lost="0, doubled 0", allowed="0")


async def test_n8_the_snapshot_of_a_reconnect_repeats_nothing(vendor: Vendor) -> None:
    async with vendor(0) as sim, fault_rig(sim) as rig:
        for symbol in rig.first.symbols:
            sim.emit(symbol)
        await eventually(lambda: len({tick.symbol for tick in rig.ticks if tick.cumulative_volume}) == 2)
        await eventually(lambda: len(rig.ticks) >= len({tick.price for tick in sim.journal.ticks}))
        published = len(rig.ticks)
        await sim.inject(f.Abort())
        await rig.gap_of_each("closed_1006")
        await eventually(lambda: rig.ledger["rejected"].get("duplicate", 0) >= 2)
        assert len(rig.ticks) == published
        await rig.settled()
        report_row("N8", lost="0, doubled 0", allowed="0")


@pytest.mark.parametrize("age_s", [120, 7_200])
async def test_n14_an_old_snapshot_after_a_reconnect_is_no_news(vendor: Vendor, age_s: int) -> None:
    async with vendor(0) as sim, fault_rig(sim) as rig:
        for symbol in rig.first.symbols:
            sim.emit(symbol)
        await eventually(lambda: len(rig.ticks) >= len({tick.price for tick in sim.journal.ticks}))
        before = {key: rig.broadcast.latest(key) for key in rig.keys}
        published = len(rig.ticks)
        await sim.inject(f.SnapshotAge(seconds=age_s))
        await sim.inject(f.Abort())
        await rig.gap_of_each("closed_1006")
        await eventually(lambda: rig.provider.status().unanswered == 0)
        assert sim.fault_counts["snapshot_age"] >= 2
        for tick in rig.ticks[published:]:
            assert tick.flags & FLAG_SNAPSHOT
            assert tick.flags & FLAG_LATE
            assert tick.timestamp < tick.received_ms - 60_000, "at its own time"
        if age_s > 3_600:
            assert len(rig.ticks) == published, "too old to be a tick at all"
            assert rig.ledger["rejected"]["stale"] == 2
        assert {key: rig.broadcast.latest(key) for key in rig.keys} == before, "clients see no older value"
        report_row("N14", lost="0", allowed="0")


# ---- N9: flood -------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.alone
async def test_n9_a_flood_is_taken_whole_without_blocking_anything() -> None:
    names = {
        symbol: f"NSE:{symbol.replace(':', '-')}"
        for symbol in sorted(dhan_specs())
        if symbol.startswith("NSE_EQ:")
    }
    sim = dhan(6.0, ping_interval_s=0.25, pong_timeout_s=3.0 * FACTOR)
    async with sim, fault_rig(sim, symbols=names) as rig:
        await traded(rig, 500)
        usual = len(rig.ticks)
        gc.collect()
        before_bytes = resident_bytes()
        watcher = rig.broadcast.subscribe(sorted(names.values()), delivery="latest")
        consumer = asyncio.create_task(anext(watcher))
        await sim.inject(f.Flood(factor=20.0))
        made = sim.ticks_made
        await eventually(lambda: sim.ticks_made - made > 12_000, within_s=20)
        await sim.inject(f.Flood(factor=1.0))
        await consumer
        await watcher.aclose()
        verdict = await rig.settled()
        flood = len(rig.ticks) - usual
        assert flood >= 12_000, "it really was a flood"
        assert verdict.in_gaps == 0
        assert sum(connection.skipped for connection in sim.connections.values()) == 0
        assert sim.handshakes == 1, "every ping was answered"
        kept_bytes = resident_bytes() - before_bytes
        # What the journal and this test keep of each tick; the product keeps nothing.
        assert kept_bytes < flood * 4_000 + (32 << 20), f"{kept_bytes >> 20} MiB more"
        report_row("N9", lost=f"0 of {flood} ticks at twentyfold rate", allowed="0 up to what the sinks hold")


# ---- N10, N11, N16: instruments --------------------------------------------------------------------------


async def test_n10_an_unknown_symbol_is_named_and_costs_nobody_else_anything(vendor: Vendor) -> None:
    indian = vendor is dhan
    bad, key = ("NSE_EQ:987654", "NSE:NOSUCH") if indian else ("NOSUCH.SYMBOL.QQ", "NASDAQ:NOSUCH")
    names = {**(INDIAN if indian else {"AAPL": "NASDAQ:AAPL"}), bad: key}
    async with vendor() as sim, fault_rig(sim, symbols=names, wait=False) as rig:
        with capture_logs() as logs:
            unresolved = lambda: rig.manager.get_provider_status()[rig.first.code]["unresolved"]  # noqa: E731
            await eventually(lambda: unresolved() == [key], within_s=10)
            await traded(rig, 40)
        asked = [r for r in sim.requests if r.kind in ("text", "binary") and bad.split(":")[-1] in r.content]
        assert len(asked) <= (2 if indian else 12), "once more at most; Yahoo's whole list now and then"
        assert sim.handshakes == 1
        named = [entry for entry in logs if entry["event"] == "instruments_unresolved"]
        assert [entry["instruments"] for entry in named] == [[key]]
        assert rig.provider.state is ProviderState.STREAMING
        del rig.first.symbols[bad]
        await rig.settled()
        report_row("N10", lost="that instrument; it is named in the status", allowed="that instrument")


async def test_n11_what_nobody_mapped_is_counted_and_never_published(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        extra = "NSE_EQ:11536" if isinstance(sim, DhanSimulator) else "JPM"
        (connection,) = sim.connections.values()
        _, variant = next(iter(sim.watched(connection)))
        assert sim.listing(extra) is not None
        with capture_logs() as logs:
            assert sim.watch(connection, extra, variant)
            await eventually(lambda: rig.ledger["rejected"].get("unmapped", 0) >= 10)
        assert {tick.symbol for tick in rig.ticks} == rig.keys
        assert [e["symbol"] for e in logs if e["event"] == "tick_unmapped"] == [extra], "one sample a minute"
        await rig.settled()
        report_row("N11", lost="the stray ticks, counted", allowed="the stray ticks")


@pytest.mark.parametrize(
    ("make", "symbol", "key", "kind"),
    [
        (dhan, "IDX_I:13", "NSE:NIFTY", AssetClass.INDEX),
        (yahoo, "^NSEI", "NSE:NIFTY", AssetClass.INDEX),
        (yahoo, "BTC-USD", "CRYPTO:BTC-USD", AssetClass.CRYPTO),
    ],
)
async def test_n16_what_the_source_does_not_say_is_unknown_and_never_zero(
    make: Vendor, symbol: str, key: str, kind: AssetClass
) -> None:
    async with make() as sim, fault_rig(sim, symbols={symbol: key}, kinds={key: kind}) as rig:
        await traded(rig, 10)
        for tick in rig.ticks:
            assert (tick.volume, tick.cumulative_volume, tick.oi) == (None, None, None)
            names = set(EntryEncoder().tick(tick).text.split("\r\n")[1::4])
            assert names >= {"type", "k", "t", "r", "p", "src"}
            assert not names & {"v", "cv", "oi"}
        report_row("N16", lost="0", allowed="0")


async def test_n16_every_recorded_frame_gives_numbers_or_nothing() -> None:
    checked = 0
    for frame in recorded("yahoo"):
        data = yahoo_wire.decode_frame(frame)
        assert data is not None
        for name in ("time", "day_volume", "last_size", "price_hint", "open_interest"):
            value = getattr(data, name)
            assert value is None or isinstance(value, int), (name, value)
            checked += value is None
    assert checked > 20, "many fields are absent in them"
    fields = yahoo_wire.decode_pricing(
        base64.b64decode("CgRBQVBMFZqZmUMYgJGmj55oKgNOTVMwCDgBRaJiNL9I9PGVBWUfhQvAsAFi2AEE")
    )
    assert isinstance(fields.day_volume, int)
    report_row("N16", lost="0", allowed="0")


# ---- N13, N15: days and zones ------------------------------------------------------------------------------


async def test_n13_a_volume_that_falls_back_is_a_new_day_or_suspect() -> None:
    clock = ShiftedClock()
    # Ten in the morning in India, the day before.
    clock.set_to(int(datetime(2026, 11, 19, 4, 30, tzinfo=UTC).timestamp() * 1000))
    sim = dhan(0, now_ms=clock.now_ms)
    async with sim, fault_rig(sim, symbols={EQUITY: "NSE:RELIANCE"}, clock=clock) as rig:

        async def trade(price: float, volume: int) -> tuple[int | None, bool]:
            sim.emit(EQUITY, price=price, volume=volume)
            await eventually(lambda: rig.ticks[-1].price == price)
            return rig.ticks[-1].volume, bool(rig.ticks[-1].flags & FLAG_SUSPECT)

        await trade(1200.0, 90_000_000)
        assert await trade(1200.05, 90_000_100) == (100, False)
        clock.ahead_ms += 24 * 3_600_000
        assert await trade(1200.1, 500) == (None, False), "a new day begins at nothing"
        assert await trade(1200.15, 530) == (30, False)
        assert await trade(1200.2, 510) == (None, True), "a correction within the day"
        assert await trade(1200.25, 540) == (30, False)
        assert rig.ledger["noted"] == {"volume_rebased": 1, "volume_backwards": 1}
        report_row("N13", lost="0; one quantity unknown at each fall", allowed="0")


@pytest.mark.parametrize(
    ("change", "exchange", "moved_h"),
    [
        ("2026-03-08T07:00", "NASDAQ", -1),
        ("2026-03-29T01:00", "NSE", 0),
        ("2026-10-25T01:00", "NSE", 0),
        ("2026-11-01T06:00", "NASDAQ", 1),
    ],
)
async def test_n15_when_clocks_change_stored_times_go_on_and_sessions_open_by_local_time(
    vendor: Vendor, change: str, exchange: str, moved_h: int
) -> None:
    change_ms = int(datetime.fromisoformat(change).replace(tzinfo=UTC).timestamp() * 1000)
    clock = ShiftedClock()
    clock.set_to(change_ms - 120_000)
    sim = vendor(0, now_ms=clock.now_ms)
    async with sim, fault_rig(sim, clock=clock) as rig:
        symbol, key = next(iter(rig.first.symbols.items()))
        await eventually(lambda: len(rig.ticks) >= 2)
        for second in range(-3, 4):
            clock.set_to(change_ms + second * 1_000 + 10)
            (sent,) = sim.emit(symbol)
            await eventually(lambda sent=sent: rig.ticks_of(key)[-1].price == sent.price)
            assert rig.ticks_of(key)[-1].timestamp // 1000 == change_ms // 1000 + second
        times = [tick.timestamp for tick in rig.ticks_of(key)]
        assert times == sorted(set(times)), "UTC goes on whatever the local clocks do"
        rig.judge()
    # The change is on a Sunday: compare the session before with the one after.
    calendar, sunday = MarketCalendar(), datetime.fromisoformat(change).date()
    before, after = (
        next(found[0] for days in range(1, 8) if (found := calendar.regular(exchange, sunday + step * days)))
        for step in (-timedelta(days=1), timedelta(days=1))
    )
    assert (after.open_ms - before.open_ms) % 86_400_000 == moved_h * 3_600_000 % 86_400_000
    assert after.close_ms - after.open_ms == before.close_ms - before.open_ms
    report_row("N15", lost="0", allowed="0")
