"""When the silence of a connection is a fault."""

from __future__ import annotations

from collections.abc import Callable

from services.connection.muteness import MuteRules, MuteWatch

NSE = frozenset({"NSE"})
RULES = MuteRules()


class Habit:
    """A watch that is asked once a second, as the runner does."""

    def __init__(self) -> None:
        self.watch = MuteWatch()
        self.now_s = 1_000.0
        self.frames = 0
        self.watch.connected(self.now_s)

    def live(
        self, seconds: int, frames_at: Callable[[int], int], markets: frozenset[str] = NSE
    ) -> float | None:
        limit = None
        for second in range(seconds):
            self.now_s += 1
            self.frames += frames_at(second)
            limit = self.watch.limit_s(RULES, self.now_s, self.frames, markets)
        return limit


def test_a_connection_that_spoke_all_the_time_is_expected_to_go_on() -> None:
    habit = Habit()
    assert habit.live(60, lambda _: 1) is None, "one busy minute is no habit yet"
    assert habit.live(61, lambda _: 1) == 30.0
    assert habit.live(29, lambda _: 0) == 30.0, "silence does not unlearn it"


def test_a_few_quiet_instruments_are_never_expected_to_speak() -> None:
    habit = Habit()
    assert habit.live(600, lambda second: second % 5 == 0) is None


def test_a_habit_at_the_limit_survives_silence_from_any_second_of_a_minute() -> None:
    for spoke_for in range(130, 190):
        habit = Habit()
        habit.live(spoke_for, lambda second: second % 2)
        assert habit.live(29, lambda _: 0) == 30.0, spoke_for


def test_while_no_market_is_open_silence_is_ordinary() -> None:
    habit = Habit()
    habit.live(200, lambda _: 5)
    assert habit.live(1, lambda _: 0, frozenset()) is None


def test_when_a_market_closes_what_was_learned_before_says_nothing() -> None:
    habit = Habit()
    habit.live(200, lambda _: 5, frozenset({"NSE", "MCX"}))
    assert habit.live(50, lambda _: 0, frozenset({"MCX"})) is None
    assert habit.live(190, lambda _: 1, frozenset({"MCX"})) == 30.0


def test_on_a_holiday_nothing_is_ever_learned() -> None:
    habit = Habit()
    assert habit.live(3_600, lambda second: second == 0) is None, "a snapshot is no habit"


def test_a_day_that_grows_quiet_is_unlearned() -> None:
    habit = Habit()
    assert habit.live(200, lambda _: 5) == 30.0
    assert habit.live(150, lambda second: second % 7 == 0) is None


def test_after_three_futile_attempts_the_connection_is_left_open_until_it_speaks() -> None:
    habit = Habit()
    habit.live(200, lambda _: 5)
    for attempt in range(3):
        assert habit.live(30, lambda _: 0) == 30.0, attempt
        habit.watch.gave_up()
        habit.frames = 0
        habit.watch.connected(habit.now_s)
    assert habit.live(300, lambda _: 0) is None
    habit.live(1, lambda _: 1)
    assert habit.watch.futile == 0
    assert habit.live(121, lambda _: 1) == 30.0, "and once it is busy again, as strict as before"
