"""Dhan's codecs against the vendor's SDK (dhanhq 2.3.0), on the same bytes; differences say why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import strategies as st
from wire_frames import DHAN_DEPTH, DHAN_LIVE, Vector, frame_of, given, name_of, priced_records

from services.wire import dhan, dhan_depth, dhan_v1

NAMES_OF_SDK = {
    "exchange_segment": "segment",
    "security_id": "security_id",
    "LTP": "ltp",
    "LTQ": "ltq",
    "LTT": "ltt",
    "avg_price": "atp",
    "volume": "volume",
    "total_sell_quantity": "total_sell_qty",
    "total_buy_quantity": "total_buy_qty",
    "OI": "oi",
    "oi_day_high": "oi_day_high",
    "oi_day_low": "oi_day_low",
    "open": "day_open",
    "close": "day_close",
    "high": "day_high",
    "low": "day_low",
    "prev_close": "prev_close",
    "prev_OI": "prev_oi",
    "depth": "depth",
    "bid_quantity": "bid_qty",
    "ask_quantity": "ask_qty",
    "bid_orders": "bid_orders",
    "ask_orders": "ask_orders",
    "bid_price": "bid_px",
    "ask_price": "ask_px",
}


class SentMessages:
    """Stands for the SDK's socket and keeps what it sends."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []

    async def send(self, message: str | bytes) -> None:
        self.messages.append(message)


def in_thread_of_its_own(make: Callable[[], Any]) -> Any:
    """Build an SDK object; its constructor replaces the event loop of the thread it runs in."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


@pytest.fixture(scope="module")
def market_feed() -> Iterator[Any]:
    from dhanhq import DhanContext, MarketFeed

    feed = in_thread_of_its_own(lambda: MarketFeed(DhanContext("1000000001", "the-token"), [], "v2"))
    yield feed
    feed.loop.close()


@pytest.fixture(scope="module")
def depth_feeds() -> Iterator[dict[str, Any]]:
    from dhanhq import DhanContext, FullDepth

    context = DhanContext("1000000001", "the-token")
    feeds = {
        f"depth{level}": in_thread_of_its_own(lambda level=level: FullDepth(context, [], level))
        for level in (20, 200)
    }
    yield feeds
    for feed in feeds.values():
        feed.loop.close()


def as_sdk_shows(name: str, value: Any) -> Any:
    """Turn a value of ours into what the SDK hands out for it.

    It cuts every price to text of two decimals (a currency has four; NaN becomes "nan"), and it
    shows the wire's Indian wall time as a time of day and calls it UTC; our `utc_ms` subtracts the
    offset and keeps the date.
    """
    if name == "depth":
        return [shown(level) for level in value]
    if name == "ltt":
        minutes, seconds = divmod(value % 86_400, 60)
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    return f"{value:.2f}" if isinstance(value, float) else value


def shown(record: Any) -> dict[str, Any]:
    return {name: as_sdk_shows(name, getattr(record, name)) for name in record.__struct_fields__}


def renamed(said: dict[str, Any]) -> dict[str, Any]:
    fields = {NAMES_OF_SDK[name]: value for name, value in said.items() if name != "type"}
    if "depth" in fields:
        fields["depth"] = [{NAMES_OF_SDK[name]: it for name, it in row.items()} for row in fields["depth"]]
    return fields


@pytest.mark.parametrize("vector", DHAN_LIVE, ids=name_of)
def test_the_sdk_reads_the_same_or_the_difference_is_on_purpose(
    vector: Vector, market_feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = market_feed.process_data(frame_of(vector))
    printed = capsys.readouterr().out.strip()
    records, error = dhan.decode_frame(frame_of(vector))
    assert error is None
    assert said == vector["sdk_result"]
    assert printed == vector.get("sdk_stdout", "")
    match records[0]:
        case dhan.MarketStatus():
            assert said == "Markets Open", "a constant, whatever the packet is about"
        case dhan.Heartbeat() | dhan.Disconnect():
            assert said is None, "the SDK tells its user neither of heartbeats nor why it was cut off"
        case record:
            assert renamed(said) == shown(record)
    # Of several packets in one message the SDK reads the first and loses the others.
    assert len(records) == len(vector["expected"])


@given(record=priced_records)
def test_the_sdk_reads_made_up_packets_as_we_do(market_feed: Any, record: dhan.DhanRecord) -> None:
    packet = dhan.encode(record)
    (ours,), error = dhan.decode_frame(packet)
    said = market_feed.process_data(packet)
    assert error is None
    if isinstance(record, dhan.MarketDepthV1):
        # Here alone the SDK leaves the price a number.
        said["LTP"] = f"{said['LTP']:.2f}"
    assert renamed(said) == shown(ours)


@pytest.mark.parametrize("vector", DHAN_DEPTH, ids=name_of)
def test_the_depth_sdk_reads_the_same_levels(
    vector: Vector, depth_feeds: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    feed = depth_feeds[vector["feed"]]
    said = []
    rest: bytes | None = frame_of(vector)
    while rest:
        update = feed.process_data(rest)
        if update is None:
            break
        rest = update.pop("remaining_data")
        said.append(update)
    rows_in_header = vector["feed"] == "depth200"
    records, error = dhan_depth.decode_depth_frame(frame_of(vector), rows_in_header=rows_in_header)
    assert error is None
    if vector["sdk_result"] is None:
        # The SDK looks for the reason in the wrong bytes and neither prints nor returns it.
        assert (said, capsys.readouterr().out) == ([], "")
        assert records == [dhan_depth.DepthDisconnect(reason=vector["expected"][0]["reason"])]
        return
    assert said == [
        {
            "exchange_segment": side.segment,
            "security_id": side.security_id,
            "type": side.side.title(),
            "depth": [
                {"price": it.price, "quantity": it.qty, "orders": it.orders}
                for it in map(dhan_depth.DepthRow._make, side.levels)
            ],
        }
        for side in records
        if isinstance(side, dhan_depth.DepthSide)
    ]


pairs = st.lists(
    st.tuples(st.sampled_from(sorted(dhan.Segment)), st.integers(1, 10**9).map(str)),
    min_size=1,
    max_size=230,
    unique=True,
)


@given(instruments=pairs, mode=st.sampled_from(dhan.FeedMode))
def test_the_sdk_asks_for_instruments_with_the_same_requests(
    market_feed: Any, instruments: list[tuple[dhan.Segment, str]], mode: dhan.FeedMode
) -> None:
    market_feed.ws = SentMessages()
    market_feed.instruments = [(int(segment), key, int(mode.subscribe_code)) for segment, key in instruments]
    asyncio.run(market_feed.subscribe_instruments())
    theirs = [dhan.parse_request(str(message)) for message in market_feed.ws.messages]
    ours = dhan.subscribe_messages(mode, [(segment.name, key) for segment, key in instruments])
    assert {json.loads(message)["RequestCode"] for message in ours} == {request.code for request in theirs}
    assert [len(dhan.parse_request(message).instruments) for message in ours] == [
        len(request.instruments) for request in theirs
    ]
    # The SDK sends them in the random order of a set, we keep the caller's.
    asked = [pair for message in ours for pair in dhan.parse_request(message).instruments]
    assert asked == [(segment.name, key) for segment, key in instruments]
    assert sorted(asked) == sorted(pair for request in theirs for pair in request.instruments)


@given(
    instruments=pairs.filter(lambda them: len(them) <= 100),
    code=st.sampled_from([15, 16, 17, 18, 19, 20]),
)
def test_the_sdk_sends_the_same_binary_subscription(
    market_feed: Any, instruments: list[tuple[dhan.Segment, str]], code: int
) -> None:
    packet = market_feed.create_subscription_packet([(int(it), key) for it, key in instruments], code)
    pairs_by_name = tuple((segment.name, key) for segment, key in instruments)
    request = dhan_v1.V1Request(code, "1000000001", instruments=pairs_by_name)
    assert dhan_v1.encode_request(request) == packet
    assert dhan_v1.parse_v1_request(packet) == request


def test_the_sdk_sends_the_same_binary_login_and_disconnect(market_feed: Any) -> None:
    market_feed.ws = SentMessages()
    market_feed.version = "v1"
    try:
        asyncio.run(market_feed.authorize())
    finally:
        market_feed.version = "v2"
    login = dhan_v1.V1Request(11, "1000000001", "the-token")
    assert market_feed.ws.messages == [dhan_v1.encode_request(login)]
    header = market_feed.create_header(12, 83, "1000000001")
    assert dhan_v1.encode_request(dhan_v1.V1Request(12, "1000000001")) == header
    assert dhan_v1.parse_v1_request(header) == dhan_v1.V1Request(12, "1000000001")
