"""Renewal of Dhan's token against the simulator's REST service and a real Redis: once, kept, and in time."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from config.credential_store import CredentialStore
from services import dhan_account
from services.base_provider import ProviderContext
from services.credential_keeper import CredentialKeeper, lock_key
from services.credential_state import CredentialState, MarketHours
from services.dhan_provider import DhanProvider
from services.errors import CredentialsRejected, ProviderRateLimited, ProviderUnavailable
from services.market_data.clock import SystemClock
from simulators.dhan import DhanSimulator
from tests.support.daemon import Daemon
from tests.support.eventually import FACTOR, eventually
from tests.support.stack import Stack

HOUR_S = 3600


class Host:
    """One daemon as far as credentials are concerned."""

    def __init__(self, dhan: DhanSimulator, redis_url: str, folder: Path, *, token: str = "") -> None:
        self.given = {
            "DHAN_CLIENT_ID": dhan.client_id,
            "DHAN_ACCESS_TOKEN": token or dhan.access_token,
            "DHAN_REST_URL": dhan.rest_url,
        }
        self.clock = SystemClock()
        folder.mkdir(exist_ok=True)
        self.store = CredentialStore(folder, lambda: self.given, lambda name: None)
        self.provider = DhanProvider(
            ProviderContext(
                clock=self.clock,
                deliver=lambda tick, received_ms: None,
                settings=self.store.settings,
                spawn=lambda work, name: asyncio.create_task(work),
                connection_lost=lambda symbols, since_ms, reason: None,
                connection_restored=lambda symbols, at_ms: None,
            )
        )
        self.keeper = CredentialKeeper(
            clock=self.clock,
            redis_url=redis_url,
            providers=lambda: [self.provider],
            hours=lambda code: MarketHours(open=True),
            save=self.store.save,
        )

    @property
    def token(self) -> str:
        return self.store.settings()["DHAN_ACCESS_TOKEN"]


@pytest.fixture
async def dhan() -> AsyncIterator[DhanSimulator]:
    async with DhanSimulator(rate=0.0) as simulator:
        simulator.tokens.issue(life_s=HOUR_S)
        yield simulator


async def test_what_ends_soon_is_renewed_once_however_many_daemons_there_are(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    hosts = [Host(dhan, redis_url, tmp_path / str(number)) for number in range(2)]
    old = dhan.access_token
    assert hosts[0].provider.credential_state is CredentialState.EXPIRING
    await asyncio.gather(*(host.keeper.look() for host in hosts))
    await asyncio.gather(*(host.keeper.look() for host in hosts))
    assert sum(it.content == "GET /v2/RenewToken" for it in dhan.requests) == 1
    assert dhan.tokens.refusal(old, dhan.client_id) == 807
    renewed = [host for host in hosts if host.token != old]
    assert len(renewed) == 1
    host = renewed[0]
    assert host.token == dhan.access_token
    assert host.keeper.renewals == {"DHAN": 1}
    assert host.keeper.problems == {}
    assert host.provider.credential_state is CredentialState.UNTESTED
    await dhan_account.check_token(dhan.rest_url, dhan.client_id, host.token)


async def test_what_lasts_is_left_alone(dhan: DhanSimulator, redis_url: str, tmp_path: Path) -> None:
    dhan.tokens.issue(life_s=20 * HOUR_S)
    host = Host(dhan, redis_url, tmp_path / "one")
    await host.keeper.look()
    assert [it.content for it in dhan.requests] == []


async def test_a_refused_renewal_is_said_once_and_not_repeated_until_the_token_changes(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    dhan.tokens.issue(consumer="APP", life_s=HOUR_S)
    host = Host(dhan, redis_url, tmp_path / "one")
    for _ in range(5):
        await host.keeper.look()
    assert sum(it.content == "GET /v2/RenewToken" for it in dhan.requests) == 1
    assert "cannot be renewed" in host.keeper.problems["DHAN"]
    assert host.token not in host.keeper.problems["DHAN"]
    assert host.provider.credential_state is CredentialState.EXPIRING, "it is good until it ends"
    host.given = {**host.given, "DHAN_ACCESS_TOKEN": dhan.tokens.issue(life_s=20 * HOUR_S)}
    await host.keeper.look()
    assert host.keeper.problems == {}


@pytest.mark.parametrize("fault", ["http_500", "no_json", "no_answer"])
async def test_a_renewal_that_came_to_nothing_is_tried_again_later(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path, fault: str
) -> None:
    host = Host(dhan, redis_url, tmp_path / "one")
    dhan.renewal = fault
    await host.keeper.look()
    assert dhan.fault_counts[f"renewal_{fault}"] >= 1
    if fault == "no_answer":
        # The old one is dead and the new one was lost on the way: that needs a human, and is known at once.
        assert "cannot be renewed" in host.keeper.problems["DHAN"]
        assert host.provider.credential_state is CredentialState.REFUSED
        return
    assert "not renewed yet" in host.keeper.problems["DHAN"]
    await host.keeper.look()
    assert dhan.fault_counts[f"renewal_{fault}"] == 1, "not at once"
    dhan.renewal = ""
    host.keeper._not_before_s.clear()
    client = redis.asyncio.from_url(redis_url)
    await client.delete(lock_key("DHAN"))
    await client.aclose()
    await host.keeper.look()
    assert host.keeper.problems == {}
    assert host.token == dhan.access_token


async def test_without_redis_nobody_renews_because_another_might(dhan: DhanSimulator, tmp_path: Path) -> None:
    host = Host(dhan, "redis://127.0.0.1:1/0", tmp_path / "one")
    await host.keeper.look()
    assert "while Redis is away" in host.keeper.problems["DHAN"]
    assert not any("RenewToken" in it.content for it in dhan.requests)


async def test_what_cannot_be_stored_is_kept_and_stored_later(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    host = Host(dhan, redis_url, tmp_path / "one")
    save, host.keeper._save = host.keeper._save, _full_disk
    await host.keeper.look()
    assert "cannot be stored" in host.keeper.problems["DHAN"]
    host.keeper._save = save
    await host.keeper.look()
    assert host.keeper.problems == {}
    assert host.token == dhan.access_token


def _full_disk(values: object) -> None:
    raise OSError(28, "No space left on device")


async def test_the_account_says_what_is_wrong_with_a_token(dhan: DhanSimulator) -> None:
    rest, client_id = dhan.rest_url, dhan.client_id
    await dhan_account.check_token(rest, client_id, dhan.access_token)
    with pytest.raises(CredentialsRejected, match="put a new DHAN_ACCESS_TOKEN"):
        await dhan_account.check_token(rest, client_id, "nonsense")
    dhan.data_plan_active = False
    with pytest.raises(CredentialsRejected, match="no active data plan"):
        await dhan_account.check_token(rest, client_id, dhan.access_token)
    dhan.data_plan_active = True
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        await dhan_account.check_token("http://127.0.0.1:1/v2", client_id, dhan.access_token)
    with pytest.raises(ProviderRateLimited):
        await asyncio.gather(
            *(dhan_account.check_token(rest, client_id, dhan.access_token) for _ in range(40))
        )


async def test_the_running_daemon_renews_what_ends_soon_and_goes_on_without_a_gap(
    stack: Stack, tmp_path: Path
) -> None:
    old = stack.dhan.tokens.issue(life_s=HOUR_S)
    async with stack.daemon(tmp_path / "state", DHAN_ACCESS_TOKEN=old) as daemon:
        await eventually(lambda: stack.dhan.access_token != old, within_s=30)

        async def row() -> dict[str, object]:
            return next(row for row in (await daemon.status())["providers"] if row["code"] == "DHAN")

        async def renewed() -> bool:
            found = await row()
            return found["credential_state"] == "untested" or found["credential_state"] == "valid"

        await eventually(renewed, within_s=30)
        left_ms = int(str((await row())["credential_expires_ms"])) - daemon_now_ms(daemon)
        assert left_ms > 23 * HOUR_S * 1000

        async def streams() -> bool:
            return (await row())["state"] == "streaming"

        await eventually(streams, within_s=30)
        assert stack.dhan.access_token not in daemon.log()
        assert await daemon.stop() == 0
    # The old token is dead; what was renewed is found at the next start, the settings unchanged.
    async with stack.daemon(tmp_path / "state", DHAN_ACCESS_TOKEN=old) as daemon:
        await eventually(streams, within_s=30)


def daemon_now_ms(_: Daemon) -> int:
    return SystemClock().now_ms()


class Steps:
    """Awaits `work` and calls `suspended` whenever it is about to wait."""

    def __init__(self, work: Coroutine[Any, Any, None], suspended: Callable[[], None]) -> None:
        self._work = work
        self._suspended = suspended

    def __await__(self) -> Generator[Any, None, None]:
        inner = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waits_for = inner.send(None) if error is None else inner.throw(error)
            except StopIteration:
                return
            error = None
            self._suspended()
            try:
                yield waits_for
            except BaseException as caught:  # noqa: BLE001 - as `yield from` does
                error = caught


class Cut:
    """Has a keeper look, and cancels that at its `at`-th wait, those within the renewal counted too."""

    def __init__(self, host: Host, at: int) -> None:
        self.waits = 0
        self.was_cut = False
        self._at = at
        self._keeper = host.keeper
        exchange = self._keeper._exchange

        async def stepped(*args: Any) -> None:
            await Steps(exchange(*args), self._wait)

        self._keeper._exchange = stepped  # type: ignore[method-assign]

    def _wait(self) -> None:
        self.waits += 1
        if self.waits == self._at:
            self._looking.cancel()

    async def look(self) -> None:
        async def looking() -> None:
            await Steps(self._keeper.look(), self._wait)

        self._looking = asyncio.create_task(looking())
        await asyncio.wait([self._looking])
        self.was_cut = self._looking.cancelled()
        if not self.was_cut:
            self._looking.result()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_stop_at_any_moment_leaves_the_live_token_on_disk(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(redis_url)
    before = during = 0
    for at in range(1, 200):
        await client.delete(lock_key("DHAN"))
        old = dhan.tokens.issue(life_s=HOUR_S)
        asked = len(dhan.requests)
        host = Host(dhan, redis_url, tmp_path / str(at))
        cut = Cut(host, at)
        await cut.look()
        await host.keeper.finish(20 * FACTOR)
        # As the next start finds it.
        found = Host(dhan, redis_url, tmp_path / str(at), token=old).token
        assert dhan.tokens.refusal(found, dhan.client_id) is None, at
        assert (found != old) == (len(dhan.requests) > asked), at
        assert host.keeper.problems == {}, at
        if not cut.was_cut:
            assert found != old
            break
        before += found == old
        during += found != old
    else:
        raise AssertionError("it never came to its end")
    await client.aclose()
    # A client that is cancelled while it connects leaves its socket to the collector.
    gc.collect()
    assert before >= 2, "cut before anything was asked of Dhan"
    assert during >= 5, "cut while Dhan was asked and the answer was stored"


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_of_two_daemons_one_renews_though_the_first_is_stopped_at_any_moment(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(redis_url)
    for at in range(1, 200):
        await client.delete(lock_key("DHAN"))
        old = dhan.tokens.issue(life_s=HOUR_S)
        asked = len(dhan.requests)
        # The token stands in a place that both read.
        first, second = (Host(dhan, redis_url, tmp_path / str(at), token=old) for _ in range(2))
        cut = Cut(first, at)
        await cut.look()
        await second.keeper.look()
        await first.keeper.finish(20 * FACTOR)
        await second.keeper.look()
        assert len(dhan.requests) - asked <= 1, at
        assert first.token == second.token, at
        assert dhan.tokens.refusal(second.token, dhan.client_id) is None, at
        assert first.keeper.problems == second.keeper.problems == {}, at
        if not cut.was_cut:
            assert second.token != old
            break
    else:
        raise AssertionError("it never came to its end")
    await client.aclose()
    gc.collect()


async def test_who_leads_again_waits_for_the_renewal_that_went_on(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    host = Host(dhan, redis_url, tmp_path / "one")
    old, save, store = host.token, threading.Event(), host.keeper._save

    def slowly(values: Mapping[str, str]) -> None:
        assert save.wait(20 * FACTOR)
        store(values)

    host.keeper._save = slowly
    first = asyncio.create_task(host.keeper.run())
    await eventually(lambda: dhan.access_token != old, within_s=10)
    first.cancel()
    await asyncio.wait([first], timeout=5 * FACTOR)
    assert first.cancelled(), "a stop is not held up by it"
    await host.keeper.finish(0.05)
    assert host.token == old, "it waits no longer than it was told"
    again = asyncio.create_task(host.keeper.look())
    save.set()
    await again
    assert host.token == dhan.access_token
    assert host.keeper.renewals == {"DHAN": 1}
    assert sum(it.content == "GET /v2/RenewToken" for it in dhan.requests) == 1


async def test_what_could_not_be_stored_is_stored_at_the_stop(
    dhan: DhanSimulator, redis_url: str, tmp_path: Path
) -> None:
    host = Host(dhan, redis_url, tmp_path / "one")
    save, host.keeper._save = host.keeper._save, _full_disk
    await host.keeper.look()
    host.keeper._save = save
    await host.keeper.finish(5 * FACTOR)
    assert host.token == dhan.access_token
    assert host.keeper.problems == {}


async def test_a_daemon_that_is_stopped_while_dhan_answers_starts_again_with_the_new_token(
    stack: Stack, tmp_path: Path
) -> None:
    old = stack.dhan.tokens.issue(life_s=HOUR_S)
    stack.dhan.renewal = "slow"
    async with stack.daemon(tmp_path / "state", DHAN_ACCESS_TOKEN=old) as daemon:
        # Dhan has made the new token, and takes its time to say so.
        await eventually(lambda: stack.dhan.access_token != old, within_s=30)
        assert await daemon.stop() == 0
        assert stack.dhan.access_token not in daemon.log()
    stack.dhan.renewal = ""
    kept = CredentialStore(tmp_path / "state", lambda: {"DHAN_ACCESS_TOKEN": old}, lambda name: None)
    assert kept.settings()["DHAN_ACCESS_TOKEN"] == stack.dhan.access_token
