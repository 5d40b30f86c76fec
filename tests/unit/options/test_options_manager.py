"""The manager over sources that answer, refuse, lie and dawdle."""

from __future__ import annotations

import asyncio
from datetime import date

import pytest

from services.errors import CredentialsRejected, ProviderRateLimited
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass
from services.on_demand_provider import OpenInterest, OptionChain, OptionQuote, OptionsDataProvider, chain_of
from services.options.manager import (
    REFUSAL_KEPT_S,
    OptionsManager,
    UnknownExpiry,
    UnknownUnderlying,
)
from services.options.source import OptionSource, Underlying
from services.pipeline.failover import NobodyAnswered
from services.wire.option_fields import INDIA, INDIAN_EXPIRY, expiry_moment_s
from services.wire.option_records import ChainAnswer

DAYS = (date(2027, 1, 5), date(2027, 1, 12))
FIRST_S, SECOND_S = (expiry_moment_s(day, INDIA, INDIAN_EXPIRY) for day in DAYS)
NIFTY = Underlying("NSE:NIFTY", "NSE", "NIFTY", AssetClass.INDEX, "INR", {})
AAPL = Underlying("NASDAQ:AAPL", "NASDAQ", "AAPL", AssetClass.EQUITY, "USD", {})


class Source(OptionsDataProvider):
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.legs = 2
        self.answers_expiry: int | None = None
        self.expiries = [SECOND_S, FIRST_S]
        self.chains_asked = 0
        self.expiries_asked = 0
        self.delay_s = 0.0

    async def get_option_chain(self, symbol: str, expiry: int) -> OptionChain:
        self.chains_asked += 1
        await asyncio.sleep(self.delay_s)
        if self.refusal:
            raise self.refusal
        quotes = (
            OptionQuote(side="call", strike="25000", oi=10, last_price=120.0),
            OptionQuote(side="put", strike="25000", oi=20, last_price=100.0),
        )
        return chain_of(
            ChainAnswer(
                quotes=quotes[: self.legs],
                timestamp=1_798_000_000_000,
                underlying_price=25_010.0,
                expiry=self.answers_expiry or expiry,
            )
        )

    async def get_oi_data(self, symbol: str, expiry: int, time_s: int | None = None) -> list[OpenInterest]:
        return []

    async def get_expiry_dates(self, symbol: str) -> list[int]:
        self.expiries_asked += 1
        if self.refusal:
            raise self.refusal
        return self.expiries


class Bench:
    """A manager with two sources of NIFTY, and a clock that stands."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_798_000_000_000)
        self.dhan, self.nse = Source(), Source()
        self.seen: list[str] = []
        known = {name: item for item in (NIFTY, AAPL) for name in (item.key, item.symbol)}

        def indian(underlying: Underlying) -> str | None:
            return underlying.symbol if underlying.exchange == "NSE" else None

        self.manager = OptionsManager(
            self.clock,
            [OptionSource("DHAN", self.dhan, indian, 3.0), OptionSource("NSE", self.nse, indian, 30.0)],
            resolve=lambda text: known.get(text.strip().upper()),
            on_chain=lambda chain: self.seen.append(chain.source),
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_the_first_source_answers_and_the_next_expiry_is_meant(bench: Bench) -> None:
    found = await bench.manager.chain("nifty")
    assert (found.chain.source, found.chain.expiry, found.refusals) == ("DHAN", FIRST_S, ())
    assert [leg.symbol for leg in found.chain.legs] == [
        "NFO:NIFTY-2027-01-05-25000-CE",
        "NFO:NIFTY-2027-01-05-25000-PE",
    ]
    assert bench.nse.chains_asked == 0
    assert bench.seen == ["DHAN"]


@pytest.mark.parametrize("way", ["refused", "limited", "empty", "another day", "out of time"])
async def test_a_source_that_fails_is_named_and_the_next_one_answers(bench: Bench, way: str) -> None:
    await bench.manager.expiries("NIFTY")
    if way == "refused":
        bench.dhan.refusal = CredentialsRejected("Dhan refuses the credentials", reason="DH-901")
    elif way == "limited":
        bench.dhan.refusal = ProviderRateLimited("too often", reason="DH-904")
    elif way == "empty":
        bench.dhan.legs = 0
    elif way == "another day":
        bench.dhan.answers_expiry = SECOND_S
    else:
        bench.dhan.refusal = TimeoutError()
    found = await bench.manager.chain("NSE:NIFTY", FIRST_S)
    assert found.chain.source == "NSE"
    (refusal,) = found.refusals
    assert refusal.provider_code == "DHAN"
    assert (
        refusal.reason
        == {
            "refused": "DH-901",
            "limited": "DH-904",
            "empty": "empty",
            "another day": "wrong_expiry",
            "out of time": "timeout",
        }[way]
    )
    assert "DHAN" in bench.manager.status()["refused"]


async def test_where_all_refuse_every_reason_is_told_and_nothing_pretended(bench: Bench) -> None:
    await bench.manager.expiries("NIFTY")
    bench.dhan.refusal = CredentialsRejected("Dhan refuses the credentials", reason="DH-901")
    bench.nse.legs = 0
    with pytest.raises(NobodyAnswered) as caught:
        await bench.manager.chain("NIFTY")
    assert [refusal.provider_code for refusal in caught.value.refusals] == ["DHAN", "NSE"]


async def test_fifty_who_ask_at_once_are_one_request(bench: Bench) -> None:
    bench.dhan.delay_s = 0.01
    found = await asyncio.gather(*(bench.manager.chain("NIFTY") for _ in range(50)))
    assert bench.dhan.chains_asked == 1
    assert bench.dhan.expiries_asked == 1
    assert len({id(one.chain) for one in found}) == 1


async def test_an_answer_is_kept_as_long_as_its_source_says(bench: Bench) -> None:
    await bench.manager.chain("NIFTY")
    bench.clock.advance(2.9)
    await bench.manager.chain("NIFTY")
    assert bench.dhan.chains_asked == 1
    bench.clock.advance(0.2)
    await bench.manager.chain("NIFTY")
    assert bench.dhan.chains_asked == 2


async def test_a_refusal_is_kept_for_a_moment_so_that_a_crowd_does_not_repeat_it(bench: Bench) -> None:
    await bench.manager.expiries("NIFTY")
    bench.dhan.legs = bench.nse.legs = 0
    answers = await asyncio.gather(*(bench.manager.chain("NIFTY") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(answer, NobodyAnswered) for answer in answers)
    assert (bench.dhan.chains_asked, bench.nse.chains_asked) == (1, 1)
    bench.dhan.legs = 2
    bench.clock.advance(REFUSAL_KEPT_S)
    assert (await bench.manager.chain("NIFTY")).chain.source == "DHAN"


async def test_unknown_names_and_days_are_told_apart(bench: Bench) -> None:
    with pytest.raises(UnknownUnderlying):
        await bench.manager.chain("NOPE")
    with pytest.raises(UnknownUnderlying):
        await bench.manager.chain("NASDAQ:AAPL")
    with pytest.raises(UnknownExpiry) as caught:
        await bench.manager.chain("NIFTY", FIRST_S + 86_400)
    assert caught.value.expiries == (FIRST_S, SECOND_S)


async def test_an_expiry_that_has_passed_is_offered_no_more(bench: Bench) -> None:
    assert (await bench.manager.expiries("NIFTY")).expiries == (FIRST_S, SECOND_S)
    bench.clock.advance(FIRST_S - bench.clock.now_ms() / 1000 + 1)
    assert (await bench.manager.expiries("NIFTY")).expiries == (SECOND_S,)
