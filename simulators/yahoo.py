"""The Yahoo Finance simulator: the stream, with its limits and its silence about errors.

`/?version=2` speaks JSON envelopes, without the query the text is bare base64. Nothing is acknowledged,
nothing is refused out loud, nothing is kept over connections.
Source: measured against the live stream: 100 slots per connection, first come first served, unknown
symbols use one; malformed requests end the connection without a status; messages on a whole-second grid.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from aiohttp import web

from services.errors import WireFormatError
from services.wire.yahoo import decode_pricing, encode_frame, parse_request
from simulators import faults as f
from simulators import yahoo_frames
from simulators.connection import TEXT, Connection
from simulators.inject import for_each
from simulators.market import Kind, Tick
from simulators.stream import Encoded, Listing, StreamSimulator
from simulators.universe import PriceRow, made_up_spec, yahoo_rows
from simulators.yahoo_news import YahooNewsroom
from simulators.yahoo_option_chains import YahooOptionChains
from simulators.yahoo_rest import YahooCharts

SLOTS = 100
_WELL_FORMED = re.compile(r"^\^?[A-Za-z0-9][A-Za-z0-9.&=_-]{0,29}$")
_US_EXCHANGES = frozenset({"NMS", "NYQ", "PCX", "NGM", "NCM", "ASE", "BTS"})
_KIND_OF_FORM = (
    (re.compile(r"^\^"), Kind.INDEX, "SNP", "USD"),
    (re.compile(r"=X$"), Kind.FX, "CCY", "USD"),
    (re.compile(r"=F$"), Kind.FUTURE, "NYM", "USD"),
    (re.compile(r"\.NS$"), Kind.EQUITY, "NSI", "INR"),
    (re.compile(r"\.BO$"), Kind.EQUITY, "BSE", "INR"),
    (re.compile(r"^[A-Z.]+\d{6}[CP]\d{8}$"), Kind.OPTION, "OPR", "USD"),
    (re.compile(r"-(USD|EUR|INR)$"), Kind.CRYPTO, "CCC", "USD"),
)


class YahooSimulator(StreamSimulator):
    """Yahoo. Provider symbols are Yahoo's (`AAPL`, `RELIANCE.NS`, `^NSEI`).

    `market_hours` is the session of US listings (0 pre, 1 regular, 2 post, 4 overnight). `instruments` adds
    to (or replaces) the shipped list. With `canonical_ids` a rate against the dollar answers under its short
    name: who subscribes `USDINR=X` gets `INR=X`.
    """

    provider: ClassVar[str] = "yahoo"
    data_opcode: ClassVar[int] = TEXT

    def __init__(
        self,
        *,
        rate: float = 1.0,
        instruments: Mapping[str, PriceRow] | None = None,
        market_hours: int = yahoo_frames.REGULAR,
        slots: int = SLOTS,
        canonical_ids: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(rate=rate, **rest)
        self.market_hours = market_hours
        self.slots = slots
        self.canonical_ids = canonical_ids
        self.charts = YahooCharts(self)
        self.option_chains = YahooOptionChains(self)
        self.news = YahooNewsroom(self)
        self._rows = {**yahoo_rows(), **(instruments or {})}
        self._version_of: dict[int, str] = {}
        self._slots_of: dict[int, dict[str, None]] = {}

    @property
    def url(self) -> str:
        """The stream, version 2."""
        return f"ws://{self.host}:{self.port}/?version=2"

    @property
    def rest_url(self) -> str:
        """The REST base."""
        return f"http://{self.host}:{self.port}"

    @property
    def v1_url(self) -> str:
        """The stream, version 1: bare base64."""
        return f"ws://{self.host}:{self.port}/"

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_get("/", self._stream)
        self.charts.add_routes(app)
        self.option_chains.add_routes(app)
        self.news.add_routes(app)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        version = "2" if request.query.get("version") == "2" else "1"

        def opened(connection: Connection) -> None:
            self._version_of[connection.number] = version
            self._slots_of[connection.number] = {}

        return await self.serve(request, opened)

    def forget(self, connection: Connection) -> None:
        """Drop everything that is known of a connection that has ended."""
        super().forget(connection)
        self._version_of.pop(connection.number, None)
        self._slots_of.pop(connection.number, None)

    def slots_used(self, connection: Connection) -> list[str]:
        """Return the symbols that hold a slot of a connection, known or not, oldest first."""
        return list(self._slots_of.get(connection.number, ()))

    def on_text(self, connection: Connection, text: str) -> None:
        """Act on a request; what cannot be read ends the connection without a status."""
        try:
            request = parse_request(text)
        except WireFormatError as error:
            connection.close_reason = f"malformed request ({error.reason})"
            connection.close(None)
            return
        slots = self._slots_of[connection.number]
        version = self._version_of[connection.number]
        for symbol in request.unsubscribe:
            if symbol in slots:
                del slots[symbol]
                self.subscriptions.remove(connection, symbol, version)
        for symbol in request.subscribe:
            if symbol in slots or len(slots) >= self.slots or self.drops_subscription():
                continue
            slots[symbol] = None
            if self.listing(symbol) is not None and self.watch(connection, symbol, version):
                self.send_snapshot(connection, symbol, version)

    def on_binary(self, connection: Connection, payload: bytes) -> None:  # noqa: ARG002
        """End the connection without a status: the stream knows text only."""
        connection.close_reason = "malformed request (binary)"
        connection.close(None)

    def _find_listing(self, symbol: str) -> Listing | None:
        row = self._rows.get(symbol)
        if row is None and symbol.endswith("=X") and len(symbol) == 5:
            row = self._rows.get(f"USD{symbol}")
        if row is None:
            if not self.any_symbol or not _WELL_FORMED.match(symbol):
                return None
            row = _made_up_row(symbol)
        return Listing(
            symbol=symbol,
            instrument=self.market.instrument(row.spec),
            wire_id=self._canonical(symbol),
            exchange=row.yahoo_exchange,
            currency=row.currency,
        )

    def _canonical(self, symbol: str) -> str:
        short = self.canonical_ids and symbol.startswith("USD") and symbol.endswith("=X") and len(symbol) == 8
        return symbol[3:] if short else symbol

    def _encode(self, listing: Listing, tick: Tick, variant: str) -> Encoded:
        hours = self.market_hours if listing.exchange in _US_EXCHANGES else yahoo_frames.REGULAR
        data = yahoo_frames.message_of(listing, tick, hours)
        if self.faults.market_hours is not None:
            data.market_hours = self.faults.market_hours
        frame = encode_frame(data, version=int(variant)).encode()
        volume = yahoo_frames.journaled_volume(listing, data)
        return Encoded([frame], "pricing", tick.event_ms // 1000 * 1000, volume, data.bid, data.ask)

    def cut(self, packet: bytes, size: int | None) -> bytes:
        """Return a well-formed message whose protobuf is torn after `size` bytes (None: inside a field)."""
        envelope = packet.startswith(b"{")
        encoded = json.loads(packet)["message"] if envelope else packet.decode()
        payload = base64.b64decode(encoded)
        torn = payload[:size] if size is not None else _torn_inside_a_field(payload)
        text = base64.b64encode(torn).decode()
        return json.dumps({"type": "pricing", "message": text}).encode() if envelope else text.encode()

    def inject_own(self, fault: f.AnyFault) -> int:
        """Put one of Yahoo's own faults into effect."""
        match fault:
            case f.OtherEnvelope(type=kind):
                return self._send_all("other_envelope", json.dumps({"type": kind, "message": "Cg=="}))
            case f.BadBase64():
                return self._send_all("bad_base64", '{"type":"pricing","message":"***not base64***"}')
            case f.Heartbeat():
                return self._send_all("heartbeat", encode_frame(yahoo_frames.heartbeat(self.now_ms())))
            case f.MarketHours(value=value):
                self.faults.market_hours = value
            case _:
                return super().inject_own(fault)
        return len(self.connections)

    def _send_all(self, name: str, text: str) -> int:
        return for_each(self, None, name, lambda it: it.send_now(TEXT, text.encode()))

    def state(self) -> dict[str, object]:
        """Return what is going on, ready for JSON."""
        return {
            **super().state(),
            "rest_url": self.rest_url,
            "market_hours": self.market_hours,
            "charts": {"answered": self.charts.answered, "refused": dict(self.charts.refused)},
        }


def _made_up_row(symbol: str) -> PriceRow:
    for form, kind, exchange, currency in _KIND_OF_FORM:
        if form.search(symbol):
            tick = "0.0001" if kind is Kind.FX else "0.01"
            return PriceRow(made_up_spec(f"yahoo:{symbol}", tick=tick, kind=kind), symbol, exchange, currency)
    return PriceRow(made_up_spec(f"yahoo:{symbol}", tick="0.01"), symbol, "NMS", "USD")


def _torn_inside_a_field(payload: bytes) -> bytes:
    """Return the front of a message, cut where the cut shows: a cut between two fields does not."""
    for size in range(len(payload) // 2, len(payload)):
        try:
            decode_pricing(payload[:size])
        except WireFormatError:
            return payload[:size]
    return payload[:1]
