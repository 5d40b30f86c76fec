"""What the gateway serves is what the dashboard's sources make: the committed `web/dist` must not lag."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"
NEEDED = (20, 19)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def npm() -> str:
    """Return npm beside a Node that is new enough; skips with the reason where there is none."""
    node, found = shutil.which("node"), shutil.which("npm")
    if node is None or found is None:
        pytest.skip("NOT TESTED: that web/dist is what its sources make, as there is no node and npm on PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    numbers = re.match(r"v(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < NEEDED:
        pytest.skip(f"NOT TESTED: that web/dist is what its sources make, as node is {version}, not 20.19")
    return found


def test_what_is_served_is_what_the_sources_make(tmp_path: Path) -> None:
    command = npm()
    copy = tmp_path / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules", "dist"))
    fetched = subprocess.run([command, "ci", "--ignore-scripts"], cwd=copy, capture_output=True, text=True)
    if fetched.returncode and re.search(
        r"ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|network", fetched.stderr
    ):
        pytest.skip("NOT TESTED: that web/dist is what its sources make, as npm cannot fetch packages")
    assert fetched.returncode == 0, fetched.stderr
    built = subprocess.run([command, "run", "build"], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    names = sorted(path.name for path in (copy / "dist").iterdir())
    assert names == sorted(path.name for path in (WEB / "dist").iterdir())
    for name in names:
        fresh, committed = (copy / "dist" / name).read_bytes(), (WEB / "dist" / name).read_bytes()
        assert fresh == committed, f"web/dist/{name} is not up to date: cd web && npm ci && npm run build"
