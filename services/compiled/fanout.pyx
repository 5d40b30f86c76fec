# cython: language_level=3
"""A tick on its way to many clients: into the outbox of each, out of it, and to the socket.

Each function does what the Python function of its name does (`Outbox.take`, `Pacer.ready`, `Pacer.flush_some`
with `ClientSession.flush` in it, `outbox.build_frame`), with the same result for whatever it is given. What is
not usual is left to the methods of the same objects: a queue of several things, a client that is behind, a
ping that is due, a socket that is full.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject

from services.compiled.slots cimport get, offset_of, peek, put

from services.data_broadcast import Publication
from services.gateway.encoding import fragment as _make_fragment
from services.gateway.encoding import ping_frame as _ping_frame
from services.gateway.encoding import single_frame as _single_frame
from services.gateway.encoding import tick_frame as _tick_frame
from services.market_data.records import DataIngestionFormat

cdef extern from "Python.h":
    bint PyObject_TypeCheck(object o, PyTypeObject *cls)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int descriptor, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef PyTypeObject *PUBLICATION = <PyTypeObject *>Publication
cdef Py_ssize_t RECORD = offset_of(Publication, "record")
cdef Py_ssize_t FRAGMENT = offset_of(Publication, "fragment")
cdef Py_ssize_t FRAME = offset_of(Publication, "frame")

cdef PyTypeObject *TICK = <PyTypeObject *>DataIngestionFormat
cdef Py_ssize_t EXCHANGE = offset_of(DataIngestionFormat, "exchange")
cdef Py_ssize_t POSITION_MS = offset_of(DataIngestionFormat, "position_ms")
cdef Py_ssize_t POSITION_SEQ = offset_of(DataIngestionFormat, "position_seq")

cdef PyTypeObject *_outbox = NULL
cdef PyTypeObject *_session = NULL
cdef PyTypeObject *_flow = NULL
cdef PyTypeObject *_counters = NULL
cdef PyTypeObject *_pacer = NULL
cdef object _held = None
cdef Py_ssize_t BACKLOG, LIMIT_BYTES, QUEUE, SKIPPED, WAKE, OVERFULL, QUEUED_BYTES
cdef Py_ssize_t AWAITS_FLUSH, CLOSE_SENT_S, DESCRIPTOR, FLOW, TRANSPORT, COUNTERS, OUTBOX
cdef Py_ssize_t LAST_PING_S, LAST_SENT_S, PINGED_TOTAL, READ_TOTAL, SENT_TOTAL, WINDOW_BYTES
cdef Py_ssize_t FRAMES_OUT, BYTES_OUT
cdef Py_ssize_t READY, FLUSH_HANDLE
cdef double _ping_interval_s = 0.0


def shapes_of_the_gateway(outbox, session, flow, counters, pacer, double ping_interval_s):
    """Learn where the slots of the gateway's objects are, before anything else is called."""
    global _held, _outbox, _session, _flow, _counters, _pacer, _ping_interval_s
    global BACKLOG, LIMIT_BYTES, QUEUE, SKIPPED, WAKE, OVERFULL, QUEUED_BYTES
    global AWAITS_FLUSH, CLOSE_SENT_S, DESCRIPTOR, FLOW, TRANSPORT, COUNTERS, OUTBOX
    global LAST_PING_S, LAST_SENT_S, PINGED_TOTAL, READ_TOTAL, SENT_TOTAL, WINDOW_BYTES
    global FRAMES_OUT, BYTES_OUT, READY, FLUSH_HANDLE
    BACKLOG, LIMIT_BYTES = offset_of(outbox, "_backlog"), offset_of(outbox, "_limit_bytes")
    QUEUE, SKIPPED = offset_of(outbox, "_queue"), offset_of(outbox, "_skipped")
    WAKE, OVERFULL = offset_of(outbox, "_wake"), offset_of(outbox, "overfull")
    QUEUED_BYTES = offset_of(outbox, "queued_bytes")
    AWAITS_FLUSH, CLOSE_SENT_S = offset_of(session, "awaits_flush"), offset_of(session, "_close_sent_s")
    DESCRIPTOR, FLOW = offset_of(session, "_descriptor"), offset_of(session, "_flow")
    TRANSPORT, COUNTERS = offset_of(session, "_transport"), offset_of(session, "counters")
    OUTBOX = offset_of(session, "outbox")
    LAST_PING_S, LAST_SENT_S = offset_of(flow, "_last_ping_s"), offset_of(flow, "_last_sent_s")
    PINGED_TOTAL, READ_TOTAL = offset_of(flow, "_pinged_total"), offset_of(flow, "_read_total")
    SENT_TOTAL, WINDOW_BYTES = offset_of(flow, "_sent_total"), offset_of(flow, "_window_bytes")
    FRAMES_OUT, BYTES_OUT = offset_of(counters, "frames_out"), offset_of(counters, "bytes_out")
    READY, FLUSH_HANDLE = offset_of(pacer, "_ready"), offset_of(pacer, "_flush_handle")
    _ping_interval_s = ping_interval_s
    _held = (outbox, session, flow, counters, pacer)
    _outbox, _session = <PyTypeObject *>outbox, <PyTypeObject *>session
    _flow, _counters, _pacer = <PyTypeObject *>flow, <PyTypeObject *>counters, <PyTypeObject *>pacer


def take(outbox, publication):
    """Queue one tick for delivery `all`."""
    _demand(outbox, _outbox)
    _demand(publication, PUBLICATION)
    if peek(outbox, OVERFULL) is <PyObject *>True:
        return
    made = get(publication, FRAGMENT)
    if made is None:
        made = _make_fragment(publication)
    cdef long long size = get(outbox, QUEUED_BYTES)
    size += len(made)
    put(outbox, QUEUED_BYTES, size)
    queue = get(outbox, QUEUE)
    queue.append(publication)
    if len(queue) == 1:
        get(outbox, WAKE)()
    elif size > <long long>get(outbox, LIMIT_BYTES):
        outbox._shed()


def ready(pacer, session):
    """Flush the session's queue when the event loop has done what it is at."""
    _demand(pacer, _pacer)
    _demand(session, _session)
    if peek(session, AWAITS_FLUSH) is not <PyObject *>True:
        put(session, AWAITS_FLUSH, True)
        get(pacer, READY).append(session)
        if peek(pacer, FLUSH_HANDLE) is <PyObject *>None:
            pacer._flush_soon()


def flush_some(pacer, int most, now_s):
    """Flush the first `most` sessions of those that are ready."""
    _demand(pacer, _pacer)
    line = get(pacer, READY)
    for _ in range(most):
        session = line.popleft()
        _demand(session, _session)
        put(session, AWAITS_FLUSH, False)
        if not _flush(session, now_s):
            pacer._flush(session, now_s)


cdef bint _flush(session, now_s) except -1:
    """Send the one thing that waits for a client that keeps up; return whether that was so, and all is done."""
    outbox = get(session, OUTBOX)
    flow = get(session, FLOW)
    counters = get(session, COUNTERS)
    _demand(outbox, _outbox)
    _demand(flow, _flow)
    _demand(counters, _counters)
    queue = get(outbox, QUEUE)
    cdef int descriptor = get(session, DESCRIPTOR)
    if descriptor < 0 or len(queue) != 1 or get(outbox, SKIPPED) or len(get(outbox, BACKLOG)):
        return False
    cdef long long sent = get(flow, SENT_TOTAL)
    cdef long long window = get(flow, WINDOW_BYTES)
    if peek(session, CLOSE_SENT_S) is not <PyObject *>None or sent - <long long>get(flow, READ_TOTAL) >= window:
        return False
    transport = get(session, TRANSPORT)
    if transport.is_closing() or transport.get_write_buffer_size():
        return False
    item = queue.popleft()
    cdef long long size
    if PyBytes_CheckExact(item):
        frame = item
        size = PyBytes_GET_SIZE(frame)
    elif PyObject_TypeCheck(item, PUBLICATION):
        frame = get(item, FRAME)
        if frame is None:
            frame = _single_frame(item)
        size = len(get(item, FRAGMENT))
    else:
        queue.appendleft(item)
        return False
    put(outbox, QUEUED_BYTES, <long long>get(outbox, QUEUED_BYTES) - size)
    size = PyBytes_GET_SIZE(frame)
    put(counters, FRAMES_OUT, <long long>get(counters, FRAMES_OUT) + 1)
    put(counters, BYTES_OUT, <long long>get(counters, BYTES_OUT) + size)
    sent += size
    if (sent - <long long>get(flow, PINGED_TOTAL)) * 4 >= window or (
        <double>now_s - <double>get(flow, LAST_PING_S) >= _ping_interval_s
    ):
        ping = flow.sent(size, now_s)
        if ping is not None:
            frame = frame + _ping_frame(ping)
            size = PyBytes_GET_SIZE(frame)
    else:
        put(flow, SENT_TOTAL, sent)
        put(flow, LAST_SENT_S, now_s)
    cdef Py_ssize_t written = send(descriptor, PyBytes_AS_STRING(frame), size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if written < size:
        # Full, or lost: the transport waits for the one and deals with the other.
        transport.write(frame if written <= 0 else frame[written:])
    return True


def build_frame(list batch):
    """Return the frame of a batch of ticks of different instruments."""
    cdef list fragments = []
    cdef dict newest = {}
    cdef long long top_ms = -1, top_seq = 0, ms, seq
    cdef object exchange = None, its, record, top = None
    for publication in batch:
        _demand(publication, PUBLICATION)
        record = get(publication, RECORD)
        _demand(record, TICK)
        its = get(record, EXCHANGE)
        if its is not exchange and its != exchange:
            if top is not None:
                newest[exchange] = top
            exchange = its
            top = newest.get(exchange)
            top_ms, top_seq = -1, 0
            if top is not None:
                top_ms, top_seq = get(top, POSITION_MS), get(top, POSITION_SEQ)
        ms = get(record, POSITION_MS)
        if ms >= top_ms:
            seq = get(record, POSITION_SEQ)
            if ms > top_ms or seq > top_seq:
                top, top_ms, top_seq = record, ms, seq
        made = get(publication, FRAGMENT)
        fragments.append(_make_fragment(publication) if made is None else made)
    if top is not None:
        newest[exchange] = top
    return _tick_frame(fragments, newest)


cdef inline int _demand(object o, PyTypeObject *cls) except -1:
    if not PyObject_TypeCheck(o, cls):
        raise TypeError(f"{type(o).__name__} is no {(<object>cls).__name__}")
    return 0
