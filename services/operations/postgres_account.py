"""How PostgreSQL's programs are run: as ourselves, or, where we are root, as somebody whom they accept.

PostgreSQL refuses to run as root. There it runs in a user namespace in which root is an ordinary user,
so that its files stay in the state directory and belong to root outside. Where the kernel or the
container refuses that, or the ordinary user could not reach the files, it runs under the account
`postgres` or `nobody`, and its cluster lies in a folder of that account under `/var/lib/marketd`,
because a private state directory of root is closed to other accounts.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
from pathlib import Path

import msgspec

from services.errors import ConfigurationError
from services.operations.state_dir import write_private

ELSEWHERE = Path("/var/lib/marketd")
ACCOUNTS = ("postgres", "nobody")
_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


class PostgresAccount(msgspec.Struct, frozen=True):
    """What to put before a command, where the programs are, and the folder that holds the cluster."""

    prefix: tuple[str, ...]
    programs: Path
    home: Path


async def choose_account(folder: Path, programs: Path) -> PostgresAccount:
    """Return how the programs in `programs` are run for the state in `folder`.

    Raises `ConfigurationError` when we are root and there is no way.
    """
    if os.geteuid() != 0:
        return PostgresAccount((), programs, folder)
    if not _elsewhere_file(folder).exists() and await _can_use(_NAMESPACE, programs, folder):
        return PostgresAccount(_NAMESPACE, programs, folder)
    entry = _account()
    if entry is None or shutil.which("setpriv") is None:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and neither a user namespace nor another account can be used "
            "here: run as an ordinary user, or set DATABASE_URL to a PostgreSQL server"
        )
    prefix = ("setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups")
    try:
        home = await asyncio.to_thread(_make_home, folder, entry)
        if not await _can_use(prefix, programs, home):
            programs = await asyncio.to_thread(_copy_programs, programs)
    except OSError as error:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and {ELSEWHERE} cannot be used for the account "
            f"{entry.pw_name} ({error.strerror}): run as an ordinary user, or set DATABASE_URL"
        ) from error
    if not await _can_use(prefix, programs, home):
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and the account {entry.pw_name} cannot reach {home}: "
            "run as an ordinary user, or set DATABASE_URL to a PostgreSQL server"
        )
    return PostgresAccount(prefix, programs, home)


def _account() -> pwd.struct_passwd | None:
    for name in ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


async def _can_use(prefix: tuple[str, ...], programs: Path, folder: Path) -> bool:
    """Tell whether whoever `prefix` makes of us can run the server program and write to the folder."""
    # By way of a shell: setpriv still has root's rights when it starts the first program.
    check = '"$0" --version && test -w "$1"'
    try:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *("sh", "-c", check, str(programs / "postgres"), str(folder)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return False
    return await process.wait() == 0


def _elsewhere_file(folder: Path) -> Path:
    """Return the file that names the cluster's folder when it is not in the state directory."""
    return folder / "elsewhere"


def _make_home(folder: Path, entry: pwd.struct_passwd) -> Path:
    note = _elsewhere_file(folder)
    if note.exists():
        home = Path(note.read_text(encoding="utf-8").strip())
    else:
        home = ELSEWHERE / f"postgres-{secrets.token_hex(8)}"
        write_private(note, f"{home}\n")
    ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    return home


def _copy_programs(programs: Path) -> Path:
    """Copy the installation where every account can reach it; once for each version of it."""
    source = programs.parent
    stamp = (programs / "postgres").stat()
    target = ELSEWHERE / f"programs-{stamp.st_size}-{int(stamp.st_mtime)}"
    if not target.exists():
        half = ELSEWHERE / f".programs-{secrets.token_hex(8)}"
        shutil.copytree(source, half)
        for path in (half, *half.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        half.rename(target)
    return target / programs.name
