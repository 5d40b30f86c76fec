"""A socket that is always full leaves the event loop to others again and again, and loses nothing by that."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from services.connection import picows_transport
from services.connection.picows_transport import _AT_A_STRETCH, PicowsConnector
from services.connection.transport import Endpoint, TransportLimits
from tests.unit.connection.websocket_rig import serving

MESSAGES = 20_000
TEXT = b"%05d" + b"." * 95
MOST_IN_ONE_READ = (256 << 10) // 102


class _Listener:
    """Keeps what came, and how many came at most between two turns of the event loop."""

    def __init__(self) -> None:
        self.received: list[str | bytes] = []
        self.most_in_a_turn = 0
        self.closed = False
        self._in_this_turn = 0

    def on_frame(self, raw: str | bytes) -> None:
        self.received.append(raw)
        self._in_this_turn += 1
        self.most_in_a_turn = max(self.most_in_a_turn, self._in_this_turn)

    def a_turn(self) -> None:
        self._in_this_turn = 0
        if not self.closed:
            asyncio.get_running_loop().call_soon(self.a_turn)

    def on_sign_of_life(self) -> None:
        raise NotImplementedError

    def on_pong(self) -> None:
        raise NotImplementedError

    def on_closed(self) -> None:
        self.closed = True


async def _read_a_flood() -> _Listener:
    listener = _Listener()
    async with serving() as server:
        transport = await PicowsConnector().open(
            Endpoint(server.url), listener, TransportLimits(), has_credentials=False
        )
        listener.a_turn()
        (client,) = server.clients
        for number in range(MESSAGES):
            client.send(TEXT % number)
        async with asyncio.timeout(60):
            while len(listener.received) < MESSAGES:
                await asyncio.sleep(0.01)
        client.close(1000)
        await transport.wait_closed()
        await transport.close(1.0)
    return listener


class _Frames(picows_transport._Frames):
    """Remembers how many messages waited at most."""

    most_waiting = 0

    def _handle_later(self, message: str | bytes) -> None:
        super()._handle_later(message)
        _Frames.most_waiting = max(_Frames.most_waiting, len(self._later))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_others_get_their_turn_under_a_flood_and_nothing_is_lost(
    run: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picows_transport, "_Frames", _Frames)
    _Frames.most_waiting = 0
    listener: _Listener = run(_read_a_flood())  # type: ignore[operator]
    assert listener.received == [TEXT % number for number in range(MESSAGES)]
    assert listener.most_in_a_turn <= 3 * _AT_A_STRETCH
    # What the daemon cannot take stays with the sender.
    assert 0 < _Frames.most_waiting <= MOST_IN_ONE_READ


class _Queues:
    """Full for a while, or for good."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def full(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


@pytest.mark.parametrize(("looks", "rests_s"), [(20, 0.1), (1_000_000, 0.2)])
async def test_reading_rests_while_the_queues_are_full_but_not_for_good(
    looks: int, rests_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picows_transport, "_MOST_REST_S", 0.2)
    queues, listener = _Queues(looks), _Listener()
    loop = asyncio.get_running_loop()
    async with serving() as server:
        transport = await PicowsConnector(queues.full).open(
            Endpoint(server.url), listener, TransportLimits(), has_credentials=False
        )
        (client,) = server.clients
        began_s = loop.time()
        for number in range(1_000):
            client.send(TEXT % number)
        async with asyncio.timeout(60):
            while len(listener.received) < 1_000:
                await asyncio.sleep(0.01)
        assert loop.time() - began_s >= rests_s
        assert listener.received == [TEXT % number for number in range(1_000)]
        client.close(1000)
        await transport.wait_closed()
        await transport.close(1.0)
