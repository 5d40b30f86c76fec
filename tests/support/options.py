"""What answers for options in tests of the gateway: a manager over sources that do as they are told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import date, datetime, timedelta

from services.gateway.options_api import OptionDesk, interest_of
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass
from services.on_demand_provider import OpenInterest, OptionChain, OptionQuote, OptionsDataProvider, chain_of
from services.options.chain import Chain
from services.options.manager import OptionsManager
from services.options.source import OptionSource, Underlying
from services.storage.option_interest import OptionInterestStore
from services.wire.option_fields import INDIA, INDIAN_EXPIRY, expiry_moment_s
from services.wire.option_records import ChainAnswer

NIFTY = Underlying("NSE:NIFTY", "NSE", "NIFTY", AssetClass.INDEX, "INR", {})
TCS = Underlying("NSE:TCS", "NSE", "TCS", AssetClass.EQUITY, "INR", {})
GOLD = Underlying("FX:GOLD", "FX", "GOLD", AssetClass.FX, "USD", {})
SPOT = 25_010.0


class ToldSource(OptionsDataProvider):
    """Two strikes of NIFTY in each of two expiries, or the refusal it is told to give."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.oi = {"25000": (100, 50), "25050": (40, 20)}
        self.event_ms = SystemClock().now_ms()
        tomorrow = datetime.now(INDIA).date() + timedelta(days=1)
        self.days = (tomorrow, tomorrow + timedelta(days=7))

    async def get_option_chain(self, symbol: str, expiry: int) -> OptionChain:
        if self.refusal is not None:
            raise self.refusal
        quotes = []
        for strike, (calls, puts) in self.oi.items():
            value = max(0.0, SPOT - float(strike))
            quotes += [
                OptionQuote(side="call", strike=strike, oi=calls, last_price=value + 120.0, volume=7),
                OptionQuote(side="put", strike=strike, oi=puts, last_price=100.0, bid=99.0, ask=101.0),
            ]
        return chain_of(
            ChainAnswer(quotes=tuple(quotes), timestamp=self.event_ms, underlying_price=SPOT, expiry=expiry)
        )

    async def get_oi_data(self, symbol: str, expiry: int, time_s: int | None = None) -> list[OpenInterest]:
        return []

    async def get_expiry_dates(self, symbol: str) -> list[int]:
        if self.refusal is not None:
            raise self.refusal
        return [expiry_moment_s(day, INDIA, INDIAN_EXPIRY) for day in self.days]


class ToldOptions:
    """The desk with the two sources behind it, `dhan` first; `fresh_s` is how long chains are kept."""

    def __init__(self, redis_url: str, fresh_s: float) -> None:
        self.dhan, self.nse = ToldSource(), ToldSource()
        self.store = OptionInterestStore(redis_url, retention_ms=86_400_000)
        self.heard: Callable[[Chain], None] = lambda _chain: None
        known = {name: item for item in (NIFTY, TCS, GOLD) for name in (item.key, item.symbol)}

        def indian(underlying: Underlying) -> str | None:
            return underlying.symbol if underlying.exchange == "NSE" else None

        self.manager = OptionsManager(
            SystemClock(),
            [
                OptionSource("DHAN", self.dhan, indian, fresh_s),
                OptionSource("NSE", self.nse, indian, fresh_s),
            ],
            resolve=lambda text: known.get(text.strip().upper()),
            on_chain=self._store,
        )
        self.desk = OptionDesk(self.manager, self.store, lambda text: known.get(text.strip().upper()))

    @property
    def days(self) -> tuple[date, ...]:
        """The days on which contracts end."""
        return self.dhan.days

    def _store(self, chain: Chain) -> None:
        self.store.offer(interest_of(chain, NIFTY))
        self.heard(chain)


@contextlib.asynccontextmanager
async def option_desk(
    redis_url: str = "redis://127.0.0.1:9/0", *, fresh_s: float = 60.0
) -> AsyncIterator[ToldOptions]:
    """A desk for `running_gateway`; without a Redis only what is now can be asked."""
    options = ToldOptions(redis_url, fresh_s)
    try:
        yield options
    finally:
        await options.manager.close()
        await options.store.close()
