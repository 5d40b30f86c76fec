"""Float32 prices back to the decimals that were meant."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.market_data.pricing import PriceGrid, reference_price


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


@pytest.mark.parametrize(
    ("price", "tick_size"),
    [
        (1192.3, 0.05),
        (1192.3, 0.1),
        (83.4925, 0.0025),
        (183_467.05, 0.05),
        (300_000.05, 0.05),
        (307.2, 0.01),
        (0.05, 0.05),
        (23_378.35, 0.05),
        (62_001.0, 1.0),
        (-37.63, 0.01),
        (110_429.42, 0.01),
    ],
)
def test_a_price_on_the_grid_comes_back_as_the_decimal_that_was_sent(price: float, tick_size: float) -> None:
    assert PriceGrid(tick_size).clean(float32(price)) == (price, True)


def test_a_price_off_the_grid_is_kept_and_reported() -> None:
    assert PriceGrid(0.05).clean(float32(1192.32)) == (1192.32, False)


def test_without_a_grid_the_sources_own_precision_decides() -> None:
    assert PriceGrid(None).clean(float32(88.7265), 4) == (88.7265, True)
    assert PriceGrid(None).clean(float32(0.00001234), 2) == (1.234e-05, True)


@pytest.mark.parametrize("nothing", [None, 0.0, float("nan"), float("inf")])
def test_an_absent_quote_is_unknown(nothing: float | None) -> None:
    assert reference_price(PriceGrid(0.05), nothing, None) is None


@given(st.integers(min_value=1, max_value=2_600_000), st.sampled_from([0.05, 0.1, 0.01, 0.0025]))
def test_every_tick_survives_the_wire(steps: int, tick_size: float) -> None:
    price = round(steps * tick_size, 4)
    assert PriceGrid(tick_size).clean(float32(price)) == (price, True)
