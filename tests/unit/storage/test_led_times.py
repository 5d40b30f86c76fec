"""What a state directory remembers of its leaderships."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.storage.led_times import LedTimes


def test_another_leader_in_between_is_seen_also_after_a_restart(tmp_path: Path) -> None:
    times = LedTimes(tmp_path / "leadership.json")
    assert not times.lead(4), "nothing is known of the time before the first"
    assert not times.lead(5), "a restart of our own"
    assert not LedTimes(tmp_path / "leadership.json").lead(6)
    assert LedTimes(tmp_path / "leadership.json").lead(8)
    assert times.lead(1), "a counter that begins anew proves nothing"


def test_a_start_that_ended_before_it_led_is_no_other_leader(tmp_path: Path) -> None:
    LedTimes(tmp_path / "leadership.json").lead(4)
    LedTimes(tmp_path / "leadership.json").take(5)
    times = LedTimes(tmp_path / "leadership.json")
    times.take(6)
    assert not times.lead(6)


def test_another_leader_is_not_forgotten_by_a_start_that_ended_before_it_led(tmp_path: Path) -> None:
    LedTimes(tmp_path / "leadership.json").lead(4)
    LedTimes(tmp_path / "leadership.json").take(6)
    times = LedTimes(tmp_path / "leadership.json")
    times.take(7)
    assert times.lead(7)
    assert not times.lead(7), "said once"
    assert not LedTimes(tmp_path / "leadership.json").lead(8)


def test_records_of_a_lost_time_are_known_also_after_a_restart(tmp_path: Path) -> None:
    LedTimes(tmp_path / "leadership.json").lose(1_000, 2_000)
    times = LedTimes(tmp_path / "leadership.json")
    assert times.any_lost
    assert [times.was_lost(ms) for ms in (999, 1_000, 2_000, 2_001)] == [False, True, True, False]
    times.forget_lost()
    assert not LedTimes(tmp_path / "leadership.json").any_lost


@pytest.mark.parametrize("content", ["", "{", '{"epoch":"x"}', "[]"])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "leadership.json").write_text(content)
    times = LedTimes(tmp_path / "leadership.json")
    assert not times.any_lost
    assert not times.lead(3)


def test_a_file_that_cannot_be_written_is_no_reason_not_to_lead(tmp_path: Path) -> None:
    times = LedTimes(tmp_path / "absent" / "leadership.json")
    times.lose(1, 2)
    assert times.was_lost(1)
    assert not times.lead(3)
