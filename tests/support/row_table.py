"""The fault matrix as a table at the end of a test run: every row, its tests, what was lost, what is allowed.

A test belongs to a row by its name: `test_r1_…` under tests/faults. `--faults` chooses which of the tests
under tests/faults and tests/chaos run: `quick` leaves out those marked slow, `slow` runs only those, `all`
(the default) everything. What a run found is kept in pytest's cache, so that the table after a run of the
slow ones shows the quick ones too.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.row_report import REPORTS, RowReport

# Rows of the fault matrix that must have a test.
ROWS: tuple[str, ...] = (
    *(f"R{number}" for number in range(1, 16)),
    *(f"P{number}" for number in range(1, 11)),
    *(f"C{number}" for number in range(1, 14)),
    *(f"N{number}" for number in range(1, 17)),
    *(f"H{number}" for number in range(1, 17)),
)
FAULTS = Path(__file__).resolve().parents[1] / "faults"
_TEST_NAME = re.compile(r"^test_([rpcnhw]\d+)_")
_DEFINITION = re.compile(r"^\s*(?:async )?def (test_[rpcnhw]\d+_\w+)", re.MULTILINE)
_SLOW_ROOTS = ("tests/faults/", "tests/chaos/")
_PROPERTY = "fault_row"
_CACHE_KEY = "marketd/fault_rows"
_WIDTHS = (5, 8, 46, 46)


def row_of(test_name: str) -> str | None:
    """Return the row a test belongs to, None when its name begins with none."""
    found = _TEST_NAME.match(test_name)
    return found.group(1).upper() if found else None


def rows_with_tests(folder: Path = FAULTS) -> dict[str, list[str]]:
    """Return the tests of each row, read from the sources under `folder`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        for name in _DEFINITION.findall(path.read_text(encoding="utf-8")):
            row = row_of(name)
            assert row is not None
            found[row].append(name)
    return dict(found)


class RowTable:
    """pytest plugin: chooses the fault tests, follows their outcomes, prints the table."""

    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}
        self._said: dict[str, list[RowReport]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        wanted = config.getoption("--faults")
        if wanted == "all":
            return
        kept, left_out = [], []
        for item in items:
            slow = item.nodeid.startswith(_SLOW_ROOTS) and item.get_closest_marker("slow") is not None
            (kept if slow is (wanted == "slow") else left_out).append(item)
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # What the test said travels with its report: it may run in another process than the table is made in.
        said = [tuple(one) for one in REPORTS if one.test == item.nodeid]
        report.user_properties = [*report.user_properties, (_PROPERTY, said)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if row_of(name) is None or not report.nodeid.startswith("tests/faults/"):
            return
        for key, said in report.user_properties:
            if key == _PROPERTY:
                self._said[report.nodeid] = [RowReport(*one) for one in said]
        if report.failed:
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped:
            self._outcomes[report.nodeid] = "skipped"
        elif report.when == "call":
            self._outcomes.setdefault(report.nodeid, "passed")

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        if not self._outcomes:
            return
        known = _merged(config, self._outcomes, self._said)
        if config.getoption("--fault-table"):
            for line in table(known):
                terminalreporter.write_line(line)


def _merged(
    config: pytest.Config, outcomes: dict[str, str], reports: dict[str, list[RowReport]]
) -> dict[str, dict[str, Any]]:
    """Add this run's outcomes to what earlier runs found, without tests that no longer exist."""
    cache = getattr(config, "cache", None)
    names = {name for tests in rows_with_tests().values() for name in tests}
    known: dict[str, dict[str, Any]] = {}
    if cache is not None:
        known = {test: entry for test, entry in cache.get(_CACHE_KEY, {}).items() if _name(test) in names}
    for test, outcome in outcomes.items():
        said = reports.get(test, [])
        known[test] = {
            "outcome": outcome,
            "lost": _joined(report.lost for report in said),
            "allowed": _joined(report.allowed for report in said),
        }
    if cache is not None:
        cache.set(_CACHE_KEY, known)
    return known


def _name(test: str) -> str:
    return test.rpartition("::")[2].partition("[")[0]


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def table(known: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the table: every row of the matrix, in its order, then what is missing."""
    tests_of: dict[str, list[str]] = defaultdict(list)
    for test in known:
        row = row_of(_name(test))
        if row is not None:
            tests_of[row].append(test)
    rows = [*ROWS, *sorted(set(tests_of) - set(ROWS), key=lambda row: (row[0], int(row[1:])))]
    lines = ["", "Fault matrix", *_laid_out("row", "result", "lost", "allowed", "tests"), "-" * 150]
    missing, not_run = [], []
    written = rows_with_tests()
    for row in rows:
        tests = tests_of.get(row, [])
        if not tests:
            (not_run if row in written else missing).append(row)
            continue
        entries = [known[test] for test in tests]
        outcomes = {entry["outcome"] for entry in entries}
        outcome = next(word for word in ("failed", "skipped", "passed") if word in outcomes)
        lines += _laid_out(
            row,
            outcome,
            _joined(entry["lost"] for entry in entries) or "not reported",
            _joined(entry["allowed"] for entry in entries) or "not reported",
            ", ".join(sorted({f"{_name(test)} x{_count(tests, test)}" for test in tests})),
        )
    lines.append(f"rows without a test: {', '.join(missing) or 'none'}")
    if not_run:
        lines.append(f"rows not run: {', '.join(not_run)}")
    return lines


def _count(tests: list[str], test: str) -> int:
    return sum(_name(other) == _name(test) for other in tests)


def _laid_out(*cells: str) -> list[str]:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells[:-1], _WIDTHS, strict=True)]
    columns.append(cells[-1].split(", "))
    lines = []
    for index in range(max(map(len, columns))):
        texts = [column[index] if index < len(column) else "" for column in columns]
        padded = [text.ljust(width) for text, width in zip(texts, _WIDTHS, strict=False)]
        lines.append(" ".join([*padded, texts[-1]]).rstrip())
    return lines
