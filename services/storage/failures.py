"""What Redis means by each of its error replies: who has to wait, and which record is at fault.

A refusal that concerns the whole server (out of memory, read-only, loading, wrong rights) becomes a
`StorageError`: nothing is thrown away, the writer waits or parks. Everything else concerns the one
item it answers and becomes a short reason to count.

Source: Redis error prefixes and RedisTimeSeries 1.12 replies, both measured on the server.
"""

from __future__ import annotations

from enum import Enum

from services.errors import StorageError, StorageMisconfigured, StorageUnavailable


class Reason(str, Enum):
    """Why one record was not stored; the keys of `SinkCounters.rejected`."""

    NOT_FINITE = "not_finite"
    """A price that is NaN or infinite; never sent."""
    OLDER_THAN_RETENTION = "older_than_retention"
    WRONG_TYPE = "wrong_type"
    """Somebody keeps another kind of value under our key."""
    DUPLICATE_BLOCKED = "duplicate_blocked"
    MISSING_SERIES = "missing_series"
    SERIES_EXISTS = "series_exists"
    BAD_VALUE = "bad_value"
    BAD_TIMESTAMP = "bad_timestamp"
    IGNORED = "ignored"
    """The series is set to skip close values, and did."""
    BEHIND_STREAM_TOP = "behind_stream_top"
    """The stream holds a greater id that is not from an earlier attempt of ours."""
    BAD_POSITION = "bad_position"
    REFUSED = "refused"
    """An error reply that this version of the daemon does not know."""


_UNAVAILABLE = {
    "OOM": "Redis is out of memory: raise maxmemory, or keep ticks for a shorter time",
    "READONLY": "this Redis is a read-only replica: point REDIS_URL at the master",
    "LOADING": "Redis is loading its data",
    "MISCONF": "Redis cannot write its data to disk: free disk space or check its log",
    "MASTERDOWN": "this Redis is a replica that lost its master",
    "NOREPLICAS": "Redis has fewer replicas than min-replicas-to-write asks for",
    "CLUSTERDOWN": "the Redis Cluster is down",
    "TRYAGAIN": "Redis is moving keys between nodes",
    "BUSY": "Redis is busy with a script",
    "UNBLOCKED": "Redis changed its role during the command",
}
_MISCONFIGURED = {
    "NOAUTH": "Redis wants a password: put it into REDIS_URL",
    "WRONGPASS": "Redis refuses the user name or password: correct REDIS_URL",
    "NOPERM": "the Redis user lacks a right",
    "MOVED": "this Redis is a node of a cluster, which needs one address for all keys",
    "CROSSSLOT": "this Redis is a node of a cluster, which needs one address for all keys",
}
_BY_TEXT = (
    ("is older than retention", Reason.OLDER_THAN_RETENTION),
    ("is not a TSDB key", Reason.MISSING_SERIES),
    ("TSDB: key already exists", Reason.SERIES_EXISTS),
    ("DUPLICATE_POLICY is set to BLOCK", Reason.DUPLICATE_BLOCKED),
    ("equal or smaller than the target stream top item", Reason.BEHIND_STREAM_TOP),
    ("must be greater than 0-0", Reason.BAD_POSITION),
    ("Invalid stream ID", Reason.BAD_POSITION),
    ("invalid timestamp", Reason.BAD_TIMESTAMP),
    ("invalid value", Reason.BAD_VALUE),
)


def server_refusal(message: str) -> StorageError | None:
    """Return what keeps the whole server from taking writes, or None when only the item is at fault."""
    if message.startswith("EXECABORT"):
        message = message.partition("because of: ")[2]
    prefix, _, rest = message.partition(" ")
    if prefix in _UNAVAILABLE:
        return StorageUnavailable(_UNAVAILABLE[prefix])
    if prefix == "NOPERM":
        return StorageMisconfigured(f"{_MISCONFIGURED[prefix]}: {rest}")
    if prefix in _MISCONFIGURED:
        return StorageMisconfigured(_MISCONFIGURED[prefix])
    # redis-py takes the ERR away.
    text = message.removeprefix("ERR ")
    lowered = text.lower()
    if lowered.startswith("max number of clients"):
        return StorageUnavailable("Redis has no free connection: raise maxclients")
    if lowered.startswith("unknown command"):
        name = text.partition("'")[2].partition("'")[0].upper()
        if name.startswith("TS."):
            return StorageMisconfigured(
                "this Redis has no TimeSeries: use Redis 8 or newer, redis-stack, or load the module"
            )
        return StorageMisconfigured(f"this Redis does not know {name}: use Redis 7 or newer")
    return None


def item_reason(message: str) -> Reason:
    """Return the reason to count for an error reply that concerns one record."""
    # TimeSeries puts its own "ERR " in front.
    if message.removeprefix("ERR ").startswith("WRONGTYPE"):
        return Reason.WRONG_TYPE
    for text, reason in _BY_TEXT:
        if text in message:
            return reason
    return Reason.REFUSED
