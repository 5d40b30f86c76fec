"""The Redis users marketd needs, and exactly which commands each of them may use.

Read by `deploy/redis/users_acl.py`, which prints them for the server, by `doctor`, and by the tests, which
run the daemon as the writer. Every right stands here by name; no category is granted.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from services.storage.keys import DEPTH_INTEREST, INTEREST, OPTIONS_INTEREST

_CONNECTION = ("ping", "hello", "auth", "select", "client|setname", "client|setinfo")
_READING = (
    *(
        "get",
        "exists",
        "type",
        "ttl",
        "pttl",
        "hget",
        "hmget",
        "hgetall",
        "zscore",
        "zrange",
        "zrangebyscore",
    ),
    *("xlen", "xrange", "xrevrange", "xread", "xinfo|stream", "xinfo|groups", "xinfo|consumers"),
    *(
        "ts.get",
        "ts.mget",
        "ts.range",
        "ts.revrange",
        "ts.mrange",
        "ts.mrevrange",
        "ts.info",
        "ts.queryindex",
    ),
)

WRITER_COMMANDS: tuple[str, ...] = (
    *_CONNECTION,
    # Series: made, written in batches, repaired; compaction rules make the longer bars.
    *("ts.create", "ts.alter", "ts.add", "ts.madd", "ts.del", "ts.info", "ts.get", "ts.mget"),
    *("ts.range", "ts.revrange", "ts.createrule", "ts.deleterule"),
    # Streams, the newest tick, and what a start or a resuming client reads back.
    *("xadd", "xtrim", "xrange", "xrevrange", "xread", "xinfo|stream", "xinfo|groups", "xinfo|consumers"),
    *("hset", "hdel", "hget", "hgetall", "multi", "exec"),
    # The epoch, the lease and its fencing, the leases of consumers.
    *("get", "set", "expire", "eval", "evalsha", "client|list", "client|kill"),
    *("zrangebyscore", "zremrangebyscore"),
    # What the server is: version, role, persistence, clock.
    *("info", "time"),
)
"""What the daemon and its commands send."""

READER_COMMANDS: tuple[str, ...] = (*_CONNECTION, *_READING)
"""What a program needs that reads series, streams and newest ticks."""

CONSUMER_GROUP_COMMANDS: tuple[str, ...] = (
    *("xreadgroup", "xack", "xclaim", "xautoclaim", "xpending"),
    *("xgroup|create", "xgroup|setid", "xgroup|destroy", "xgroup|createconsumer", "xgroup|delconsumer"),
)
"""What a consumer group needs besides, on the streams only."""

INTEREST_COMMANDS: tuple[str, ...] = ("zadd", "zrem")
"""What asking for instruments, order books and chains needs, on `INTEREST_KEYS` only."""

INTEREST_KEYS = " ".join(f"~{key}" for key in (INTEREST, DEPTH_INTEREST, OPTIONS_INTEREST))

TOO_MUCH: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ACL", ("ACL", "WHOAMI")),
    ("CONFIG", ("CONFIG", "GET", "port")),
    ("MODULE", ("MODULE", "LIST")),
    ("SLOWLOG", ("SLOWLOG", "LEN")),
    ("DBSIZE", ("DBSIZE",)),
    ("keys outside md:", ("GET", "marketd-doctor-outside")),
)
"""What no user of ours needs, each with a harmless command that only those can run who may more."""


class RedisUser(msgspec.Struct, frozen=True, kw_only=True):
    """One user: its name, and its rights in the words of Redis' ACL rules, passwords left out."""

    name: str
    rights: tuple[str, ...]


def _allow(commands: tuple[str, ...]) -> str:
    return " ".join(f"+{command}" for command in commands)


WRITER = RedisUser(name="marketd-writer", rights=("~md:*", "&md:*", "-@all", _allow(WRITER_COMMANDS)))
READER = RedisUser(name="marketd-reader", rights=("~md:*", "resetchannels", "-@all", _allow(READER_COMMANDS)))
CONSUMER = RedisUser(
    name="marketd-consumer",
    rights=(
        *READER.rights,
        f"(~md:ticks:* ~md:depth:* -@all {_allow(CONSUMER_GROUP_COMMANDS)})",
        f"({INTEREST_KEYS} -@all {_allow(INTEREST_COMMANDS)})",
    ),
)
GATEWAY = RedisUser(
    name="marketd-gateway",
    rights=(
        *("~md:*", "resetchannels", "-@all", _allow((*READER_COMMANDS, "multi", "exec"))),
        f"({INTEREST_KEYS} -@all {_allow(('zadd',))})",
    ),
)
"""What `run --role gateway` needs: to read everything, and to lease what its clients watch."""
ADMIN = RedisUser(name="marketd-admin", rights=("~*", "&*", "+@all"))


def acl_line(user: RedisUser, password_sha256: str) -> str:
    """Return the line of an ACL file for a user whose password has this SHA-256 (64 hex digits)."""
    return f"user {user.name} reset on #{password_sha256} {' '.join(user.rights)}"


def acl_file(hash_of: Callable[[RedisUser], str | None]) -> list[str]:
    """Return a whole ACL file: the default user off, and every user `hash_of` has a password hash for."""
    lines = ["user default reset off"]
    for user in (ADMIN, WRITER, GATEWAY, CONSUMER, READER):
        password_sha256 = hash_of(user)
        if password_sha256:
            lines.append(acl_line(user, password_sha256))
    return lines
