# cython: language_level=3
"""`SystemClock.now_ms`, without a way through Python's `time`."""

from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec


def now_ms(self):
    """Return the wall clock as UTC epoch milliseconds."""
    cdef timespec now
    if clock_gettime(CLOCK_REALTIME, &now) != 0:
        raise OSError("the clock cannot be read")
    return <long long>now.tv_sec * 1000 + now.tv_nsec // 1_000_000
