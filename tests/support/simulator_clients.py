"""Plain clients for the simulators: aiohttp's WebSocket and nothing of the daemon but the codecs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from services.wire import dhan as dhan_wire
from services.wire import yahoo as yahoo_wire
from simulators import DhanSimulator, YahooSimulator
from tests.support.eventually import FACTOR

RELIANCE = "NSE_EQ:2885"
TCS = "NSE_EQ:11536"
NIFTY = "IDX_I:13"
NIFTY_CALL = "NSE_FNO:42501"


def feed_url(sim: DhanSimulator, *, token: str | None = None, client_id: str | None = None) -> str:
    """The live feed's URL with credentials, by default the good ones."""
    return (
        f"{sim.url}/?version=2&token={sim.access_token if token is None else token}"
        f"&clientId={client_id or sim.client_id}&authType=2"
    )


def depth_url(sim: DhanSimulator, levels: int) -> str:
    """A depth feed's URL with the good credentials."""
    base = sim.depth_20_url if levels == 20 else sim.depth_200_url
    return f"{base}?token={sim.access_token}&clientId={sim.client_id}&authType=2"


def pairs(*symbols: str) -> list[tuple[str, str]]:
    """`NSE_EQ:2885` as the pair that goes into requests."""
    return [(segment, security_id) for segment, _, security_id in (s.partition(":") for s in symbols)]


class Client:
    """One WebSocket; every wait is bounded."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def message(self, within_s: float = 5.0) -> aiohttp.WSMessage:
        return await self.socket.receive(within_s * FACTOR)

    async def frame(self) -> Any:
        """The next data frame; AssertionError when the connection ends instead."""
        message = await self.message()
        assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
        return message.data

    async def silent(self, for_s: float = 0.15) -> bool:
        """Whether nothing arrives for a while; a frame or an end of the connection is no silence."""
        try:
            await self.socket.receive(for_s)
        except TimeoutError:
            return True
        return False

    async def end(self) -> int | None:
        """Read on to the end of the connection; the close code, None where no close frame came."""
        while True:
            message = await self.message()
            if message.type is aiohttp.WSMsgType.CLOSE:
                return int(message.data)
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                return None

    async def dhan(self) -> list[Any]:
        """The records of the next frame, which must be undamaged."""
        records, damage = dhan_wire.decode_frame(await self.frame())
        assert damage is None
        return records

    async def dhan_end(self) -> tuple[int | None, int | None]:
        """Read on to the end: the reason of the disconnect packet before it, if any, and the close code."""
        reason = None
        while True:
            message = await self.message()
            if message.type is aiohttp.WSMsgType.BINARY:
                for record in dhan_wire.decode_frame(message.data)[0]:
                    if isinstance(record, dhan_wire.Disconnect):
                        reason = record.reason
            elif message.type is aiohttp.WSMsgType.CLOSE:
                return reason, int(message.data)
            else:
                return reason, None

    async def subscribe(self, *symbols: str, mode: dhan_wire.FeedMode = dhan_wire.FeedMode.TICKER) -> None:
        for request in dhan_wire.subscribe_messages(mode, pairs(*symbols)):
            await self.socket.send_str(request)

    async def unsubscribe(self, *symbols: str, mode: dhan_wire.FeedMode = dhan_wire.FeedMode.TICKER) -> None:
        for request in dhan_wire.unsubscribe_messages(mode, pairs(*symbols)):
            await self.socket.send_str(request)

    async def yahoo(self) -> yahoo_wire.PricingData:
        data = yahoo_wire.decode_frame(await self.frame())
        assert data is not None
        return data

    async def subscribe_yahoo(self, symbols: Sequence[str]) -> None:
        await self.socket.send_str(yahoo_wire.subscribe_message(symbols))


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client of any URL; `options` go to aiohttp's `ws_connect`."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10 * FACTOR)) as session,
        session.ws_connect(url, **options) as socket,
    ):
        yield Client(socket)
        # aiohttp waits long for the close of a server that has gone; we do not.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(socket.close(), 1.0 * FACTOR)


@contextlib.asynccontextmanager
async def dhan_client(sim: DhanSimulator, *symbols: str, mode: str = "ticker") -> AsyncIterator[Client]:
    """A client of the live feed that has subscribed and read the snapshots."""
    async with connected(feed_url(sim)) as client:
        if symbols:
            await client.subscribe(*symbols, mode=dhan_wire.FeedMode(mode))
            for _ in symbols:
                await client.dhan()
        yield client


@contextlib.asynccontextmanager
async def yahoo_client(sim: YahooSimulator, *symbols: str) -> AsyncIterator[Client]:
    """A client of the stream that has subscribed and read the snapshots."""
    async with connected(sim.url) as client:
        if symbols:
            await client.subscribe_yahoo(symbols)
            for _ in symbols:
                await client.yahoo()
        yield client
