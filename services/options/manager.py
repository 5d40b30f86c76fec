"""OptionsManager: asks the best source for a chain, keeps the answer while it is fresh, says who refused.

    who asks ──► one request per chain at a time ──► sources in order ──► assemble ──► everybody who waits

Stands beside the stream, not in it: it asks only when somebody wants to know. A chain without legs, or one
of another expiry, is a refusal like any other; where all refuse the answer is an error with every reason,
never an empty success. A refusal is kept for a moment too, so that many who ask at once do not ask it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import date
from typing import Any

import msgspec
import structlog

from services.errors import ProviderUnavailable
from services.market_data.clock import Clock
from services.on_demand_provider import OptionChain, OptionQuote
from services.options import greeks
from services.options.chain import Chain, Conventions, assemble, has_greeks, quotes_of
from services.options.source import DERIVATIVES_OF, OptionSource, Underlying
from services.pipeline.failover import NobodyAnswered, Refusal, first_that_answers
from services.wire.option_fields import expiry_day

_log = structlog.get_logger(__name__)

EXPIRIES_FRESH_S = 3_600.0
REFUSAL_KEPT_S = 2.0
KEPT_CHAINS = 512
"""So many chains are remembered; the one asked for longest ago goes first."""


class UnknownUnderlying(LookupError):
    """No instrument of that name has options anywhere; `similar` names some that have."""


class UnknownExpiry(LookupError):
    """The underlying has no contracts that end on that day; `expiries` are those it has, UTC epoch s."""

    def __init__(self, message: str, expiries: Sequence[int]) -> None:
        super().__init__(message)
        self.expiries = tuple(expiries)


class Found(msgspec.Struct, frozen=True):
    """A chain, and who refused before its source was asked."""

    chain: Chain
    refusals: tuple[Refusal, ...]


class Expiries(msgspec.Struct, frozen=True):
    """The expiries of an underlying, UTC epoch s ascending, with who said so and who refused before."""

    underlying: str
    source: str
    expiries: tuple[int, ...]
    refusals: tuple[Refusal, ...]


class _Kept(msgspec.Struct):
    """An answer with when it was got (monotonic seconds) and how long it is as good as a new one."""

    lock: asyncio.Lock
    answer: Found | Expiries | NobodyAnswered | None = None
    at_s: float = 0.0
    fresh_s: float = 0.0


class OptionsManager:
    """Answers for option chains. `sources` are in the order of preference.

    `resolve(text)` finds the underlying behind what somebody typed (`NIFTY`, `NSE:NIFTY`), None for unknown;
    `conventions(underlying)` says rate, day count and style; `on_chain(chain)` hears every new chain.
    """

    def __init__(
        self,
        clock: Clock,
        sources: Iterable[OptionSource],
        *,
        resolve: Callable[[str], Underlying | None],
        conventions: Callable[[Underlying], Conventions] = lambda _: Conventions(),
        on_chain: Callable[[Chain], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._sources = tuple(sources)
        self._resolve = resolve
        self._conventions = conventions
        self._on_chain = on_chain
        self._chains: dict[tuple[str, date], _Kept] = {}
        self._expiries: dict[str, _Kept] = {}
        self._can_compute = False
        self._refused: dict[str, Refusal] = {}
        self.asked: dict[str, int] = {}
        """Requests made of each source."""
        self.answered_from_memory = 0

    async def expiries(self, underlying: str) -> Expiries:
        """Return the expiries of an underlying that have not ended.

        Raises `UnknownUnderlying`, and `NobodyAnswered` with the reasons of every source.
        """
        found = self._underlying(underlying)
        kept = self._expiries.setdefault(found.key, _Kept(asyncio.Lock()))
        answer = await self._fresh(kept, lambda: self._ask_expiries(found))
        assert isinstance(answer, Expiries)  # noqa: S101 - nothing else is kept here
        now_s = self._clock.now_ms() / 1000
        return msgspec.structs.replace(answer, expiries=tuple(s for s in answer.expiries if s > now_s))

    async def chain(self, underlying: str, expiry: int | None = None) -> Found:
        """Return the chain of an underlying and expiry (UTC epoch s; None: the next one to end).

        Raises `UnknownUnderlying`, `UnknownExpiry`, and `NobodyAnswered` with the reasons of every source.
        """
        found = self._underlying(underlying)
        known = (await self.expiries(found.key)).expiries
        if expiry is None:
            if not known:
                raise UnknownExpiry(f"{found.key} has no contracts that have not ended", ())
            expiry = known[0]
        day = expiry_day(expiry, found.zone)
        moment_s = next((one for one in known if expiry_day(one, found.zone) == day), None)
        if moment_s is None:
            raise UnknownExpiry(f"{found.key} has no contracts that end on {day}", known)
        answer = await self._fresh(self._keep(found.key, day), lambda: self._ask_chain(found, moment_s))
        assert isinstance(answer, Found)  # noqa: S101 - nothing else is kept here
        return answer

    def next_expiry(self, underlying: Underlying) -> int | None:
        """Return the next expiry (UTC epoch s) as far as it is known without asking."""
        kept = self._expiries.get(underlying.key)
        known = kept.answer.expiries if kept is not None and isinstance(kept.answer, Expiries) else ()
        now_s = self._clock.now_ms() / 1000
        return min((one for one in known if one > now_s), default=None)

    def underlyings_served(self, candidates: Iterable[Underlying]) -> list[str]:
        """Return the keys of those candidates that some source has options of."""
        return [
            it.key for it in candidates if any(source.symbol_of(it) is not None for source in self._sources)
        ]

    def status(self) -> dict[str, Any]:
        """Return how often each source was asked, the last refusal of each, and what is remembered."""
        return {
            "sources": [source.code for source in self._sources],
            "asked": dict(self.asked),
            "answered_from_memory": self.answered_from_memory,
            "chains": len(self._chains),
            "refused": {code: refusal.message for code, refusal in self._refused.items()},
        }

    async def close(self) -> None:
        """Close the connections of all sources."""
        for source in self._sources:
            close = getattr(source.provider, "close", None)
            if close is not None:
                await close()

    # ---- inner ----------------------------------------------------------------------------------

    def _underlying(self, text: str) -> Underlying:
        found = self._resolve(text)
        if found is None or not self.underlyings_served([found]):
            raise UnknownUnderlying(f"{text[:60]!r} is no instrument whose options any source has")
        return found

    async def _fresh(
        self, kept: _Kept, ask: Callable[[], Awaitable[tuple[Found | Expiries, float]]]
    ) -> Found | Expiries:
        """Return what is kept while it is fresh, else ask anew; one at a time, the others wait for it."""
        async with kept.lock:
            if kept.answer is not None and self._clock.monotonic_s() - kept.at_s < kept.fresh_s:
                self.answered_from_memory += 1
            else:
                try:
                    kept.answer, kept.fresh_s = await ask()
                except NobodyAnswered as refusal:
                    kept.answer, kept.fresh_s = refusal, REFUSAL_KEPT_S
                kept.at_s = self._clock.monotonic_s()
            if isinstance(kept.answer, NobodyAnswered):
                raise NobodyAnswered(kept.answer.refusals)
            return kept.answer

    def _keep(self, key: str, day: date) -> _Kept:
        kept = self._chains.pop((key, day), None) or _Kept(asyncio.Lock())
        self._chains[key, day] = kept
        if len(self._chains) > KEPT_CHAINS:
            del self._chains[next(iter(self._chains))]
        return kept

    def _candidates(self, underlying: Underlying) -> list[tuple[str, tuple[OptionSource, str]]]:
        return [
            (source.code, (source, symbol))
            for source in self._sources
            if (symbol := source.symbol_of(underlying)) is not None
        ]

    async def _ask_expiries(self, underlying: Underlying) -> tuple[Expiries, float]:
        async def call(candidate: tuple[OptionSource, str]) -> list[int]:
            source, symbol = candidate
            self.asked[source.code] = self.asked.get(source.code, 0) + 1
            found = await source.provider.get_expiry_dates(symbol)
            if not found:
                raise ProviderUnavailable("the answer holds no expiry", reason="empty")
            return found

        found, code, refusals = await first_that_answers(self._candidates(underlying), call)
        self._note(underlying, code, refusals)
        return Expiries(underlying.key, code, tuple(sorted(found)), refusals), EXPIRIES_FRESH_S

    async def _ask_chain(self, underlying: Underlying, expiry: int) -> tuple[Found, float]:
        async def call(candidate: tuple[OptionSource, str]) -> tuple[OptionChain, OptionSource]:
            source, symbol = candidate
            self.asked[source.code] = self.asked.get(source.code, 0) + 1
            answer = await source.provider.get_option_chain(symbol, expiry)
            _check(answer, expiry, underlying)
            return answer, source

        (answer, source), code, refusals = await first_that_answers(self._candidates(underlying), call)
        self._note(underlying, code, refusals)
        if not self._can_compute and not all(has_greeks(quote) for quote in quotes_of(answer)):
            await asyncio.to_thread(greeks.load)
            self._can_compute = True
        chain = assemble(
            answer,
            underlying=underlying.key,
            source=code,
            expiry=expiry,
            received_ms=self._clock.now_ms(),
            conventions=self._conventions(underlying),
            symbol_of=lambda quote: leg_symbol(underlying, expiry, quote),
        )
        self._on_chain(chain)
        return Found(chain, refusals), source.fresh_s

    def _note(self, underlying: Underlying, code: str, refusals: Sequence[Refusal]) -> None:
        self._refused.pop(code, None)
        for refusal in refusals:
            known = self._refused.get(refusal.provider_code)
            self._refused[refusal.provider_code] = refusal
            if known is None or known.reason != refusal.reason:
                _log.warning(
                    "option_source_refused",
                    provider=refusal.provider_code,
                    underlying=underlying.key,
                    reason=refusal.message,
                    answered_by=code,
                )


def leg_symbol(underlying: Underlying, expiry: int, quote: OptionQuote) -> str:
    """Return the instrument key of a leg of an Indian underlying; elsewhere the vendor's contract symbol."""
    derivatives = DERIVATIVES_OF.get(underlying.exchange)
    if derivatives is None and quote.contract:
        return quote.contract
    day = expiry_day(expiry, underlying.zone).isoformat()
    side = "CE" if quote.side == "call" else "PE"
    return f"{derivatives or underlying.exchange}:{underlying.symbol}-{day}-{quote.strike}-{side}"


def _check(answer: OptionChain, expiry: int, underlying: Underlying) -> None:
    """Raise `ProviderUnavailable` for an answer that is accepted by nobody: empty, or of another day."""
    if not answer.symbols:
        raise ProviderUnavailable("the answer holds no legs", reason="empty")
    wanted = expiry_day(expiry, underlying.zone)
    found = {expiry_day(row.f[8], underlying.zone) for row in answer.symbols}
    if found != {wanted}:
        raise ProviderUnavailable(f"the answer is of {min(found)}, not of {wanted}", reason="wrong_expiry")
