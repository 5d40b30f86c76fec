"""ProviderRegistry: which providers there are, what each can do, who serves what, and who would next.

Stands beside the ProviderManager, which builds its providers from here and carries out what is asked for.
Providers come with marketd, with installed packages (entry points `market_data.providers`), or are registered
while the daemon runs. For what is asked rather than streamed (past bars, option chains, news) it says whom to
ask, best first, and asks one after another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from services.base_provider import BaseMarketDataProvider, Capabilities, ProviderContext
from services.dhan_provider import DhanProvider
from services.errors import ConfigurationError
from services.market_data.instruments import InstrumentMapping, ProviderEntry
from services.pipeline.failover import Refusal, first_that_answers
from services.provider_plugins import load_plugins
from services.yahoo_finance_connection import YahooFinanceConnection

_Result = TypeVar("_Result")

ProviderFactory = Callable[[ProviderContext], BaseMarketDataProvider]
CAPABILITIES = ("stream", "history", "options", "news", "depth")
LONGEST_SWITCH_S = 7 * 86_400.0
"""An operator's choice ends by itself at the latest after so long."""
DEFAULT_SWITCH_S = 3_600.0


class ProviderInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One provider. `origin` is `built_in`, `package` or `run_time`.

    `exchanges` maps what it is mapped for to its place in the order there (1 is the first); `routed` is how
    many instruments it serves now.
    """

    code: str
    name: str
    origin: str
    state: str
    reason: str
    capabilities: Sequence[str]
    delivery: str
    exchanges: dict[str, int]
    routed: int


class RoutingDesk(Protocol):
    """What the registry asks of the ProviderManager."""

    def entries(self) -> Sequence[ProviderEntry]:
        """Return the active providers of the mapping snapshot."""
        ...

    def rows(self, instrument: str) -> Sequence[InstrumentMapping]:
        """Return the mappings of an instrument in the order of preference; none where it is unknown."""
        ...

    def places_of(self, code: str) -> dict[str, int]:
        """Return the exchanges a provider is mapped for, and its best place in the order there."""
        ...

    def provider(self, code: str) -> BaseMarketDataProvider | None:
        """Return the running provider of a code, None where there is none."""
        ...

    def routed(self) -> dict[str, int]:
        """Return how many instruments each provider serves."""
        ...

    def active_provider(self, instrument: str) -> str | None:
        """Return who serves an instrument."""
        ...

    def route(self, instrument: str) -> dict[str, Any]:
        """Return the route of an instrument."""
        ...

    async def providers_changed(self) -> None:
        """Build what is registered now, and end what is not any more."""
        ...

    def force(self, instrument: str, to: str, for_s: float, by: str, why: str) -> None:
        """Prefer a source of an instrument for a while."""
        ...

    def release(self, instrument: str, by: str) -> bool:
        """Go back to the order of the mappings."""
        ...


class ProviderRegistry:
    """All known providers; `bind` gives it the manager whose routes it shows and changes."""

    def __init__(self, factories: dict[str, ProviderFactory] | None = None) -> None:
        self._given = factories
        self._found: dict[str, tuple[ProviderFactory, str]] | None = None
        self._added: dict[str, ProviderFactory] = {}
        self._removed: set[str] = set()
        self._desk: RoutingDesk | None = None

    def bind(self, desk: RoutingDesk) -> None:
        """Show and change the routes of this manager."""
        self._desk = desk

    # ---- which providers there are --------------------------------------------------------------

    def factories(self) -> dict[str, ProviderFactory]:
        """Return how to build each registered provider, by code.

        Raises `ConfigurationError` when a package's provider cannot be imported.
        """
        return {code: factory for code, (factory, _) in self._known().items()}

    async def register(self, code: str, factory: ProviderFactory) -> None:
        """Add a provider, or replace one, while running; it serves what is mapped to its code.

        Raises `ConfigurationError` when the code is not one.
        """
        if not (code.isascii() and code.replace("_", "").isalnum() and code == code.upper()):
            raise ConfigurationError(f"{code!r} is no provider code: upper-case letters, digits and _")
        if code in self._known():
            await self.unregister(code)
        self._removed.discard(code)
        self._added[code] = factory
        if self._desk is not None:
            await self._desk.providers_changed()

    async def unregister(self, code: str) -> bool:
        """End a provider while running; what it served goes to the next. Returns whether there was one."""
        if code not in self._known():
            return False
        self._added.pop(code, None)
        self._removed.add(code)
        if self._desk is not None:
            await self._desk.providers_changed()
        return True

    def list(self) -> Sequence[ProviderInfo]:
        """Return every provider that is registered or mapped, by code."""
        desk, known = self._bound(), self._known()
        entries = {entry.code: entry for entry in desk.entries()}
        routed = desk.routed()
        found = []
        for code in sorted(known.keys() | entries.keys()):
            provider = desk.provider(code)
            factory = known.get(code, (None, ""))[0]
            can = self._capabilities(code, factory)
            found.append(
                ProviderInfo(
                    code=code,
                    name=entries[code].name if code in entries else getattr(factory, "name", "") or code,
                    origin=known[code][1] if code in known else "not_installed",
                    state=provider.state.value if provider is not None else "closed",
                    reason=provider.reason if provider is not None else self._why_absent(code, entries),
                    capabilities=[name for name in CAPABILITIES if getattr(can, name)],
                    delivery=can.delivery.value,
                    exchanges=desk.places_of(code),
                    routed=routed.get(code, 0),
                )
            )
        return found

    # ---- who serves an instrument ---------------------------------------------------------------

    def active(self, instrument: str) -> str | None:
        """Return the code of the provider that serves an instrument; None while nobody does."""
        return self._bound().active_provider(instrument)

    def backup(self, instrument: str) -> Sequence[str]:
        """Return who would take over, best first: allowed, usable, and not found to be silent."""
        route = self._bound().route(instrument)
        return [
            row["provider"]
            for row in route["candidates"]
            if row["provider"] != route["active"] and row["allowed"] and row["usable"] and not row["trouble"]
        ]

    def switch(self, instrument: str, to: str, *, for_s: float = DEFAULT_SWITCH_S, by: str, why: str) -> None:
        """Prefer a source for `for_s` seconds, whoever is first in the order; then the order counts again.

        It takes over as soon as it has proved itself, at once where the present source is silent. Raises
        `ConfigurationError` when it does not know the instrument, or for a time that is none.
        """
        desk = self._bound()
        codes = [row.provider_code for row in desk.rows(instrument)]
        if not codes:
            raise ConfigurationError(f"{instrument} is not mapped")
        if to not in codes:
            raise ConfigurationError(f"{instrument} is mapped to {', '.join(codes)}, not to {to}")
        if not 1.0 <= for_s <= LONGEST_SWITCH_S:
            raise ConfigurationError(f"a choice holds from 1 s to {LONGEST_SWITCH_S:.0f} s, not {for_s:g} s")
        desk.force(instrument, to, for_s, by, why)

    def release(self, instrument: str, *, by: str) -> bool:
        """End an operator's choice before its time; returns whether there was one."""
        return self._bound().release(instrument, by)

    # ---- what is asked, not streamed ------------------------------------------------------------

    def candidates(
        self, instrument: str, capability: str
    ) -> Sequence[tuple[str, tuple[BaseMarketDataProvider, InstrumentMapping]]]:
        """Return who can be asked for `history`, `options` or `news` of an instrument, best first."""
        desk = self._bound()
        found = []
        for row in desk.rows(instrument):
            provider = desk.provider(row.provider_code)
            if provider is not None and getattr(provider.capabilities, capability):
                found.append((row.provider_code, (provider, row)))
        return found

    async def ask(
        self,
        instrument: str,
        capability: str,
        call: Callable[[BaseMarketDataProvider, InstrumentMapping], Awaitable[_Result]],
    ) -> tuple[_Result, str, tuple[Refusal, ...]]:
        """Ask one provider after another until somebody answers; who refused before is told with it.

        Raises `NobodyAnswered` when none is left.
        """
        return await first_that_answers(
            self.candidates(instrument, capability), lambda candidate: call(*candidate)
        )

    # ---- inner ----------------------------------------------------------------------------------

    def _known(self) -> dict[str, tuple[ProviderFactory, str]]:
        if self._found is None:
            if self._given is not None:
                self._found = {code: (factory, "built_in") for code, factory in self._given.items()}
            else:
                self._found = {
                    YahooFinanceConnection.code: (YahooFinanceConnection, "built_in"),
                    DhanProvider.code: (DhanProvider, "built_in"),
                    **{code: (factory, "package") for code, factory in load_plugins().items()},
                }
        known = {code: entry for code, entry in self._found.items() if code not in self._removed}
        return known | {code: (factory, "run_time") for code, factory in self._added.items()}

    def _bound(self) -> RoutingDesk:
        if self._desk is None:
            raise ConfigurationError("no manager runs these providers yet")
        return self._desk

    def _capabilities(self, code: str, factory: ProviderFactory | None) -> Capabilities:
        provider = self._bound().provider(code)
        can = provider.capabilities if provider is not None else getattr(factory, "capabilities", None)
        return can if isinstance(can, Capabilities) else Capabilities()

    @staticmethod
    def _why_absent(code: str, entries: dict[str, ProviderEntry]) -> str:
        if code in entries:
            return "no provider of this code is installed"
        return "not among the active providers of the tables"
