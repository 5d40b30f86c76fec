"""The compiled short way of a Dhan packet beside the Python it stands for: the same of everything."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services import dhan_provider, provider_manager
from services.compiled import load
from services.dhan_provider import DhanProvider
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import DataIngestionFormat
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager

LANE = load("lane")
pytestmark = pytest.mark.skipif(
    LANE is None, reason="the compiled modules are not built here, or not wanted (MARKETD_COMPILED=0)"
)

NOW_MS = 1_790_748_968_000
IST_S = 19_800
KINDS: tuple[tuple[int, str, AssetClass, float | None], ...] = (
    (1, "NSE_EQ", AssetClass.EQUITY, 0.05),
    (0, "IDX_I", AssetClass.INDEX, 0.05),
    (2, "NSE_FNO", AssetClass.FUTURE, 0.05),
    (2, "NSE_FNO", AssetClass.OPTION, 0.05),
    (1, "NSE_EQ", AssetClass.EQUITY, None),
    (1, "NSE_EQ", AssetClass.EQUITY, 0.01),
)
UNKNOWN = len(KINDS)


def mapping(number: int) -> InstrumentMapping:
    _, segment, asset_class, tick_size = KINDS[number]
    return InstrumentMapping(
        mapping_id=number + 1,
        instrument=f"NSE:I{number}",
        exchange="NSE",
        symbol=f"I{number}",
        name=f"Instrument {number}",
        asset_class=asset_class,
        currency="INR",
        provider_code="DHAN",
        search_code=f"I{number}",
        segment=segment,
        security_id=str(100 + number),
        tick_size=tick_size,
        is_primary=True,
        priority=1,
    )


class Side:
    """A manager and its Dhan provider, with or without the compiled way."""

    def __init__(self, lane: ModuleType | None) -> None:
        self.clock = ManualClock(NOW_MS)
        self.published: list[Any] = []
        self.references: list[DataIngestionFormat] = []
        before = provider_manager._lane, dhan_provider._lane
        provider_manager._lane = dhan_provider._lane = lane
        try:
            self.manager = ProviderManager(
                clock=self.clock,
                settings=lambda: {},
                publish=self.published.append,
                supervisor=Supervisor(),
                show_reference=self.references.append,
                factories={"DHAN": DhanProvider},
            )
            self.manager.load(
                MappingSnapshot(
                    version=1,
                    loaded_ms=NOW_MS,
                    providers=(ProviderEntry(code="DHAN", name="Dhan"),),
                    mappings=tuple(mapping(number) for number in range(len(KINDS))),
                )
            )
        finally:
            provider_manager._lane, dhan_provider._lane = before
        self.runtime = self.manager.runtimes["DHAN"]
        provider = self.runtime.provider
        assert isinstance(provider, DhanProvider)
        self.provider = provider
        self.symbols = [row.provider_symbol for row in self.runtime.instrument_of.values()]
        for symbol in self.symbols:
            assert provider.check_symbol(symbol) is None
        self.manager.router.passing.update((f"NSE:I{number}", "DHAN") for number in range(len(KINDS)))

    @property
    def short(self) -> bool:
        return self.provider._take is not None

    def everything(self) -> dict[str, str]:
        """What anybody could see afterwards, as text: NaN equals NaN there, and 1 is not 1.0."""
        normaliser, provider = self.runtime.normaliser, self.provider
        # The codec's own memory of times is not kept by the short way, and nobody can see it.
        states = {
            symbol: {
                name: getattr(state, name)
                for name in state.__slots__
                if name not in ("grid", "known", "mapping")
            }
            for symbol, state in normaliser._states.items()
        }
        return {
            "published": repr(self.published),
            "references": repr(self.references),
            "counters": repr(provider.counters),
            "normaliser": repr(normaliser.counters),
            "tallies": repr(normaliser.tallies),
            "suspects": repr(normaliser._times.suspects),
            "states": repr(states),
            "pulses": repr(self.runtime.pulses),
            "passed": repr((self.runtime.passed, self.runtime.standby)),
            "latencies": repr(list(self.runtime.latencies_ms)),
            "fresh": repr(sorted(provider._fresh)),
            "known": repr(
                {key: {n: getattr(it, n) for n in it.__slots__} for key, it in provider._known.items()}
            ),
        }


PRICES = st.sampled_from([100.0, 100.05, 100.1, 307.2, 307.25, 0.0, -5.0, 250.013, 1e12, float("nan")])
"""On the grid nearly all of them, so that repeats happen; and what no price may be."""
USUAL_PRICES = st.sampled_from([100.0, 100.05, 100.1, 99.95])
SECONDS = st.sampled_from(
    [0, 0, 0, 0, -1, -2, 1, 4, 6, -3_599, -3_601, -IST_S, IST_S, -400_000_000, -2_000_000_000]
)
DAYS = st.sampled_from([(99.0, 98.5, 101.0, 98.0), (99.0, 98.5, 102.0, 97.0), (0.0, 0.0, 0.0, 0.0)])
Step = Callable[[Side], None]


def packet(
    kind: str, number: int, price: float, ltt: int, volume: int, day: tuple[float, ...], more: Any
) -> bytes:
    segment = KINDS[number][0] if number < UNKNOWN else 1
    security_id = 100 + number
    if kind == "quote":
        body = struct.pack("<fHIfIII", price, 3, ltt, price, volume, 11, 12) + struct.pack("<ffff", *day)
        return struct.pack("<BHBI", 4, 50, segment, security_id) + body
    if kind == "full":
        oi, bid, ask, bid_qty, ask_qty = more
        body = struct.pack("<fHIfIII", price, 3, ltt, price, volume, 11, 12)
        body += struct.pack("<III", oi, oi, oi) + struct.pack("<ffff", *day)
        body += struct.pack("<IIHHff", bid_qty, ask_qty, 1, 2, bid, ask) * 5
        return struct.pack("<BHBI", 8, 162, segment, security_id) + body
    if kind == "oi":
        return struct.pack("<BHBI", 5, 12, segment, security_id) + struct.pack("<I", more[0])
    if kind == "close":
        return struct.pack("<BHBI", 6, 16, segment, security_id) + struct.pack("<fI", day[1], more[0])
    if kind == "ticker":
        return struct.pack("<BHBI", 2, 16, segment, security_id) + struct.pack("<fI", price, ltt)
    return struct.pack("<BHBI", 4, 50, segment, security_id)[: 3 + volume % 6]


@st.composite
def frames(draw: st.DrawFn) -> Step:
    usual = draw(st.integers(0, 3)) > 0
    kind = (
        draw(st.sampled_from(["quote", "quote", "full"]))
        if usual
        else draw(st.sampled_from(["quote", "full", "oi", "close", "ticker", "damaged"]))
    )
    number = draw(st.integers(0, UNKNOWN if not usual else UNKNOWN - 1))
    price = draw(USUAL_PRICES if usual else PRICES)
    offset_s = 0 if usual else draw(SECONDS)
    volume = draw(st.integers(0, 40))
    day = draw(DAYS)
    more = (
        draw(st.integers(0, 3)),
        draw(st.sampled_from([0.0, 99.9, 100.0, 99.95, -1.0, float("nan"), float("inf")])),
        draw(st.sampled_from([0.0, 100.1, 100.15, float("nan")])),
        draw(st.integers(0, 5)),
        draw(st.integers(0, 5)),
    )
    twice = draw(st.booleans()) and not usual

    def step(side: Side) -> None:
        ltt = max(0, side.clock.now_ms() // 1000 + offset_s + IST_S)
        frame = packet(kind, number, price, ltt, volume, day, more)
        side.provider.handle(frame + frame if twice else frame)

    return step


@st.composite
def events(draw: st.DrawFn) -> Step:
    what = draw(st.sampled_from(["clock", "clock", "step", "fresh", "rebase", "route", "tap", "day", "seed"]))
    number = draw(st.integers(0, len(KINDS) - 1))
    amount = draw(st.sampled_from([0.001, 0.01, 0.3, 1.0, 2.5]))
    back = draw(st.sampled_from([-4_000, 4_000, -60_000, 120_000]))

    def step(side: Side) -> None:
        symbol, instrument = side.symbols[number], f"NSE:I{number}"
        passing = side.manager.router.passing
        if what == "clock":
            side.clock.advance(amount)
        elif what == "step":
            side.clock.step_wall(back)
        elif what == "fresh":
            side.provider.recall([symbol])
            side.provider.session_asking([symbol])
        elif what == "rebase":
            side.runtime.normaliser.rebase([symbol])
        elif what == "route":
            if instrument in passing:
                del passing[instrument]
            else:
                passing[instrument] = "DHAN"
        elif what == "seed":
            second = side.clock.now_ms() // 1000 * 1000
            stored = DataIngestionFormat(instrument, 100.05, None, second + round(amount), "DHAN", symbol)
            side.runtime.normaliser.seed(symbol, msgspec.structs.replace(stored, cumulative_volume=7))
            if amount == 1.0:
                side.runtime.normaliser.seed(symbol, msgspec.structs.replace(stored, timestamp=second))
        elif what == "day":
            side.clock.advance(86_400)
        else:
            side.provider.depth_tap = None if side.provider.depth_tap is not None else NobodysTap()

    return step


class NobodysTap:
    wanted: frozenset[str] = frozenset()

    def book(self, *_: Any) -> None:
        raise AssertionError("nobody wants a book")

    def lost(self, symbols: Iterable[str]) -> None:
        return


@pytest.mark.asyncio
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.one_of(frames(), frames(), frames(), frames(), events()), min_size=20, max_size=150))
async def test_the_short_way_leaves_everything_as_the_long_one_does(steps: list[Step]) -> None:
    long, short = Side(None), Side(LANE)
    assert short.short
    assert not long.short
    for step in steps:
        step(long)
        step(short)
    expected, found = long.everything(), short.everything()
    for name, text in expected.items():
        assert found[name] == text, name


async def test_the_usual_packet_goes_the_short_way() -> None:
    side = Side(LANE)
    takes: list[bool] = []
    take = side.provider._take
    assert take is not None

    def counted(raw: str | bytes) -> bool:
        takes.append(take(raw))
        return takes[-1]

    side.provider._take = counted
    for count in range(50):
        side.clock.advance(0.1)
        ltt = side.clock.now_ms() // 1000 + IST_S
        price = 100.0 + count % 7 / 20
        kind = "full" if count % 2 else "quote"
        side.provider.handle(
            packet(
                kind, 0, price, ltt, 1_000 + count, (99.0, 98.5, 101.0, 98.0), (0, price, price + 0.05, 5, 6)
            )
        )
    assert takes.count(False) <= 2
    assert len(side.published) == 50
