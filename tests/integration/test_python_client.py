"""The Python client against the real gateway, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketd_client import (
    Backoff,
    Client,
    ConnectionRefused,
    Control,
    Disconnected,
    Subscribed,
    SubscriptionRefused,
    Tick,
)
from services.gateway.limits import ClientLimits
from tests.support.eventually import FACTOR
from tests.support.gateway import GatewayRig, running_gateway


def soon() -> Backoff:
    """A client that comes back at once."""
    return Backoff(first_s=0.01, longest_s=0.05)


async def next_of(client: Client, kind: type | tuple[type, ...]) -> Any:
    """Return the next record of a kind."""
    while True:
        record = await asyncio.wait_for(anext(client), 10 * FACTOR)
        if isinstance(record, kind):
            return record


def cut_all(rig: GatewayRig) -> None:
    """Cut every WebSocket as a broken network does."""
    assert rig.gateway._sockets.sessions, "there is a connection to cut"
    for session in list(rig.gateway._sockets.sessions):
        session.abort(1006, "cut by the test")


async def test_every_tick_and_control_record_comes_typed_and_in_order() -> None:
    async with running_gateway() as rig:
        before = rig.market.tick("NSE:RELIANCE", 99.5, bid=99.0, ask=100.0, oi=7)
        async with Client(rig.url, ["NSE:RELIANCE", "NSE:NOPE"], delivery="all") as client:
            begun = await next_of(client, Subscribed)
            assert begun.accepted == ("NSE:RELIANCE",)
            assert begun.rejected == {"NSE:NOPE": "unknown_instrument"}
            assert begun.recovered is None
            assert begun.snapshot["NSE:RELIANCE"] == Tick(
                "NSE:RELIANCE", 99.5, before.timestamp, 10, 99.0, 100.0, oi=7, src="DHAN"
            )
            for price in range(1, 301):
                rig.market.tick("NSE:RELIANCE", float(price), flags=4 if price == 7 else 0)
                if price == 150:
                    rig.market.control("gap", "NSE:RELIANCE", **{"from": 1, "to": 2, "reason": "reset"})
                if price == 200:
                    last = rig.market.control(
                        "switched", "NSE:*", from_src="DHAN", to_src="YF", reason="mute"
                    )
            heard = [await next_of(client, (Tick, Control)) for _ in range(302)]
            assert [record.price for record in heard if isinstance(record, Tick)] == [
                float(price) for price in range(1, 301)
            ]
            assert heard[6].flags == ("late",)
            assert isinstance(heard[150], Control)
            assert heard[150].fields == {"from": 1, "to": 2, "reason": "reset"}
            assert isinstance(heard[201], Control)
            assert heard[201].type == "switched"
            assert heard[201].position == last.position
            assert client.resume_point is not None
            assert client.resume_point.position == rig.broadcast.positions()


async def test_a_cut_connection_comes_back_and_what_was_missed_is_had_or_known_to_be_lost() -> None:
    async with running_gateway() as rig:
        first = rig.market.tick("NSE:TCS", 1.0)
        async with Client(rig.url, ["NSE:TCS"], delivery="all", backoff=soon()) as client:
            await next_of(client, Subscribed)
            cut_all(rig)
            assert (await next_of(client, Disconnected)).code == 1006
            back = await next_of(client, Subscribed)
            assert back.recovered is True, "nothing was missed"
            assert back.position == {"NSE": first.position}
            cut_all(rig)
            rig.market.tick("NSE:TCS", 2.0)
            await next_of(client, Disconnected)
            back = await next_of(client, Subscribed)
            rig.market.tick("NSE:TCS", 3.0)
            if back.recovered:
                assert back.snapshot == {}
                assert [(await next_of(client, Tick)).price for _ in range(2)] == [2.0, 3.0]
            else:
                assert back.snapshot["NSE:TCS"].price == 2.0
                assert (await next_of(client, Tick)).price == 3.0


async def test_another_process_goes_on_from_the_resume_point() -> None:
    async with running_gateway() as rig:
        rig.market.tick("NSE:TCS", 1.0)
        async with Client(rig.url, ["NSE:TCS"], delivery="all") as client:
            await next_of(client, Subscribed)
            point = client.resume_point
        async with Client(rig.url, ["NSE:TCS"], delivery="all", resume=point) as client:
            assert (await next_of(client, Subscribed)).recovered is True
        rig.backend.epoch = "epoch-2"
        async with Client(rig.url, ["NSE:TCS"], delivery="all", resume=point) as client:
            lost = await next_of(client, Subscribed)
            assert lost.recovered is False
            assert lost.snapshot["NSE:TCS"].price == 1.0


async def test_with_latest_the_newest_value_comes_after_a_cut() -> None:
    async with (
        running_gateway() as rig,
        Client(rig.url, ["NSE:*"], every_ms=10, backoff=soon()) as client,
    ):
        await next_of(client, Subscribed)
        rig.market.tick("NSE:TCS", 1.0)
        assert (await next_of(client, Tick)).price == 1.0
        cut_all(rig)
        rig.market.tick("NSE:TCS", 2.0)
        back = await next_of(client, Subscribed)
        assert back.recovered is False
        assert back.snapshot["NSE:TCS"].price == 2.0


async def test_instruments_join_and_leave_while_it_runs() -> None:
    async with (
        running_gateway() as rig,
        Client(rig.url, ["NSE:TCS"], delivery="all", backoff=soon()) as client,
    ):
        await next_of(client, Subscribed)
        await client.subscribe("NASDAQ:AAPL")
        assert (await next_of(client, Subscribed)).accepted == ("NASDAQ:AAPL",)
        await client.unsubscribe("NSE:TCS")
        await asyncio.wait_for(wait_for_interest(rig, {"NASDAQ:AAPL"}), 10 * FACTOR)
        rig.market.tick("NSE:TCS", 1.0)
        rig.market.tick("NASDAQ:AAPL", 2.0)
        assert (await next_of(client, Tick)).instrument == "NASDAQ:AAPL"
        cut_all(rig)
        assert (await next_of(client, Subscribed)).accepted == ("NASDAQ:AAPL",)


async def wait_for_interest(rig: GatewayRig, wanted: set[str]) -> None:
    while rig.backend.interest != wanted:
        await asyncio.sleep(0.01)


async def test_the_secret_goes_in_the_header_and_a_wrong_one_ends_the_client() -> None:
    async with running_gateway(tokens={"reader": "a-good-secret"}) as rig:
        async with Client(rig.url, ["NSE:TCS"], token="a-good-secret") as client:
            await next_of(client, Subscribed)
            (session,) = rig.gateway._sockets.sessions
            assert session.principal is not None
            assert session.principal.name == "reader"
        async with Client(rig.url, ["NSE:TCS"], token="a-bad-secret") as client:
            with pytest.raises(ConnectionRefused, match="401"):
                await next_of(client, Subscribed)


async def test_more_than_the_daemon_allows_is_said_and_not_tried_again() -> None:
    limits = ClientLimits(instruments_per_client=1)
    async with running_gateway(limits=limits) as rig, Client(rig.url, ["NSE:*"]) as client:
        with pytest.raises(SubscriptionRefused, match="too_many"):
            await next_of(client, Subscribed)


async def test_a_daemon_that_stops_is_waited_for() -> None:
    async with running_gateway() as rig:
        client = Client(rig.url, ["NSE:TCS"], backoff=Backoff(first_s=60, longest_s=60))
        await client.__aenter__()
        await next_of(client, Subscribed)
    gone = await next_of(client, Disconnected)
    assert gone.code == 1012
    await client.close()
