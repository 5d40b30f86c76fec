"""Faults of the host: a clock that is set, memory that runs short, a daemon that crashes again and again."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from services.connection.liveness import Liveness, Pulse
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.market_data.normaliser import Normaliser
from services.market_data.records import FLAG_LATE, DataIngestionFormat, ProviderTick
from services.pipeline.sequencer import Sequencer
from tests.support.eventually import eventually
from tests.support.gateway import running_gateway
from tests.support.row_report import report_row
from tests.support.stack import Stack

HOUR_MS = 3_600_000
SYMBOL = "NSE_EQ:2885"


def mapping() -> InstrumentMapping:
    return InstrumentMapping(
        mapping_id=1,
        instrument="NSE:RELIANCE",
        exchange="NSE",
        symbol="RELIANCE",
        name="Reliance",
        asset_class=AssetClass.EQUITY,
        currency="INR",
        provider_code="DHAN",
        search_code="RELIANCE-EQ",
        is_primary=True,
        priority=1,
        segment="NSE_EQ",
        security_id="2885",
    )


class Desk:
    """The real normaliser, sequencer and liveness on a clock that is set while the source's own runs on."""

    def __init__(self, *, with_event_time: bool) -> None:
        self.clock = ManualClock()
        self.source_ms = self.clock.now_ms()
        self.with_event_time = with_event_time
        self.normaliser = Normaliser("DHAN", self.clock.wall_step_ms)
        self.normaliser.load([mapping()])
        self.sequencer = Sequencer(self.clock)
        self.liveness = Liveness(self.clock.monotonic_s(), ping_after_s=10, pong_within_s=10)
        self.sent = 0
        self.records: list[DataIngestionFormat] = []
        self.pulses: set[Pulse] = set()

    def tick(self) -> None:
        """A tick comes, a tenth of a second after the last one."""
        self.clock.advance(0.1)
        self.source_ms += 100
        self.sent += 1
        tick = ProviderTick(
            provider_symbol=SYMBOL,
            price=1000.0 + self.sent * 0.05,
            event_ms=self.source_ms if self.with_event_time else None,
        )
        record = self.normaliser.accept(tick, self.clock.now_ms())
        if record is not None:
            self.sequencer.stamp(record)
            self.records.append(record)
        self.pulses.add(self.liveness.look(self.clock.monotonic_s(), self.sent, self.sent, mute_after_s=30))


@pytest.mark.parametrize(
    "step_ms", [2 * HOUR_MS, -2 * HOUR_MS, 25 * HOUR_MS, -25 * HOUR_MS, 3_000, -3_000, -500]
)
@pytest.mark.parametrize("with_event_time", [True, False])
def test_h7_a_clock_that_is_set_loses_no_tick_and_calls_nothing_stale(
    step_ms: int, with_event_time: bool
) -> None:
    desk = Desk(with_event_time=with_event_time)
    for moved_ms in (0, step_ms, -step_ms):
        desk.clock.step_wall(moved_ms)
        for _ in range(100):
            desk.tick()
    assert len(desk.records) == desk.sent == 300, desk.normaliser.counters
    assert desk.normaliser.counters.rejected == {}
    positions = [(record.position_ms, record.position_seq) for record in desk.records]
    assert positions == sorted(set(positions)), "positions increase, whatever the clock does"
    assert not any(record.flags & FLAG_LATE for record in desk.records), "live ticks stay live"
    assert desk.pulses == {Pulse.FINE}, "silence is judged on the monotonic clock"
    if with_event_time:
        times = [record.timestamp for record in desk.records]
        assert times == list(range(times[0], times[0] + 30_000, 100)), "the source's own times are kept"
        if abs(step_ms) >= HOUR_MS:
            assert desk.normaliser.counters.noted.get("clock_stepped", 0) >= 99, "and the step is counted"
    else:
        assert len({record.timestamp for record in desk.records}) == 300
    report_row(
        "H7", lost=f"0 of 300 ticks, clock set by {step_ms} ms and back", allowed="0 ticks; quality flagged"
    )


async def test_h12_a_daemon_short_of_memory_takes_no_new_clients_and_goes_on_writing(
    stack: Stack, tmp_path: Path
) -> None:
    async with stack.daemon(tmp_path / "state", MEMORY_LIMIT_MIB=64) as daemon:
        await eventually(lambda: "memory_pressure" in daemon.log(), within_s=20)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{daemon.runtime['api_url']}/ws")
        assert refused.value.status == 503
        process = (await daemon.status())["pipeline"]["process"]
        assert process["memory_pressure"] is True
        assert process["rss_bytes"] > 0.7 * process["memory_limit_bytes"] == 0.7 * (64 << 20)
        assert "memory_budget" in daemon.log()
        sent = len(stack.journal.ticks)
        await eventually(lambda: len(stack.journal.ticks) > sent + 50, within_s=20)
        written = {s["name"]: s["written"] for s in (await daemon.status())["pipeline"]["sinks"]}
        assert written["stream"] > 50
        assert (await daemon.get("/readyz"))[0] == 200
        assert await daemon.stop() == 0
    report_row("H12", lost="0 ticks; new clients refused with 503", allowed="as H3")


async def test_h12_clients_get_less_while_memory_is_short_and_all_again_afterwards() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:RELIANCE", delivery="latest", every_ms=20)
        feeding = asyncio.create_task(_feed(rig.market))

        async def frames_in(seconds: float) -> int:
            count = 0
            until_s = time.monotonic() + seconds
            while (left_s := until_s - time.monotonic()) > 0:
                try:
                    await socket.receive_json(timeout=left_s)
                except TimeoutError:
                    break
                count += 1
            return count

        assert await frames_in(1.0) > 5
        rig.gateway.relieve(True)
        await frames_in(0.2)
        assert await frames_in(2.0) <= 3, "once a second is enough"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect()
        assert refused.value.status == 503
        rig.gateway.relieve(False)
        await frames_in(1.2)
        assert await frames_in(1.0) > 5
        await rig.connect()
        feeding.cancel()
        await asyncio.wait([feeding])


async def _feed(market: object) -> None:
    price = 100.0
    while True:
        price += 0.05
        market.tick("NSE:RELIANCE", price)  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_h16_a_daemon_that_crashes_again_and_again_does_not_hammer_the_provider(
    stack: Stack, tmp_path: Path
) -> None:
    # A start takes seconds by itself: the back-off shows once it is longer than that.
    crashes, delayed = 0, 0
    while not delayed and crashes < 8:
        crashes += 1
        daemon = stack.daemon(tmp_path / "state")
        seen = stack.dhan.handshakes
        said = daemon.log().count("first_connect_delayed") if daemon.log_path.exists() else 0
        await daemon.start()
        await eventually(
            lambda n=seen, m=said, d=daemon: (
                stack.dhan.handshakes > n or d.log().count("first_connect_delayed") > m
            ),
            within_s=20,
        )
        delayed += daemon.log().count("first_connect_delayed") > said
        assert daemon.process is not None
        daemon.process.kill()
        await daemon.process.wait()
    opened = [
        event.at_ms
        for event in stack.journal.connections
        if event.event == "opened" and event.provider == stack.dhan.provider
    ]
    assert delayed >= 1, "the back-off was carried over"
    assert len(opened) == stack.dhan.handshakes < crashes
    for number, (before_ms, at_ms) in enumerate(pairwise(opened)):
        assert at_ms - before_ms >= (0 if number == 0 else 500 * 2**number)
    report_row(
        "H16",
        lost=f"{crashes} crashes in a row made {len(opened)} connections to the provider",
        allowed="-",
    )
