"""Dhan's feeds of 20 and of 200 levels, each on sockets and under limits of its own.

Stands between the connection runner and the depth codec, as the live feed's provider does between the runner
and its codec; the account, its token and what the vendor's refusals mean are the same. Bid and ask of an
instrument come as packets of their own, and are joined to one book here. Never sends ticks.
Source: DhanHQ v2 full market depth documentation, unless a line says otherwise.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol

import msgspec

from services.base_provider import ProviderContext, ProviderState
from services.connection.rules import ConnectionRules, Request
from services.connection.transport import Connector, Endpoint
from services.depth.book import best_first, real_levels
from services.dhan_provider import DhanProvider, disconnect_error
from services.errors import CredentialsRejected, ProviderError, ProviderUnavailable
from services.market_data.updates import DEPTH_PARTIAL, DEPTH_RECEIVED, Level
from services.wire import dhan_depth

SEGMENTS = ("NSE_EQ", "NSE_FNO")
"""Where there is a feed of depth. Source: DhanHQ v2 full market depth documentation."""
GHOST_AFTER_S = 10.0
"""So long what was unsubscribed may still come. Source: streams that linger after code 25, as measured."""

Side = tuple[Level, ...]


class BookMaker(Protocol):
    """Who takes the joined books of a feed."""

    def __call__(self, symbol: str, bids: Side, asks: Side, received_ms: int, flags: int) -> None:
        """Take the book of a provider symbol, best levels first."""


class DhanDepthFeed(DhanProvider):
    """One of the depth feeds. Provider symbols are `SEGMENT:SECURITY_ID`, as on the live feed.

    `book` takes every book. `account_refusal()` says why the account's token must not be tried, as far as
    the live feed knows; `account_proven()` whether the live feed is being served with it.
    """

    levels: ClassVar[int]
    url_setting: ClassVar[str]
    default_url: ClassVar[str]
    least_capacity: ClassVar[int] = 1

    def __init__(
        self,
        context: ProviderContext,
        *,
        book: BookMaker,
        account_refusal: Callable[[], ProviderError | None] = lambda: None,
        account_proven: Callable[[], bool] = lambda: False,
        rules: ConnectionRules | None = None,
        connector: Connector | None = None,
    ) -> None:
        super().__init__(context, rules=rules, connector=connector)
        self._book = book
        self._account_refusal = account_refusal
        self._account_proven = account_proven
        self._sides: dict[str, list[Side | None]] = {}
        self._ghosts: dict[str, tuple[float, float]] = {}
        """What comes although nobody asked for it: since when, and when last (monotonic)."""

    async def needed(self) -> None:
        """Wait until somebody wants something."""
        await self._something_wanted.wait()

    # ---- connecting ---------------------------------------------------------------------------------

    async def _test_credentials(self) -> None:
        if self._account_refusal() is None and not self._account_proven():
            await super()._test_credentials()

    def endpoint(self) -> Endpoint:
        """Return the address with client id and token; a token known to be refused is not tried at all."""
        refusal = self._account_refusal() or self.token_refusal()
        if refusal is not None:
            raise refusal
        return self._with_token(self.setting(self.url_setting, self.default_url), {})

    def token_refusal(self) -> ProviderError | None:
        """Return why this feed takes no token like the one that is set, None where it may."""
        return None

    async def unwant(self, symbols: Iterable[str]) -> None:
        """Take `symbols` out of what is to be streamed; without any the sockets are closed."""
        symbols = list(symbols)
        await super().unwant(symbols)
        for symbol in symbols:
            self._sides.pop(symbol, None)
        if not self._wanted:
            self._ghosts.clear()
            self._session.end(ProviderUnavailable("nobody wants depth any more", reason="idle"))

    def check_symbol(self, symbol: str) -> str | None:
        """Return why `symbol` cannot be asked for, None when it can."""
        if symbol.partition(":")[0] not in SEGMENTS:
            return f"Dhan has {self.levels} levels for {' and '.join(SEGMENTS)} only"
        return super().check_symbol(symbol)

    def connection_lost(self, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        """Forget the books of `symbols`, and say that they bring nothing any more."""
        symbols = list(symbols)
        for symbol in symbols:
            self._sides.pop(symbol, None)
        super().connection_lost(symbols, since_ms, reason)

    def depth_levels(self, symbol: str) -> int:  # noqa: ARG002
        """Return 0: no ticks come here, and so no books with them."""
        return 0

    def _show_wait(self, parked: bool, error: ProviderError) -> None:
        if self._wanted:
            super()._show_wait(parked, error)
        else:
            self._set_state(ProviderState.IDLE, "no depth is wanted")

    # ---- messages -----------------------------------------------------------------------------------

    def message_handler(self, raw: str | bytes) -> None:
        """Decode one message, join its sides to books and hand on each book it touched, once.

        Raises `WireFormatError` when the message is damaged, after handing on what came before the damage;
        a `ProviderError` when Dhan says that the connection is over.
        """
        frame = raw if isinstance(raw, bytes) else raw.encode()
        records, error = dhan_depth.decode_depth_frame(frame, rows_in_header=self.levels > 20)
        self.counters.records += len(records)
        touched: dict[str, list[Side | None]] = {}
        ended: ProviderError | None = None
        for record in records:
            if type(record) is dhan_depth.DepthSide:
                symbol = self._symbols.get((record.segment, record.security_id))
                if symbol is None or symbol not in self._wanted:
                    ended = self._ghost(record) or ended
                    continue
                bids = record.side == "bid"
                sides = self._sides.get(symbol)
                if sides is None:
                    sides = self._sides[symbol] = [None, None]
                sides[0 if bids else 1] = best_first(real_levels(record.levels), bids=bids)
                touched[symbol] = sides
            elif type(record) is dhan_depth.DepthDisconnect:
                ended = disconnect_error(record.reason)
            elif type(record) is dhan_depth.DepthUnknown:
                self.counters.ignore(f"code_{record.code}")
        received_ms = self._intake.current_ms
        for symbol, (bids_known, asks_known) in touched.items():
            self._note(symbol, received_ms)
            partial = DEPTH_PARTIAL if bids_known is None or asks_known is None else 0
            self._book(symbol, bids_known or (), asks_known or (), received_ms, DEPTH_RECEIVED | partial)
        if ended is not None:
            raise ended
        if error is not None:
            raise error

    def _note(self, symbol: str, received_ms: int) -> None:
        self.counters.ticks += 1
        if symbol in self._fresh:
            del self._fresh[symbol]
            self._unheard.discard(symbol)
            if symbol in self._dark:
                self._dark.discard(symbol)
                self.context.connection_restored([symbol], received_ms)

    def _ghost(self, record: dhan_depth.DepthSide) -> ProviderError | None:
        """Pass over what nobody asked for; where it is much and does not end, the socket is opened anew."""
        self.counters.ignore("unsubscribed")
        now_s = self.context.clock.monotonic_s()
        ghosts, name = self._ghosts, f"{record.segment}:{record.security_id}"
        since_s, last_s = ghosts.get(name, (now_s, now_s))
        if now_s - last_s > GHOST_AFTER_S:
            since_s = now_s
        ghosts[name] = since_s, now_s
        if now_s - since_s < GHOST_AFTER_S:
            return None
        lively = sum(1 for _, heard_s in ghosts.values() if now_s - heard_s <= GHOST_AFTER_S)
        if 2 * lively < min(self.subscribed, self.rules.symbols_per_connection):
            return None
        ghosts.clear()
        return ProviderUnavailable(
            "Dhan goes on sending depth that was unsubscribed: connecting anew", reason="ghosts"
        )


class DhanDepth20(DhanDepthFeed):
    """Twenty levels; at most 50 instruments on each of 5 connections."""

    code: ClassVar[str] = "DHAN_DEPTH_20"
    levels: ClassVar[int] = 20
    url_setting: ClassVar[str] = "DHAN_DEPTH_20_URL"
    default_url: ClassVar[str] = "wss://depth-api-feed.dhan.co/twentydepth"
    setting_names: ClassVar[tuple[str, ...]] = ("DHAN_DEPTH_20_URL",)
    default_rules: ClassVar[ConnectionRules] = ConnectionRules(
        symbols_per_connection=dhan_depth.MAX_INSTRUMENTS_20, max_connections=5, pace_s=0.02, stagger_s=0.5
    )

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        """Return the messages in the list form, at most 50 instruments in each."""
        size = dhan_depth.MAX_INSTRUMENTS_20
        chunks = [tuple(symbols[start : start + size]) for start in range(0, len(symbols), size)]
        return [
            Request(message, chunk)
            for chunk in chunks
            for message in dhan_depth.subscribe_messages_20([_pair(symbol) for symbol in chunk])
        ]

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        """Return the messages in the list form, at most 50 instruments in each."""
        return list(dhan_depth.unsubscribe_messages_20([_pair(symbol) for symbol in symbols]))


class DhanDepth200(DhanDepthFeed):
    """Two hundred levels; one instrument on each of 5 connections.

    Source: the host's root as address, and the refusal of tokens made with PIN and TOTP, as measured.
    """

    code: ClassVar[str] = "DHAN_DEPTH_200"
    levels: ClassVar[int] = 200
    url_setting: ClassVar[str] = "DHAN_DEPTH_200_URL"
    default_url: ClassVar[str] = "wss://full-depth-api.dhan.co/"
    setting_names: ClassVar[tuple[str, ...]] = ("DHAN_DEPTH_200_URL",)
    default_rules: ClassVar[ConnectionRules] = ConnectionRules(
        symbols_per_connection=1, max_connections=5, pace_s=0.02, stagger_s=0.5
    )

    def token_refusal(self) -> ProviderError | None:
        """Return why this token is not tried: those made by a program are not served here."""
        if token_consumer(self.setting("DHAN_ACCESS_TOKEN")) != "APP":
            return None
        return CredentialsRejected(
            "Dhan gives 200 levels only to access tokens made on web.dhan.co, and this one was made with PIN "
            "and TOTP: put one from there as DHAN_ACCESS_TOKEN in .env, or ask for 20 levels",
            reason="app_token",
        )

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        """Return the message in the flat form for each instrument."""
        return [Request(dhan_depth.subscribe_message_200(*_pair(symbol)), (symbol,)) for symbol in symbols]

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        """Return the message in the flat form for each instrument."""
        return [dhan_depth.unsubscribe_message_200(*_pair(symbol)) for symbol in symbols]


def token_consumer(token: str) -> str:
    """Return the claim `tokenConsumerType` of a JWT, as in `SELF` or `APP`; empty where there is none."""
    parts = token.strip().split(".")
    if len(parts) != 3:
        return ""
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return ""
    consumer = claims.get("tokenConsumerType") if isinstance(claims, dict) else None
    return consumer if isinstance(consumer, str) else ""


def _pair(symbol: str) -> tuple[str, str]:
    segment, _, security_id = symbol.partition(":")
    return segment, security_id
