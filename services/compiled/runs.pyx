# cython: language_level=3
"""What happens to a run of ticks behind the normaliser: positions, bars, the newest values, who watches them.

Each function does what the Python function of its name does (`Sequencer.stamp_run`, `BarBuilder.take_run`,
`DataBroadcast.offer_ticks`, `LatestValueWriter.offer_ticks`), with the same result for whatever it is given.
It works on that object's own dicts, and calls its methods for what is not usual.
"""

from cpython.dict cimport PyDict_GetItemWithError, PyDict_SetItem
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject, PyTypeObject

from services.compiled.slots cimport get, marketd_new, offset_of, peek, put

from services.market_data.forming import FormingBar, InstrumentBook
from services.market_data.records import FLAG_LATE, PROBE_EXCHANGE, DataIngestionFormat

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    bint PyObject_TypeCheck(object o, PyTypeObject *cls)

cdef PyTypeObject *TICK = <PyTypeObject *>DataIngestionFormat
cdef Py_ssize_t SYMBOL = offset_of(DataIngestionFormat, "symbol")
cdef Py_ssize_t PRICE = offset_of(DataIngestionFormat, "price")
cdef Py_ssize_t VOLUME = offset_of(DataIngestionFormat, "volume")
cdef Py_ssize_t TIMESTAMP = offset_of(DataIngestionFormat, "timestamp")
cdef Py_ssize_t PROVIDER_CODE = offset_of(DataIngestionFormat, "provider_code")
cdef Py_ssize_t FLAGS = offset_of(DataIngestionFormat, "flags")
cdef Py_ssize_t EXCHANGE = offset_of(DataIngestionFormat, "exchange")
cdef Py_ssize_t POSITION_MS = offset_of(DataIngestionFormat, "position_ms")
cdef Py_ssize_t POSITION_SEQ = offset_of(DataIngestionFormat, "position_seq")

cdef PyTypeObject *BOOK = <PyTypeObject *>InstrumentBook
cdef PyTypeObject *BAR = <PyTypeObject *>FormingBar
cdef Py_ssize_t BOOK_NEWEST = offset_of(InstrumentBook, "newest")
cdef Py_ssize_t BAR_CLOSE = offset_of(FormingBar, "close")
cdef Py_ssize_t BAR_END_MS = offset_of(FormingBar, "end_ms")
cdef Py_ssize_t BAR_HIGH = offset_of(FormingBar, "high")
cdef Py_ssize_t BAR_LAST_MS = offset_of(FormingBar, "last_ms")
cdef Py_ssize_t BAR_LOW = offset_of(FormingBar, "low")
cdef Py_ssize_t BAR_SOURCE = offset_of(FormingBar, "source")
cdef Py_ssize_t BAR_TICKS = offset_of(FormingBar, "ticks")
cdef Py_ssize_t BAR_VOLUME = offset_of(FormingBar, "volume")

cdef object _late = FLAG_LATE
cdef object _probe = PROBE_EXCHANGE
cdef object _start = (0, 0)
cdef object _no_flags = 0


def stamp_run(dict last, now_ms, records):
    """Write the next positions into `records`; `last` holds the last one of every exchange."""
    cdef object record, exchange = None, its, ms, seq
    ms, seq = _start
    for record in records:
        its = _exchange_of(record)
        if not _same(its, exchange):
            if exchange is not None:
                last[exchange] = (ms, seq)
            exchange = its
            ms, seq = last.get(exchange, _start)
            if now_ms > ms:
                ms, seq = now_ms, -1
        seq = seq + 1
        if _is_tick(record):
            put(record, POSITION_MS, ms)
            put(record, POSITION_SEQ, seq)
        else:
            record.position_ms = ms
            record.position_seq = seq
    if exchange is not None:
        last[exchange] = (ms, seq)


def take_run(builder, dict books, ticks):
    """Add `ticks` to the minutes of `books`; return the position (ms) of a health probe among them, else 0."""
    cdef object tick, book, bar, symbol, at_ms, price, volume, so_far, high, low, code, probe_ms = 0
    cdef PyObject *found
    for tick in ticks:
        _demand_tick(tick)
        symbol = get(tick, SYMBOL)
        found = PyDict_GetItemWithError(books, symbol)
        if found is NULL:
            if _same(get(tick, EXCHANGE), _probe):
                probe_ms = get(tick, POSITION_MS)
                continue
            book = builder._new_book(symbol, get(tick, EXCHANGE))
        else:
            book = <object>found
        _demand(book, BOOK)
        bar = get(book, BOOK_NEWEST)
        at_ms = get(tick, TIMESTAMP)
        if bar is None or _has_flags(tick) or not _within(bar, at_ms):
            builder._place(book, tick)
            continue
        price = get(tick, PRICE)
        put(bar, BAR_CLOSE, price)
        put(bar, BAR_LAST_MS, at_ms)
        high, low = get(bar, BAR_HIGH), get(bar, BAR_LOW)
        if PyFloat_CheckExact(price) and PyFloat_CheckExact(high) and PyFloat_CheckExact(low):
            if PyFloat_AS_DOUBLE(price) > PyFloat_AS_DOUBLE(high):
                put(bar, BAR_HIGH, price)
            elif PyFloat_AS_DOUBLE(price) < PyFloat_AS_DOUBLE(low):
                put(bar, BAR_LOW, price)
        elif price > high:
            put(bar, BAR_HIGH, price)
        elif price < low:
            put(bar, BAR_LOW, price)
        put(bar, BAR_TICKS, get(bar, BAR_TICKS) + 1)
        volume = get(tick, VOLUME)
        if volume is not None:
            so_far = get(bar, BAR_VOLUME)
            put(bar, BAR_VOLUME, volume if so_far is None else so_far + volume)
        code = get(tick, PROVIDER_CODE)
        if not _same(code, get(bar, BAR_SOURCE)):
            bar.add_source(code)
    return probe_ms


def keep_newest(dict pending, ticks):
    """Put each tick that is not late into `pending`, by instrument; return how many are late."""
    cdef object tick
    cdef Py_ssize_t late = 0
    for tick in ticks:
        _demand_tick(tick)
        if _is_late(tick):
            late += 1
        else:
            PyDict_SetItem(pending, get(tick, SYMBOL), tick)
    return late


cdef PyTypeObject *_publication = NULL
cdef PyTypeObject *_audience = NULL
cdef tuple _held = ()
cdef Py_ssize_t _record = 0, _fragment = 0, _frame = 0, _conflated = 0, _queued = 0


def shapes_of_the_broadcast(publication, audience):
    """Take note of the classes that `fan_out` makes and reads. Raises ImportError when they are others."""
    global _publication, _audience, _held, _record, _fragment, _frame, _conflated, _queued
    _record, _fragment, _frame = (
        offset_of(publication, "record"),
        offset_of(publication, "fragment"),
        offset_of(publication, "frame"),
    )
    _conflated, _queued = offset_of(audience, "conflated"), offset_of(audience, "queued")
    _held = (publication, audience)
    _publication, _audience = <PyTypeObject *>publication, <PyTypeObject *>audience


def fan_out(broadcast, dict newest, dict tips, dict audiences, dict exchange_audiences, ticks):
    """Remember `ticks` as the newest and queue each with everybody who watches its instrument."""
    cdef object tick, symbol, its, publication, pending, take, audience = None, exchange = "", tip = None
    cdef dict conflated, queued, wide = None
    cdef PyObject *found
    cdef bint is_newest, watched
    if _publication is NULL:
        raise RuntimeError("shapes_of_the_broadcast comes first")
    for tick in ticks:
        _demand_tick(tick)
        its = get(tick, EXCHANGE)
        if not _same(its, exchange):
            if _same(its, _probe):
                broadcast.probe_ms = get(tick, POSITION_MS)
                continue
            if tip is not None:
                PyDict_SetItem(tips, exchange, tip)
            exchange = its
            wide = exchange_audiences.get(exchange)
        tip = tick
        symbol = get(tick, SYMBOL)
        is_newest = not _is_late(tick)
        if is_newest:
            found = PyDict_GetItemWithError(newest, symbol)
            if found is NULL or not _is_before(get(tick, TIMESTAMP), <object>found):
                PyDict_SetItem(newest, symbol, tick)
            else:
                is_newest = False
        found = PyDict_GetItemWithError(audiences, symbol)
        watched = found is not NULL
        if watched:
            audience = <object>found
        elif wide is None:
            continue
        publication = _publish(tick)
        if watched:
            _demand(audience, _audience)
            if is_newest:
                conflated = get(audience, _conflated)
                for pending in conflated.values():
                    pending[symbol] = publication
            queued = get(audience, _queued)
            if queued:
                # Whoever takes it may ask for the position.
                PyDict_SetItem(tips, exchange, tick)
                for take in queued.values():
                    take(publication)
        if wide is not None:
            PyDict_SetItem(tips, exchange, tick)
            for take in wide.values():
                take(publication)
    if tip is not None:
        PyDict_SetItem(tips, exchange, tip)


cdef inline bint _is_tick(object record) noexcept:
    return PyObject_TypeCheck(record, TICK)


cdef inline int _demand(object o, PyTypeObject *cls) except -1:
    """Raise TypeError for anything but an object of that very class: its slots are read unseen."""
    if (<PyObject *>o).ob_type is not cls:
        raise TypeError(f"not a {(<object>cls).__name__}: {o!r:.80}")
    return 0


cdef inline int _demand_tick(object o) except -1:
    if not PyObject_TypeCheck(o, TICK):
        raise TypeError(f"not a tick: {o!r:.80}")
    return 0


cdef inline bint _same(object one, object other) except -1:
    """Tell whether two texts are equal, most often because they are one object."""
    return one is other or one == other


cdef inline object _exchange_of(object record):
    return get(record, EXCHANGE) if _is_tick(record) else record.exchange


cdef inline bint _has_flags(object tick) except -1:
    return peek(tick, FLAGS) is not <PyObject *>_no_flags and bool(get(tick, FLAGS))


cdef inline bint _is_late(object tick) except -1:
    return peek(tick, FLAGS) is not <PyObject *>_no_flags and bool(get(tick, FLAGS) & _late)


cdef inline bint _within(object bar, object at_ms) except -1:
    """Tell whether a time is not before the last trade of a bar, and before its end."""
    _demand(bar, BAR)
    cdef object last_ms = get(bar, BAR_LAST_MS), end_ms = get(bar, BAR_END_MS)
    cdef long long at, last, end
    cdef int beyond = 0, beyond_last = 0, beyond_end = 0
    if PyLong_CheckExact(at_ms) and PyLong_CheckExact(last_ms) and PyLong_CheckExact(end_ms):
        at = PyLong_AsLongLongAndOverflow(at_ms, &beyond)
        last = PyLong_AsLongLongAndOverflow(last_ms, &beyond_last)
        end = PyLong_AsLongLongAndOverflow(end_ms, &beyond_end)
        if not (beyond or beyond_last or beyond_end):
            return last <= at < end
    return last_ms <= at_ms < end_ms


cdef inline bint _is_before(object at_ms, object newest) except -1:
    """Tell whether a time is before that of the newest tick so far."""
    cdef object then_ms = get(newest, TIMESTAMP) if _is_tick(newest) else newest.timestamp
    cdef long long at, then
    cdef int beyond = 0, beyond_then = 0
    if PyLong_CheckExact(at_ms) and PyLong_CheckExact(then_ms):
        at = PyLong_AsLongLongAndOverflow(at_ms, &beyond)
        then = PyLong_AsLongLongAndOverflow(then_ms, &beyond_then)
        if not (beyond or beyond_then):
            return at < then
    return not at_ms >= then_ms


cdef inline object _publish(object tick):
    cdef object made = marketd_new(_publication)
    put(made, _record, tick)
    put(made, _fragment, None)
    put(made, _frame, None)
    return made
