"""Assembling a chain: forward, at-the-money strike, greeks kept or computed, what is missing, ratios."""

from __future__ import annotations

import math
import time

import pytest

from services.on_demand_provider import OptionChain, OptionQuote, OptionSide, chain_of
from services.options.chain import Chain, Conventions, assemble, chain_json, price_of
from services.options.greeks import Terms, price_at
from services.wire.option_records import ChainAnswer

NOW_MS = 1_795_000_000_000
EXPIRY_S = NOW_MS // 1000 + 7 * 86_400
SPOT, FORWARD, RATE = 23_346.4, 23_390.0, 6.5
TERMS = Terms(SPOT, FORWARD, 7 / 365, RATE / 100)
SIDES: tuple[OptionSide, ...] = ("call", "put")


def priced(side: OptionSide, strike: float, iv: float = 12.0, **more: object) -> OptionQuote:
    price = price_at(side, strike, iv, TERMS)
    fields = {"bid": price * 0.999, "ask": price * 1.001, "last_price": round(price, 2), "oi": 100} | more
    return OptionQuote(side=side, strike=f"{strike:g}", **fields)  # type: ignore[arg-type]


def answer(*quotes: OptionQuote, spot: float | None = SPOT, timestamp: int = NOW_MS) -> OptionChain:
    return chain_of(ChainAnswer(quotes=quotes, timestamp=timestamp, underlying_price=spot, expiry=EXPIRY_S))


def made(given: OptionChain, **conventions: float) -> Chain:
    return assemble(
        given,
        underlying="NSE:NIFTY",
        source="NSE",
        expiry=EXPIRY_S,
        received_ms=NOW_MS,
        conventions=Conventions(**({"rate_percent": RATE} | conventions)),  # type: ignore[arg-type]
        symbol_of=lambda quote: f"NFO:NIFTY-{quote.strike}-{quote.side}",
    )


STRIKES = (23_200.0, 23_300.0, 23_350.0, 23_400.0, 23_500.0)


def test_the_forward_is_where_puts_and_calls_agree_and_volatility_is_found_from_it() -> None:
    chain = made(answer(*(priced(side, strike) for strike in STRIKES for side in SIDES)))
    assert chain.forward_by == "parity"
    assert chain.forward == pytest.approx(FORWARD, abs=0.5)
    assert chain.atm_strike == "23400"
    for leg in chain.legs:
        assert leg.greeks_by == "computed"
        assert leg.greeks is not None
        assert leg.greeks.iv == pytest.approx(12.0, rel=5e-3)
    call, put = chain.legs[4].greeks, chain.legs[5].greeks
    assert call is not None
    assert put is not None
    assert call.delta - put.delta == pytest.approx(FORWARD / SPOT * TERMS.discount, abs=1e-3)


def test_what_the_vendor_says_is_kept_and_marked() -> None:
    vendor = priced("call", 23_400.0, iv=11.5, delta=0.5, gamma=0.0009, theta=-9.8, vega=8.4)
    vendor = OptionQuote(**{name: getattr(vendor, name) for name in vendor.__struct_fields__} | {"iv": 11.5})
    only_iv = OptionQuote(side="put", strike="23400", iv=12.25, last_price=80.0)
    chain = made(answer(vendor, only_iv))
    kept, computed = chain.legs
    assert (kept.greeks_by, computed.greeks_by) == ("vendor", "computed")
    assert kept.greeks == (11.5, 0.5, 0.0009, -9.8, 8.4)
    assert computed.greeks is not None
    assert computed.greeks.iv == 12.25, "the vendor's volatility stays, its greeks are worked out from it"
    assert -1 < computed.greeks.delta < 0


def test_without_a_pair_the_forward_is_the_carried_spot() -> None:
    chain = made(answer(priced("call", 23_400.0), priced("put", 23_300.0)))
    assert chain.forward_by == "carry"
    assert chain.forward == pytest.approx(SPOT * math.exp(RATE / 100 * 7 / 365), abs=1e-3)
    assert chain.missing == (("23300", "call"), ("23400", "put"))
    assert chain.completeness == 0.5


def test_without_a_spot_nothing_is_computed_and_nothing_invented() -> None:
    chain = made(answer(priced("call", 23_400.0), priced("put", 23_400.0), spot=None))
    assert (chain.forward, chain.forward_by, chain.atm_strike, chain.underlying_price) == (None,) * 4
    assert all(leg.greeks is None and leg.greeks_by is None for leg in chain.legs)
    assert chain.legs[0].quote.oi == 100


@pytest.mark.parametrize(
    ("quote", "price"),
    [
        ({"bid": 10.0, "ask": 10.2, "last_price": 9.0}, 10.1),
        ({"bid": None, "ask": 0.1, "last_price": 0.05}, 0.05),
        ({"bid": None, "ask": 0.1, "last_price": 5.0}, None),
        ({"bid": 1.0, "ask": 9.0, "last_price": 4.0}, 4.0),
        ({"bid": 1.0, "ask": 9.0, "last_price": None}, None),
        ({"bid": 10.0, "ask": 9.0, "last_price": None}, None),
        ({"bid": None, "ask": None, "last_price": 7.0}, 7.0),
        ({"bid": 8.0, "ask": None, "last_price": 7.0}, None),
    ],
)
def test_only_a_price_that_means_something_counts(
    quote: dict[str, float | None], price: float | None
) -> None:
    found = price_of(OptionQuote(side="call", strike="100", **quote))  # type: ignore[arg-type]
    assert found == (pytest.approx(price) if price is not None else None)


def test_at_and_after_expiry_the_payoff_is_left() -> None:
    late = answer(priced("call", 23_300.0), priced("put", 23_300.0), timestamp=EXPIRY_S * 1000 + 5_000)
    chain = made(late)
    assert [leg.greeks.delta for leg in chain.legs if leg.greeks] == [1.0, 0.0]
    assert all(leg.greeks is not None and leg.greeks.iv is None for leg in chain.legs)


def test_ratios_and_max_pain_agree_with_a_count_by_hand() -> None:
    open_interest = {
        ("call", 90): 10,
        ("call", 100): 50,
        ("call", 110): 80,
        ("put", 90): 70,
        ("put", 100): 40,
    }
    quotes = [
        OptionQuote(side=side, strike=str(strike), oi=oi, volume=oi * 2)  # type: ignore[arg-type]
        for (side, strike), oi in open_interest.items()
    ]
    chain = made(answer(*quotes))
    assert chain.pcr_oi == round(110 / 140, 4)
    assert chain.pcr_volume == round(110 / 140, 4)

    def paid(at: int) -> int:
        return sum(
            oi * max(0, at - strike if side == "call" else strike - at)
            for (side, strike), oi in open_interest.items()
        )

    assert chain.max_pain == str(min((90, 100, 110), key=lambda at: (paid(at), at)))


def test_without_open_calls_there_is_no_ratio_and_without_anything_open_no_pain() -> None:
    chain = made(answer(OptionQuote(side="put", strike="90", oi=5)))
    assert (chain.pcr_oi, chain.max_pain) == (None, "90")
    assert made(answer(OptionQuote(side="put", strike="90"))).max_pain is None


def test_a_third_partys_rows_without_quotes_do() -> None:
    full = answer(*(priced(side, strike) for strike in STRIKES for side in SIDES))
    rows_only = OptionChain(full.timestamp, full.underlying_price, full.symbols)
    chain = made(rows_only)
    assert len(chain.legs) == 10
    assert chain.legs[0].quote.oi == 100
    assert chain.legs[4].greeks is not None


def test_json_has_fourteen_fields_and_unknown_is_null() -> None:
    chain = made(answer(priced("call", 23_400.0), OptionQuote(side="put", strike="23400", oi=7)))
    shown = chain_json(chain, NOW_MS + 1_500)
    assert set(shown) >= {"timestamp", "underlying_price", "symbols"}
    call, put = (leg["f"] for leg in shown["symbols"])
    assert len(call) == len(put) == 14
    assert call[:4] == ["NFO:NIFTY-23400-call", "23400", "call", SPOT]
    assert call[8] == EXPIRY_S
    assert put[4:] == [None, None, 7, None, EXPIRY_S, None, None, None, None, None]
    assert shown["age_ms"] == 1_500
    assert [leg["greeks_by"] for leg in shown["symbols"]] == ["computed", None]


def test_two_hundred_legs_take_less_than_the_time_of_a_slow_request() -> None:
    quotes = [priced(side, 20_000 + 60 * step, iv=15) for step in range(100) for side in SIDES]
    given = answer(*quotes)
    made(given)
    fastest = 1.0
    for _ in range(5):
        began = time.perf_counter()
        chain = made(given)
        fastest = min(fastest, time.perf_counter() - began)
    assert len(chain.legs) == 200
    # Measured 4 ms; ten times that would be another algorithm.
    assert fastest < 0.05
