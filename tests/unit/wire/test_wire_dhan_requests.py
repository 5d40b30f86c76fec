"""The requests of Dhan's feeds, JSON and binary: as documented, read back, and refused when malformed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from wire_frames import DHAN_REQUESTS, flipped, given

from services.errors import WireFormatError
from services.wire import dhan, dhan_depth, dhan_v1

REASONS = {
    "not_json",
    "bad_request",
    "unknown_code",
    "bad_count",
    "no_instruments",
    "bad_segment",
    "bad_security_id",
}
V1_REASONS = {
    "truncated",
    "unknown_code",
    "bad_length",
    "bad_text",
    "bad_login",
    "bad_count",
    "bad_segment",
}
pairs = st.tuples(st.sampled_from([it.name for it in dhan.Segment]), st.integers(0, 10**9).map(str))
v1_codes = st.sampled_from([15, 16, 17, 18, 19, 20])
v1_requests = st.one_of(
    st.builds(
        dhan_v1.V1Request,
        v1_codes,
        st.text("0123456789", max_size=30),
        instruments=st.lists(pairs, max_size=100).map(tuple),
    ),
    st.builds(
        dhan_v1.V1Request,
        st.just(11),
        st.text("0123456789", max_size=30),
        st.text("abcXYZ0189-_.", max_size=500),
    ),
    st.builds(dhan_v1.V1Request, st.just(12), st.text("0123456789", max_size=30)),
)


def outcome(parse: Callable[[Any], Any], request: str | bytes) -> str:
    """Return the code of the request, or the reason why it is none."""
    try:
        return str(parse(request).code)
    except WireFormatError as error:
        return error.reason


def test_the_live_feed_requests_are_those_the_vendor_documents() -> None:
    (subscribe,) = dhan.subscribe_messages(dhan.FeedMode.TICKER, [("NSE_EQ", "2885"), ("IDX_I", "13")])
    (unsubscribe,) = dhan.unsubscribe_messages(dhan.FeedMode.FULL, [("NSE_FNO", "42528")])
    assert json.loads(subscribe) == DHAN_REQUESTS["subscribe_ticker"]
    assert json.loads(unsubscribe) == DHAN_REQUESTS["unsubscribe_full"]
    assert json.loads(dhan.disconnect_message()) == DHAN_REQUESTS["disconnect"]
    assert subscribe == json.dumps(json.loads(subscribe), separators=(",", ":")), "compact, as documented"


def test_the_depth_feed_requests_are_those_the_vendor_documents() -> None:
    (subscribe,) = dhan_depth.subscribe_messages_20([("NSE_EQ", "1333")])
    (unsubscribe,) = dhan_depth.unsubscribe_messages_20([("NSE_EQ", "1333")])
    assert json.loads(subscribe) == DHAN_REQUESTS["subscribe_depth20"]
    assert json.loads(unsubscribe) == DHAN_REQUESTS["unsubscribe_depth20"]
    flat = dhan_depth.subscribe_message_200("NSE_EQ", "1333")
    assert json.loads(flat) == DHAN_REQUESTS["subscribe_depth200"]
    assert json.loads(dhan_depth.unsubscribe_message_200("NSE_EQ", "1333")) == {
        **DHAN_REQUESTS["subscribe_depth200"],
        "RequestCode": 25,
    }


@given(st.lists(pairs, max_size=230), st.sampled_from(dhan.FeedMode), st.booleans())
def test_requests_hold_at_most_a_hundred_instruments_and_lose_none(
    instruments: list[tuple[str, str]], mode: dhan.FeedMode, subscribe: bool
) -> None:
    make = dhan.subscribe_messages if subscribe else dhan.unsubscribe_messages
    requests = [dhan.parse_request(text) for text in make(mode, instruments)]
    assert all(0 < len(request.instruments) <= 100 for request in requests)
    assert {it.code for it in requests} <= {mode.subscribe_code if subscribe else mode.unsubscribe_code}
    assert [pair for request in requests for pair in request.instruments] == instruments


def test_depth_requests_hold_at_most_the_fifty_instruments_of_a_connection() -> None:
    instruments = [("NSE_EQ", str(number)) for number in range(70)]
    requests = [dhan.parse_request(text) for text in dhan_depth.subscribe_messages_20(instruments)]
    assert [len(request.instruments) for request in requests] == [50, 20]
    assert {request.code for request in requests} == {23}


def test_the_modes_have_the_documented_codes() -> None:
    codes = {mode.value: (mode.subscribe_code, mode.unsubscribe_code) for mode in dhan.FeedMode}
    assert codes == {"ticker": (15, 16), "quote": (17, 18), "full": (21, 22)}


@pytest.mark.parametrize("security_id", ['"1333"', "1333"])
def test_a_security_id_is_read_as_text_or_number_in_list_and_flat_form(security_id: str) -> None:
    row = f'"ExchangeSegment":"NSE_EQ","SecurityId":{security_id}'
    flat = dhan.parse_request(f'{{"RequestCode":23,{row}}}')
    listed = dhan.parse_request(f'{{"RequestCode":23,"InstrumentCount":1,"InstrumentList":[{{{row}}}]}}')
    assert flat == dhan.FeedRequest(23, (("NSE_EQ", "1333"),), flat=True)
    assert listed == dhan.FeedRequest(23, (("NSE_EQ", "1333"),))


def test_a_disconnect_needs_no_instruments() -> None:
    assert dhan.parse_request(dhan.disconnect_message()) == dhan.FeedRequest(12)


ROW = '{"ExchangeSegment":"NSE_EQ","SecurityId":"1"}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not_json"),
        ("subscribe", "not_json"),
        ('{"RequestCode":15', "not_json"),
        ('{"x":"\ud800"}', "not_json"),
        ('{"x":' + "[" * 5000, "not_json"),
        ("[]", "bad_request"),
        ("{}", "bad_request"),
        ('{"RequestCode":"15"}', "bad_request"),
        ('{"RequestCode":true}', "bad_request"),
        ('{"RequestCode":15,"InstrumentCount":0,"InstrumentList":{}}', "bad_request"),
        ('{"RequestCode":15,"InstrumentCount":1,"InstrumentList":[null]}', "bad_request"),
        ('{"RequestCode":15,"InstrumentCount":1,"InstrumentList":[{"SecurityId":"1"}]}', "bad_request"),
        ('{"RequestCode":99}', "unknown_code"),
        ('{"RequestCode":-1}', "unknown_code"),
        (f'{{"RequestCode":15,"InstrumentList":[{ROW}]}}', "bad_count"),
        (f'{{"RequestCode":15,"InstrumentCount":2,"InstrumentList":[{ROW}]}}', "bad_count"),
        ('{"RequestCode":15}', "no_instruments"),
        ('{"RequestCode":15,"InstrumentCount":0,"InstrumentList":[]}', "no_instruments"),
        ('{"RequestCode":23,"ExchangeSegment":"NSE_EQ"}', "no_instruments"),
        ('{"RequestCode":23,"ExchangeSegment":"NSE","SecurityId":"1"}', "bad_segment"),
        ('{"RequestCode":23,"ExchangeSegment":"NSE_EQ","SecurityId":""}', "bad_security_id"),
        ('{"RequestCode":23,"ExchangeSegment":"NSE_EQ","SecurityId":"RELIANCE"}', "bad_security_id"),
        ('{"RequestCode":23,"ExchangeSegment":"NSE_EQ","SecurityId":"٣"}', "bad_security_id"),
        ('{"RequestCode":23,"ExchangeSegment":"NSE_EQ","SecurityId":-5}', "bad_security_id"),
    ],
)
def test_a_malformed_request_is_a_typed_error_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(WireFormatError) as caught:
        dhan.parse_request(text)
    assert caught.value.reason == reason


@given(
    st.text(max_size=80)
    | st.recursive(st.none() | st.integers() | st.text(max_size=4), st.lists).map(json.dumps)
)
def test_any_text_is_a_request_or_a_typed_error(text: str) -> None:
    assert outcome(dhan.parse_request, text) in REASONS | {str(code.value) for code in dhan.RequestCode}


@given(v1_requests)
def test_a_binary_request_is_read_back(request: dhan_v1.V1Request) -> None:
    frame = dhan_v1.encode_request(request)
    assert len(frame) == {11: 585, 12: 83}.get(request.code, 2187)
    assert dhan_v1.parse_v1_request(frame) == request


def test_a_binary_subscription_holds_a_hundred_instruments() -> None:
    instruments = tuple(("NSE_EQ", str(number)) for number in range(100))
    request = dhan_v1.V1Request(15, "1000000001", instruments=instruments)
    assert dhan_v1.parse_v1_request(dhan_v1.encode_request(request)) == request


def test_the_declared_length_of_a_binary_subscription_counts_only_what_was_asked_for() -> None:
    request = dhan_v1.V1Request(15, "1000000001", instruments=(("NSE_EQ", "1333"), ("IDX_I", "13")))
    assert struct.unpack_from("<BH", dhan_v1.encode_request(request)) == (15, 83 + 4 + 2 * 21)


@given(st.one_of(st.binary(max_size=90), flipped(v1_requests.map(dhan_v1.encode_request))))
def test_any_bytes_are_a_binary_request_or_a_typed_error(frame: bytes) -> None:
    codes = {"11", "12", "15", "16", "17", "18", "19", "20"}
    assert outcome(dhan_v1.parse_v1_request, frame) in V1_REASONS | codes


SUBSCRIPTION = dhan_v1.encode_request(dhan_v1.V1Request(15, "1", instruments=(("NSE_EQ", "1333"),)))
LOGIN = dhan_v1.encode_request(dhan_v1.V1Request(11, "1", "token"))


def changed(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "truncated"),
        (SUBSCRIPTION[:82], "truncated"),
        (changed(SUBSCRIPTION, 0, b"\x15"), "unknown_code"),
        (SUBSCRIPTION[:85], "bad_length"),
        (SUBSCRIPTION[:-1], "bad_length"),
        (changed(SUBSCRIPTION, 1, b"\x8b\x08"), "bad_length"),
        (changed(SUBSCRIPTION, 83, b"\x65"), "bad_count"),
        (changed(SUBSCRIPTION, 87, b"\x06"), "bad_segment"),
        (changed(SUBSCRIPTION, 88, b"\xff"), "bad_text"),
        (changed(SUBSCRIPTION, 3, b"\x00A"), "bad_text"),
        (LOGIN[:-1], "bad_length"),
        (changed(LOGIN, 583, b"1P"), "bad_login"),
    ],
)
def test_a_malformed_binary_request_is_a_typed_error_with_its_reason(frame: bytes, reason: str) -> None:
    with pytest.raises(WireFormatError) as caught:
        dhan_v1.parse_v1_request(frame)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "request_",
    [
        dhan_v1.V1Request(21, "1"),
        dhan_v1.V1Request(11, "1", "t" * 501),
        dhan_v1.V1Request(12, "1" * 31),
        dhan_v1.V1Request(12, "ü"),
        dhan_v1.V1Request(12, "\ud800"),
        dhan_v1.V1Request(15, "1", instruments=(("NSE_EQ", "1"),) * 101),
        dhan_v1.V1Request(15, "1", instruments=(("NSE", "1"),)),
        dhan_v1.V1Request(15, "1", instruments=(("NSE_EQ", "1" * 21),)),
    ],
)
def test_a_binary_request_that_cannot_be_said_is_not_encoded(request_: dhan_v1.V1Request) -> None:
    with pytest.raises(WireFormatError) as caught:
        dhan_v1.encode_request(request_)
    assert caught.value.reason == "not_encodable"
