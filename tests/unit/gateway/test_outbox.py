"""What waits for a client leaves in an order that never goes back, and loses only what it says it lost."""

from __future__ import annotations

import json
from operator import is_
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.data_broadcast import Publication
from services.gateway.encoding import MAX_FRAME_BYTES, text_frame
from services.gateway.outbox import Outbox, Pace, SharedFrames
from services.market_data.records import ControlRecord, DataIngestionFormat

LARGE = 1 << 30


def payload_of(frame: bytes) -> bytes:
    """Check a server's text frame and return what it carries."""
    assert frame[0] == 0x81
    size, start = frame[1], 2
    if size == 126:
        size, start = int.from_bytes(frame[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(frame[2:10], "big"), 10
    assert len(frame) == start + size
    return frame[start:]


def messages(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(payload_of(frame)) for frame in frames]


def tick(instrument: str, sequence: int) -> Publication:
    """A tick whose price is its sequence number."""
    exchange = instrument.partition(":")[0]
    record = DataIngestionFormat(instrument, float(sequence), 1, 1_000 + sequence, "DHAN", exchange=exchange)
    record.position_ms, record.position_seq = 1_000, sequence
    return Publication(record)


def control(kind: Any, instrument: str, sequence: int) -> Publication:
    exchange = instrument.partition(":")[0]
    return Publication(
        ControlRecord(kind, instrument, exchange, 5, 5, "DHAN", {"reason": "mute"}, 1_000, sequence)
    )


class Box(Outbox):
    """An outbox that counts its wake-ups."""

    def __init__(self, limit_bytes: int = LARGE) -> None:
        self.wakes = 0
        super().__init__(limit_bytes, self.count_wake, SharedFrames())

    def count_wake(self) -> None:
        self.wakes += 1

    def paced(self, every_ms: int = 100) -> Pace:
        pace = self.paces[every_ms] = Pace(every_ms, 0.0)
        return pace


def prices(frames: list[bytes]) -> list[dict[str, float]]:
    return [
        {key: data["last_price"] for key, data in message["data"].items()}
        for message in messages(frames)
        if message["type"] == "raw_tick"
    ]


def test_ticks_of_different_instruments_share_a_frame_and_a_repeated_one_opens_the_next() -> None:
    box = Box()
    for sequence, instrument in enumerate(["NSE:A", "NSE:B", "BSE:C", "NSE:A", "NSE:A", "NSE:B"], 1):
        box.take(tick(instrument, sequence))
    frames = box.pop_queue(LARGE)
    assert prices(frames) == [{"NSE:A": 1, "NSE:B": 2, "BSE:C": 3}, {"NSE:A": 4}, {"NSE:A": 5, "NSE:B": 6}]
    assert [message["position"] for message in messages(frames)] == [
        {"NSE": "1000-2", "BSE": "1000-3"},
        {"NSE": "1000-4"},
        {"NSE": "1000-6"},
    ]
    assert box.queued_bytes == 0
    assert not box.waiting


def test_a_tick_carries_what_is_known_and_nothing_else() -> None:
    box = Box()
    record = DataIngestionFormat(
        "NSE:A", 2456.75, None, 9, "YF", bid=2456.7, flags=5, exchange="NSE", position_ms=1, position_seq=2
    )
    box.take(Publication(record))
    assert messages(box.pop_queue(LARGE)) == [
        {
            "type": "raw_tick",
            "data": {
                "NSE:A": {
                    "last_price": 2456.75,
                    "ts_ms": 9,
                    "bid": 2456.7,
                    "src": "YF",
                    "flags": ["snapshot", "late"],
                }
            },
            "position": {"NSE": "1-2"},
        }
    ]


def test_the_json_of_a_tick_is_made_once_for_all_clients() -> None:
    first, second = Box(), Box()
    publication = tick("NSE:A", 1)
    first.take(publication)
    second.take(publication)
    assert first.pop_queue(LARGE)[0] is second.pop_queue(LARGE)[0]


def test_clients_served_in_a_row_with_the_same_ticks_get_the_same_bytes() -> None:
    frames = SharedFrames()
    boxes = [Outbox(LARGE, lambda: None, frames) for _ in range(2)]
    ticks = [tick("NSE:A", 1), tick("NSE:B", 2)]
    for box in boxes:
        for publication in ticks:
            box.take(publication)
    (first,), (second,) = boxes[0].pop_queue(LARGE), boxes[1].pop_queue(LARGE)
    assert first is second
    boxes[0].take(tick("NSE:A", 3))
    boxes[0].take(tick("NSE:B", 4))
    assert prices(boxes[0].pop_queue(LARGE)) == [{"NSE:A": 3, "NSE:B": 4}]


def test_a_pace_keeps_the_newest_tick_of_each_instrument_only() -> None:
    box = Box()
    pace = box.paced()
    for sequence in range(1, 8):
        publication = tick("NSE:A" if sequence % 2 else "NSE:B", sequence)
        pace.pending[publication.record.symbol] = publication
    assert prices(box.pop_pace(pace, LARGE)) == [{"NSE:A": 7, "NSE:B": 6}]
    assert not pace.pending


def test_many_pending_instruments_leave_in_frames_of_bounded_size() -> None:
    box = Box()
    pace = box.paced()
    for sequence in range(2_500):
        pace.pending[f"NSE:S{sequence}"] = tick(f"NSE:S{sequence}", sequence)
    frames = box.pop_pace(pace, LARGE)
    assert [key for batch in prices(frames) for key in batch] == [f"NSE:S{number}" for number in range(2_500)]
    assert len(frames) > 2
    assert all(MAX_FRAME_BYTES * 0.99 < len(frame) < MAX_FRAME_BYTES + 200 for frame in frames[:-1])
    assert len(frames[-1]) < MAX_FRAME_BYTES + 200


def test_what_leaves_at_once_is_bounded_whatever_waits() -> None:
    box = Box()
    pace = box.paced()
    for sequence in range(2_500):
        pace.pending[f"NSE:S{sequence}"] = tick(f"NSE:S{sequence}", sequence)
        box.take(tick(f"NSE:S{sequence}", sequence))
    for pop in (lambda: box.pop_pace(pace, 64 * 1024), lambda: box.pop_queue(64 * 1024)):
        count = 0
        while frames := pop():
            assert sum(map(len, frames)) < 64 * 1024 + 20_000
            count += sum(map(len, prices(frames)))
        assert count == 2_500
    assert box.queued_bytes == 0


def test_clients_with_the_same_instruments_share_their_frames_though_others_are_served_between() -> None:
    frames = SharedFrames()
    boxes = [Outbox(LARGE, lambda: None, frames) for _ in range(3)]
    paces = [Pace(100, 0.0) for _ in boxes]
    for sequence in range(800):
        publication = tick(f"NSE:S{sequence}", sequence)
        for pace in (paces[0], paces[2]):
            pace.pending[publication.record.symbol] = publication
        if sequence % 2:
            paces[1].pending[publication.record.symbol] = publication
    made = [box.pop_pace(pace, 1 << 20) for box, pace in zip(boxes, paces, strict=True)]
    assert all(map(is_, made[0], made[2]))
    assert [sum(map(len, prices(each))) for each in made] == [800, 400, 800]


def test_clients_with_the_same_queue_share_its_frames_and_one_that_differs_does_not() -> None:
    frames = SharedFrames()
    boxes = [Outbox(LARGE, lambda: None, frames) for _ in range(3)]
    run = [tick(key, number) for number, key in enumerate(["NSE:A", "NSE:B", "NSE:A", "NSE:C"])]
    for box in boxes:
        for publication in run[: 3 if box is boxes[2] else 4]:
            box.take(publication)
    first, second, third = (box.pop_queue(LARGE) for box in boxes)
    assert len(first) == 2
    assert all(map(is_, first, second))
    assert prices(third) == [{"NSE:A": 0, "NSE:B": 1}, {"NSE:A": 2}]
    assert [box.queued_bytes for box in boxes] == [0, 0, 0]
    assert not any(box.waiting for box in boxes)


def test_the_position_of_a_paced_frame_is_the_newest_it_holds() -> None:
    box = Box()
    pace = box.paced()
    for instrument, sequence in (("NSE:A", 9), ("BSE:B", 4), ("NSE:C", 7), ("BSE:D", 5), ("NSE:E", 8)):
        pace.pending[instrument] = tick(instrument, sequence)
    (message,) = messages(box.pop_pace(pace, LARGE))
    assert message["position"] == {"NSE": "1000-9", "BSE": "1000-5"}


def test_a_control_record_leaves_behind_the_instruments_tick_before_it() -> None:
    box = Box()
    pace = box.paced()
    pace.pending["NSE:A"] = tick("NSE:A", 1)
    pace.pending["NSE:B"] = tick("NSE:B", 2)
    box.take_control(control("gap", "NSE:A", 3))
    pace.pending["NSE:A"] = tick("NSE:A", 4)
    sent = messages(box.pop_queue(LARGE) + box.pop_pace(pace, LARGE))
    assert [message["type"] for message in sent] == ["raw_tick", "gap", "raw_tick"]
    assert sent[1]["instrumentKey"] == "NSE:A"
    assert sent[1]["reason"] == "mute"
    assert sent[1]["position"] == {"NSE": "1000-3"}
    assert sent[0]["data"].keys() == {"NSE:A"}
    assert {key: data["last_price"] for key, data in sent[2]["data"].items()} == {"NSE:B": 2, "NSE:A": 4}


def test_an_event_of_the_whole_exchange_leaves_behind_all_its_pending_ticks() -> None:
    box = Box()
    pace = box.paced()
    for sequence, instrument in enumerate(("NSE:A", "BSE:B", "NSE:C"), 1):
        pace.pending[instrument] = tick(instrument, sequence)
    box.take_control(control("session", "NSE:*", 4))
    sent = messages(box.pop_queue(LARGE))
    assert [message["type"] for message in sent] == ["raw_tick", "session"]
    assert sent[0]["data"].keys() == {"NSE:A", "NSE:C"}
    assert pace.pending.keys() == {"BSE:B"}


def test_beyond_the_cap_the_oldest_ticks_go_and_are_counted_where_they_stood() -> None:
    size = len(text_frame(b"")) + 90
    box = Box(limit_bytes=size * 20)
    box.take_control(control("switched", "NSE:A", 0))
    answer = text_frame(b'{"type":"pong"}')
    box.put(answer)
    for sequence in range(1, 101):
        box.take(tick("NSE:A" if sequence % 2 else "NSE:B", sequence))
    sent = messages(box.pop_queue(LARGE))
    assert sent[0]["type"] == "skipped"
    assert sent[0]["n"] == sum(sent[0]["instruments"].values()) == box.skipped_total > 50
    assert [message["type"] for message in sent[1:3]] == ["switched", "pong"]
    kept = [key for message in sent[3:] for key in message["data"]]
    assert len(kept) + sent[0]["n"] == 100
    last = sent[-1]["data"]
    assert max(data["last_price"] for data in last.values()) == 100
    assert not box.overfull


def test_a_client_whose_answers_alone_exceed_the_cap_is_marked() -> None:
    box = Box(limit_bytes=1_000)
    answer = text_frame(b"x" * 300)
    for _ in range(5):
        box.put(answer)
    assert box.overfull
    before = box.queued_bytes
    box.take(tick("NSE:A", 1))
    assert box.queued_bytes == before


def test_a_skip_of_one_instrument_names_it() -> None:
    box = Box(limit_bytes=300)
    for sequence in range(20):
        box.take(tick("NSE:A", sequence))
    assert messages(box.pop_queue(LARGE))[0]["instrumentKey"] == "NSE:A"


def test_the_queue_is_given_out_within_a_budget() -> None:
    box = Box()
    for sequence in range(50):
        box.take(tick("NSE:A", sequence))
    first = box.pop_queue(500)
    assert 500 <= sum(map(len, first)) < 700
    assert box.waiting
    rest = box.pop_queue(LARGE)
    assert [price for frame in prices(first + rest) for price in frame.values()] == list(range(50))


def test_only_the_first_thing_in_an_empty_queue_wakes_the_sender() -> None:
    box = Box()
    for sequence in range(5):
        box.take(tick("NSE:A", sequence))
    assert box.wakes == 1
    box.pop_queue(LARGE)
    box.put(text_frame(b"{}"))
    assert box.wakes == 2


steps = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.sampled_from("ABCDE")),
        st.tuples(st.just("gap"), st.sampled_from("ABCDE")),
        st.tuples(st.just("flush"), st.integers(1, 2_000)),
        st.tuples(st.just("serve"), st.integers(1, 2_000)),
    ),
    max_size=200,
)


@given(steps, st.integers(400, 5_000))
@settings(max_examples=150)
def test_whatever_happens_nothing_goes_back_and_nothing_is_lost_unsaid(
    script: list[tuple[str, Any]], limit_bytes: int
) -> None:
    """A and B are delivered whole, C to E conflated; a reader drains at random."""
    box = Box(limit_bytes)
    pace = box.paced()
    sent: list[dict[str, Any]] = []
    offered: dict[str, list[int]] = {f"NSE:{name}": [] for name in "ABCDE"}
    gaps: dict[str, list[int]] = {f"NSE:{name}": [] for name in "ABCDE"}

    def serve(budget: int) -> None:
        while box.waiting:
            sent.extend(messages(box.pop_queue(budget)))
        sent.extend(messages(box.pop_pace(pace, budget)))

    for sequence, (step, what) in enumerate(script, 1):
        if step == "flush":
            sent.extend(messages(box.pop_queue(what)))
        elif step == "serve":
            serve(what)
        else:
            instrument = f"NSE:{what}"
            if step == "gap":
                gaps[instrument].append(sequence)
                box.take_control(control("gap", instrument, sequence))
                continue
            offered[instrument].append(sequence)
            publication = tick(instrument, sequence)
            if what in "AB":
                box.take(publication)
            else:
                pace.pending[instrument] = publication
    overfull = box.overfull
    while box.waiting or pace.pending:
        serve(1_000)

    order: dict[str, list[tuple[str, int]]] = {instrument: [] for instrument in offered}
    skipped = dict.fromkeys(offered, 0)
    for message in sent:
        if message["type"] == "skipped":
            for instrument, count in message["instruments"].items():
                skipped[instrument] += count
        elif message["type"] == "gap":
            position = int(message["position"]["NSE"].partition("-")[2])
            order[message["instrumentKey"]].append(("gap", position))
        else:
            for instrument, data in message["data"].items():
                order[instrument].append(("tick", int(data["last_price"])))
    for instrument, events in order.items():
        ticks = [sequence for kind, sequence in events if kind == "tick"]
        assert ticks == sorted(set(ticks)), "an older or a repeated value"
        if not overfull:
            assert [sequence for kind, sequence in events if kind == "gap"] == gaps[instrument]
            if instrument in ("NSE:A", "NSE:B"):
                assert len(ticks) + skipped[instrument] == len(offered[instrument])
            if offered[instrument] and not skipped[instrument]:
                assert ticks[-1] == offered[instrument][-1], "the newest value always arrives"
            if not skipped[instrument]:
                assert [sequence for _, sequence in events] == sorted(sequence for _, sequence in events)
    assert box.queued_bytes == 0
