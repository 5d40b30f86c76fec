"""What the test of a row of the fault matrix says it saw: lost on one side, allowed on the other."""

from __future__ import annotations

import os
from typing import NamedTuple


class RowReport(NamedTuple):
    """One report: `test` is the node id of the test that made it."""

    row: str
    test: str
    lost: str
    allowed: str


REPORTS: list[RowReport] = []


def report_row(row: str, *, lost: str, allowed: str) -> None:
    """Say in words or figures what the fault of `row` ("R1") cost, and what the promise allows it to."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    REPORTS.append(RowReport(row, test, lost, allowed))
