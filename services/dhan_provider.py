"""DhanProvider: DhanHQ's live market feed, version 2, as a provider.

Stands between the connection runner and the Dhan codec: the address with its token, the requests, and
from wire records to `ProviderTick`s. Never does I/O itself; prices stay as the wire has them, the
normaliser puts them on the instrument's tick grid.
Source: DhanHQ v2 live market feed documentation and annexure, unless a line says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import structlog

from services.base_provider import Capabilities, Delivery, DepthTap, ProviderContext
from services.compiled import load
from services.connection.failures import close_error
from services.connection.rules import ConnectionEnd, ConnectionRules, Request
from services.connection.transport import Connector, Endpoint
from services.connection.websocket_provider import WebSocketProvider
from services.credential_state import CredentialState, credential_expiry_ms
from services.dhan_account import check_token, renew_token
from services.errors import (
    ConnectionLimitReached,
    CredentialsRejected,
    ProviderError,
    ProviderUnavailable,
    SettingsUnusable,
    SubscriptionRefused,
    TooManySymbols,
    UnexpectedAnswer,
)
from services.market_data.records import ProviderTick
from services.wire import dhan
from services.wire.dhan import DISCONNECT_REASONS, FeedMode, Segment, utc_ms
from services.wire.dhan_lone import (
    FULL_BYTES,
    FULL_START,
    QUOTE_BYTES,
    QUOTE_START,
    KnownInstrument,
    read_full,
    read_quote,
    wire_key,
)

_log = structlog.get_logger(__name__)
_lane = load("lane")

DEFAULT_FEED_URL = "wss://api-feed.dhan.co"
DEFAULT_REST_URL = "https://api.dhan.co/v2"
INSTRUMENTS_PER_MESSAGE = 100
SUSPECT_TOKEN_AFTER = 3
"""So many bare drops right after the handshake make the token suspect. Source: reports of the SDK's users."""
SUSPECT_TOKEN_WAIT_S = 60.0
_RIGHT_AFTER_S = 5.0

_DERIVATIVES = frozenset(
    {Segment.NSE_FNO, Segment.NSE_CURRENCY, Segment.MCX_COMM, Segment.BSE_CURRENCY, Segment.BSE_FNO}
)
_CREDENTIAL_REASONS = frozenset({806, 807, 808, 809, 810, 820, 821})
_PLAN_REASONS = frozenset({813, 814})
_TOO_MANY_INSTRUMENTS = 804
_TOO_MANY_CONNECTIONS = 805


class DhanProvider(WebSocketProvider):
    """Dhan's stream of NSE, BSE and MCX instruments. Provider symbols are `SEGMENT:SECURITY_ID`.

    At most 5 connections of 5 000 instruments each, 100 instruments in a message.
    """

    code: ClassVar[str] = "DHAN"
    name: ClassVar[str] = "Dhan"
    capabilities: ClassVar[Capabilities] = Capabilities(stream=True, depth=True, delivery=Delivery.REAL_TIME)
    credential_names: ClassVar[tuple[str, ...]] = ("DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN")
    setting_names: ClassVar[tuple[str, ...]] = ("DHAN_FEED_URL", "DHAN_FEED_MODE")
    renews_credentials: ClassVar[bool] = True
    snapshot_first: ClassVar[bool] = True
    # Dhan documents no rate of requests, and its own client sends them without a pause. Too many attempts to
    # connect are answered with 429: only those of connections that never failed are close to each other.
    default_rules: ClassVar[ConnectionRules] = ConnectionRules(
        symbols_per_connection=5_000, max_connections=5, pace_s=0.005, stagger_s=0.5, first_stagger_s=0.1
    )

    def __init__(
        self,
        context: ProviderContext,
        *,
        rules: ConnectionRules | None = None,
        connector: Connector | None = None,
    ) -> None:
        super().__init__(context, rules=rules, connector=connector)
        self._mode = FeedMode.FULL
        self._tested: int | None = None
        self._bare_drops = 0
        self._symbols: dict[tuple[int, int], str] = {}
        self._known: dict[bytes, KnownInstrument] = {}
        self._newest_time: tuple[int, int | None] = (0, None)
        self._open_interest: dict[str, int] = {}
        self._unknown_codes: set[int] = set()
        lane = _lane.dhan_lane(self) if _lane is not None else None
        self._take: Callable[[str | bytes], bool] | None = lane.take if lane is not None else None
        """The compiled short way of the usual packet; tells whether it went it."""
        self._readers: dict[type, Callable[[Any], None]] = {
            dhan.Full: self._full,
            dhan.Quote: self._quote,
            dhan.Ticker: self._ticker,
            dhan.OpenInterest: self._oi,
            dhan.PreviousClose: self._previous_close,
            dhan.MarketDepthV1: self._depth_v1,
            dhan.MarketStatus: self._market_status,
            dhan.Heartbeat: self._heartbeat,
            dhan.Unknown: self._unknown,
            dhan.Disconnect: self._disconnect,
        }

    # ---- connecting ---------------------------------------------------------------------------------

    async def connect_websocket(self) -> None:
        """Open the first connection, in the feed mode that is set now. Raises a `ProviderError`.

        Credentials that were never tried are tried over REST first: that costs one request, where a
        refused socket costs a place among the five, and often ends without a reason.
        """
        self._mode = self._feed_mode()
        await self._test_credentials()
        await super().connect_websocket()

    async def _test_credentials(self) -> None:
        number, rest_url = self.credential_number, self.setting("DHAN_REST_URL")
        if not rest_url or number == self._tested or self.credential_state is not CredentialState.UNTESTED:
            return
        try:
            await check_token(rest_url, self.setting("DHAN_CLIENT_ID"), self.setting("DHAN_ACCESS_TOKEN"))
        except CredentialsRejected:
            raise
        except ProviderError as error:
            # The stream may be well all the same: it says itself what it thinks of the token.
            _log.info("credentials_not_tested", provider=self.code, reason=str(error))
        else:
            self._gate.proved(number)
        self._tested = number

    def credential_expiry(self, settings: Mapping[str, str]) -> int | None:
        """Return when the access token expires, UTC epoch ms; None for a token that does not say."""
        return credential_expiry_ms(settings.get("DHAN_ACCESS_TOKEN", ""))

    async def renew_credentials(self) -> Mapping[str, str]:
        """Return a token for 24 more hours; the present one ends. Raises a `ProviderError`."""
        number, rest_url = self.credential_number, self.setting("DHAN_REST_URL", DEFAULT_REST_URL)
        client_id, token = self.setting("DHAN_CLIENT_ID"), self.setting("DHAN_ACCESS_TOKEN")
        try:
            fresh = await renew_token(rest_url, client_id, token)
        except CredentialsRejected:
            await self._condemn_if_dead(number, (rest_url, client_id, token))
            raise
        return {"DHAN_ACCESS_TOKEN": fresh}

    async def _condemn_if_dead(self, number: int, account: tuple[str, str, str]) -> None:
        """Tell a token that is only not renewed from a dead one, as when a renewal's answer got lost."""
        try:
            await check_token(*account)
        except CredentialsRejected as error:
            self._gate.condemn(number, error)
        except ProviderError:
            return

    def endpoint(self) -> Endpoint:
        """Return the address with client id and token; an expired token is not tried at all."""
        return self._with_token(self.setting("DHAN_FEED_URL", DEFAULT_FEED_URL), {"version": "2"})

    def _with_token(self, url: str, more: Mapping[str, str]) -> Endpoint:
        token = self.setting("DHAN_ACCESS_TOKEN")
        expires_ms = credential_expiry_ms(token)
        if expires_ms is not None and expires_ms <= self.context.clock.now_ms():
            raise CredentialsRejected(
                "the Dhan access token has expired: put a new DHAN_ACCESS_TOKEN in .env",
                reason="token_expired",
            )
        parts = urlsplit(url)
        query = {
            **dict(parse_qsl(parts.query)),
            **more,
            "token": token,
            "clientId": self.setting("DHAN_CLIENT_ID"),
            "authType": "2",
        }
        address = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query, quote_via=quote), ""))
        return Endpoint(address)

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        """Return the subscribe messages, at most 100 instruments of one mode in each."""
        return [
            Request(message, chunk)
            for mode, chunk in self._chunks(symbols)
            for message in dhan.subscribe_messages(mode, [_pair(symbol) for symbol in chunk])
        ]

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        """Return the unsubscribe messages, at most 100 instruments of one mode in each."""
        return [
            message
            for mode, chunk in self._chunks(symbols)
            for message in dhan.unsubscribe_messages(mode, [_pair(symbol) for symbol in chunk])
        ]

    def farewell(self) -> list[str | bytes]:
        """Return the message that ends the session."""
        return [dhan.disconnect_message()]

    def check_symbol(self, symbol: str) -> str | None:
        """Return why `symbol` cannot be asked for, None when it can; remember what its packets will say."""
        segment, _, security_id = symbol.partition(":")
        if segment not in Segment.__members__ or not (security_id.isascii() and security_id.isdigit()):
            return "not a Dhan symbol: SEGMENT:SECURITY_ID is expected, as in NSE_EQ:2885"
        number, known = int(security_id), Segment[segment].value
        self._symbols[known, number] = symbol
        if number < 1 << 32:
            self._known[wire_key(known, number)] = KnownInstrument(
                symbol, known, derivative=known in _DERIVATIVES
            )
        return None

    def explain_end(self, end: ConnectionEnd) -> ProviderError:
        """Return why Dhan may have ended a connection.

        A bad token is often answered by a bare drop right after the handshake, without any packet.
        """
        bare = not end.info.close_frame and end.info.failure is None
        if bare and not end.frames and end.uptime_s < _RIGHT_AFTER_S:
            self._bare_drops += 1
            if self._bare_drops >= SUSPECT_TOKEN_AFTER:
                return ProviderUnavailable(
                    f"Dhan dropped {self._bare_drops} connections right after the handshake, without data: "
                    "check DHAN_ACCESS_TOKEN and DHAN_CLIENT_ID",
                    reason="suspect_token",
                    retry_after_s=SUSPECT_TOKEN_WAIT_S,
                )
        else:
            self._bare_drops = 0
        return close_error(end.info)

    def depth_levels(self, symbol: str) -> int:
        """Return 5 where full packets come for `symbol`, else 0: an index has no book."""
        return 5 if self._mode_of(symbol) is FeedMode.FULL else 0

    def _feed_mode(self) -> FeedMode:
        text = self.setting("DHAN_FEED_MODE", FeedMode.FULL.value).lower()
        try:
            return FeedMode(text)
        except ValueError:
            raise SettingsUnusable(
                f"DHAN_FEED_MODE is {text!r}: set it to full, quote or ticker", reason="bad_setting"
            ) from None

    def _chunks(self, symbols: Sequence[str]) -> list[tuple[FeedMode, tuple[str, ...]]]:
        by_mode: dict[FeedMode, list[str]] = {}
        for symbol in symbols:
            by_mode.setdefault(self._mode_of(symbol), []).append(symbol)
        size = INSTRUMENTS_PER_MESSAGE
        return [
            (mode, tuple(group[start : start + size]))
            for mode, group in by_mode.items()
            for start in range(0, len(group), size)
        ]

    def _mode_of(self, symbol: str) -> FeedMode:
        """Indices have no depth. Source: quote mode measured on NIFTY; full mode is not documented."""
        if self._mode is FeedMode.FULL and symbol.startswith("IDX_I:"):
            return FeedMode.QUOTE
        return self._mode

    # ---- messages -----------------------------------------------------------------------------------

    def message_handler(self, raw: str | bytes) -> None:
        """Decode one binary message, which may hold several packets, and emit what they carry.

        Raises `WireFormatError` when the message is damaged, after emitting what came before the
        damage; a `ProviderError` when Dhan says that the connection is over.
        """
        if self._take is not None and self._take(raw):
            return
        if isinstance(raw, str):
            raw = raw.encode()
        known = self._known.get(raw[3:8])
        if known is not None:
            start = raw[:3]
            if start == QUOTE_START:
                if len(raw) == QUOTE_BYTES:
                    self._lone_quote(known, raw)
                    return
            elif start == FULL_START and len(raw) == FULL_BYTES and self.depth_tap is None:
                self._lone_full(known, raw)
                return
        records, error = dhan.decode_frame(raw)
        self.counters.records += len(records)
        readers = self._readers
        for record in records:
            readers[type(record)](record)
        if error is not None:
            raise error

    def _lone_quote(self, known: KnownInstrument, raw: bytes) -> None:
        """Do what `_quote` does for a packet alone in its message, of an instrument that was asked for."""
        self.counters.records += 1
        price, ltt, volume = read_quote(raw)
        if raw[34:50] != known.day_bytes:
            known.take_day(raw[34:50])
        newest, event_ms = self._newest_time
        if ltt != newest:
            event_ms = utc_ms(ltt)
            self._newest_time = ltt, event_ms
        if not price and event_ms is None:
            price = self._none_yet()
        self.emit(
            ProviderTick(
                known.symbol,
                price,
                event_ms,
                1000,
                volume if known.segment else None,
                None,
                None,
                None,
                None,
                self._open_interest.get(known.symbol) if known.derivative else None,
                known.day_open,
                known.day_high,
                known.day_low,
                known.day_close,
                None,
                0,
                known.day_bytes,
            )
        )

    def _lone_full(self, known: KnownInstrument, raw: bytes) -> None:
        """Do what `_full` does for a packet alone in its message, while nobody wants its depth."""
        self.counters.records += 1
        price, ltt, volume, oi, bid_qty, ask_qty, bid, ask = read_full(raw)
        if raw[46:62] != known.day_bytes:
            known.take_day(raw[46:62])
        newest, event_ms = self._newest_time
        if ltt != newest:
            event_ms = utc_ms(ltt)
            self._newest_time = ltt, event_ms
        if not price and event_ms is None:
            price = self._none_yet()
        self.emit(
            ProviderTick(
                known.symbol,
                price,
                event_ms,
                1000,
                volume if known.segment else None,
                bid or None,
                ask or None,
                bid_qty if bid else None,
                ask_qty if ask else None,
                oi if known.derivative else None,
                known.day_open,
                known.day_high,
                known.day_low,
                known.day_close,
                None,
                0,
                known.day_bytes,
            )
        )

    def _full(self, record: dhan.Full) -> None:
        segment = record.segment
        best = record.depth[0]
        event_ms = utc_ms(record.ltt)
        price: float | None = record.ltp
        if not price and event_ms is None:
            price = self._none_yet()
        self.emit(
            ProviderTick(
                provider_symbol=self._symbols.get((segment, record.security_id)) or _symbol(record),
                price=price,
                event_ms=event_ms,
                event_resolution_ms=1000,
                cumulative_volume=record.volume if segment else None,
                bid=best.bid_px or None,
                ask=best.ask_px or None,
                bid_size=best.bid_qty if best.bid_px else None,
                ask_size=best.ask_qty if best.ask_px else None,
                oi=record.oi if segment in _DERIVATIVES else None,
                day_open=record.day_open or None,
                day_high=record.day_high or None,
                day_low=record.day_low or None,
                previous_close=record.day_close or None,
            )
        )
        if self.depth_tap is not None:
            self._tap_book(self.depth_tap, record)

    def _tap_book(self, tap: DepthTap, record: dhan.Full) -> None:
        symbol = self._symbols.get((record.segment, record.security_id))
        if symbol is not None and symbol in tap.wanted:
            levels = record.depth
            bids = tuple([(level.bid_px, level.bid_qty, level.bid_orders) for level in levels])
            asks = tuple([(level.ask_px, level.ask_qty, level.ask_orders) for level in levels])
            tap.book(symbol, bids, asks, self._intake.current_ms)

    def _quote(self, record: dhan.Quote) -> None:
        segment = record.segment
        symbol = self._symbols.get((segment, record.security_id)) or _symbol(record)
        event_ms = utc_ms(record.ltt)
        price: float | None = record.ltp
        if not price and event_ms is None:
            price = self._none_yet()
        self.emit(
            ProviderTick(
                provider_symbol=symbol,
                price=price,
                event_ms=event_ms,
                event_resolution_ms=1000,
                cumulative_volume=record.volume if segment else None,
                oi=self._open_interest.get(symbol) if segment in _DERIVATIVES else None,
                day_open=record.day_open or None,
                day_high=record.day_high or None,
                day_low=record.day_low or None,
                previous_close=record.day_close or None,
            )
        )

    def _ticker(self, record: dhan.Ticker) -> None:
        event_ms = utc_ms(record.ltt)
        price: float | None = record.ltp
        if not price and event_ms is None:
            price = self._none_yet()
        self.emit(
            ProviderTick(
                provider_symbol=self._symbol_of(record),
                price=price,
                event_ms=event_ms,
                event_resolution_ms=1000,
            )
        )

    def _oi(self, record: dhan.OpenInterest) -> None:
        if record.segment not in _DERIVATIVES:
            self.counters.ignore("oi_of_no_derivative")
            return
        symbol = self._symbol_of(record)
        self._open_interest[symbol] = record.oi
        self.emit(ProviderTick(provider_symbol=symbol, oi=record.oi))

    def _previous_close(self, record: dhan.PreviousClose) -> None:
        self.emit(
            ProviderTick(provider_symbol=self._symbol_of(record), previous_close=record.prev_close or None)
        )

    def _depth_v1(self, record: dhan.MarketDepthV1) -> None:
        best = record.depth[0]
        self.emit(
            ProviderTick(
                provider_symbol=self._symbol_of(record),
                price=record.ltp or self._none_yet(),
                bid=best.bid_px or None,
                ask=best.ask_px or None,
                bid_size=best.bid_qty if best.bid_px else None,
                ask_size=best.ask_qty if best.ask_px else None,
            )
        )

    def _market_status(self, record: dhan.MarketStatus) -> None:  # noqa: ARG002
        self.counters.ignore("market_status")

    def _heartbeat(self, record: dhan.Heartbeat) -> None:  # noqa: ARG002
        self.counters.ignore("heartbeat")

    def _unknown(self, record: dhan.Unknown) -> None:
        self.counters.ignore(f"code_{record.code}")
        if record.code not in self._unknown_codes:
            self._unknown_codes.add(record.code)
            _log.warning("packet_unknown", provider=self.code, code=record.code, size_bytes=record.length)

    def _disconnect(self, record: dhan.Disconnect) -> None:
        raise disconnect_error(record.reason)

    def _none_yet(self) -> float | None:
        """Count a packet of an instrument that never traded, whose price is no price."""
        self.counters.ignore("never_traded")
        return None

    def _symbol_of(self, record: dhan.DhanRecord) -> str:
        return self._symbols.get((record.segment, record.security_id)) or _symbol(record)


def disconnect_error(reason: int) -> ProviderError:
    """Return the error for the reason in a disconnect packet; its verdict says what happens next."""
    text = DISCONNECT_REASONS.get(reason, "a reason that Dhan does not document")
    message = f"Dhan ended the connection: {text} ({reason})"
    word = f"disconnect_{reason}"
    if reason in _CREDENTIAL_REASONS:
        return CredentialsRejected(
            f"{message}; correct DHAN_CLIENT_ID and DHAN_ACCESS_TOKEN in .env", reason=word
        )
    if reason == _TOO_MANY_INSTRUMENTS:
        return TooManySymbols(message, reason=word)
    if reason == _TOO_MANY_CONNECTIONS:
        return ConnectionLimitReached(f"{message}; does another program use this account?", reason=word)
    if reason in _PLAN_REASONS:
        return SubscriptionRefused(message, reason=word)
    return UnexpectedAnswer(message, reason=word)


def _pair(symbol: str) -> tuple[str, str]:
    segment, _, security_id = symbol.partition(":")
    return segment, security_id


def _symbol(record: dhan.DhanRecord) -> str:
    """The name of an instrument that we did not ask for, or whose segment we do not know."""
    try:
        segment = Segment(record.segment).name
    except ValueError:
        segment = f"SEGMENT_{record.segment}"
    return f"{segment}:{record.security_id}"
