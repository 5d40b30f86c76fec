"""Renewal of Dhan's token against the simulator's REST service and a real Redis: once, kept, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

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
from tests.support.eventually import eventually
from tests.support.stack import Stack

HOUR_S = 3600


class Host:
    """One daemon as far as credentials are concerned."""

    def __init__(self, dhan: DhanSimulator, redis_url: str, folder: Path) -> None:
        self.given = {
            "DHAN_CLIENT_ID": dhan.client_id,
            "DHAN_ACCESS_TOKEN": dhan.access_token,
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
