"""THE provider contract: what a source of market data implements, and what it is given.

Stands between a provider's socket and the normaliser. A provider decodes its vendor's messages
into `ProviderTick`s and hands them to `emit`; it never sees instrument keys, Redis or clients.

A complete provider can be as small as this; connecting again, back-off, subscribing anew, gaps,
counting and parking without credentials are done by the base class:

    class AcmeProvider(BaseMarketDataProvider):
        code = "ACME"
        credential_names = ("ACME_KEY",)

        async def connect_websocket(self) -> None:
            key = self.setting("ACME_KEY")
            self._ws = await websockets.connect("wss://acme.example", additional_headers={"key": key})
            self.spawn(self._read(), "reader")

        async def _read(self) -> None:
            async for raw in self._ws:
                self.handle(raw)

        async def disconnect_websocket(self) -> None:
            await self._ws.close()

        async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
            await self._ws.send(json.dumps({"subscribe": list(symbols)}))

        async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
            await self._ws.send(json.dumps({"unsubscribe": list(symbols)}))

        def message_handler(self, raw: str | bytes) -> None:
            quote = json.loads(raw)
            self.emit(ProviderTick(provider_symbol=quote["s"], price=quote["p"], event_ms=quote["t"]))
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Container,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from enum import Enum
from typing import Any, ClassVar, Protocol

import msgspec
import structlog

from services.credential_state import CredentialState, credential_expiry_ms
from services.errors import ProviderError, ProviderUnavailable
from services.market_data.clock import Clock
from services.market_data.records import FLAG_SNAPSHOT, DataIngestionFormat, ProviderTick
from services.on_demand_provider import (
    Candle,
    HistoricalDataProvider,
    OpenInterest,
    OptionChain,
    OptionRow,
    OptionsDataProvider,
)
from services.pipeline.backoff import Backoff
from services.provider_frames import DamageMeter, FrameIntake, ProviderCounters, RecordingTap
from services.provider_lifecycle import CredentialGate, RetryPolicy, keep_trying
from services.provider_session import ProviderSession

__all__ = [
    "BaseMarketDataProvider",
    "Candle",
    "Capabilities",
    "DataIngestionFormat",
    "Delivery",
    "DepthTap",
    "HistoricalDataProvider",
    "OpenInterest",
    "OptionChain",
    "OptionRow",
    "OptionsDataProvider",
    "ProviderContext",
    "ProviderCounters",
    "ProviderState",
    "ProviderStatus",
    "credential_expiry_ms",
]

_log = structlog.get_logger(__name__)

HandlerResult = (
    None | ProviderTick | Iterable[ProviderTick] | Awaitable["HandlerResult"] | AsyncIterable[ProviderTick]
)
"""What `message_handler` may return: nothing (it called `emit`), or ticks for the base class to emit."""


class ProviderState(str, Enum):
    """Where a provider stands; the words appear as they are in `/api/providers/status`."""

    IDLE = "idle"
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    SUBSCRIBING = "subscribing"
    STREAMING = "streaming"
    STALE = "stale"
    BACKING_OFF = "backing_off"
    PARKED = "parked"
    CLOSED = "closed"


_WORTH_LOGGING = frozenset(
    {
        ProviderState.STREAMING,
        ProviderState.STALE,
        ProviderState.BACKING_OFF,
        ProviderState.PARKED,
        ProviderState.CLOSED,
    }
)
"""The states on the way to these change at every attempt; a repeated attempt is counted, not logged."""


class Delivery(str, Enum):
    """How fresh what a provider delivers is promised to be."""

    REAL_TIME = "real_time"
    DELAYED = "delayed"
    END_OF_DAY = "end_of_day"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider can do. `delivery` is what its streaming data promises, not what it achieves."""

    stream: bool = True
    history: bool = False
    options: bool = False
    news: bool = False
    depth: bool = False
    delivery: Delivery = Delivery.REAL_TIME


class DepthTap(Protocol):
    """Who takes the order books that come with a provider's ticks."""

    @property
    def wanted(self) -> Container[str]:
        """The provider symbols whose book somebody wants; of others it need not be decoded."""
        ...

    def book(
        self,
        symbol: str,
        bids: tuple[tuple[float, int, int], ...],
        asks: tuple[tuple[float, int, int], ...],
        received_ms: int,
    ) -> None:
        """Take a whole book: price, quantity and orders of each level, best first; zeros where none is."""

    def lost(self, symbols: Iterable[str]) -> None:
        """The connection that carried these provider symbols has ended."""


class ProviderContext(msgspec.Struct, kw_only=True):
    """What the manager gives a provider.

    `deliver(tick, received_ms)` takes one decoded tick. `settings()` returns the provider's settings,
    read anew from environment and `.env` at every call, keyed by name without the provider prefix for
    providers found at run time and in full for all (`DHAN_ACCESS_TOKEN`); secrets are in there, so it
    is never logged. `spawn(coroutine, name)` starts a supervised task. `connection_lost(symbols,
    since_ms, reason)` and `connection_restored(symbols, at_ms)` bracket a time without data: lost is
    called when a connection that carried the symbols ends, with the time of the last frame that came
    over it; restored when their data begins or begins again, also after the very first subscription,
    before the first tick is delivered. A symbol that is unwanted meanwhile is not reported restored.
    `backoff()` makes the series of waits of one connection, `poll_s` is how often a parked provider
    looks whether its settings changed, in seconds. `open_markets()` returns which exchanges of the
    provider's instruments are in session now: only then may silence be a fault. A symbol that was not
    answered for `unresolved_after_s` seconds counts as unknown to the vendor. `crowded()` tells that so much
    of what was delivered waits to be stored that reading should rest for a moment.
    """

    clock: Clock
    deliver: Callable[[ProviderTick, int], None]
    settings: Callable[[], Mapping[str, str]]
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    connection_lost: Callable[[Iterable[str], int, str], None]
    connection_restored: Callable[[Iterable[str], int], None]
    backoff: Callable[[], Backoff] = Backoff
    poll_s: float = 3.0
    open_markets: Callable[[], frozenset[str]] = frozenset
    unresolved_after_s: float = 15.0
    crowded: Callable[[], bool] = bool
    """By default never: `bool()` is False."""


class ProviderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider knows about itself. Times are UTC epoch ms, None where unknown; no secrets.

    `credential_state` is None where no credentials are needed.
    `subscribed` counts symbols asked for on open connections, `unanswered` those of them for which
    nothing has come since. `last_error` is empty while nothing went wrong.
    """

    code: str
    name: str
    state: ProviderState
    reason: str
    since_ms: int
    connections: int
    subscribed: int
    unanswered: int
    reconnects: int
    last_error: str
    credential_expires_ms: int | None
    credential_state: CredentialState | None
    last_frame_ms: int | None


class BaseMarketDataProvider(ABC):
    """A streaming source of market data.

    | method | required | called |
    |---|---|---|
    | `connect_websocket` | yes | to open the session; returns when messages can be sent |
    | `disconnect_websocket` | yes | to end it; harmless when there is none |
    | `subscribe_symbols` | yes | with provider symbols, after every connect and whenever more are wanted |
    | `unsubscribe_symbols` | yes | with provider symbols that nobody wants any more |
    | `message_handler` | yes | with each raw message; decodes it and calls `emit` |

    and what the base class offers to them:

    | helper | does |
    |---|---|
    | `spawn(coroutine, name)` | starts the reader; when it ends or raises, the session has ended |
    | `handle(raw)` | gives one raw message to `message_handler`, stamps and counts it |
    | `emit(tick)` | hands one tick on, with the receive time of its message |
    | `setting(name)` | reads one setting anew; call it in `connect_websocket` at every attempt |

    The daemon calls `run` and says by `want` and `unwant` which symbols it needs; the base class keeps
    the set and replays it after every reconnect. Errors steer what happens next by their verdict:
    raise `ProviderUnavailable` (or let any exception of your library out) to try again after a
    back-off, `ProviderRateLimited` to wait longer, `CredentialsRejected` to be parked until one of
    `credential_names` or `setting_names` has another value, `SubscriptionRefused` until other symbols
    are wanted. Raise `WireFormatError` for a damaged message: it is counted, the session goes on.
    """

    __slots__ = ("__dict__", "__weakref__", "_fresh")

    code: ClassVar[str]
    """Provider code, upper case, as in the `providers` table."""
    name: ClassVar[str] = ""
    """What people call it; the code where empty."""
    capabilities: ClassVar[Capabilities] = Capabilities()
    credential_names: ClassVar[tuple[str, ...]] = ()
    """Settings without which the provider stays parked, as in `("DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN")`."""
    setting_names: ClassVar[tuple[str, ...]] = ()
    """Further settings whose change is worth a new attempt while parked."""
    renews_credentials: ClassVar[bool] = False
    """Whether `renew_credentials` gives new ones for those that are still good."""
    snapshot_first: ClassVar[bool] = False
    """Whether the vendor answers a subscription with the last known value, which may be old."""
    depth_tap: DepthTap | None = None
    """Who takes the books that come with ticks; None while nobody wants any."""
    connect_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    close_timeout_s: float = 1.5

    def __init__(self, context: ProviderContext) -> None:
        self.context = context
        self.counters = ProviderCounters()
        self.state = ProviderState.IDLE
        self.reason = ""
        self.since_ms = context.clock.now_ms()
        self.last_error = ""
        self._logged_state = (self.state, self.reason)
        self._deliver = context.deliver
        self._wanted: dict[str, None] = {}
        self._something_wanted = asyncio.Event()
        self._fresh: dict[str, float] = {}
        self._dark: set[str] = set()
        self._unheard: set[str] = set()
        """Asked for, and nothing at all has come since."""
        self._tap: RecordingTap | None = None
        self._gate = CredentialGate(
            context.settings,
            code=self.code,
            credential_names=self.credential_names,
            setting_names=self.setting_names,
            poll_s=context.poll_s,
            now_ms=context.clock.now_ms,
            expiry_ms=self.credential_expiry,
            name=self.name or self.code,
        )
        self._attempted = self._gate.fingerprint()
        self._policy = RetryPolicy(context.backoff())
        self._session = ProviderSession(self, clock=context.clock, gate=self._gate, spawn=context.spawn)
        self._damage = DamageMeter()
        self._intake = FrameIntake(
            code=self.code,
            clock=context.clock,
            counters=self.counters,
            handler=self.message_handler,
            emit=self.emit,
            damaged=self._frame_damaged,
            spawn=self.spawn,
            secrets=self._gate.secrets,
        )

    # ---- what a provider implements -----------------------------------------------------------------

    @abstractmethod
    async def connect_websocket(self) -> None:
        """Open the session with the provider. Raises a `ProviderError` when that fails."""

    @abstractmethod
    async def disconnect_websocket(self) -> None:
        """Close the session. Harmless when there is none, never raises for a dead peer."""

    @abstractmethod
    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Ask for `symbols` (provider symbols) on the open session. Repeats are harmless."""

    @abstractmethod
    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Stop asking for `symbols`. Unknown ones are ignored."""

    @abstractmethod
    def message_handler(self, raw: str | bytes) -> HandlerResult:
        """Decode one raw message and `emit` what it carries, or return the ticks.

        May be `async def`, messages are then still handled one after another. Raises
        `WireFormatError` for a damaged message, a `ProviderError` when the message says that the
        session is over.
        """

    def credential_expiry(self, settings: Mapping[str, str]) -> int | None:  # noqa: ARG002 - for vendors
        """Return when the credentials in `settings` expire, UTC epoch ms; None where that is unknown.

        After that moment no attempt is made with them.
        """
        return None

    async def renew_credentials(self) -> Mapping[str, str]:
        """Return new values of the credential settings; the old ones end. Raises a `ProviderError`.

        Called where `renews_credentials`, before the old ones expire.
        """
        raise ProviderUnavailable(f"{self.code} renews no credentials", reason="renewal")

    @property
    def credential_expires_ms(self) -> int | None:
        """When the credentials that are set expire, UTC epoch ms; None where that is unknown."""
        return self._gate.expires_ms()

    @property
    def credential_state(self) -> CredentialState | None:
        """Where the credentials that are set stand; None where none are needed."""
        if not self.credential_names:
            return None
        if self.connections and self._intake.last_frame_ms:
            self._gate.proved(self._attempted)
        return self._gate.state()

    @property
    def credential_number(self) -> int:
        """A number that changes with the credentials that are set."""
        return self._gate.fingerprint()

    def depth_levels(self, symbol: str) -> int:  # noqa: ARG002 - for vendors
        """Return how many levels of depth come with the ticks of `symbol`; 0 where none do.

        A provider that says more than 0 gives them to `depth_tap`.
        """
        return 0

    # ---- what the daemon calls ----------------------------------------------------------------------

    async def want(self, symbols: Iterable[str]) -> None:
        """Add `symbols` (provider symbols) to what is to be streamed, now and after every reconnect."""
        new = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self._wanted]
        if new:
            self._wanted.update(dict.fromkeys(new))
            self._something_wanted.set()
            self._gate.plan_changed()
            await self._session.wanted_changed(new, ())

    async def unwant(self, symbols: Iterable[str]) -> None:
        """Take `symbols` out of what is to be streamed. Unknown ones are ignored."""
        gone = [symbol for symbol in dict.fromkeys(symbols) if symbol in self._wanted]
        if gone:
            for symbol in gone:
                del self._wanted[symbol]
            self._forget_fresh(gone)
            self._dark.difference_update(gone)
            self._unheard.difference_update(gone)
            if not self._wanted:
                self._something_wanted.clear()
            self._gate.plan_changed()
            await self._session.wanted_changed((), gone)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The symbols to be streamed, in the order they were asked for."""
        return tuple(self._wanted)

    # ---- recording and replaying --------------------------------------------------------------------

    def record_to(self, tap: RecordingTap | None) -> None:
        """Show every message, and every change of what is subscribed, to `tap`; None ends that."""
        self._tap = tap
        self._intake.record_to(tap.frame if tap is not None else None)

    def memory(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return the symbols that are wanted, that wait for their first tick, and that bring no data."""
        return tuple(self._wanted), tuple(self._fresh), tuple(sorted(self._dark))

    def recall(self, wanted: Iterable[str], fresh: Iterable[str] = (), dark: Iterable[str] = ()) -> None:
        """Know of symbols what a recorded session knew, without opening one."""
        self._wanted.update(dict.fromkeys(wanted))
        self._fresh.update(dict.fromkeys(fresh, self.context.clock.monotonic_s()))
        self._dark.update(dark)
        self.learn_names(tuple(self._wanted))

    def learn_names(self, symbols: Sequence[str]) -> None:  # noqa: B027 - few vendors need it
        """Prepare for messages of `symbols`, where a vendor's messages name them otherwise."""

    def replay_note(self, kind: str, symbols: Sequence[str]) -> None:
        """Do what `asking`, `asked` or `lost` did to the recorded session."""
        if kind == "asking":
            self.recall(symbols)
            self._expect(symbols)
        elif kind == "asked":
            self._confirm(symbols)
        else:
            self._report_lost(symbols, self.context.clock.now_ms(), "recorded")

    # ---- credentials --------------------------------------------------------------------------------

    def credentials_changed(self) -> None:
        """Look at the settings at once, as after SIGHUP; a parked provider goes on if they changed."""
        self._gate.poke()

    async def run(self) -> None:
        """Keep a session open and everything wanted subscribed, until cancelled.

        Connects, subscribes, waits until the session ends, waits for as long as the error calls
        for, and begins again. Never returns by itself.
        """
        try:
            await keep_trying(
                self._session.attempt,
                gate=self._gate,
                policy=self._policy,
                show=self._show_wait,
                ready=self._has_work,
            )
        finally:
            self._set_state(ProviderState.CLOSED, "stopped")

    def status(self) -> ProviderStatus:
        """Return what the provider knows about itself."""
        return ProviderStatus(
            code=self.code,
            name=self.name or self.code,
            state=self.state,
            reason=self.reason,
            since_ms=self.since_ms,
            connections=self.connections,
            subscribed=self.subscribed,
            unanswered=len(self._fresh),
            reconnects=self.counters.reconnects,
            last_error=self.last_error,
            credential_expires_ms=self.credential_expires_ms,
            credential_state=self.credential_state,
            last_frame_ms=self._intake.last_frame_ms or None,
        )

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return int(self._session.up)

    @property
    def subscribed(self) -> int:
        """How many symbols have been asked for on open connections."""
        return len(self._session.subscribed)

    @property
    def capacity(self) -> int | None:
        """How many symbols can be subscribed at the same time; None where the vendor sets no limit."""
        return None

    @property
    def refused(self) -> dict[str, str]:
        """Wanted symbols that are not asked for, and why."""
        return {}

    def asked(self, symbol: str) -> bool:
        """Tell whether `symbol` has been asked for on an open connection."""
        return symbol in self._session.subscribed

    def subscription_state(self, symbol: str) -> str:
        """Return `requested` (not asked for yet), `acked` (asked for) or `proven` (a price came since)."""
        if not self.asked(symbol):
            return "requested"
        return "acked" if symbol in self._fresh else "proven"

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The symbols asked for without a price since: quiet, unknown to the vendor, or forgotten by it."""
        return tuple(sorted(self._fresh))

    @property
    def unresolved(self) -> dict[str, str]:
        """The symbols that seem unknown to the vendor, and why: asked for a while ago, and no answer at all.

        A known symbol is answered with its last price even when its market is closed.
        """
        after_s = self.context.unresolved_after_s
        until_s = self.context.clock.monotonic_s() - after_s
        why = f"no answer for {after_s:g} s"
        return {symbol: why for symbol, asked_s in self._fresh.items() if asked_s <= until_s}

    # ---- what a provider calls ----------------------------------------------------------------------

    def setting(self, name: str, default: str = "") -> str:
        """Return one setting as it is now, without surrounding blanks; `default` where it is empty."""
        return self._gate.read().get(name, "").strip() or default

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task of this session, such as the reader. When it ends or raises, so has the session."""
        return self._session.spawn(work, name)

    def handle(self, raw: str | bytes) -> bool:
        """Give one raw message to `message_handler`; returns False when it was damaged.

        Stamps the receive time, counts the frame, counts damaged ones by reason and goes on.
        A `ProviderError` raised by the handler goes through: it ends the session.
        """
        return self._intake.handle(raw) > 0

    def emit(self, tick: ProviderTick, received_ms: int | None = None) -> None:
        """Hand one decoded tick to the normaliser.

        `received_ms` is when its bytes arrived, UTC epoch ms; by default that of the message being handled.
        """
        if received_ms is None:
            received_ms = self._intake.current_ms or self._intake.received_ms
        if self._fresh and tick.provider_symbol in self._fresh:
            self._first_of_symbol(tick, received_ms)
        self.counters.ticks += 1
        self._deliver(tick, received_ms)

    # ---- what the session calls ---------------------------------------------------------------------

    @property
    def messages_seen(self) -> int:
        """How many messages and ticks there have been; adapters may emit without `handle`."""
        return self.counters.frames + self.counters.ticks

    def session_opening(self) -> None:
        """Take note that an attempt begins."""
        self._attempted = self._gate.fingerprint()
        self._set_state(ProviderState.CONNECTING)

    def session_opened(self) -> None:
        """Take note that the connection is open."""
        self.counters.connects += 1
        self.counters.reconnects = self.counters.connects - 1
        self._set_state(ProviderState.SUBSCRIBING)

    def session_asking(self, symbols: Iterable[str]) -> None:
        """Take note that data of `symbols` is to begin now."""
        self._expect(symbols)

    def session_asked(self, symbols: Iterable[str]) -> None:
        """Take note that `symbols` have been asked for."""
        self._confirm(symbols)

    def session_streaming(self) -> None:
        """Take note that everything wanted has been asked for."""
        self._set_state(ProviderState.STREAMING)

    def session_lost(self, symbols: Iterable[str], began_ms: int, reason: str) -> None:
        """Say that the connection that carried `symbols` since `began_ms` has ended."""
        self._intake.close()
        self._report_lost(symbols, max(began_ms, self._intake.last_frame_ms), reason)

    # ---- inner --------------------------------------------------------------------------------------

    async def _has_work(self) -> bool:
        if self._wanted:
            return True
        self._set_state(ProviderState.IDLE, "no symbols are wanted")
        await self._something_wanted.wait()
        return False

    def _expect(self, symbols: Iterable[str]) -> None:
        symbols = list(symbols)
        if self._tap is not None:
            self._tap.note("asking", symbols)
        self._unheard.update(symbols)
        self._fresh.update(dict.fromkeys(symbols, self.context.clock.monotonic_s()))
        self._dark.update(symbols)

    def _confirm(self, symbols: Iterable[str]) -> None:
        """Say that data of those `symbols` flows of which no tick has said so yet."""
        symbols = list(symbols)
        if self._tap is not None:
            self._tap.note("asked", symbols)
        back = [symbol for symbol in symbols if symbol in self._dark]
        if back:
            self._dark.difference_update(back)
            self.context.connection_restored(back, self.context.clock.now_ms())

    def _first_of_symbol(self, tick: ProviderTick, received_ms: int) -> None:
        symbol = tick.provider_symbol
        self._unheard.discard(symbol)
        if symbol in self._dark:
            self._dark.discard(symbol)
            self.context.connection_restored([symbol], received_ms)
        if tick.price is not None:
            del self._fresh[symbol]
            if not self._fresh:
                # Emptied ones keep the room that thousands took.
                self._fresh = {}
                self._dark, self._unheard = set(self._dark), set(self._unheard)
            if self.snapshot_first:
                tick.flags |= FLAG_SNAPSHOT

    def _report_lost(self, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        lost = [symbol for symbol in symbols if symbol in self._wanted]
        self._forget_fresh(lost)
        if lost and self._tap is not None:
            self._tap.note("lost", lost)
        if lost:
            self._dark.update(lost)
            self.context.connection_lost(lost, since_ms, reason)
            if self.depth_tap is not None:
                self.depth_tap.lost(lost)

    def _forget_fresh(self, symbols: Iterable[str]) -> None:
        for symbol in symbols:
            self._fresh.pop(symbol, None)

    def _frame_damaged(self) -> None:
        if self._damage.add(self.context.clock.monotonic_s()):
            self._session.end(
                ProviderUnavailable("the connection brings only damaged data", reason="garbage")
            )

    def _set_state(self, state: ProviderState, reason: str = "") -> None:
        if state is not self.state:
            self.since_ms = self.context.clock.now_ms()
        self.state, self.reason = state, reason
        well = state in (ProviderState.STREAMING, ProviderState.CLOSED)
        said = (state, "" if well else reason)
        if state in _WORTH_LOGGING and said != self._logged_state:
            self._logged_state = said
            getattr(_log, "info" if well else "warning")(
                "provider_state_changed", provider=self.code, state=state.value, reason=reason
            )

    def _show_wait(self, parked: bool, error: ProviderError) -> None:
        self.last_error = str(error)
        self._set_state(ProviderState.PARKED if parked else ProviderState.BACKING_OFF, str(error))
