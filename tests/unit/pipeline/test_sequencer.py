"""Positions: one increasing order per exchange, whatever the clock does."""

from __future__ import annotations

import pytest

from services.market_data.clock import ManualClock
from services.market_data.records import DataIngestionFormat
from services.pipeline.sequencer import Sequencer, parse_position


def record(exchange: str = "NSE") -> DataIngestionFormat:
    return DataIngestionFormat(f"{exchange}:X", 1.0, None, 0, "DHAN", exchange=exchange)


def stamp(sequencer: Sequencer, exchange: str = "NSE") -> str:
    item = record(exchange)
    sequencer.stamp(item)
    return item.position


def test_records_of_one_millisecond_count_up_and_a_new_millisecond_starts_at_zero() -> None:
    clock = ManualClock(1_700_000_000_000)
    sequencer = Sequencer(clock)
    assert [stamp(sequencer) for _ in range(3)] == [f"1700000000000-{n}" for n in range(3)]
    clock.advance(0.001)
    assert stamp(sequencer) == "1700000000001-0"


def test_each_exchange_has_its_own_order() -> None:
    sequencer = Sequencer(ManualClock(5_000))
    stamp(sequencer, "NSE")
    assert stamp(sequencer, "BSE") == "5000-0"
    assert sequencer.positions() == {"NSE": "5000-0", "BSE": "5000-0"}


def test_a_clock_set_back_never_lowers_a_position() -> None:
    clock = ManualClock(10_000)
    sequencer = Sequencer(clock)
    stamp(sequencer)
    clock.step_wall(-3_600_000)
    assert stamp(sequencer) == "10000-1"


def test_after_a_restart_positions_go_on_above_what_is_stored() -> None:
    sequencer = Sequencer(ManualClock(10_000))
    sequencer.resume_after("NSE", (20_000, 7))
    assert stamp(sequencer) == "20000-8"
    assert sequencer.position("BSE") == "0-0"


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "a-b", "1-2-3", "١-٢", "1.0-2", " 1-2"])
def test_only_positions_are_read_as_positions(text: str) -> None:
    with pytest.raises(ValueError, match="not a position"):
        parse_position(text)


def test_a_position_reads_back() -> None:
    assert parse_position("1700000000000-4") == (1_700_000_000_000, 4)
