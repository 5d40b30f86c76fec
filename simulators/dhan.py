"""The Dhan simulator: live feed, depth feeds, REST and scrip master on one port, with Dhan's limits.

The real service spreads these over several hosts; here they differ by path. No request is ever
acknowledged and nothing is kept over connections.
Source: DhanHQ v2 live market feed and full market depth documentation; behaviour as measured on the
live feed (times shifted to Indian wall time, code 6 for indices only, abrupt ends).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, ClassVar

from aiohttp import web

from services.errors import WireFormatError
from services.wire.dhan import FeedRequest, Heartbeat, MarketStatus, Segment, encode, parse_request
from services.wire.dhan_v1 import parse_v1_request
from simulators import dhan_charts, dhan_depth, dhan_option_chains, dhan_packets, dhan_rest
from simulators import faults as f
from simulators.connection import BINARY, Connection
from simulators.dhan_access import LIVE, LIVE_V1, DhanAccess
from simulators.inject import for_each
from simulators.market import InstrumentSpec, Kind, Tick
from simulators.stream import Encoded, Listing
from simulators.universe import dhan_specs, made_up_spec

MAX_PER_MESSAGE = 100
MAX_PER_CONNECTION = 5_000
_SUBSCRIBE = {15: dhan_packets.TICKER, 17: dhan_packets.QUOTE, 21: dhan_packets.FULL}
_V1_SUBSCRIBE = {15: dhan_packets.TICKER, 17: dhan_packets.QUOTE, 19: dhan_packets.DEPTH_V1}
_DISCONNECT = 12
_HEADER = Struct("<BHBI")


class DhanSimulator(DhanAccess):
    """Dhan. Provider symbols are `SEGMENT:SECURITY_ID` (`NSE_EQ:2885`).

    Clients need `client_id` and `access_token`. `instruments` adds to (or replaces) the shipped list.
    `downgrade_index` answers quote and full subscriptions of indices with ticker packets, as one report
    has it.
    """

    provider: ClassVar[str] = "dhan"
    data_opcode: ClassVar[int] = BINARY

    def __init__(
        self,
        *,
        rate: float = 2.0,
        instruments: Mapping[str, InstrumentSpec] | None = None,
        max_per_connection: int = MAX_PER_CONNECTION,
        ping_interval_s: float = 10.0,
        downgrade_index: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(rate=rate, ping_interval_s=ping_interval_s, **rest)
        self.max_per_connection = max_per_connection
        self.downgrade_index = downgrade_index
        self._specs = {**dhan_specs(), **(instruments or {})}
        self._rest = dhan_rest.RestApi(self)
        self.option_chains = dhan_option_chains.DhanOptionChains(self)
        self.charts = dhan_charts.DhanCharts(self)

    @property
    def url(self) -> str:
        """The live feed, without the query the client adds."""
        return f"ws://{self.host}:{self.port}"

    @property
    def rest_url(self) -> str:
        """The REST base."""
        return f"http://{self.host}:{self.port}/v2"

    @property
    def depth_20_url(self) -> str:
        """The 20-level depth feed."""
        return f"{self.url}/twentydepth"

    @property
    def depth_200_url(self) -> str:
        """The 200-level depth feed."""
        return f"{self.url}/twohundreddepth"

    @property
    def scrip_master_url(self) -> str:
        """The compact scrip master."""
        return f"http://{self.host}:{self.port}/api-data/api-scrip-master.csv"

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_get("/", self._live)
        app.router.add_get("/twentydepth", self._depth_20)
        app.router.add_get("/twohundreddepth", self._depth_200)
        self._rest.add_routes(app)
        self.option_chains.add_routes(app)
        self.charts.add_routes(app)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return await self.open_feed(request, LIVE if request.query else LIVE_V1)

    async def _depth_20(self, request: web.Request) -> web.StreamResponse:
        return await self.open_feed(request, dhan_depth.DEPTH_20)

    async def _depth_200(self, request: web.Request) -> web.StreamResponse:
        return await self.open_feed(request, dhan_depth.DEPTH_200)

    # What clients ask for.

    def on_text(self, connection: Connection, text: str) -> None:
        """Act on a JSON request; unknown codes are ignored, what cannot be read is answered with 814."""
        feed = self.feed_of[connection.number]
        try:
            request = parse_request(text)
        except WireFormatError as error:
            if error.reason != "unknown_code":
                self.disconnect(connection, 814)
            return
        if request.code == _DISCONNECT:
            connection.close_reason = "closed by request 12"
            connection.close(1000)
        elif feed == LIVE:
            self._change(connection, request.code, request.instruments, _SUBSCRIBE)
        elif feed in (dhan_depth.DEPTH_20, dhan_depth.DEPTH_200):
            self._change_depth(connection, feed, request)

    def on_binary(self, connection: Connection, payload: bytes) -> None:
        """Act on a request of version 1; on the other feeds binary messages are ignored."""
        if self.feed_of[connection.number] != LIVE_V1:
            return
        try:
            request = parse_v1_request(payload)
        except WireFormatError:
            self.disconnect(connection, 814)
            return
        if request.code == _DISCONNECT:
            connection.close(1000)
        elif connection.number in self.token_of:
            self._change(connection, request.code, request.instruments, _V1_SUBSCRIBE)
        else:
            self.log_in(connection, request.access_token, request.client_id)

    def _change(
        self,
        connection: Connection,
        code: int,
        instruments: tuple[tuple[str, str], ...],
        modes: Mapping[int, str],
    ) -> None:
        if len(instruments) > MAX_PER_MESSAGE:
            self.disconnect(connection, 804)
            return
        symbols = [f"{segment}:{security_id}" for segment, security_id in instruments]
        if code in modes:
            held = {symbol for symbol, _ in self.watched(connection)}
            if len(held.union(symbols)) > self.max_per_connection:
                self.disconnect(connection, 804)
                return
            for symbol in symbols:
                self._subscribe(connection, symbol, modes[code])
        elif code - 1 in modes:
            for symbol in symbols:
                self.subscriptions.remove(connection, symbol, modes[code - 1])

    def _subscribe(self, connection: Connection, symbol: str, variant: str) -> None:
        listing = self.listing(symbol)
        if listing is None or self.drops_subscription():
            return
        if not self.watch(connection, symbol, variant):
            return
        if listing.segment == Segment.IDX_I and not self.faults.is_muted(symbol):
            connection.send_now(BINARY, dhan_packets.previous_close_packet(listing))
        self.send_snapshot(connection, symbol, variant)

    def _change_depth(self, connection: Connection, feed: str, request: FeedRequest) -> None:
        code = request.code
        symbols = [f"{segment}:{security_id}" for segment, security_id in request.instruments]
        if code == dhan_depth.UNSUBSCRIBE_CODE:
            lingers = self.faults.depth == "lingering"
            self.fault_counts["depth"] += lingers
            for symbol in () if lingers else symbols:
                self.subscriptions.remove(connection, symbol, feed)
            return
        held = {symbol for symbol, _ in self.watched(connection)}
        refusal = dhan_depth.refusal(feed, self.token_of[connection.number], held.union(symbols))
        if refusal is None and symbols and request.flat is not (feed == dhan_depth.DEPTH_200):
            refusal = 814
        if refusal is not None:
            self.disconnect(connection, refusal)
        elif code == dhan_depth.SUBSCRIBE_CODE:
            for symbol in symbols:
                self._subscribe(connection, symbol, feed)

    # What they get.

    def _find_listing(self, symbol: str) -> Listing | None:
        segment_name, _, security_id = symbol.partition(":")
        if segment_name not in Segment.__members__ or not security_id.isascii() or not security_id.isdigit():
            return None
        spec = self._specs.get(symbol)
        if spec is None and self.any_symbol:
            kind = Kind.INDEX if segment_name == "IDX_I" else Kind.EQUITY
            spec = made_up_spec(symbol, kind=kind)
        if spec is None:
            return None
        return Listing(
            symbol=symbol,
            instrument=self.market.instrument(spec),
            segment=Segment[segment_name],
            security_id=int(security_id),
        )

    def _encode(self, listing: Listing, tick: Tick, variant: str) -> Encoded:
        if variant in (dhan_depth.DEPTH_20, dhan_depth.DEPTH_200):
            return dhan_depth.encode_tick(listing, tick, variant, self.faults.depth)
        if self.downgrade_index and listing.segment == Segment.IDX_I:
            variant = dhan_packets.TICKER
        return dhan_packets.encode_tick(listing, tick, variant)

    def inject_own(self, fault: f.AnyFault) -> int:
        """Put one of Dhan's own faults into effect."""
        match fault:
            case f.Stacked(packets=packets):
                self.faults.stacked_packets = max(1, packets)
            case f.UnknownPacket(code=code, length=length, symbol=symbol):
                listing = self.listing(symbol) if symbol else None
                segment, security_id = (listing.segment, listing.security_id) if listing else (0, 0)
                packet = _HEADER.pack(code, length, segment, security_id).ljust(length, b"\0")
                return self._send_all("unknown_packet", packet)
            case f.Heartbeat():
                return self._send_all("heartbeat", encode(Heartbeat(segment=0, security_id=0)))
            case f.MarketStatusPacket(segment=segment):
                return self._send_all("market_status", encode(MarketStatus(segment=segment, security_id=0)))
            case f.Disconnect(reason=reason, connection=number):
                return for_each(self, number, "disconnect", lambda it: self.disconnect(it, reason))
            case f.ExpireToken():
                self.expire_token()
            case f.RejectTokens(reaction=reaction):
                self.rejection = reaction
            case f.DataPlan(active=active):
                self.data_plan_active = active
            case f.Depth(how=how):
                self.faults.depth = how
            case _:
                return super().inject_own(fault)
        return len(self.connections)

    def _send_all(self, name: str, packet: bytes) -> int:
        return for_each(self, None, name, lambda it: it.send_now(BINARY, packet))

    def state(self) -> dict[str, object]:
        """Return what is going on, ready for JSON."""
        return {
            **super().state(),
            "rest_url": self.rest_url,
            "client_id": self.client_id,
            "access_token": self.access_token,
            "rejection": self.rejection,
            "data_plan_active": self.data_plan_active,
            "charts": {"answered": self.charts.answered, "refused": dict(self.charts.refused)},
        }
