"""Whatever a client sends is a checked message or an error with a code; nothing else ever."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.encoding import to_json
from services.gateway.protocol import (
    MAX_MESSAGE_BYTES,
    Authenticate,
    ClientMessageError,
    ListSubscriptions,
    Ping,
    ResumePoint,
    Subscribe,
    Unsubscribe,
    is_well_formed,
    parse_client_message,
)


def subscribe(**fields: Any) -> dict[str, Any]:
    return {"action": "subscribe", "instruments": ["NSE:TCS"]} | fields


def test_a_full_subscribe_is_read_field_by_field() -> None:
    message = parse_client_message(
        b'{"action":"subscribe","id":1,"instruments":["NSE:RELIANCE","NASDAQ:AAPL","NSE:RELIANCE"],'
        b'"channels":["chart","tick"],"interval":"15","delivery":"all","every_ms":250,'
        b'"resume":{"epoch":"e","position":{"NSE":"1700000000000-4"}}}'
    )
    assert message == Subscribe(
        1,
        ("NSE:RELIANCE", "NASDAQ:AAPL"),
        ("tick", "chart"),
        "15",
        "all",
        250,
        ResumePoint("e", {"NSE": "1700000000000-4"}),
    )


def test_the_other_channels_have_levels_and_an_expiry_and_end_by_name() -> None:
    wish = parse_client_message(
        json.dumps(subscribe(channels=["news", "depth", "options"], levels=20, expiry="2026-12-29"))
    )
    assert isinstance(wish, Subscribe)
    assert (wish.channels, wish.levels, wish.expiry) == (("depth", "options", "news"), 20, "2026-12-29")
    wish = parse_client_message(json.dumps(subscribe(expiry=1_798_538_400)))
    assert isinstance(wish, Subscribe)
    assert (wish.levels, wish.expiry) == (5, "1798538400")
    ended = parse_client_message('{"action":"unsubscribe","instruments":["NSE:TCS"],"channels":["trade"]}')
    assert ended == Unsubscribe(None, ("NSE:TCS",), ("trade",))


def test_a_bare_subscribe_means_newest_ticks_every_100_ms() -> None:
    message = parse_client_message(json.dumps(subscribe()))
    assert message == Subscribe(None, ("NSE:TCS",), ("tick",), "1", "latest", 100, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"action":"ping","id":"a"}', Ping("a")),
        ('{"action":"ping","future_field":[1]}', Ping(None)),
        ('{"action":"list","id":null}', ListSubscriptions(None)),
        ('{"action":"auth","token":"geheim€"}', Authenticate(None, "geheim€")),
        ('{"action":"unsubscribe","id":2,"instruments":["NSE:*"]}', Unsubscribe(2, ("NSE:*",))),
    ],
)
def test_the_other_actions_are_read(text: str, message: object) -> None:
    assert parse_client_message(text.encode()) == message


def test_a_pace_faster_than_ten_milliseconds_becomes_ten() -> None:
    message = parse_client_message(json.dumps(subscribe(every_ms=0)))
    assert isinstance(message, Subscribe)
    assert message.every_ms == 10


REFUSED: list[tuple[str | bytes, str]] = [
    ("", "invalid_json"),
    ("{", "invalid_json"),
    ("nope", "invalid_json"),
    ('{"action":"ping"} {}', "invalid_json"),
    (b"\xff\xfe", "invalid_json"),
    (b'{"action":"ping","id":"\x80"}', "invalid_json"),
    ('{"action":"ping","id":NaN}', "invalid_json"),
    ('{"action":"ping","id":-Infinity}', "invalid_json"),
    ('{"action":"ping","x":1e999}', "invalid_json"),
    ('{"action":"ping","id":' + "9" * 5_000 + "}", "invalid_json"),
    ('{"action":"ping","id":9223372036854775808}', "invalid_json"),
    ('{"action":"ping","x":' + "1" * 500 + ".5}", "invalid_json"),
    ('{"action":"ping","id":"\\ud800"}', "invalid_json"),
    ('{"action":"subscribe","instruments":["NSE:\\udc00X"]}', "invalid_json"),
    ('{"action":"ping","action":"list"}', "duplicate_key"),
    ('{"action":"subscribe","instruments":["NSE:A"],"resume":{"epoch":"a","epoch":"b"}}', "duplicate_key"),
    ("[" * 5_000 + "]" * 5_000, "too_deep"),
    ('{"action":"ping","x":' + '{"x":' * 2_000 + "1" + "}" * 2_001, "too_deep"),
    ('{"action":"ping","x":[[[[1]]]]}', "too_deep"),
    ("[]", "invalid_message"),
    ("1", "invalid_message"),
    ("null", "invalid_message"),
    ("{}", "invalid_message"),
    ('{"action":1}', "invalid_message"),
    ('{"action":"PING"}', "unknown_action"),
    ('{"action":"shutdown"}', "unknown_action"),
    ('{"action":"ping","id":true}', "invalid_message"),
    ('{"action":"ping","id":1.5}', "invalid_message"),
    ('{"action":"ping","id":[1]}', "invalid_message"),
    ('{"action":"ping","id":"' + "x" * 65 + '"}', "invalid_message"),
    ('{"action":"auth"}', "invalid_message"),
    ('{"action":"auth","token":5}', "invalid_message"),
    ('{"action":"auth","token":""}', "invalid_message"),
    ('{"action":"subscribe"}', "invalid_message"),
    ('{"action":"unsubscribe","instruments":"NSE:TCS"}', "invalid_message"),
    (json.dumps(subscribe(instruments=[])), "invalid_message"),
    (json.dumps(subscribe(instruments=["NSE:TCS", 5])), "invalid_message"),
    (json.dumps(subscribe(instruments={"NSE:TCS": 1})), "invalid_message"),
    (json.dumps(subscribe(channels=[])), "invalid_message"),
    (json.dumps(subscribe(channels="tick")), "invalid_message"),
    (json.dumps(subscribe(channels=[1])), "invalid_message"),
    (json.dumps(subscribe(channels=["tick", "orders"])), "unknown_channel"),
    (json.dumps(subscribe(levels=10)), "unknown_levels"),
    (json.dumps(subscribe(levels="5")), "invalid_message"),
    (json.dumps(subscribe(levels=True)), "invalid_message"),
    (json.dumps(subscribe(expiry="next week")), "invalid_message"),
    (json.dumps(subscribe(expiry="2026-02-30")), "invalid_message"),
    (json.dumps(subscribe(expiry=12)), "invalid_message"),
    (json.dumps(subscribe(interval=1)), "invalid_message"),
    (json.dumps(subscribe(interval="2")), "unknown_interval"),
    (json.dumps(subscribe(delivery="newest")), "invalid_message"),
    (json.dumps(subscribe(delivery=1)), "invalid_message"),
    (json.dumps(subscribe(every_ms=True)), "invalid_message"),
    (json.dumps(subscribe(every_ms=-1)), "invalid_message"),
    (json.dumps(subscribe(every_ms=60_001)), "invalid_message"),
    (json.dumps(subscribe(every_ms=100.0)), "invalid_message"),
    (json.dumps(subscribe(resume=1)), "invalid_message"),
    (json.dumps(subscribe(resume={"epoch": 1, "position": {}})), "invalid_message"),
    (json.dumps(subscribe(resume={"epoch": "e"})), "invalid_message"),
    (json.dumps(subscribe(resume={"epoch": "e", "position": {"NSE": 5}})), "invalid_message"),
    (json.dumps(subscribe(resume={"epoch": "e", "position": {"NSE": "5"}})), "invalid_message"),
    (json.dumps(subscribe(resume={"epoch": "e", "position": {"NSE": "9" * 41}})), "invalid_message"),
    (b" " * (MAX_MESSAGE_BYTES + 1), "too_large"),
]


@pytest.mark.parametrize(
    ("data", "code"), REFUSED, ids=[f"{code}-{i}" for i, (_, code) in enumerate(REFUSED)]
)
def test_a_bad_message_is_refused_with_its_code(data: str | bytes, code: str) -> None:
    with pytest.raises(ClientMessageError) as caught:
        parse_client_message(data)
    assert caught.value.code == code
    assert str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_refusal_names_the_message_it_refuses() -> None:
    with pytest.raises(ClientMessageError) as caught:
        parse_client_message('{"action":"fly","id":77}')
    assert caught.value.message_id == 77


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("NSE:RELIANCE", True),
        ("NSE:M&M", True),
        ("CRYPTO:BTC-USD", True),
        ("NFO:NIFTY-2026-12-31-25000-CE", True),
        ("FX:EURUSD=X", True),
        ("INDEX:^GSPC", True),
        ("NSE:*", True),
        ("*", False),
        ("*:*", False),
        ("NSE:", False),
        (":TCS", False),
        ("nse:TCS", False),
        ("NSE:A:B", False),
        ("NSE:A B", False),
        ("NSE:A*", False),
        ('NSE:"', False),
        ("NSE:TCS\n", False),
        ("_PROBE:PROBE", False),
        ("NSE:" + "A" * 65, False),
    ],
)
def test_instrument_keys_are_told_from_other_texts(key: str, good: bool) -> None:
    assert is_well_formed(key) is good


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
field_names = st.sampled_from(
    ["action", "id", "instruments", "channels", "interval", "delivery", "every_ms", "resume", "token"]
)
actions = st.sampled_from(["subscribe", "unsubscribe", "ping", "list", "auth"])


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_message_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(ClientMessageError):
        assert parse_client_message(data).id is None


@given(st.dictionaries(field_names, json_values), actions)
def test_any_fields_are_a_message_or_a_refusal(fields: dict[str, Any], action: str) -> None:
    try:
        message = parse_client_message(json.dumps(fields | {"action": action}))
    except ClientMessageError:
        return
    assert message.id is None or isinstance(message.id, int | str)
    assert to_json(message)
