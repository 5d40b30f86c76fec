"""The state directory: privacy, kinds that do not mix, one daemon, what runs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from services.errors import ConfigurationError, TemporaryError
from services.operations.state_dir import StateDirectory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_private(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "deep" / "state", demo=False) as state:
        assert mode(state.path) == 0o700


@pytest.mark.parametrize("first", [True, False])
def test_demo_and_live_data_never_share_one(tmp_path: Path, first: bool) -> None:
    with StateDirectory(tmp_path / "s", demo=first):
        pass
    with (
        pytest.raises(ConfigurationError, match="must not be mixed"),
        StateDirectory(tmp_path / "s", demo=not first),
    ):
        pass


def test_a_second_daemon_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with StateDirectory(tmp_path, demo=False) as first:
        first.lock_daemon()
        with (
            StateDirectory(tmp_path, demo=False) as second,
            pytest.raises(TemporaryError, match=str(os.getpid())),
        ):
            second.lock_daemon()
    with StateDirectory(tmp_path, demo=False) as third:
        third.lock_daemon()


def test_what_runs_can_be_read_while_it_runs_and_only_then(tmp_path: Path) -> None:
    with StateDirectory(tmp_path, demo=False) as state:
        state.lock_daemon()
        state.write_runtime({"api_url": "http://127.0.0.1:1", "pid": os.getpid()})
        assert mode(tmp_path / "runtime.json") == 0o600
        assert StateDirectory.read_runtime(tmp_path) == {"api_url": "http://127.0.0.1:1", "pid": os.getpid()}
        state.clear_runtime()
        assert StateDirectory.read_runtime(tmp_path) is None


def test_the_runtime_file_of_a_killed_daemon_is_ignored(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from services.operations.state_dir import StateDirectory\n"
        f"s = StateDirectory(Path({str(tmp_path)!r}), demo=False); s.__enter__(); s.lock_daemon()\n"
        "s.write_runtime({'pid': os.getpid()}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert json.loads((tmp_path / "runtime.json").read_text())["pid"] > 0
    assert StateDirectory.read_runtime(tmp_path) is None


def test_a_place_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    with (
        pytest.raises(ConfigurationError, match="STATE_DIR"),
        StateDirectory(tmp_path / "file" / "s", demo=False),
    ):
        pass
