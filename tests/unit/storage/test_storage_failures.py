"""What each error reply of Redis means; the texts are those of real servers."""

from __future__ import annotations

import pytest

from services.errors import StorageMisconfigured, StorageUnavailable
from services.storage.failures import Reason, item_reason, server_refusal

OOM = "OOM command not allowed when used memory > 'maxmemory'."
WAIT = [
    OOM,
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOREPLICAS Not enough good replicas to write.",
    "CLUSTERDOWN Hash slot not served",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "BUSY Redis is busy running a script.",
    "ERR max number of clients reached",
    f"EXECABORT Transaction discarded because of: {OOM}",
]
PARK = [
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM User default has no permissions to run the 'ts.madd' command",
    "ERR unknown command 'TS.MADD', with args beginning with: 'a' '1' '2' ",
    "unknown command 'TS.INFO', with args beginning with: 'a'",
    "ERR unknown command 'HELLO'",
    "MOVED 3999 127.0.0.1:6381",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "EXECABORT Transaction discarded because of: NOPERM User x has no permissions to access one of the keys",
]
ITEM = {
    "ERR TSDB: Timestamp is older than retention": Reason.OLDER_THAN_RETENTION,
    "TSDB: Timestamp is older than retention": Reason.OLDER_THAN_RETENTION,
    "ERR TSDB: the key is not a TSDB key": Reason.MISSING_SERIES,
    "ERR TSDB: key already exists": Reason.SERIES_EXISTS,
    "ERR TSDB: Error at upsert, update is not supported when DUPLICATE_POLICY is set to BLOCK mode": (
        Reason.DUPLICATE_BLOCKED
    ),
    "ERR TSDB: invalid value": Reason.BAD_VALUE,
    "ERR TSDB: invalid timestamp, must be a nonnegative integer": Reason.BAD_TIMESTAMP,
    "WRONGTYPE Operation against a key holding the wrong kind of value": Reason.WRONG_TYPE,
    "ERR WRONGTYPE Operation against a key holding the wrong kind of value": Reason.WRONG_TYPE,
    "ERR The ID specified in XADD is equal or smaller than the target stream top item": (
        Reason.BEHIND_STREAM_TOP
    ),
    "ERR The ID specified in XADD must be greater than 0-0": Reason.BAD_POSITION,
    "ERR Invalid stream ID specified as stream command argument": Reason.BAD_POSITION,
    "ERR something new": Reason.REFUSED,
}


@pytest.mark.parametrize("message", WAIT)
def test_the_server_takes_nothing_for_now(message: str) -> None:
    assert isinstance(server_refusal(message), StorageUnavailable)


@pytest.mark.parametrize("message", PARK)
def test_an_operator_has_to_act(message: str) -> None:
    assert isinstance(server_refusal(message), StorageMisconfigured)


@pytest.mark.parametrize(("message", "reason"), ITEM.items())
def test_one_item_is_at_fault_and_the_server_is_not(message: str, reason: Reason) -> None:
    assert server_refusal(message) is None
    assert item_reason(message) is reason


def test_a_missing_right_is_named_and_a_missing_module_has_a_remedy() -> None:
    assert "ts.madd" in str(server_refusal(PARK[2]))
    assert "use Redis 8 or newer" in str(server_refusal(PARK[3]))
    assert "does not know HELLO" in str(server_refusal(PARK[5]))


def test_an_aborted_transaction_without_a_cause_says_nothing_about_the_server() -> None:
    assert server_refusal("EXECABORT Transaction discarded because of previous errors.") is None
