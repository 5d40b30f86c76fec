"""The ledger: what is missing for a while is a fault that is said once; what is on its way is not."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from services.data_broadcast import DataBroadcast
from services.market_data.clock import ManualClock
from services.market_data.records import DataIngestionFormat
from services.pipeline.ledger import LASTING_S, Account, LedgerAudit, provider_accounts, sink_account


def figures(**changed: Any) -> dict[str, Any]:
    return {
        "frames": 10,
        "decoded": 7,
        "wire_errors": {"truncated": 2, "bad_length": 1},
        "records": 20,
        "accepted": 15,
        "merged": 2,
        "rejected": {"unmapped": 3},
    } | changed


@pytest.mark.parametrize(
    ("changed", "frames", "records"),
    [
        ({}, 0, 0),
        ({"frames": 12}, 2, 0),
        ({"frames": 12, "waiting": 2}, 0, 0),
        ({"decoded": 8}, -1, 0),
        ({"accepted": 14}, 0, 1),
        ({"rejected": {}}, 0, 3),
    ],
)
def test_every_frame_and_every_record_of_a_provider_is_accounted_for(
    changed: dict[str, Any], frames: int, records: int
) -> None:
    assert [account.imbalance for account in provider_accounts("YF", figures(**changed))] == [frames, records]


def test_a_sink_accounts_for_what_it_was_offered() -> None:
    sink = DataBroadcast(ManualClock())
    sink.offer(DataIngestionFormat("NSE:A", 1.0, 1, 1, "YF", exchange="NSE"))
    account = sink_account(sink)
    assert (account.name, account.came_in, account.imbalance) == ("sink broadcast", 1, 0)
    sink.counters.written -= 1
    assert sink_account(sink).imbalance == 1


class Books:
    """An audit over one account that the test sets."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.missing = 0
        self.audit = LedgerAudit(
            self.clock, lambda: [Account(name="sink x", came_in=9, accounted=9 - self.missing)]
        )

    def after(self, seconds: float) -> list[str]:
        self.clock.advance(seconds)
        self.audit.look()
        return self.audit.problems()


def test_a_difference_that_lasts_is_a_fault_until_it_is_gone() -> None:
    books = Books()
    with capture_logs() as logs:
        assert books.after(1) == []
        books.missing = 2
        assert books.after(1) == []
        assert books.after(LASTING_S - 0.1) == []
        assert books.after(0.2) == [
            "the account of sink x does not balance: 2 unaccounted for; report this as a defect"
        ]
        assert books.audit.status() == [
            {"account": "sink x", "in": 9, "accounted": 7, "imbalance": 2, "fault": True}
        ]
        books.missing = 3
        assert books.after(60)
        books.missing = -1
        assert "1 counted twice" in books.after(1)[0]
        books.missing = 0
        assert books.after(1) == []
    assert [log["event"] for log in logs] == ["ledger_unbalanced", "ledger_balanced"]


def test_a_difference_of_the_moment_is_none() -> None:
    books = Books()
    with capture_logs() as logs:
        for _ in range(20):
            books.missing = 1
            assert books.after(LASTING_S / 2) == []
            books.missing = 0
            assert books.after(1) == []
    assert logs == []
