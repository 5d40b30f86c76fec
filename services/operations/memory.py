"""How much memory this process uses and may use, and giving back what it holds without need.

Read from the kernel's files; nothing here allocates or waits.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_PAGE_BYTES = resource.getpagesize()
_NO_LIMIT = 1 << 60
"""What cgroup v1 writes for "no limit" is a number above this."""


def rss_bytes() -> int:
    """Return the resident memory of this process, 0 where the kernel does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - asked every second
            return int(file.read(128).split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def give_back() -> bool:
    """Give the kernel what the C library keeps for later; tell whether this machine's library can.

    Takes some milliseconds, without the interpreter's lock. Source: malloc_trim(3).
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    trim(0)
    return True


def open_descriptors() -> int:
    """Return how many file descriptors this process has open, 0 where the kernel does not tell."""
    try:
        return len(os.listdir(_PROC / "self/fd"))  # noqa: PTH208 - only their number is wanted
    except OSError:
        return 0


def allowed_bytes(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Return how much memory this process may use: the least of its control groups' limits and the machine.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (`memory.max`), cgroup-v1/memory.html.
    """
    found = [_machine_bytes(proc)]
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            found += _limits(cgroup, path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits(cgroup / "memory", path, "memory.limit_in_bytes")
    return min((limit for limit in found if limit), default=0)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Return the limits of a group and of those above it; a container sees its own group as the root."""
    limits = []
    group = root / path.strip("/")
    while True:
        text = "".join(_lines(group / name)[:1])
        if text.isdigit() and int(text) < _NO_LIMIT:
            limits.append(int(text))
        if group == root or root not in group.parents:
            return limits
        group = group.parent


def _machine_bytes(proc: Path) -> int:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
