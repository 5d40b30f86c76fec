"""How far a client has read is learned from its pongs alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.flow import FlowLimits, FlowWindow

LIMITS = FlowLimits(
    initial_bytes=1_000,
    smallest_bytes=400,
    largest_bytes=4_000,
    frozen_after_s=4.5,
    idle_ping_s=20.0,
    idle_patience_s=20.0,
)


def test_the_window_closes_when_too_much_is_unread_and_opens_with_the_pong() -> None:
    flow = FlowWindow(0.0, LIMITS)
    ping = flow.sent(1_000, 0.0)
    assert ping == b"1"
    assert not flow.open
    assert flow.ponged(ping, 0.1)
    assert flow.open
    assert flow.outstanding_bytes == 0


def test_a_pong_answers_the_pings_before_it() -> None:
    flow = FlowWindow(0.0, LIMITS)
    pings = [flow.sent(300, 0.0) for _ in range(3)]
    assert None not in pings
    assert flow.ponged(b"2", 0.1)
    assert flow.outstanding_bytes == 300
    assert not flow.ponged(b"1", 0.2)
    assert flow.ponged(b"3", 0.2)


def test_pongs_that_answer_nothing_are_told_apart() -> None:
    flow = FlowWindow(0.0, LIMITS)
    assert not flow.ponged(b"1", 0.0)
    flow.sent(1_000, 0.0)
    for payload in (b"2", b"0", b"-1", b"", b"one", b"\xff", b"9" * 125):
        assert not flow.ponged(payload, 0.1)


def test_quick_answers_widen_the_window_and_slow_ones_narrow_it() -> None:
    flow = FlowWindow(0.0, LIMITS)

    def fill(now_s: float, answer_s: float) -> int:
        sent = 0
        last = None
        while flow.open:
            last = flow.sent(100, now_s) or last
            sent += 100
        assert last is not None
        last = flow.tick(now_s + 1.0) or last
        assert flow.ponged(last, answer_s)
        return sent

    assert fill(0.0, 0.5) == 1_000
    widths = [fill(10.0 * step, 10.0 * step + 0.5) for step in range(1, 6)]
    assert widths == sorted(widths)
    assert widths[-1] == 4_000
    narrow = [fill(10.0 * step, 10.0 * step + 3.0) for step in range(6, 12)]
    assert narrow[-1] <= 500


def test_a_small_message_is_pinged_at_most_once_a_second() -> None:
    flow = FlowWindow(0.0, LIMITS)
    pings = [flow.sent(1, step / 100) for step in range(100)]
    assert sum(ping is not None for ping in pings) == 1
    assert flow.tick(0.99) is None
    assert flow.tick(1.0) is not None
    assert flow.tick(1.01) is None


def test_a_client_that_answers_nothing_is_frozen_after_its_patience_and_not_before() -> None:
    flow = FlowWindow(0.0, LIMITS)
    assert flow.sent(10, 100.0) is not None
    assert not flow.frozen(104.4)
    assert flow.frozen(104.5)


def test_a_slow_client_that_keeps_answering_is_not_frozen() -> None:
    flow = FlowWindow(0.0, LIMITS)
    now_s = 0.0
    waiting: list[bytes] = []
    for _ in range(50):
        while flow.open:
            ping = flow.sent(100, now_s)
            if ping is not None:
                waiting.append(ping)
        ping = flow.tick(now_s)
        if ping is not None:
            waiting.append(ping)
        now_s += 3.0
        assert not flow.frozen(now_s)
        assert flow.ponged(waiting.pop(0), now_s)
    assert flow.lag_ms(now_s) >= 3_000


def test_an_idle_client_is_asked_rarely_and_given_time() -> None:
    flow = FlowWindow(0.0, LIMITS)
    assert flow.tick(19.9) is None
    ping = flow.tick(20.0)
    assert ping is not None
    assert not flow.frozen(39.9)
    assert flow.frozen(40.0)
    assert flow.ponged(ping, 39.9)
    assert not flow.frozen(60.0)


def test_data_behind_an_idle_ping_has_the_short_patience() -> None:
    flow = FlowWindow(0.0, LIMITS)
    assert flow.tick(20.0) is not None
    assert flow.sent(10, 21.5) is not None
    assert flow.frozen(26.1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2_000), st.floats(0, 3)), max_size=60))
def test_no_more_than_one_message_beyond_the_largest_window_is_ever_unread(
    script: list[tuple[int, int, float]],
) -> None:
    flow = FlowWindow(0.0, LIMITS)
    now_s = 0.0
    pings: list[bytes] = []
    for step, size, wait_s in script:
        now_s += wait_s
        if step == 0 and pings:
            flow.ponged(pings.pop(0), now_s)
        elif flow.open:
            ping = flow.sent(size, now_s)
            if ping is not None:
                pings.append(ping)
        assert 0 <= flow.outstanding_bytes <= LIMITS.largest_bytes + 2_000
