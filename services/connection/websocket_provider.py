"""A provider over WebSockets of ours: a pool of connections, each with its share of the symbols.

Stands between the provider contract and a vendor's thin part, which says where to connect, how to ask
for symbols and how to decode a message. Never lets one connection's trouble touch another.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import structlog

from services.base_provider import BaseMarketDataProvider, ProviderContext, ProviderState
from services.connection.failures import close_error
from services.connection.muteness import MuteRules
from services.connection.picows_transport import PicowsConnector
from services.connection.planner import Change, SharePlan
from services.connection.rules import ConnectionEnd, ConnectionRules, Request
from services.connection.runner import ConnectionRunner, Turnstile
from services.connection.transport import Connector, Endpoint
from services.errors import ProviderError
from services.provider_lifecycle import RetryPolicy

_log = structlog.get_logger(__name__)

_BEST_FIRST = (
    ProviderState.STREAMING,
    ProviderState.STALE,
    ProviderState.SUBSCRIBING,
    ProviderState.AUTHENTICATING,
    ProviderState.CONNECTING,
    ProviderState.BACKING_OFF,
    ProviderState.PARKED,
    ProviderState.IDLE,
)


class WebSocketProvider(BaseMarketDataProvider):
    """A streaming provider over one or more WebSockets.

    | method | required | says |
    |---|---|---|
    | `endpoint` | yes | where to connect; called anew, with fresh settings, at every attempt |
    | `subscribe_requests` | yes | which messages ask for symbols, at most as many in each as allowed |
    | `unsubscribe_requests` | yes | which messages stop asking |
    | `message_handler` | yes | what a message means; a `ProviderError` ends that connection only |
    | `check_symbol` | no | why a symbol cannot be asked for at all |
    | `farewell` | no | what to send before a wanted end |
    | `explain_end` | no | why the peer may have ended a connection |

    `rules` are the vendor's limits, `mute_rules` say when a busy connection that brings no data while a
    market is open counts as stale and is opened anew.
    """

    rules: ConnectionRules
    default_rules: ClassVar[ConnectionRules]
    least_capacity: ClassVar[int] = 50
    """A connection that the server calls overfull is never given fewer symbols than this."""

    def __init__(
        self,
        context: ProviderContext,
        *,
        rules: ConnectionRules | None = None,
        connector: Connector | None = None,
    ) -> None:
        super().__init__(context)
        self.rules = rules or self.default_rules
        self.mute_rules = MuteRules()
        self._connector = connector or PicowsConnector(context.crowded)
        self._runners: list[ConnectionRunner] = []
        self._runner_tasks: list[asyncio.Task[None]] = []
        capacity = self.rules.symbols_per_connection
        self._plan = SharePlan([capacity] * self.rules.max_connections, capacity)
        self._refused: dict[str, str] = {}
        self._unplaced = 0
        self._ever_opened: set[int] = set()
        self._turnstile = Turnstile(context.clock, self.rules.stagger_s, self.rules.first_stagger_s)

    # ---- the vendor's part --------------------------------------------------------------------------

    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Return where to connect, with the settings as they are now. Raises a `ProviderError`."""

    @abstractmethod
    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        """Return the messages that ask for `symbols`, each with the symbols in it."""

    @abstractmethod
    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        """Return the messages that stop asking for `symbols`."""

    def check_symbol(self, symbol: str) -> str | None:  # noqa: ARG002 - for vendors to override
        """Return why `symbol` cannot be asked for, None when it can."""
        return None

    def farewell(self) -> list[str | bytes]:
        """Return what to send before we end a connection."""
        return []

    def explain_end(self, end: ConnectionEnd) -> ProviderError:
        """Return the error that stands for a connection ended by the peer."""
        return close_error(end.info)

    # ---- the provider contract ----------------------------------------------------------------------

    async def connect_websocket(self) -> None:
        """Open the first connection; more follow as symbols need them. Raises a `ProviderError`."""
        if not self._runners:
            self._start_runner()
        error = await self._runners[0].first_outcome()
        if error is not None:
            await self.disconnect_websocket()
            raise error

    async def disconnect_websocket(self) -> None:
        """Close all connections politely, within the time the rules allow."""
        tasks, self._runner_tasks, self._runners = self._runner_tasks, [], []
        self._plan.clear()
        self._refused.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self.rules.close_within_s + 0.4)

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Distribute `symbols` over the connections, which ask for them at once or when they are open."""
        fit: list[str] = []
        for symbol in symbols:
            if symbol not in self._refused and symbol not in self._plan:
                if (why := self.check_symbol(symbol)) is None:
                    fit.append(symbol)
                else:
                    self._refuse(symbol, why)
        self._carry_out(self._plan.add(fit))

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Take `symbols` off their connections."""
        symbols = list(symbols)
        for symbol in symbols:
            self._refused.pop(symbol, None)
        self._carry_out(self._plan.remove(symbols))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return sum(runner.open for runner in self._runners)

    @property
    def subscribed(self) -> int:
        """How many symbols have been asked for on open connections."""
        return sum(len(runner.share.asked) for runner in self._runners)

    @property
    def capacity(self) -> int:
        """How many symbols all connections together can carry."""
        return sum(self._plan.capacities)

    def asked(self, symbol: str) -> bool:
        """Tell whether `symbol` has been asked for on an open connection."""
        return any(symbol in runner.share.asked for runner in self._runners)

    @property
    def refused(self) -> dict[str, str]:
        """Wanted symbols that are not asked for, and why."""
        return dict(self._refused)

    @property
    def unresolved(self) -> dict[str, str]:
        """The symbols that cannot be asked for or are not answered, and why."""
        return {**super().unresolved, **self._refused}

    # ---- what the session calls: the connections speak for themselves ---------------------------------

    def session_opened(self) -> None:
        """Each connection counts itself."""

    def session_asking(self, symbols: Iterable[str]) -> None:
        """Each connection tells when it asks."""

    def session_asked(self, symbols: Iterable[str]) -> None:
        """Each connection tells when the server has read its requests."""

    def session_streaming(self) -> None:
        """Show what the connections are doing."""
        self._show_all()

    def session_lost(self, symbols: Iterable[str], began_ms: int, reason: str) -> None:  # noqa: ARG002
        """Each connection has told what it lost."""
        self._intake.close()

    def _frame_damaged(self) -> None:
        """Each connection judges its own damage."""

    # ---- what a connection calls ----------------------------------------------------------------------

    @property
    def open_markets(self) -> frozenset[str]:
        """Which exchanges of this provider's instruments are in session now."""
        return self.context.open_markets()

    @property
    def has_credentials(self) -> bool:
        """Whether an operator can do something about a refusal."""
        return bool(self.credential_names)

    def missing(self, symbols: Iterable[str]) -> list[str]:
        """Return those `symbols` for which no price has come since they were asked for."""
        return [symbol for symbol in symbols if symbol in self._fresh]

    def silent_since_asked(self, symbols: Iterable[str]) -> list[str]:
        """Return those `symbols` about which nothing at all has come since they were asked for."""
        return [symbol for symbol in symbols if symbol in self._unheard]

    def symbols_forgotten(self, symbols: Iterable[str], since_ms: int) -> None:
        """Take note that no answer came to the requests for `symbols`, from a server that always answers."""
        symbols = list(symbols)
        if symbols and self.snapshot_first:
            self._dark.update(symbols)
            self.context.connection_lost(symbols, since_ms, "subscription_forgotten")

    def connection_opened(self, runner: ConnectionRunner) -> None:
        """Count an opened socket."""
        self.counters.connects += 1
        if runner.index in self._ever_opened:
            self.counters.reconnects += 1
        self._ever_opened.add(runner.index)

    def connection_changed(self, runner: ConnectionRunner) -> None:
        """Show what all connections together are doing."""
        if runner.state in (ProviderState.BACKING_OFF, ProviderState.PARKED, ProviderState.STALE):
            self.last_error = runner.reason
        self._show_all()

    def connection_asking(self, symbols: Iterable[str]) -> None:
        """Take note that data of `symbols` is to begin now."""
        self._expect(symbols)

    def connection_asked(self, symbols: Iterable[str]) -> None:
        """Take note that the server has read the requests for `symbols`."""
        self._confirm(symbols)

    def connection_lost(self, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        """Say which symbols bring nothing any more."""
        self._report_lost(symbols, since_ms, reason)

    def connection_overfull(self, runner: ConnectionRunner) -> None:
        """Give a connection fewer symbols than before, and the rest to others."""
        carried = len(runner.share.assigned)
        capacity = min(self._plan.capacities[runner.index], max(self.least_capacity, carried // 2))
        _log.error(
            "connection_overfull",
            provider=self.code,
            connection=runner.index,
            carried=carried,
            capacity=capacity,
        )
        self._carry_out(self._plan.shrink(runner.index, capacity))

    def symbol_refused(self, symbol: str, reason: str) -> None:
        """Do not ask for `symbol` any more."""
        self._refuse(symbol, f"refused by the provider ({reason})")
        self._carry_out(self._plan.remove([symbol]))

    # ---- inner ----------------------------------------------------------------------------------------

    def _refuse(self, symbol: str, reason: str) -> None:
        self._refused[symbol] = reason
        _log.error("symbol_not_subscribed", provider=self.code, symbol=symbol, reason=reason)

    def _carry_out(self, changes: dict[int, Change]) -> None:
        if self._plan.unplaced and len(self._plan.unplaced) != self._unplaced:
            _log.error("symbols_beyond_capacity", provider=self.code, count=len(self._plan.unplaced))
        self._unplaced = len(self._plan.unplaced)
        while changes and len(self._runners) <= max(changes):
            self._start_runner()
        for index, change in changes.items():
            self._runners[index].change(change.added, change.removed)
        self._show_all()

    def _start_runner(self) -> None:
        runner = ConnectionRunner(
            len(self._runners),
            self,
            handle=self._intake.handle,
            rules=self.rules,
            connector=self._connector,
            clock=self.context.clock,
            gate=self._gate,
            policy=RetryPolicy(self.context.backoff()),
            turnstile=self._turnstile,
        )
        self._runners.append(runner)
        self._runner_tasks.append(self.spawn(runner.run(), f"connection-{runner.index}"))

    def _show_all(self) -> None:
        """Make the provider's state that of its best connection, and say what stands in the others' way."""
        if not self._runners:
            return
        best = min(self._runners, key=lambda runner: _BEST_FIRST.index(runner.state))
        notes = [best.reason] if best.reason else []
        busy = [runner for runner in self._runners if runner.share.assigned or runner is best]
        behind = [runner for runner in busy if runner.state is not best.state]
        if behind:
            notes.append(
                f"{len(busy) - len(behind)} of {len(busy)} connections; connection {behind[0].index} is "
                f"{behind[0].state.value}" + (f": {behind[0].reason}" if behind[0].reason else "")
            )
        if self._unplaced:
            room = sum(self._plan.capacities)
            notes.append(f"{self._unplaced} symbols beyond the {room} that fit are not subscribed")
        if self._refused:
            notes.append(f"{len(self._refused)} symbols cannot be subscribed")
        self._set_state(best.state, "; ".join(notes))
