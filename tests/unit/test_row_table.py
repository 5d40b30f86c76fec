"""The table of the fault matrix: which test belongs to which row, and what the table says."""

from __future__ import annotations

from pathlib import Path

from tests.support.row_report import REPORTS, report_row
from tests.support.row_table import ROWS, row_of, rows_with_tests, table


def test_a_test_belongs_to_the_row_its_name_begins_with() -> None:
    assert row_of("test_r1_killed_and_back") == "R1"
    assert row_of("test_h16_restart_storm[2]") == "H16"
    assert row_of("test_a_half_open_connection") is None
    assert row_of("test_r1killed") is None


def test_the_matrix_has_the_rows_it_must_have() -> None:
    assert len(ROWS) == len(set(ROWS)) == 70


def test_every_row_of_the_matrix_has_a_test() -> None:
    written = rows_with_tests()
    assert [row for row in ROWS if row not in written] == []


def test_tests_are_found_in_the_sources(tmp_path: Path) -> None:
    (tmp_path / "test_some_faults.py").write_text(
        "async def test_r2_one() -> None: ...\n"
        "def test_r2_other() -> None: ...\n"
        "def test_plain() -> None: ...\n"
    )
    assert rows_with_tests(tmp_path) == {"R2": ["test_r2_one", "test_r2_other"]}


def test_a_report_carries_the_test_that_made_it() -> None:
    before = len(REPORTS)
    report_row("R1", lost="nothing", allowed="nothing")
    [report] = REPORTS[before:]
    del REPORTS[before:]
    assert report.test.endswith("tests/unit/test_row_table.py::test_a_report_carries_the_test_that_made_it")


def test_one_failed_test_fails_its_row_and_rows_without_tests_are_named() -> None:
    entry = {"lost": "0 ticks", "allowed": "nothing"}
    lines = table(
        {
            "tests/faults/test_x.py::test_r1_a": entry | {"outcome": "passed"},
            "tests/faults/test_x.py::test_r1_b[1]": entry | {"outcome": "failed"},
            "tests/faults/test_x.py::test_r12_c": entry | {"outcome": "passed"},
        }
    )
    assert [line.split()[:4] for line in lines if line.startswith("R1 ")] == [["R1", "failed", "0", "ticks"]]
    assert [line.split()[:2] for line in lines if line.startswith("R12 ")] == [["R12", "passed"]]
