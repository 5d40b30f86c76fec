"""Notices: one when a trouble begins, one when it is over; bounded, retried, never in the way."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from services.market_data.clock import ManualClock
from services.operations.notices import CommandHook, DeliveryFailed, Notice, Notifier, Webhook
from services.operations.troubles import ProviderCondition, nobody_delivers, troubles
from services.pipeline.backoff import Backoff
from services.pipeline.sink import SinkState
from services.storage.entry import EntryEncoder
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.spool import ChannelStatus, SpoolState
from tests.support.eventually import eventually

NOW_MS = 1_790_748_968_000


class Receiver:
    name = "receiver"

    def __init__(self, failures: int = 0) -> None:
        self.got: list[Notice] = []
        self.failures = failures

    async def send(self, notice: Notice) -> None:
        if self.failures:
            self.failures -= 1
            raise DeliveryFailed("away")
        self.got.append(notice)


class Rig:
    def __init__(self, *receivers: Receiver) -> None:
        self.clock = ManualClock(NOW_MS)
        self.present: dict[str, str] = {}
        self.receivers = receivers or (Receiver(),)
        self.notifier = Notifier(
            self.clock,
            lambda: self.present,
            self.receivers,
            backoff=lambda: Backoff(base_s=0.001, cap_s=0.002),
        )

    def after(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.notifier.look()

    def told(self) -> list[tuple[str, str]]:
        return [(notice.event, notice.key) for notice in self.notifier._queue]


def test_a_trouble_is_told_once_after_it_lasted_and_once_when_it_stayed_away() -> None:
    rig = Rig()
    rig.present = {"provider:DHAN": "DHAN is parked: the token has expired"}
    rig.after(4)
    assert rig.told() == []
    rig.after(60)
    assert rig.told() == [("raised", "provider:DHAN")]
    rig.present = {}
    rig.after(20)
    rig.present = {"provider:DHAN": "DHAN is parked: the token has expired"}
    rig.after(5)
    rig.present = {}
    rig.after(25)
    assert len(rig.told()) == 1, "it came back before its end was told"
    rig.after(10)
    assert rig.told() == [("raised", "provider:DHAN"), ("resolved", "provider:DHAN")]
    raised, resolved = rig.notifier._queue
    assert raised.since_ms == resolved.since_ms == NOW_MS + 1_000
    assert raised.text.endswith("PROBLEM DHAN is parked: the token has expired")
    assert "RESOLVED over: DHAN is parked" in resolved.text


def test_what_flaps_for_seconds_is_not_told() -> None:
    rig = Rig()
    for _ in range(20):
        rig.present = {"sink:stream": "away"}
        rig.after(3)
        rig.present = {}
        rig.after(2)
    assert rig.told() == []


def test_the_same_events_of_one_moment_are_one_notice() -> None:
    rig = Rig()
    for _ in range(55):
        rig.notifier.happened("DHAN -> YF: provider_unavailable")
    rig.after(1)
    (notice,) = rig.notifier._queue
    assert notice.event == "happened"
    assert notice.text.endswith("NOTE DHAN -> YF: provider_unavailable (55 instruments)")


def test_a_flood_of_troubles_is_held_back_and_said() -> None:
    rig = Rig()
    rig.present = {f"provider:{n}": f"{n} is parked" for n in range(100)}
    rig.after(6)
    assert len(rig.told()) == 20
    rig.after(60)
    rig.present["late"] = "one more"
    rig.after(6)
    assert len(rig.told()) == 21
    assert "and 80 more notices" in rig.notifier._queue[-1].text


async def test_a_receiver_that_is_away_is_tried_again_and_given_up_in_the_end() -> None:
    soon, never = Receiver(failures=2), Receiver(failures=1_000)
    rig = Rig(soon, never)
    task = asyncio.create_task(rig.notifier.run())
    rig.notifier.happened("A -> B: priority")
    with capture_logs() as logs:
        await eventually(lambda: rig.notifier.counts["dropped"] == 1)
    assert [notice.key for notice in soon.got] == ["A -> B: priority"]
    assert rig.notifier.counts == {"sent": 1, "dropped": 1, "failed_tries": 8}
    assert [entry["event"] for entry in logs].count("notice_dropped") == 1
    assert rig.notifier.status()["waiting"] == 0
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
async def inbox() -> AsyncIterator[tuple[str, list[Any], list[int]]]:
    """URL of a webhook, what it got, and the statuses it answers with (200 when there is none left)."""
    got: list[Any] = []
    answers: list[int] = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response(status=answers.pop(0) if answers else 200)

    app = web.Application()
    app.router.add_post("/hook/secret-path", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}/hook/secret-path", got, answers
    await runner.cleanup()


def a_notice() -> Notice:
    return Notice(
        event="raised", key="sink:stream", text="PROBLEM away", since_ms=NOW_MS, time_ms=NOW_MS + 5, host="h"
    )


async def test_the_webhook_gets_json_with_the_text_that_chats_show(
    inbox: tuple[str, list[Any], list[int]],
) -> None:
    url, got, answers = inbox
    answers.append(503)
    with pytest.raises(DeliveryFailed, match="503") as caught:
        await Webhook(url).send(a_notice())
    assert "secret-path" not in str(caught.value)
    await Webhook(url).send(a_notice())
    assert got[1] == {
        "event": "raised",
        "key": "sink:stream",
        "text": "PROBLEM away",
        "since_ms": NOW_MS,
        "time_ms": NOW_MS + 5,
        "host": "h",
        "demo": False,
        "source": "marketd",
    }
    with pytest.raises(DeliveryFailed, match="cannot be reached") as caught:
        await Webhook("http://127.0.0.1:9/secret-path").send(a_notice())
    assert "secret-path" not in str(caught.value)


async def test_the_command_gets_the_same_on_its_input(tmp_path: Path) -> None:
    target = tmp_path / "got it.json"
    code = f"import sys; open({str(target)!r}, 'w').write(sys.stdin.read())"
    await CommandHook(f'{sys.executable} -c "{code}"').send(a_notice())
    assert json.loads(target.read_text(encoding="utf-8"))["key"] == "sink:stream"
    with pytest.raises(DeliveryFailed, match="ends with 3"):
        await CommandHook(f'{sys.executable} -c "raise SystemExit(3)"').send(a_notice())
    with pytest.raises(DeliveryFailed, match="does not start"):
        await CommandHook("/nowhere/command").send(a_notice())


def channel(**different: Any) -> ChannelStatus:
    values = {
        "name": "stream",
        "state": SpoolState.READY,
        "reason": "",
        "records": 10,
        "size_bytes": 0,
        "limit_bytes": 1_000,
        "segments": 1,
        "damaged": 0,
        "dropped": 0,
    }
    return ChannelStatus(**(values | different))


def test_troubles_are_named_by_what_they_concern() -> None:
    sink = LatestValueWriter("redis://127.0.0.1:1/0", encoder=EntryEncoder())
    sink.state, sink.reason = SinkState.UNAVAILABLE, "connection refused"
    found = troubles(
        now_ms=NOW_MS,
        providers=[
            ProviderCondition(code="DHAN", state="parked", reason="the token has expired"),
            ProviderCondition(
                code="YF", state="streaming", reason="", credential_expires_ms=NOW_MS + 3_600_000
            ),
            ProviderCondition(code="X", state="backing_off", reason="refused"),
        ],
        sinks=[sink],
        spool=[channel(size_bytes=850), channel(name="time_series", reason="disk full")],
        not_ready=["the probe is late"],
        degraded=["mappings: PostgreSQL is away"],
    )
    assert found == {
        "provider:DHAN": "DHAN is parked: the token has expired",
        "credentials:YF": "the credentials of YF expire in less than 70 minutes",
        "provider:X": "X delivers nothing: refused",
        "sink:latest_value": "latest_value cannot be written: connection refused",
        "spool:stream:80": "the disk spool of stream is 80 % full (10 records wait)",
        "disk:time_series": "the disk spool of time_series: disk full",
        "degraded:mappings": "mappings: PostgreSQL is away",
    }


def condition(code: str, state: str, reason: str = "") -> ProviderCondition:
    return ProviderCondition(code=code, state=state, reason=reason)


def test_that_nobody_delivers_is_said_only_while_markets_are_open_and_no_provider_works() -> None:
    parked, away = condition("DHAN", "parked", "no credentials"), condition("YF", "backing_off", "refused")
    assert nobody_delivers([parked, away], {"NSE", "NASDAQ"}) == (
        "no provider delivers although markets are open (NASDAQ, NSE): "
        "DHAN is parked (no credentials); YF is backing off (refused)"
    )
    assert nobody_delivers([parked, away], ()) is None
    assert nobody_delivers([], {"NSE"}) is None
    for working in ("streaming", "idle", "connecting", "subscribing"):
        assert nobody_delivers([parked, condition("YF", working)], {"NSE"}) is None


def test_when_nothing_else_explains_it_the_daemon_that_is_not_ready_is_told() -> None:
    quiet = {"now_ms": NOW_MS, "providers": [], "sinks": [], "spool": [channel()], "degraded": []}
    assert troubles(**quiet, not_ready=[]) == {}
    assert troubles(**quiet, not_ready=["the probe is late"]) == {
        "ready": "data does not flow: the probe is late"
    }
