# cython: language_level=3
"""Takes whole binary messages from picows by its own call in C, and leaves everything else to `_Frames`.

Built against the declarations of one release of picows: with any other it refuses to be imported.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyTypeObject
from picows.picows cimport WSFrame, WSListener, WSMsgType, WSTransport

import picows

from services.compiled.slots cimport get, offset_of, put

PICOWS = "2.3.1"
if picows.__version__ != PICOWS:
    raise ImportError(f"built for picows {PICOWS}, and this is {picows.__version__}")

cdef extern from "Python.h":
    bint PyObject_TypeCheck(object o, PyTypeObject *cls)


cdef class Listener(WSListener):
    """Stands between picows and `_Frames`, whose count of messages in one stretch it reads and writes."""

    cdef object _frames
    cdef object _on_frame
    cdef long _at_a_stretch
    cdef Py_ssize_t _stretch

    def __init__(self, cls, frames, on_frame, long at_a_stretch):
        """`frames` is an object of `cls`, `on_frame` what takes its messages, `at_a_stretch` how many at once."""
        if not isinstance(frames, cls):
            raise TypeError(f"not a {cls.__name__}: {frames!r:.80}")
        self._stretch = offset_of(cls, "_stretch")
        self._frames = frames
        self._on_frame = on_frame
        self._at_a_stretch = at_a_stretch

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef long stretch
        if frame.msg_type == WSMsgType.BINARY and frame.fin:
            stretch = get(self._frames, self._stretch)
            if stretch < self._at_a_stretch:
                put(self._frames, self._stretch, 0 if frame.last_in_buffer else stretch + 1)
                self._on_frame(PyBytes_FromStringAndSize(frame.payload_ptr, frame.payload_size))
                return
        self._frames.on_ws_frame(transport, frame)

    cpdef on_ws_connected(self, WSTransport transport):
        self._frames.on_ws_connected(transport)

    cpdef on_ws_disconnected(self, WSTransport transport):
        self._frames.on_ws_disconnected(transport)

    cpdef pause_writing(self):
        self._frames.pause_writing()

    cpdef resume_writing(self):
        self._frames.resume_writing()
