"""The compiled way of a message to its handler counts, answers and fails as the interpreted one does."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import picows
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picows.picows import _make_test_ws_frame  # type: ignore[attr-defined]

from services.compiled import load
from services.connection import picows_transport
from services.connection.link import Link
from services.errors import (
    CredentialsRejected,
    ProviderError,
    ProviderUnavailable,
    WireFormatError,
)
from services.market_data.clock import ManualClock, SystemClock
from services.market_data.records import ProviderTick
from services.provider_frames import FrameIntake, ProviderCounters

pytestmark = pytest.mark.skipif(
    load("intake") is None, reason="services.compiled.intake is not built (scripts/compile.py builds it)"
)

NOW_MS = 1_790_000_000_000
HANDLERS = (
    "nothing", "ticks", "returns one", "returns many", "damaged", "value", "lookup", "unavailable", "refused",
    "cancelled", "coroutine",
)  # fmt: skip


class _Way:
    """A link and an intake, and all that came of the messages given to them."""

    def __init__(self, *, compiled: bool) -> None:
        self.clock = ManualClock(NOW_MS)
        self.counters = ProviderCounters()
        self.seen: list[Any] = []
        self.intake = FrameIntake(
            code="X",
            clock=self.clock,
            counters=self.counters,
            handler=self.handler,
            emit=lambda tick: self.seen.append((repr(tick), self.intake.received_ms)),
            damaged=lambda: self.seen.append("damaged"),
            spawn=self.spawn,
            secrets=tuple,
        )
        handle, on_frame = FrameIntake.handle, Link.on_frame
        if not compiled:
            handle, on_frame = handle.interpreted, on_frame.interpreted  # type: ignore[attr-defined]
        self.link = Link(handle.__get__(self.intake), self.counters, self.clock)
        self.on_frame = on_frame.__get__(self.link)

    def spawn(self, coroutine: Any, name: str) -> Any:
        coroutine.close()
        self.seen.append(("spawned", name))
        return None

    def handler(self, raw: Any) -> Any:
        self.seen.append((self.intake.current_ms, self.intake.last_frame_ms))
        tick = ProviderTick("A", 1.0)
        match raw:
            case "ticks":
                self.counters.ticks += 1
                return None
            case "returns one":
                return tick
            case "returns many":
                return [tick, tick]
            case "damaged":
                raise WireFormatError("short")
            case "value":
                raise ValueError("no number")
            case "lookup":
                return {}["missing"]
            case "unavailable":
                raise ProviderUnavailable("gone", reason="gone")
            case "refused":
                raise CredentialsRejected("no")
            case "cancelled":
                raise asyncio.CancelledError
            case "coroutine":
                return asyncio.sleep(0)
        return None

    def state(self) -> Any:
        link = {name: getattr(self.link, name) for name in ("over", "frames", "data_frames", "last_data_ms")}
        intake = (self.intake.current_ms, self.intake.last_frame_ms, len(self.intake._pending))
        meter = vars(self.link._damage)
        return link, repr(self.link.error), intake, repr(self.counters), meter, self.seen


@given(st.lists(st.tuples(st.sampled_from(HANDLERS), st.integers(0, 1_500)), max_size=12))
def test_whatever_a_handler_does_has_the_same_outcome(messages: list[tuple[str, int]]) -> None:
    ways = _Way(compiled=True), _Way(compiled=False)
    for raw, passing_ms in messages:
        ended = []
        for way in ways:
            way.clock.advance(passing_ms / 1000)
            try:
                ended.append(way.on_frame(raw))
            except asyncio.CancelledError as error:
                ended.append(type(error))
        assert ended[0] == ended[1]
        assert ways[0].state() == ways[1].state()
    for way in ways:
        way.intake.close()


def test_a_connection_that_brings_only_damage_ends_the_same() -> None:
    ways = _Way(compiled=True), _Way(compiled=False)
    for number in range(400):
        for way in ways:
            way.clock.advance(0.01)
            way.on_frame("damaged" if number % 50 else "ticks")
        assert ways[0].state() == ways[1].state()
    assert ways[0].link.over
    assert isinstance(ways[0].link.error, ProviderError)


def test_what_is_no_link_is_refused_before_it_is_read() -> None:
    with pytest.raises(TypeError):
        Link.on_frame(object(), b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        FrameIntake.handle(object(), b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Link(lambda _: 0, object(), ManualClock()).on_frame(b"")  # type: ignore[arg-type]


def test_messages_leave_nothing_behind() -> None:
    way = _Way(compiled=True)
    way.seen = _NoMemory()  # type: ignore[assignment]
    listener = picows_transport._listening(picows_transport._Frames(way.link, 100, bool))
    frame = _make_test_ws_frame(picows.WSMsgType.BINARY, b"payload", True, False)
    raw = b"".join([b"ti", b"cks"])
    before = sys.getrefcount(raw), sys.getrefcount(way.link), sys.getrefcount(way.intake)
    blocks = []
    for _ in range(6):
        for _ in range(2_000):
            way.on_frame(raw)
            way.on_frame("damaged")
            way.on_frame("ticks")
            way.clock.advance(1.0)
        for _ in range(100):
            listener.on_ws_frame(None, frame)  # type: ignore[arg-type]
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    after = sys.getrefcount(raw), sys.getrefcount(way.link), sys.getrefcount(way.intake)
    assert after == before
    assert not way.link.over
    assert blocks[-1] - blocks[1] < 2_000, blocks


class _NoMemory:
    def append(self, _: object) -> None:
        return


@pytest.mark.skipif(load("clock") is None, reason="services.compiled.clock is not built")
def test_both_clocks_tell_the_same_time() -> None:
    clock = SystemClock()
    interpreted = SystemClock.now_ms.interpreted  # type: ignore[attr-defined]
    for _ in range(100):
        before, between, after = interpreted(clock), clock.now_ms(), interpreted(clock)
        assert type(between) is int
        if after >= before:
            # Else somebody set the clock meanwhile.
            assert before <= between <= after


# ---- picows ---------------------------------------------------------------------------------------------

FRAMES = st.lists(
    st.tuples(
        st.sampled_from([picows.WSMsgType.BINARY] * 4 + [picows.WSMsgType.TEXT, picows.WSMsgType.PONG]),
        st.binary(max_size=4),
        st.booleans(),
    ),
    max_size=20,
)


class _Told:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_frame(self, raw: Any) -> None:
        self.told.append(raw)

    def on_pong(self) -> None:
        self.told.append("pong")

    def on_sign_of_life(self) -> None:
        self.told.append("sign")

    def on_closed(self) -> None:
        self.told.append("closed")


@pytest.mark.skipif(load("listener") is None, reason="services.compiled.listener is not built")
@given(FRAMES, st.integers(120, 128))
def test_the_listener_hands_on_every_frame_as_before(frames: list[Any], stretch: int) -> None:
    outcomes = []

    async def given_to(*, compiled: bool) -> None:
        told = _Told()
        inner = picows_transport._Frames(told, 100, bool)
        inner._stretch = stretch
        listener = picows_transport._listening(inner) if compiled else inner
        assert (listener is inner) is not compiled
        fragments = 0
        for kind, payload, whole in frames:
            if kind is picows.WSMsgType.PONG or whole or fragments:
                whole = True
            else:
                fragments += 1
            listener.on_ws_frame(None, _make_test_ws_frame(kind, payload, whole, False))
        seen = [told.told.copy(), inner._stretch, list(inner._later), bytes(inner._parts)]
        listener.on_ws_disconnected(None)
        outcomes.append([*seen, told.told])

    for compiled in (False, True):
        asyncio.run(given_to(compiled=compiled))
    assert outcomes[0] == outcomes[1]


def test_the_listener_is_built_for_the_picows_we_ask_for() -> None:
    compiled = load("listener")
    if compiled is None:
        pytest.skip("services.compiled.listener is not built")
    pinned = Path(__file__).parents[3].joinpath("requirements.txt").read_text(encoding="utf-8").split()
    assert f"picows=={compiled.PICOWS}" in pinned
