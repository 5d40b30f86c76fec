"""Where a daemon and its recorder meet: a socket in the state directory, which only its owner may enter.

Nothing of it is reachable over the network, and it needs no token: who may read the state directory may
read the daemon's secrets anyway.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

SOCKET = "frames.sock"
CHUNK = struct.Struct("<BII")
"""Kind of chunk, how many frames are in it, how many bytes of entries follow."""
ENTRIES, WITH_CONTEXT = 1, 2
ASK_CONTEXT = b"context\n"
_LONGEST_PATH = 100


@contextlib.contextmanager
def socket_path(folder: Path) -> Iterator[str]:
    """Yield a path of the socket in `folder` that is short enough, however deep the folder lies."""
    path = str(folder / SOCKET)
    if len(os.fsencode(path)) <= _LONGEST_PATH or sys.platform != "linux":
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
