"""The lease in Redis: `md:lease` says who may write this key space, `md:fence` counts who ever might.

Stands beneath `leadership`, which decides; here are only the commands, each of them one step that the
server carries out as a whole. The value of `md:lease` is JSON: `owner` (random, one a process start),
`host`, `pid`, `state_dir` (id of the state directory), `boot` (id of the kernel's start), `epoch`. It
ends by itself when it is not renewed. `md:leader` keeps the newest one until it is released: after an outage
of Redis, in which it could not be renewed, its holder is given time to come back. A daemon that ingests
some exchanges only (`Shard`) has keys of its own, `md:lease:BSE,NSE`; `md:shards` names those there are.
Shards with an exchange in common exclude each other: neither is given its lease while the other's holds.
Never retries and never waits for the lease.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from services.errors import StorageMisconfigured, StorageUnavailable
from services.storage.address import parse_address
from services.storage.client import REPLY_TIMEOUT_S, check_server, make_client, storage_error
from services.storage.keys import SHARDS
from services.storage.shard import EVERYTHING, Shard

_log = structlog.get_logger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_WRITER_NAME = re.compile(r"^marketd:[a-z_]+:(\d+\.[0-9a-f]+(?:@([A-Z0-9_,]+))?)$")
_FENCING_ROUNDS = 5
_LATE_MS = round(REPLY_TIMEOUT_S * 1_000)

# The names of the other shards that have an exchange in common with ours, the last argument; `*` is all of
# them, and always there.
_OVERLAPPING = """
local shard = ARGV[#ARGV]
local function key(kind, other) return other == '*' and 'md:' .. kind or 'md:' .. kind .. ':' .. other end
local function overlaps(other)
  if other == '*' or shard == '*' then return true end
  for code in string.gmatch(shard, '[^,]+') do
    if string.find(',' .. other .. ',', ',' .. code .. ',', 1, true) then return true end
  end
  return false
end
local function overlapping()
  local found = shard ~= '*' and {'*'} or {}
  -- A user that may not read the names cannot have written one: where it leads there are no shards.
  local names = redis.pcall('HGETALL', KEYS[4])
  if names.err then return found end
  for i = 1, #names, 2 do
    if names[i] ~= shard and overlaps(names[i]) then found[#found + 1] = names[i] end
  end
  return found
end
"""
# Only GET, SET and the commands of a hash, so that a Redis user with few rights can do it. A lease of our own
# state directory on this very kernel is a dead process's: its file lock is ours now.
_ACQUIRE = (
    _OVERLAPPING
    + """
local function own(text)
  local ok, lease = pcall(cjson.decode, text)
  return ok and type(lease) == 'table' and lease.state_dir == ARGV[3], lease
end
local function dead(text)
  local ours, lease = own(text)
  return ours and lease.boot == ARGV[4] and ARGV[4] ~= ''
end
local held = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 > tonumber(ARGV[7]) then return {3, ''} end
local last = redis.call('GET', KEYS[3])
if held and not dead(held) then return {0, held} end
local others, forgotten = overlapping(), not last
for _, other in ipairs(others) do
  local theirs = redis.call('GET', key('lease', other))
  if theirs and not dead(theirs) then return {0, theirs} end
  if redis.call('GET', key('leader', other)) then forgotten = false end
end
if not held and last and last ~= '' and ARGV[5] == '1' and not own(last) then return {2, last} end
if not held and forgotten and ARGV[6] == '1' then return {2, ''} end
for _, other in ipairs(others) do
  local left = redis.call('GET', key('leader', other))
  if left and left ~= '' and ARGV[5] == '1' and not own(left) then return {2, left} end
end
for _, other in ipairs(others) do
  -- Who led there cannot come back to a lease that lapsed, and finds out that another led meanwhile.
  local fence = redis.call('GET', key('fence', other))
  if fence then
    redis.call('SET', key('fence', other), string.format('%d', (tonumber(fence) or 0) + 1))
    redis.call('SET', key('leader', other), '')
    redis.call('SET', key('lease', other), '', 'PX', 1)
  end
end
if shard ~= '*' then redis.call('HSET', KEYS[4], shard, '1') end
local epoch = string.format('%d', (tonumber(redis.call('GET', KEYS[2])) or 0) + 1)
local lease = ARGV[1] .. epoch .. '}'
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[3], lease)
redis.call('SET', KEYS[1], lease, 'PX', ARGV[2])
return {1, lease}
"""
)
_RENEW = (
    _OVERLAPPING
    + """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return {0, held} end
if not held then
  local fence = redis.call('GET', KEYS[2])
  if fence and fence ~= ARGV[3] then return {0, ''} end
  for _, other in ipairs(overlapping()) do
    local theirs = redis.call('GET', key('lease', other))
    if theirs then return {0, theirs} end
  end
  if shard ~= '*' then redis.call('HSET', KEYS[4], shard, '1') end
  redis.call('SET', KEYS[2], ARGV[3])
  redis.call('SET', KEYS[3], ARGV[1])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {held and 1 or 2, ARGV[1]}
"""
)
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[3], '')
redis.call('SET', KEYS[1], ARGV[1], 'PX', 1)
return 1
"""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the key space. `text` is the value of `md:lease` to the byte."""

    owner: str = ""
    host: str = ""
    pid: int = 0
    state_dir: str = ""
    boot: str = ""
    epoch: int = 0
    shard: str = ""
    text: str = ""

    @property
    def token(self) -> str:
        """What the names of the writers' connections carry: no two leases have the same."""
        return f"{self.epoch}.{self.owner}{'@' if self.shard else ''}{self.shard}"

    def __str__(self) -> str:
        if not self.text:
            return "another daemon"
        part = f", for {self.shard}" if self.shard else ""
        return f"the daemon with pid {self.pid} on {self.host} (epoch {self.epoch}{part})"


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt: `lease` is the one that stands now, ours where `ours` is true.

    `lapsed` says that ours had ended, and nobody had led since; `awaited` that another's has, and that it is
    left time to come back.
    """

    ours: bool
    lease: Lease
    lapsed: bool = False
    awaited: bool = False


def read_lease(text: str) -> Lease:
    """Return what the value of `md:lease` says; of a damaged one only that there is one."""
    try:
        return msgspec.structs.replace(msgspec.json.decode(text, type=Lease), text=text)
    except msgspec.MsgspecError:
        return Lease(owner="unknown", host="unknown", text=text)


def boot_id() -> str:
    """Return the id of this start of the kernel, empty where unknown; a file lock holds within one only."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class RedisLease:
    """The commands of one claimant. All raise `StorageError`; `close` when done."""

    def __init__(
        self, redis_url: str, *, state_dir: Callable[[], str], ttl_s: float, shard: Shard | None = None
    ) -> None:
        """Prepare a claim to a shard, all exchanges by default; the lease lasts `ttl_s` seconds.

        `state_dir()` returns the id of the state directory, at the first attempt.
        """
        self._shard = shard or Shard()
        self._url = redis_url
        self._ttl_ms = str(round(ttl_s * 1000))
        self._database = str(parse_address(redis_url).database)
        self._client: Redis | None = None
        self._ttl_s = ttl_s
        self._checked = self._failed = False
        self._patient_until_s = self._seen_until_s = 0.0
        self._clock_ahead_ms = 0
        self._told_of_rights = False
        self._state_dir = state_dir
        self._owner = secrets.token_hex(4)

    async def acquire(self) -> LeaseAnswer:
        """Take the lease if nobody holds it, or only a dead process of our own state directory.

        One that another daemon let lapse because Redis was away is left to it for as long as a lease lasts.
        """
        now_s = time.monotonic()
        if not self._checked:
            try:
                facts = await check_server(self._redis())
            except StorageUnavailable:
                self._failed = True
                raise
            # Nobody could renew before this, however long ago the lease ended.
            left_s = self._ttl_s if self._failed else self._ttl_s - facts.uptime_s
            self._patient_until_s = max(self._patient_until_s, now_s + left_s)
            self._clock_ahead_ms = facts.time_ms - round(time.monotonic() * 1_000)
            self._checked = True
        claim = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "state_dir": self._state_dir(),
            "boot": boot_id(),
        }
        if self._shard.exchanges:
            claim["shard"] = self._shard.name
        how, text = await self._eval(
            _ACQUIRE,
            msgspec.json.encode(claim).decode()[:-1] + ',"epoch":',
            self._ttl_ms,
            str(claim["state_dir"]),
            str(claim["boot"]),
            str(int(now_s < self._patient_until_s)),
            str(int(now_s < self._seen_until_s)),
            # A server that was hung must not carry out what we gave up waiting for.
            str(round(time.monotonic() * 1_000) + self._clock_ahead_ms + _LATE_MS),
        )
        if how == 3:
            self._checked, self._failed = False, True
            raise StorageUnavailable("Redis came to our question for the lease too late")
        if not how:
            self._seen_until_s = now_s + self._ttl_s
        return LeaseAnswer(ours=how == 1, lease=read_lease(str(text)), awaited=how == 2)

    async def renew(self, lease: Lease) -> LeaseAnswer:
        """Make ours last from now on. One that ended while nobody else led is ours again."""
        how, text = await self._eval(_RENEW, lease.text, self._ttl_ms, str(lease.epoch))
        if not how:
            return LeaseAnswer(ours=False, lease=read_lease(str(text)) if text else Lease())
        return LeaseAnswer(ours=True, lease=lease, lapsed=how == 2)

    async def release(self, lease: Lease) -> None:
        """Let go of ours at once; harmless when it is no longer."""
        await self._eval(_RELEASE, lease.text)

    async def fence_off(self, lease: Lease) -> bool:
        """Cut every writer's connection of another lease of our exchanges, with all it still had to say.

        Returns False where the Redis user may not do that: then only time keeps the others out.
        """
        try:
            for _ in range(_FENCING_ROUNDS):
                others = self._writers_of_others(await self._redis().client_list(_type="normal"), lease)
                if not others:
                    return True
                _log.warning("writers_fenced_off", names=sorted(others.values()), epoch=lease.epoch)
                for connection_id in others:
                    await self._redis().client_kill_filter(_id=connection_id, skipme=False)
        except (NoPermissionError, ResponseError) as error:
            if not self._told_of_rights:
                self._told_of_rights = True
                _log.error(
                    "fencing_by_time_only",
                    error=str(error),
                    remedy="give the Redis user +client|list and +client|kill",
                )
            return False
        except RedisError as error:
            raise storage_error(error) from error
        raise StorageUnavailable("the writers of the last leader do not go away")

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        client, self._client = self._client, None
        self._checked = False
        if client is not None:
            await client.aclose()

    def _writers_of_others(self, rows: Any, lease: Lease) -> dict[str, str]:
        found = {}
        for row in rows:
            match = _WRITER_NAME.match(row.get("name", ""))
            if match is None or match[1] == lease.token or row.get("db") != self._database:
                continue
            # A lease without a name is one of everything.
            if self._shard.overlaps(match[2] or EVERYTHING):
                found[str(row["id"])] = str(row["name"])
        return found

    def _redis(self) -> Redis:
        if self._client is None:
            self._client = make_client(self._url, name="marketd:lease")
        return self._client

    async def _eval(self, script: str, *arguments: str) -> Any:
        try:
            shard = self._shard
            return await self._redis().eval(script, 4, *shard.lease_keys, SHARDS, *arguments, shard.name)
        except RedisError as error:
            self._checked, self._failed = False, True
            if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
                raise StorageMisconfigured(
                    f"the key {self._shard.lease_keys[0]} or {self._shard.lease_keys[1]} holds something "
                    "else: delete it"
                ) from error
            raise storage_error(error) from error
        except OSError as error:
            self._checked, self._failed = False, True
            raise StorageUnavailable(f"Redis cannot be reached: {error}") from error
