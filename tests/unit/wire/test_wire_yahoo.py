"""Yahoo's stream: documented and captured frames in both versions, requests, and any text at all."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from wire_frames import YAHOO, YAHOO_BUILT, Vector, flipped, given, name_of, payload_of, wire_fields_of

from services.errors import Verdict, WireFormatError
from services.wire import yahoo

PRICING_REASONS = {
    "truncated",
    "overlong_varint",
    "bad_tag",
    "wrong_wire_type",
    "bad_wire_type",
    "bad_group",
    "bad_utf8",
}
FRAME_REASONS = {"empty", "not_json", "bad_envelope", "no_type", "no_message", "not_base64"}
vectors = pytest.mark.parametrize("vector", YAHOO, ids=name_of)


def present(data: yahoo.PricingData | None) -> dict[str, Any]:
    """Return what is on the wire, NaN as the vectors write it."""
    assert data is not None
    fields = {name: getattr(data, name) for name in data.__struct_fields__}
    return {name: "NaN" if value != value else value for name, value in fields.items() if value is not None}


def outcome(decode: Callable[[Any], Any], frame: str | bytes) -> str:
    """Say how decoding ended; whatever is neither a result nor a typed error goes through."""
    try:
        return "nothing" if decode(frame) is None else "result"
    except WireFormatError as error:
        return error.reason


@vectors
def test_every_field_of_a_frame_is_read_in_both_versions(vector: Vector) -> None:
    envelope = f'{{"type":"pricing","message":"{vector["b64"]}"}}'
    for frame in (envelope, envelope.encode(), vector["b64"], vector["b64"].encode()):
        assert present(yahoo.decode_frame(frame)) == wire_fields_of(vector)


@vectors
def test_encoding_gives_back_the_same_bytes(vector: Vector) -> None:
    data = yahoo.decode_pricing(payload_of(vector))
    assert yahoo.encode_pricing(data) == payload_of(vector)
    assert yahoo.encode_frame(data, version=1) == vector["b64"]


@pytest.mark.parametrize("vector", YAHOO_BUILT, ids=name_of)
def test_encoding_gives_back_the_same_envelope(vector: Vector) -> None:
    data = yahoo.decode_frame(vector["envelope"])
    assert data is not None
    assert yahoo.encode_frame(data) == vector["envelope"]


def test_space_around_a_frame_is_no_damage() -> None:
    data = yahoo.PricingData(id="AAPL", price=307.5)
    for version in (1, 2):
        assert yahoo.decode_frame(f"\n {yahoo.encode_frame(data, version=version)}\r\n") == data


@pytest.mark.parametrize(
    "envelope",
    [
        '{"type":"status","message":"CgRBQVBM"}',
        '{"type":"status"}',
        '{"type":"status","message":{"market":"closed"}}',
        '{"message":17,"type":"status"}',
        '{"type":"","message":"CgRBQVBM"}',
    ],
)
def test_an_envelope_of_another_type_is_no_quote(envelope: str) -> None:
    assert yahoo.decode_frame(envelope) is None
    assert yahoo.decode_frame(envelope.encode()) is None


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("", "empty"),
        (b"", "empty"),
        (" \n", "empty"),
        ("{", "not_json"),
        ('{"type":"pricing"', "not_json"),
        ('{"type":"pricing","message":"CgRBQVBM"} {}', "not_json"),
        ('{"type":"pri\ud800cing"}', "not_json"),
        (b'{"type":"\xff"}', "not_json"),
        ('{"other":' + "[" * 5000, "not_json"),
        ("[]", "not_json"),
        ("<html>", "not_json"),
        ("ünïcode", "not_json"),
        (b"\xffCgRB", "not_json"),
        ('{"type":7}', "bad_envelope"),
        ('{"type":"pricing","message":7}', "bad_envelope"),
        ('{"message":7,"other":' + "[" * 5000, "bad_envelope"),
        ("{}", "no_type"),
        ('{"message":"CgRBQVBM"}', "no_type"),
        ('{"type":null,"message":"CgRBQVBM"}', "no_type"),
        ('{"type":"pricing"}', "no_message"),
        ('{"type":"pricing","message":null}', "no_message"),
        ('{"type":"pricing","message":""}', "no_message"),
        ('{"type":"pricing","message":"@@@@"}', "not_base64"),
        ('{"type":"pricing","message":"CgRB QVBM"}', "not_base64"),
        ('{"type":"pricing","message":"CgRBQVB"}', "not_base64"),
        ('{"type":"pricing","message":"CgRBQVBM="}', "not_base64"),
        ('{"type":"pricing","message":"CgRBQVBM===="}', "not_base64"),
        ('{"type":"pricing","message":"CgRBQVBM\\n"}', "not_base64"),
        ('{"type":"pricing","message":"\\u00fc"}', "not_base64"),
        ('{"type":"pricing","message":"CgVBQVBM"}', "truncated"),
        ("CgRBQVB", "not_base64"),
        ("CgVBQVBM", "truncated"),
        ("hello", "not_base64"),
    ],
)
def test_a_damaged_frame_is_a_typed_error_with_its_reason(frame: str | bytes, reason: str) -> None:
    assert outcome(yahoo.decode_frame, frame) == reason


def test_damage_is_dropped_and_shows_the_beginning_of_the_frame() -> None:
    with pytest.raises(WireFormatError) as caught:
        yahoo.decode_frame("<html>" + "ü" * 100)
    assert caught.value.verdict is Verdict.DROP
    assert caught.value.frame == ("<html>" + "ü" * 100).encode()[:64]


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_frame_is_a_quote_or_a_typed_error(frame: str | bytes) -> None:
    assert outcome(yahoo.decode_frame, frame) in FRAME_REASONS | PRICING_REASONS | {"result", "nothing"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("pricing") | json_values,
            "message": st.binary(max_size=40).map(lambda raw: b64encode(raw).decode()) | json_values,
            "other": json_values,
        },
    ),
    st.binary(max_size=5),
)
def test_any_envelope_is_a_quote_another_type_or_a_typed_error(envelope: Any, junk: bytes) -> None:
    expected = FRAME_REASONS | PRICING_REASONS | {"result", "nothing"}
    assert outcome(yahoo.decode_frame, json.dumps(envelope)) in expected
    assert outcome(yahoo.decode_frame, json.dumps(envelope, ensure_ascii=False).encode() + junk) in expected


@given(flipped(st.sampled_from(YAHOO).map(lambda vector: yahoo_frame(vector).encode())))
def test_flipped_bits_of_a_frame_give_a_quote_or_a_typed_error(frame: bytes) -> None:
    assert outcome(yahoo.decode_frame, frame) in FRAME_REASONS | PRICING_REASONS | {"result", "nothing"}


def yahoo_frame(vector: Vector) -> str:
    return json.dumps({"type": "pricing", "message": vector["b64"]})


@pytest.mark.parametrize("version", [1, 2])
def test_a_frame_cut_anywhere_is_a_typed_error_or_a_shorter_message(version: int) -> None:
    data = yahoo.decode_pricing(payload_of(YAHOO[0]))
    frame = yahoo.encode_frame(data, version=version)
    outcomes = {cut: outcome(yahoo.decode_frame, frame[:cut]) for cut in range(len(frame))}
    assert set(outcomes.values()) <= FRAME_REASONS | PRICING_REASONS | {"result"}
    if version == 2:
        assert "result" not in outcomes.values(), "the envelope shows where the end is missing"


symbols = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=120)


@given(symbols)
def test_requests_are_read_back_in_order(wanted: list[str]) -> None:
    assert yahoo.parse_request(yahoo.subscribe_message(wanted)) == yahoo.StreamRequest(tuple(wanted))
    dropped = yahoo.parse_request(yahoo.unsubscribe_message(wanted).encode())
    assert dropped == yahoo.StreamRequest(unsubscribe=tuple(wanted))


def test_requests_are_compact_and_take_symbols_as_they_are() -> None:
    text = yahoo.subscribe_message(["AAPL", "^NSEI", "M&M.NS", "INR=X"])
    assert text == '{"subscribe":["AAPL","^NSEI","M&M.NS","INR=X"]}'
    assert yahoo.unsubscribe_message(["AAPL"]) == '{"unsubscribe":["AAPL"]}'


@pytest.mark.parametrize("text", ["{}", '{"subscribe":[]}', '{"subscribe":[],"unsubscribe":[]}'])
def test_a_request_for_nothing_is_none_of_our_business(text: str) -> None:
    assert yahoo.parse_request(text) == yahoo.StreamRequest()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"subscribe":"BTC-USD"}', "bad_request"),
        ('{"subscribe":[null]}', "bad_request"),
        ('{"subscribe":["AAPL",7]}', "bad_request"),
        ('{"subscribe":null}', "bad_request"),
        ('{"hello":[]}', "bad_request"),
        ("[]", "bad_request"),
        ("hello", "not_json"),
        ("", "not_json"),
        ('{"subscribe":["\ud800"]}', "not_json"),
        ('{"subscribe":' + "[" * 5000, "bad_request"),
        ("[" * 5000, "bad_request"),
    ],
)
def test_what_makes_the_vendor_close_the_connection_is_a_typed_error(text: str, reason: str) -> None:
    assert outcome(yahoo.parse_request, text) == reason


@given(st.text(max_size=60) | json_values.map(json.dumps))
def test_any_text_is_a_request_or_a_typed_error(text: str) -> None:
    assert outcome(yahoo.parse_request, text) in {"result", "bad_request", "not_json"}
