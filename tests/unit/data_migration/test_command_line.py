"""Which database a script works on, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from rich.console import Console

from config.settings import Settings
from data_migration import populate_instrument_mappings
from data_migration.changes import Change, Kind, print_changes
from data_migration.command_line import open_database, run_script
from services.errors import ConfigurationError, StorageError, TemporaryError
from services.operations.state_dir import StateDirectory


async def test_a_configured_database_is_taken_and_no_state_is_made(tmp_path: Path) -> None:
    settings = Settings(database_url="postgresql://u@h/d", state_dir=tmp_path / "state")
    async with open_database(settings) as url:
        assert url == "postgresql://u@h/d"
    assert not (tmp_path / "state").exists()


async def test_a_running_daemon_says_which_database_it_uses(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "state", demo=False) as state:
        state.lock_daemon()
        state.write_runtime({"database_url": "postgresql://daemon@h/d", "pid": 1})
        async with open_database(Settings(state_dir=tmp_path / "state")) as url:
            assert url == "postgresql://daemon@h/d"


async def test_the_demos_data_are_not_touched(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "state", demo=True):
        pass
    with pytest.raises(ConfigurationError, match="demo data"):
        async with open_database(Settings(state_dir=tmp_path / "state")):
            pytest.fail("opened")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("mend it"), 78),
        (TemporaryError("wait"), 75),
        (StorageError("refused"), 70),
        (RuntimeError("a defect with password=hunter22"), 70),
        (typer.Exit(3), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_end_has_its_exit_code_and_no_trace(
    error: BaseException,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.argv", ["script"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def main() -> None:
        raise error

    assert run_script(app) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown.count("\n") <= 1
    if isinstance(error, RuntimeError) and code == 70:
        (trace,) = tmp_path.iterdir()
        assert trace.name in shown
        assert "hunter22" not in shown + trace.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-such-option"], 78, "No such option"),
        (["--expiries", "0"], 78, "--expiries"),
        (["--without-dhan", "--derivatives", "NIFTY"], 78, "leave one out"),
        (["--without-dhan", "--dhan-scrip-master", "x.csv"], 78, "leave one out"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_opened(
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["script", *arguments])
    assert run_script(populate_instrument_mappings.app) == code
    assert said in capsys.readouterr().err


def test_long_lists_of_changes_are_cut_unless_all_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    changes = [Change("instruments", f"NSE:[A{number}]", Kind.ADDED, "a [b] c") for number in range(25)]
    changes.append(Change("instruments", "NSE:B", Kind.UNCHANGED))
    print_changes(console, changes)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "instruments: 25 added, 1 unchanged"
    assert lines[1] == "  + NSE:[A0]  a [b] c"
    assert lines[-1] == "    … and 5 more (--verbose shows all)"
    print_changes(console, changes, everything=True)
    assert len(capsys.readouterr().out.splitlines()) == 26
