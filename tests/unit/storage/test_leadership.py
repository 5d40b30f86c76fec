"""The state machine of the lease, with a store and a clock that the test moves."""

from __future__ import annotations

import pytest

from services.errors import StorageMisconfigured, StorageUnavailable, TemporaryError
from services.market_data.clock import ManualClock
from services.storage.address import RedisAddress
from services.storage.leadership import Leadership, LeasePolicy, LeaseTimes, Role
from services.storage.redis_lease import Lease, LeaseAnswer, read_lease

OURS = Lease(owner="aa", host="here", pid=1, epoch=7, text="ours")
THEIRS = Lease(owner="bb", host="there", pid=22, epoch=8, text="theirs")
TIMES = LeaseTimes()


class Store:
    """Says what the test wants it to say, and remembers what it was asked."""

    def __init__(self) -> None:
        self.held_by: Lease | None = None
        self.lapsed = False
        self.failure: Exception | None = None
        self.asked: list[str] = []

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure

    async def acquire(self) -> LeaseAnswer:
        self._ask("acquire")
        if self.held_by is not None:
            return LeaseAnswer(ours=False, lease=self.held_by)
        return LeaseAnswer(ours=True, lease=OURS)

    async def renew(self, lease: Lease) -> LeaseAnswer:
        self._ask("renew")
        if self.held_by is not None:
            return LeaseAnswer(ours=False, lease=self.held_by)
        return LeaseAnswer(ours=True, lease=lease, lapsed=self.lapsed)

    async def release(self, lease: Lease) -> None:
        self._ask("release")

    async def fence_off(self, lease: Lease) -> bool:
        self._ask("fence_off")
        return True

    async def close(self) -> None:
        self.asked.append("close")


class Stage:
    """A leadership with everything around it."""

    def __init__(self, policy: LeasePolicy = "standby") -> None:
        self.store = Store()
        self.clock = ManualClock()
        self.leadership = Leadership(self.store, self.clock, policy=policy)
        self.changes: list[Role] = []
        self.leadership.on_change = lambda: self.changes.append(self.leadership.role)


async def leading() -> Stage:
    stage = Stage()
    await stage.leadership.begin()
    assert stage.leadership.role is Role.LEADING
    return stage


def test_the_usual_times_leave_room_for_each_other() -> None:
    assert (TIMES.ttl_s, TIMES.renew_s, TIMES.hold_s) == (15.0, 5.0, 10.0)
    assert 2 * TIMES.renew_s <= TIMES.hold_s < TIMES.ttl_s


async def test_a_free_lease_is_taken_and_the_last_writers_are_fenced_off_before_anything_is_written() -> None:
    stage = Stage()
    assert not stage.leadership.may_write()
    await stage.leadership.begin()
    assert stage.store.asked == ["acquire", "fence_off"]
    assert stage.leadership.may_write()
    assert stage.leadership.reason == ""
    assert stage.changes == [Role.LEADING]


async def test_nothing_may_be_written_while_the_last_writers_cannot_be_fenced_off() -> None:
    stage = Stage()

    async def fails(lease: Lease) -> bool:
        raise StorageUnavailable("gone again")

    stage.store.fence_off = fails  # type: ignore[method-assign]
    await stage.leadership.begin()
    assert stage.leadership.role is Role.STANDING_BY
    assert not stage.leadership.may_write()
    assert "gone again" in stage.leadership.reason


async def test_a_held_lease_makes_it_stand_by_and_say_who_holds_it() -> None:
    stage = Stage()
    stage.store.held_by = THEIRS
    await stage.leadership.begin()
    assert stage.leadership.role is Role.STANDING_BY
    assert "stands by" in stage.leadership.reason
    assert "pid 22 on there" in stage.leadership.reason
    assert stage.leadership.status()["holder"] == {"host": "there", "pid": 22, "epoch": 8}
    assert not stage.leadership.may_write()
    stage.store.held_by = None
    await stage.leadership.turn()
    assert stage.leadership.may_write()


async def test_with_the_policy_exit_a_held_lease_ends_the_daemon_naming_the_holder() -> None:
    stage = Stage("exit")
    stage.store.held_by = THEIRS
    with pytest.raises(TemporaryError, match="pid 22 on there"):
        await stage.leadership.begin()


async def test_with_the_policy_exit_a_lost_lease_ends_the_daemon_too() -> None:
    stage = Stage("exit")
    await stage.leadership.begin()
    stage.store.held_by = THEIRS
    await stage.leadership.turn()
    assert stage.leadership.role is Role.LOST
    assert "pid 22 on there" in str(stage.leadership.ended)


async def test_writing_stops_by_the_monotonic_clock_when_the_lease_is_not_renewed() -> None:
    stage = await leading()
    stage.store.failure = StorageUnavailable("no answer")
    stage.clock.advance(TIMES.hold_s - 0.1)
    await stage.leadership.turn()
    assert stage.leadership.may_write()
    stage.clock.advance(0.1)
    assert not stage.leadership.may_write()
    assert stage.leadership.role is Role.LEADING, "Redis being away is no reason to leave the providers"
    assert "cannot be renewed" in stage.leadership.reason
    with pytest.raises(StorageUnavailable, match="cannot be renewed"):
        await stage.leadership.connect(RedisAddress(), "marketd:stream")


async def test_a_step_of_the_wall_clock_changes_nothing() -> None:
    stage = await leading()
    stage.clock.step_wall(3_600_000)
    assert stage.leadership.may_write()
    stage.clock.step_wall(-7_200_000)
    assert stage.leadership.may_write()


async def test_a_renewal_counts_from_before_it_was_asked_for() -> None:
    stage = await leading()
    renew = stage.store.renew

    async def slow(lease: Lease) -> LeaseAnswer:
        stage.clock.advance(4.0)
        return await renew(lease)

    stage.store.renew = slow  # type: ignore[method-assign]
    stage.clock.advance(5.0)
    await stage.leadership.turn()
    stage.clock.advance(TIMES.hold_s - 4.0)
    assert not stage.leadership.may_write()


async def test_after_an_outage_that_nobody_used_it_writes_again_and_says_so() -> None:
    stage = await leading()
    stage.clock.advance(60.0)
    stage.store.lapsed = True
    assert not stage.leadership.may_write()
    await stage.leadership.turn()
    assert stage.leadership.may_write()
    assert stage.changes == [Role.LEADING, Role.LEADING]
    assert stage.leadership.reason == ""


async def test_a_paused_leader_that_wakes_to_another_steps_down_and_then_stands_by() -> None:
    stage = await leading()
    stage.clock.advance(20.0)
    assert not stage.leadership.may_write()
    stage.store.held_by = THEIRS
    await stage.leadership.turn()
    assert stage.leadership.role is Role.LOST
    assert stage.leadership.lease is None
    assert "pid 22 on there" in stage.leadership.reason
    stage.store.held_by = None
    asked = len(stage.store.asked)
    await stage.leadership.turn()
    assert len(stage.store.asked) == asked, "it does not lead again before it has stepped down"
    stage.leadership.stepped_down()
    assert stage.leadership.role is Role.STANDING_BY
    await stage.leadership.turn()
    assert stage.leadership.may_write()


async def test_redis_away_at_the_start_is_waited_for_and_a_wrong_password_is_not() -> None:
    stage = Stage()
    stage.store.failure = StorageUnavailable("refused")
    await stage.leadership.begin()
    assert stage.leadership.role is Role.STANDING_BY
    assert "waits for Redis: refused" in stage.leadership.reason
    assert await stage.leadership.turn() == TIMES.retry_s
    stage.store.failure = None
    await stage.leadership.turn()
    assert stage.leadership.may_write()

    stage = Stage()
    stage.store.failure = StorageMisconfigured("wrong password")
    with pytest.raises(StorageMisconfigured, match="wrong password"):
        await stage.leadership.begin()


async def test_a_release_lets_go_once_and_a_lost_lease_is_not_released() -> None:
    stage = await leading()
    await stage.leadership.release()
    await stage.leadership.release()
    assert stage.store.asked.count("release") == 1
    assert stage.leadership.role is Role.RELEASED
    assert not stage.leadership.may_write()

    stage = await leading()
    stage.store.held_by = THEIRS
    await stage.leadership.turn()
    await stage.leadership.release()
    assert "release" not in stage.store.asked


async def test_a_release_that_redis_does_not_answer_is_said_and_harmless() -> None:
    stage = await leading()
    stage.store.failure = StorageUnavailable("gone")
    await stage.leadership.release()
    assert stage.store.asked[-1] == "close"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch":"x"}', '{"pid":1}'])
def test_any_value_of_the_lease_reads_as_somebody(text: str) -> None:
    assert read_lease(text).text == text
