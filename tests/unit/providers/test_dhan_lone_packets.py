"""A packet alone in its message says what it says among others: the short way and the codec's agree."""

from __future__ import annotations

import struct

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.dhan_provider import DhanProvider
from services.market_data.records import ProviderTick
from services.wire import dhan
from services.wire.dhan_lone import KnownInstrument, wire_key
from tests.support.providers import Recorder

SEGMENTS = (dhan.Segment.IDX_I, dhan.Segment.NSE_EQ, dhan.Segment.NSE_FNO, dhan.Segment.MCX_COMM)
HEARTBEAT = dhan.encode(dhan.Heartbeat())

numbers = st.integers(0, 2**32 - 1)
prices = st.sampled_from([0.0, -1.0, float("inf"), float("nan")]) | st.floats(0.0625, 1e6, width=32)
times = st.sampled_from([0, 315_532_800, 1_781_084_997]) | numbers
levels = st.builds(
    dhan.DepthLevel, numbers, numbers, st.integers(0, 9), st.integers(0, 9), prices | st.just(0.0), prices
)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    segment, security_id = draw(st.sampled_from(SEGMENTS)), draw(st.sampled_from([13, 2885]))
    head = (segment, security_id, draw(prices), draw(st.integers(0, 65_535)), draw(times), draw(prices))
    day = draw(st.sampled_from([(1.5, 2.5, 3.5, 0.5), (0.0, 0.0, 0.0, 0.0), (1.5, float("nan"), 3.5, 0.5)]))
    totals = (draw(numbers), draw(numbers), draw(numbers))
    if draw(st.booleans()):
        return dhan.encode(dhan.Quote(*head, *totals, *day))
    depth = tuple(draw(levels) for _ in range(5))
    return dhan.encode(dhan.Full(*head, *totals, draw(numbers), 7, 3, *day, depth))


def emitted(messages: list[bytes]) -> tuple[list[str], dict[str, int], int]:
    recorder = Recorder({"DHAN_CLIENT_ID": "1100", "DHAN_ACCESS_TOKEN": "token"})
    provider = DhanProvider(recorder.context)
    for segment in SEGMENTS[:3]:
        # The fourth is none that we asked for.
        assert provider.check_symbol(f"{segment.name}:2885") is None
        assert provider.check_symbol(f"{segment.name}:13") is None
    for message in messages:
        provider.handle(message)
    assert not provider.counters.wire_errors
    return [_text(tick) for tick, _ in recorder.ticks], provider.counters.ignored, provider.counters.records


def _text(tick: ProviderTick) -> str:
    # As text, because NaN is not equal to itself. The mark is what the short way adds.
    return repr(msgspec.structs.replace(tick, day_mark=None))


@given(st.lists(packets(), min_size=1, max_size=8))
def test_a_lone_packet_is_read_as_one_beside_a_heartbeat(messages: list[bytes]) -> None:
    alone, ignored, records = emitted(messages)
    beside, with_heartbeats, all_records = emitted([message + HEARTBEAT for message in messages])
    assert alone == beside
    assert ignored.get("never_traded") == with_heartbeats.get("never_traded")
    assert records + len(messages) == all_records


def test_the_mark_stays_the_same_object_until_a_day_price_changes() -> None:
    recorder = Recorder({"DHAN_CLIENT_ID": "1100", "DHAN_ACCESS_TOKEN": "token"})
    provider = DhanProvider(recorder.context)
    provider.check_symbol("NSE_EQ:2885")
    for high in (12.0, 12.0, 12.5):
        fields = (10.0, 1, 1_781_084_997, 10.0, 100, 1, 1, 9.0, 9.5, high, 8.5)
        provider.handle(dhan.encode(dhan.Quote(dhan.Segment.NSE_EQ, 2885, *fields)))
    first, second, third = (tick.day_mark for tick, _ in recorder.ticks)
    assert first is second
    assert third != first
    assert [tick.day_high for tick, _ in recorder.ticks] == [12.0, 12.0, 12.5]


def test_a_known_instrument_is_found_by_the_bytes_of_its_packets() -> None:
    packet = dhan.encode(dhan.Ticker(dhan.Segment.NSE_FNO, 4_294_967_295, 1.0, 1))
    assert packet[3:8] == wire_key(dhan.Segment.NSE_FNO, 4_294_967_295)
    known = KnownInstrument("NSE_EQ:1", 1, derivative=False)
    known.take_day(struct.pack("<ffff", 1.0, 0.0, 3.0, 0.5))
    assert (known.day_open, known.day_close, known.day_high, known.day_low) == (1.0, None, 3.0, 0.5)
