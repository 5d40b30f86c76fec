"""Secrets that stand in files: `NAME_FILE=/path` gives the value of `NAME`, and who else may read it.

A file that group or world can read is refused with the command that mends it. Two places are exempt,
because a service manager made them for us and nobody else can look in: systemd's credentials (root's,
0400 or 0440, below `$CREDENTIALS_DIRECTORY` or `/run/credentials`) and files mounted into a container at
`/run/secrets` (Docker mounts them 0444). The content of a secret is never part of a message.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

SUFFIX = "_FILE"
LARGEST_BYTES = 64 * 1024
_CONTAINER_SECRETS = Path("/run/secrets")
_CREDENTIALS = Path("/run/credentials")
_MADE_BY_ROOT = (0o400, 0o440)
_PLUGIN_SECRET = re.compile(r"_(?:TOKEN|SECRET|PASSWORD|PASSPHRASE|API_?KEY|CLIENT_ID)$")


class SecretFileUnusable(Exception):
    """A secret file cannot be used; the text is a sentence with the remedy, without the secret."""


class FoundSecrets(NamedTuple):
    """What the secret files hold, by setting; which files were named; and every problem in words."""

    values: dict[str, str]
    files: tuple[Path, ...]
    problems: tuple[str, ...]


def read_secrets(
    environment: Mapping[str, str],
    names: Collection[str],
    *,
    base: Path,
    plugin_prefixes: tuple[str, ...] = (),
) -> FoundSecrets:
    """Return the values of all settings that `environment` gives by file.

    `names` are the settings that may stand in a file; of the settings that begin with one of
    `plugin_prefixes` those whose name ends like a secret's may. A relative path is taken from `base`.
    """
    values: dict[str, str] = {}
    files: list[Path] = []
    problems: list[str] = []
    for given, text in sorted(environment.items()):
        name = given.removesuffix(SUFFIX)
        ours = name in names or (name.startswith(plugin_prefixes or ("\0",)) and _PLUGIN_SECRET.search(name))
        if name == given or not ours or not text.strip():
            continue
        path = base / Path(text.strip()).expanduser()
        files.append(path)
        if environment.get(name, "").strip():
            problems.append(f"{name} and {given} are both set: leave one of them out")
            continue
        try:
            values[name] = read_secret(path)
        except SecretFileUnusable as error:
            problems.append(f"{given}: {error}")
    return FoundSecrets(values, tuple(files), tuple(problems))


def read_secret(path: Path) -> str:
    """Return the content of a secret file without surrounding blanks. Raises `SecretFileUnusable`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # What is judged is what is read, whatever is put under the name meanwhile.
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SecretFileUnusable(f"{path} is no file")
            problem = exposure(path, status)
            if problem is not None:
                raise SecretFileUnusable(problem)
            content = os.read(descriptor, LARGEST_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SecretFileUnusable(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > LARGEST_BYTES:
        raise SecretFileUnusable(f"{path} is larger than {LARGEST_BYTES // 1024} KiB: it holds no secret")
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise SecretFileUnusable(f"{path} is not UTF-8 text") from None
    if not text:
        raise SecretFileUnusable(f"{path} is empty")
    return text


def exposure(path: Path, status: os.stat_result) -> str | None:
    """Return in words who else can read (or change) a secret file, with the remedy; None when nobody can."""
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077:
        return None
    where = path.absolute()
    if status.st_uid == 0 and mode in _MADE_BY_ROOT and _is_below(where, _credential_folders()):
        return None
    if not mode & 0o022 and _is_mounted_secret(where):
        return None
    return f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}"


def _credential_folders() -> tuple[Path, ...]:
    given = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return (_CREDENTIALS, Path(given)) if given else (_CREDENTIALS,)


def _is_below(path: Path, folders: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _is_mounted_secret(path: Path) -> bool:
    """Tell whether a container engine mounted this file: itself, or the folder it lies in."""
    if not path.is_relative_to(_CONTAINER_SECRETS):
        return False
    return any(
        place.is_mount() for place in (path, *path.parents) if place.is_relative_to(_CONTAINER_SECRETS)
    )
