"""The program whose instructions the guard counts: a number of ticks through `benchmarks.path`.

Run under `valgrind --tool=callgrind` with `--toggle-collect=qsort_r`: the daemon's own work is called from
within libc's `qsort` (which calls `qsort_r`); nothing else on the way does, so only that work is counted.
Until it begins, valgrind need not look at instructions at all, which makes the start six times as fast.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable

from benchmarks.path import TICKS_A_BURST, path
from benchmarks.ticks import Mode

SETTLING_IN = 64 * TICKS_A_BURST
"""Until every instrument's newest value was written once, which costs more than writing it again."""
WARM_UP = 8 * TICKS_A_BURST
_Compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def main(mode: Mode, instruments: int, ticks: int) -> None:
    """Bring `ticks` ticks through, each piece of work inside `bsearch`."""
    sort = ctypes.CDLL(None).qsort
    sort.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, _Compare]
    two = ctypes.create_string_buffer(b"ab")
    todo: list[Callable[[], None]] = []

    def compare(_: int, __: int) -> int:
        todo[0]()
        return 0

    callback = _Compare(compare)

    def counted(work: Callable[[], None]) -> None:
        todo[:] = [work]
        sort(two, 2, 1, callback)

    with path(instruments, mode) as the_path:
        the_path.run(max(SETTLING_IN, 2 * instruments))
        gc.collect()
        gc.freeze()
        if os.environ.get("COUNTED") == "from here":
            subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], check=True)
            the_path.run(WARM_UP)
        the_path.run(ticks, counted)
        the_path.check()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))  # type: ignore[arg-type]
