"""The lease in a real Redis: who gets it, how it ends, and that a deposed writer's connection is dead."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from services.errors import StorageMisconfigured, StorageUnavailable
from services.market_data.clock import ManualClock, SystemClock
from services.storage.address import parse_address
from services.storage.client import make_client
from services.storage.connection import RedisConnection, open_connection
from services.storage.leadership import Leadership, LeaseTimes, Role
from services.storage.redis_lease import LeaseAnswer, RedisLease
from services.storage.resp import command, to_bytes
from services.storage.shard import Shard
from tests.support.eventually import FACTOR, eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import PrivateRedis


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


MakeLease = Callable[..., RedisLease]


@pytest.fixture
async def claim(redis_url: str) -> AsyncIterator[MakeLease]:
    made: list[RedisLease] = []

    def make(
        state_dir: str, ttl_s: float = 15.0, url: str = redis_url, shard: Shard | None = None
    ) -> RedisLease:
        made.append(RedisLease(url, state_dir=lambda: state_dir, ttl_s=ttl_s, shard=shard))
        return made[-1]

    yield make
    for lease in made:
        await lease.close()


def write(connection: RedisConnection, *words: str) -> asyncio.Future[list[object]]:
    answered: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
    connection.send(to_bytes([command(*words)]), 1, answered.set_result)
    return answered


async def test_the_first_gets_it_and_the_second_hears_who_has_it(claim: MakeLease, client: Redis) -> None:
    first = await claim("one").acquire()
    assert first.ours
    second = await claim("two").acquire()
    assert not second.ours
    assert second.lease == first.lease
    value = json.loads(await client.get("md:lease"))
    assert value.keys() == {"owner", "host", "pid", "state_dir", "boot", "epoch"}
    assert value["epoch"] == 1 == int(await client.get("md:fence"))
    assert 14_000 < await client.pttl("md:lease") <= 15_000


async def test_a_released_lease_is_free_at_once_and_every_leader_has_a_greater_epoch(
    claim: MakeLease,
) -> None:
    one, two = claim("one"), claim("two")
    first = await one.acquire()
    await one.release(first.lease)
    second = await eventually(two.acquire)
    assert second.ours
    assert second.lease.epoch == first.lease.epoch + 1
    await one.release(first.lease)
    assert not (await one.acquire()).ours, "an old leader cannot release what is another's"


async def test_a_restart_on_the_same_state_directory_takes_it_over_at_once(claim: MakeLease) -> None:
    first = await claim("one").acquire()
    second = await claim("one").acquire()
    assert second.ours
    assert second.lease.epoch == first.lease.epoch + 1


async def test_another_machine_with_a_copy_of_the_state_directory_does_not(
    claim: MakeLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    await claim("one").acquire()
    monkeypatch.setattr("services.storage.redis_lease.boot_id", lambda: "another kernel")
    assert not (await claim("one").acquire()).ours
    monkeypatch.setattr("services.storage.redis_lease.boot_id", lambda: "")
    assert not (await claim("one").acquire()).ours


async def test_it_ends_by_itself_and_renewing_makes_it_last(claim: MakeLease) -> None:
    one, two = claim("one", ttl_s=0.5), claim("two", ttl_s=0.5)
    first = await one.acquire()
    for _ in range(4):
        await asyncio.sleep(0.2)
        assert (await one.renew(first.lease)).ours
        assert not (await two.acquire()).ours

    async def taken() -> bool:
        return (await two.acquire()).ours

    await eventually(taken)
    answer = await one.renew(first.lease)
    assert not answer.ours
    assert answer.lease.state_dir == "two"


async def test_after_an_outage_of_redis_its_last_leader_is_given_time_to_come_back(
    private_redis: Callable[[], Awaitable[PrivateRedis]], claim: MakeLease
) -> None:
    server = await private_redis()
    one, two = (
        claim("one", ttl_s=1.0 * FACTOR, url=server.url),
        claim("two", ttl_s=1.0 * FACTOR, url=server.url),
    )
    first = await one.acquire()
    assert not (await two.acquire()).ours
    server.pause()
    with pytest.raises(StorageUnavailable):
        await one.renew(first.lease)
    with pytest.raises(StorageUnavailable):
        await two.acquire()
    # By now the lease has ended, and two questions for it lie in the socket of the hung server.
    server.resume()
    answer = await eventually(lambda: _unless_away(two))
    assert not answer.ours
    assert answer.lease.state_dir == "one"
    answer = await one.renew(first.lease)
    assert (answer.ours, answer.lease.epoch) == (True, 1), "what was asked of the hung server led nowhere"
    await one.release(first.lease)

    async def taken() -> bool:
        return (await two.acquire()).ours

    assert await eventually(taken), "a lease that was released is nobody's"


async def test_a_dead_leader_is_not_waited_for_longer_than_a_lease(
    private_redis: Callable[[], Awaitable[PrivateRedis]], claim: MakeLease
) -> None:
    server = await private_redis()
    await claim("one", ttl_s=0.2, url=server.url).acquire()
    await server.kill()
    await server.start()
    two = claim("two", ttl_s=2.0, url=server.url)
    await eventually(lambda: _lease_is_gone(server.url))
    assert (await two.acquire()).awaited, "the server has just started: nobody could renew"

    async def taken() -> bool:
        return (await two.acquire()).ours

    await eventually(taken)


async def test_a_lease_that_was_there_and_is_gone_without_a_trace_is_not_taken_at_once(
    claim: MakeLease, client: Redis
) -> None:
    one, two = claim("one", ttl_s=0.5), claim("two", ttl_s=0.5)
    first = await one.acquire()
    assert not (await two.acquire()).ours
    await client.flushall()
    assert (await two.acquire()).awaited
    assert (await one.renew(first.lease)).ours, "whoever led goes on in the emptied Redis"
    assert not (await two.acquire()).ours


async def _unless_away(store: RedisLease) -> LeaseAnswer | None:
    try:
        return await store.acquire()
    except StorageUnavailable:
        return None


async def _lease_is_gone(url: str) -> bool:
    client = make_client(url)
    try:
        return not await client.exists("md:lease")
    finally:
        await client.aclose()


async def test_a_lapsed_lease_is_renewed_only_while_nobody_led_since(claim: MakeLease, client: Redis) -> None:
    one, two = claim("one"), claim("two", ttl_s=0.3)
    first = await one.acquire()
    await client.delete("md:lease")
    answer = await one.renew(first.lease)
    assert (answer.ours, answer.lapsed) == (True, True)
    await client.flushall()
    assert (await one.renew(first.lease)).ours
    assert int(await client.get("md:fence")) == first.lease.epoch
    await client.delete("md:lease")
    second = await two.acquire()
    await two.release(second.lease)
    await eventually(lambda: _is_gone(client))
    assert not (await one.renew(first.lease)).ours


async def _is_gone(client: Redis) -> bool:
    return not await client.exists("md:lease")


async def test_a_new_leader_cuts_the_writers_of_the_last_one_and_no_others(
    claim: MakeLease, redis_url: str, client: Redis
) -> None:
    deposed = Leadership(claim("one", ttl_s=0.3), ManualClock(), times=LeaseTimes())
    await deposed.begin()
    address = parse_address(redis_url)
    writer = await deposed.connect(address, "marketd:stream")
    assert await write(writer, "SET", "md:by", "one") == ["OK"]
    elsewhere = Leadership(claim("three", url=redis_url.removesuffix("/0") + "/3"), ManualClock())
    await elsewhere.begin()
    bystander = await elsewhere.connect(parse_address(redis_url.removesuffix("/0") + "/3"), "marketd:stream")
    leader = Leadership(claim("two", ttl_s=0.3), SystemClock())

    async def leads() -> bool:
        await leader.turn()
        return leader.leading

    await eventually(leads)
    # The old one's clock stands still: for all it knows it leads. Its connection is dead all the same.
    assert deposed.may_write()
    await eventually(lambda: writer.closed_by is not None)
    with pytest.raises(StorageUnavailable, match="not ours any more"):
        await deposed.connect(address, "marketd:stream")
    own = await leader.connect(address, "marketd:stream")
    assert await write(own, "SET", "md:by", "two") == ["OK"]
    assert await write(bystander, "PING") == ["PONG"], "another database is another key space"
    await deposed.turn()
    assert deposed.role is Role.LOST
    for connection in (own, bystander):
        connection.abort(StorageUnavailable("done"))
    await elsewhere.release()
    await leader.release()


async def test_what_a_deposed_leader_still_has_on_the_way_is_never_carried_out(
    claim: MakeLease, redis_url: str, client: Redis
) -> None:
    direct = parse_address(redis_url)
    store = claim("one")
    deposed = Leadership(store, ManualClock())
    await deposed.begin()
    assert deposed.lease is not None
    async with FaultProxy(direct.host, direct.port) as proxy:
        address = dataclasses.replace(direct, host="127.0.0.1", port=proxy.port)
        writer = await deposed.connect(address, "marketd:stream")
        assert await write(writer, "SET", "md:by", "one") == ["OK"]
        proxy.latency_s = 1.0 * FACTOR
        late = write(writer, "SET", "md:by", "the old epoch")
        leader = Leadership(claim("two"), SystemClock())
        await store.release(deposed.lease)

        async def leads() -> bool:
            await leader.turn()
            return leader.leading

        await eventually(leads, within_s=0.9)
        await eventually(lambda: writer.closed_by is not None)
        await eventually(lambda: proxy.connections == 0)
        assert proxy.delayed_chunks > 0
    assert not late.done()
    assert await client.get("md:by") == "one"
    await leader.release()


async def test_a_connection_is_refused_batches_when_the_fence_closes(
    claim: MakeLease, redis_url: str
) -> None:
    clock = ManualClock()
    leadership = Leadership(claim("one"), clock)
    await leadership.begin()
    writer = await leadership.connect(parse_address(redis_url), "marketd:stream")
    assert writer.takes_a_batch()
    clock.advance(10.0)
    assert not writer.takes_a_batch()
    assert isinstance(writer.closed_by, StorageUnavailable)
    await leadership.release()


async def test_without_the_right_to_cut_connections_it_leads_all_the_same_and_says_so(
    claim: MakeLease, redis_url: str, client: Redis
) -> None:
    await client.execute_command(
        "ACL", "SETUSER", "meek", "reset", "on", ">secretsecret", "~md:*", "+get", "+set", "+eval",
        "+info", "+hello", "+auth", "+ping", "+client|setname", "+client|setinfo", "+time",
    )  # fmt: skip
    try:
        host = redis_url.rpartition("@")[2]
        leadership = Leadership(claim("one", url=f"redis://meek:secretsecret@{host}"), SystemClock())
        await leadership.begin()
        assert leadership.may_write()
        assert leadership.status()["fenced"] is False
        await leadership.release()
    finally:
        await client.execute_command("ACL", "DELUSER", "meek")


async def test_another_kind_of_value_under_the_key_is_said(claim: MakeLease, client: Redis) -> None:
    await client.lpush("md:lease", "x")
    with pytest.raises(StorageMisconfigured, match="delete it"):
        await claim("one").acquire()


# ---- shards -----------------------------------------------------------------------------------------


async def test_shards_without_a_common_exchange_lead_side_by_side(
    claim: MakeLease, client: Redis, redis_url: str
) -> None:
    nse, bse = claim("one", shard=Shard.of(["NSE"])), claim("two", shard=Shard.of(["BSE", "MCX"]))
    first, second = await nse.acquire(), await bse.acquire()
    assert (first.ours, second.ours) == (True, True)
    assert json.loads(await client.get("md:lease:NSE"))["shard"] == "NSE"
    assert await client.exists("md:lease:BSE,MCX") == 1
    assert await client.exists("md:lease") == 0
    writer = await open_connection(parse_address(redis_url), f"marketd:stream:{first.lease.token}")
    assert await bse.fence_off(second.lease)
    assert await asyncio.wait_for(write(writer, "PING"), 5 * FACTOR) == ["PONG"], "another shard's writer"
    assert (await nse.renew(first.lease)).ours
    writer.abort(StorageUnavailable("the test ends"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["NSE", "BSE"], ["BSE", "MCX"]),
        ([], ["NSE"]),
        (["NSE"], []),
        (["NSE", "BSE"], ["BSE"]),
    ],
    ids=str,
)
async def test_shards_with_a_common_exchange_exclude_each_other(
    claim: MakeLease, client: Redis, redis_url: str, first: list[str], second: list[str]
) -> None:
    one, two = (
        claim("one", ttl_s=0.5, shard=Shard.of(first)),
        claim("two", ttl_s=0.5, shard=Shard.of(second)),
    )
    led = await one.acquire()
    assert led.ours
    refused = await two.acquire()
    assert not refused.ours
    assert refused.lease == led.lease, "it hears who holds the exchange"
    writer = await open_connection(parse_address(redis_url), f"marketd:stream:{led.lease.token}")

    async def taken(lease: RedisLease) -> LeaseAnswer | None:
        answer = await lease.acquire()
        return answer if answer.ours else None

    answer = await eventually(lambda: taken(two))
    assert await two.fence_off(answer.lease)
    await eventually(lambda: writer.closed_by is not None)
    assert not (await one.renew(led.lease)).ours, "a lapsed shard does not come back beside another"
    await two.release(answer.lease)
    again = await eventually(lambda: taken(one))
    assert again.lease.epoch > led.lease.epoch + 1, "it can tell that another led meanwhile"


async def test_after_a_flush_overlapping_shards_do_not_both_lead(claim: MakeLease, client: Redis) -> None:
    one, two = claim("one", shard=Shard.of(["NSE", "BSE"])), claim("two", shard=Shard.of(["BSE"]))
    led = await one.acquire()
    assert not (await two.acquire()).ours
    await client.flushall()
    assert not (await two.acquire()).ours, "it waits for whoever led a moment ago"
    assert (await one.renew(led.lease)).ours
    assert not (await two.acquire()).ours
