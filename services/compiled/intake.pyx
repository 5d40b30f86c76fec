# cython: language_level=3
"""What every message passes on its way to its handler: `Link.on_frame` and `FrameIntake.handle`."""

from cpython.object cimport PyObject, PyTypeObject

from services.compiled.slots cimport get, offset_of, peek, put

from services.errors import ProviderError, ProviderUnavailable, WireFormatError

cdef extern from "Python.h":
    bint PyObject_TypeCheck(object o, PyTypeObject *cls)

cdef tuple _held = ()
cdef object _decode_errors = None
cdef PyTypeObject *_intake = NULL
cdef PyTypeObject *_link = NULL
cdef PyTypeObject *_counters = NULL
cdef Py_ssize_t _current_ms = 0, _last_frame_ms = 0, _intake_counters = 0, _now_ms = 0, _handler = 0
cdef Py_ssize_t _frames = 0, _decoded = 0, _ticks = 0
cdef Py_ssize_t _over = 0, _link_frames = 0, _data_frames = 0, _last_data_ms = 0, _handle = 0
cdef Py_ssize_t _link_counters = 0
cdef object _zero = 0


cdef int _know_intake() except -1:
    # Not before the first message: those modules import this one.
    global _held, _decode_errors, _intake, _counters, _current_ms, _last_frame_ms, _intake_counters, _now_ms
    global _handler, _frames, _decoded, _ticks
    from services.provider_frames import DECODE_ERRORS, FrameIntake, ProviderCounters

    _current_ms, _last_frame_ms = offset_of(FrameIntake, "current_ms"), offset_of(FrameIntake, "last_frame_ms")
    _intake_counters, _now_ms = offset_of(FrameIntake, "_counters"), offset_of(FrameIntake, "_now_ms")
    _handler = offset_of(FrameIntake, "_handler")
    _frames, _decoded = offset_of(ProviderCounters, "frames"), offset_of(ProviderCounters, "decoded")
    _ticks = offset_of(ProviderCounters, "ticks")
    _decode_errors = DECODE_ERRORS
    _held = (*_held, FrameIntake, ProviderCounters)
    _counters = <PyTypeObject *>ProviderCounters
    _intake = <PyTypeObject *>FrameIntake
    return 0


cdef int _know_link() except -1:
    global _held, _link, _over, _link_frames, _data_frames, _last_data_ms, _handle, _link_counters
    from services.connection.link import Link

    if _intake is NULL:
        _know_intake()
    _over, _link_frames = offset_of(Link, "over"), offset_of(Link, "frames")
    _data_frames, _last_data_ms = offset_of(Link, "data_frames"), offset_of(Link, "last_data_ms")
    _handle, _link_counters = offset_of(Link, "_handle"), offset_of(Link, "_counters")
    _held = (*_held, Link)
    _link = <PyTypeObject *>Link
    return 0


cdef inline int _demand(object o, PyTypeObject *cls) except -1:
    """Raise TypeError for anything that is not of a class: its slots are read unseen."""
    if not PyObject_TypeCheck(o, cls):
        raise TypeError(f"not a {(<object>cls).__name__}: {o!r:.80}")
    return 0


def handle(self, raw):
    """Give one raw message to the handler; returns its receive time in UTC epoch ms, 0 when damaged."""
    cdef object counters, received_ms, result
    if _intake is NULL:
        _know_intake()
    _demand(self, _intake)
    counters = get(self, _intake_counters)
    _demand(counters, _counters)
    received_ms = get(self, _now_ms)()
    put(self, _current_ms, received_ms)
    put(self, _last_frame_ms, received_ms)
    put(counters, _frames, get(counters, _frames) + 1)
    try:
        result = get(self, _handler)(raw)
        if result is not None:
            return received_ms if self._take(result, raw) else 0
    except WireFormatError as error:
        self._count_damage(error.reason, error, raw)
        return 0
    except _decode_errors as error:
        self._count_damage(f"handler_{type(error).__name__}", error, raw)
        return 0
    except ProviderError:
        counters.decoded += 1
        raise
    finally:
        put(self, _current_ms, _zero)
    put(counters, _decoded, get(counters, _decoded) + 1)
    return received_ms


def on_frame(self, raw):
    """Take one message."""
    cdef object counters, ticks, received_ms
    if _link is NULL:
        _know_link()
    _demand(self, _link)
    if peek(self, _over) is not <PyObject *>False and get(self, _over):
        return
    put(self, _link_frames, get(self, _link_frames) + 1)
    counters = get(self, _link_counters)
    _demand(counters, _counters)
    ticks = get(counters, _ticks)
    try:
        received_ms = get(self, _handle)(raw)
    except ProviderError as error:
        self.finish(error)
        return
    if peek(counters, _ticks) is not <PyObject *>ticks and get(counters, _ticks) != ticks:
        put(self, _data_frames, get(self, _data_frames) + 1)
        if received_ms:
            put(self, _last_data_ms, received_ms)
    elif not received_ms and self._damage.add(self._clock.monotonic_s()):
        self.finish(ProviderUnavailable("the connection brings only damaged data", reason="garbage"))
