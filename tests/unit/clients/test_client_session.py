"""The Python client's state machine, message by message, without a socket."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketd_client import (
    Bar,
    Control,
    ResumePoint,
    ServerNotice,
    Skipped,
    Subscribed,
    SubscriptionRefused,
    Tick,
)
from marketd_client.client import websocket_url
from marketd_client.session import OutOfOrder, Session, Unreadable

ROOT = Path(__file__).resolve().parents[3]


def answer(message: str, **fields: Any) -> str:
    """What the daemon says to a subscription."""
    asked = json.loads(message)
    return json.dumps(
        {
            "type": "subscribed",
            "id": asked["id"],
            "accepted": asked["instruments"],
            "rejected": {},
            "epoch": "e1",
            "position": {"NSE": "100-0"},
            "snapshot": {},
        }
        | fields
    )


def ticks(position: str, **prices: float) -> str:
    data = {f"NSE:{name}": {"last_price": price, "ts_ms": 5} for name, price in prices.items()}
    return json.dumps({"type": "raw_tick", "data": data, "position": {"NSE": position}})


def begun(**options: Any) -> Session:
    session = Session(["NSE:A", "NSE:B"], **({"delivery": "all"} | options))
    (opening,) = session.opening()
    session.hear(answer(opening))
    return session


def test_a_new_history_is_told_and_the_next_resume_names_its_epoch() -> None:
    session = begun()
    session.hear(ticks("101-0", A=1))
    message = {"type": "resync", "instrumentKey": "*", "reason": "history_lost", "epoch": "e2"}
    (record,) = session.hear(json.dumps(message))
    assert isinstance(record, Control)
    assert session.resume_point() == ResumePoint("e2", {"NSE": "101-0"})


def test_the_first_connection_asks_for_no_recovery_and_reports_none() -> None:
    session = Session(["NSE:A", "NSE:A"], delivery="all")
    (opening,) = session.opening()
    assert json.loads(opening) == {
        "action": "subscribe",
        "id": 1,
        "instruments": ["NSE:A"],
        "delivery": "all",
        "channels": ["tick"],
    }
    (record,) = session.hear(answer(opening, snapshot={"NSE:A": {"last_price": 7.5, "ts_ms": 3}}))
    assert isinstance(record, Subscribed)
    assert record.recovered is None
    assert record.snapshot == {"NSE:A": Tick("NSE:A", 7.5, 3)}
    assert session.resume_point() == ResumePoint("e1", {"NSE": "100-0"})


def test_a_reconnection_resumes_from_the_last_message_heard() -> None:
    session = begun()
    session.hear(ticks("100-1", A=1.0, B=2.0))
    session.hear(ticks("101-0", A=1.5))
    (opening,) = session.opening()
    assert json.loads(opening)["resume"] == {"epoch": "e1", "position": {"NSE": "101-0"}}


def test_a_recovery_does_not_move_the_position_only_what_follows_it_does() -> None:
    """A connection that breaks again before what was missed has come resumes from the same place."""
    session = begun()
    session.hear(ticks("101-0", A=1.0))
    (opening,) = session.opening()
    (record,) = session.hear(answer(opening, recovered=True, position={"NSE": "500-0"}))
    assert isinstance(record, Subscribed)
    assert record.recovered is True
    session.hear(ticks("102-0", A=2.0))
    (again,) = session.opening()
    assert json.loads(again)["resume"]["position"] == {"NSE": "102-0"}


def test_what_cannot_be_recovered_is_said_and_the_position_is_the_new_one() -> None:
    session = begun()
    session.hear(ticks("101-0", A=1.0))
    (opening,) = session.opening()
    (record,) = session.hear(answer(opening, recovered=False, epoch="e2", position={"NSE": "50-0"}))
    assert isinstance(record, Subscribed)
    assert record.recovered is False
    assert session.resume_point() == ResumePoint("e2", {"NSE": "50-0"})
    session.hear(ticks("51-0", A=1.0))


def test_an_exchange_without_records_is_resumed_from_its_beginning() -> None:
    session = Session(["NSE:A", "BSE:A"], delivery="all")
    (opening,) = session.opening()
    session.hear(answer(opening))
    assert session.resume_point() == ResumePoint("e1", {"NSE": "100-0", "BSE": "0-0"})


def test_with_latest_there_is_no_position_and_a_reconnection_says_so() -> None:
    session = begun(delivery="latest", every_ms=50)
    session.hear(ticks("105-0", A=1.0))
    session.hear(ticks("104-0", B=1.0))
    assert session.resume_point() is None
    (opening,) = session.opening()
    assert "resume" not in json.loads(opening)
    assert json.loads(opening)["every_ms"] == 50
    (record,) = session.hear(answer(opening))
    assert isinstance(record, Subscribed)
    assert record.recovered is False


def test_a_resume_point_with_latest_is_refused() -> None:
    with pytest.raises(ValueError, match="only delivery"):
        Session(["NSE:A"], resume=ResumePoint("e", {}))
    with pytest.raises(ValueError, match="not a position"):
        Session(["NSE:A"], delivery="all", resume=ResumePoint("e", {"NSE": "$"}))


@pytest.mark.parametrize("position", ["100-0", "99-9"])
def test_a_position_that_does_not_increase_is_noticed(position: str) -> None:
    session = begun()
    with pytest.raises(OutOfOrder, match=position):
        session.hear(ticks(position, A=1.0))
    session.forget_position()
    assert "resume" not in json.loads(session.opening()[0])


def test_more_instruments_join_and_leave_and_the_next_connection_knows() -> None:
    session = begun()
    (added,) = session.add(["NSE:C", "NSE:A", "BSE:X"])
    assert json.loads(added)["instruments"] == ["NSE:C", "BSE:X"]
    assert "resume" not in json.loads(added)
    session.hear(ticks("101-0", A=1.0))
    (record,) = session.hear(answer(added, position={"NSE": "300-0", "BSE": "7-7"}))
    assert isinstance(record, Subscribed)
    assert record.recovered is None
    assert session.resume_point() == ResumePoint("e1", {"NSE": "101-0", "BSE": "7-7"})
    (removed,) = session.remove(["NSE:A", "NSE:NEVER"])
    assert json.loads(removed)["instruments"] == ["NSE:A"]
    assert json.loads(session.opening()[0])["instruments"] == ["NSE:B", "NSE:C", "BSE:X"]


def test_control_records_notices_and_bars_become_records_in_order() -> None:
    session = begun()
    (gap,) = session.hear(
        '{"type":"gap","instrumentKey":"NSE:A","ts_ms":9,"src":"DHAN","from":5,"to":9,"reason":"reset",'
        '"position":{"NSE":"100-1"}}'
    )
    assert gap == Control("gap", "NSE:A", 9, "DHAN", {"from": 5, "to": 9, "reason": "reset"}, "100-1")
    assert session.hear('{"type":"skipped","n":3,"instruments":{"NSE:A":3}}') == [Skipped(3, {"NSE:A": 3})]
    assert session.hear(
        '{"type":"chart_update","instrumentKey":"NSE:A","interval":"1","ohlcv":[[60,1,2,0.5,1.5,10]]}'
    ) == [Bar("NSE:A", "1", 60, 1, 2, 0.5, 1.5, 10)]
    assert session.hear('{"type":"error","id":null,"code":"too_many","message":"grown"}') == [
        ServerNotice("too_many", "grown")
    ]
    (later,) = session.hear('{"type":"something_new","instrumentKey":"NSE:*","position":{"NSE":"100-2"}}')
    assert isinstance(later, Control)


def test_a_refused_subscription_ends_the_client() -> None:
    session = Session(["NSE:A"])
    session.opening()
    with pytest.raises(SubscriptionRefused, match="1000 instruments"):
        session.hear('{"type":"error","id":1,"code":"too_many","message":"1000 instruments"}')


def test_a_thousand_long_names_go_in_messages_the_daemon_takes() -> None:
    keys = [f"NFO:NIFTY-2026-12-31-{strike}-CE" for strike in range(10_000, 11_000)]
    session = Session(keys, delivery="all")
    messages = session.opening()
    assert len(messages) > 1
    assert all(len(message) < 16 * 1024 for message in messages)
    assert [key for message in messages for key in json.loads(message)["instruments"]] == keys
    for message in messages:
        session.hear(answer(message))
    assert not any("resume" in json.loads(message) for message in session.opening())


@given(
    st.text() | st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)
)
def test_anything_else_is_unreadable_and_nothing_worse(text: str | bytes) -> None:
    with pytest.raises(Unreadable):
        begun().hear(text)


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/ws"),
        ("https://host/market/", "wss://host/market/ws"),
        ("ws://host:1/ws", "ws://host:1/ws"),
    ],
)
def test_the_address_of_the_daemon_is_enough(given_url: str, url: str) -> None:
    assert websocket_url(given_url) == url


@pytest.mark.parametrize("url", ["ftp://host", "host:8080", "http://user:pw@host", "http://host/?token=x"])
def test_other_addresses_and_secrets_in_them_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL|no address"):
        websocket_url(url)


def test_the_client_stands_alone() -> None:
    """Somebody who installs it has none of the daemon's modules."""
    allowed = {"marketd_client", "websockets", "redis", "pandas"} | set(sys.stdlib_module_names)
    files = list((ROOT / "clients/python/marketd_client").glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, (file, names)
