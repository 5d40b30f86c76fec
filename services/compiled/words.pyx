# cython: cdivision=True
"""Ticks in words for Redis: the loops of the three writers, straight into bytes.

Does what `EntryEncoder.tick`, `StreamWriter._entries`, `LatestValueWriter._commands` and
`TimeSeriesWriter._samples_waiting` do, byte for byte, and leaves the same state behind; only what Python
remembers of the last price's text it leaves as it is. Whatever is unusual (a control record, a number that is
none, an instrument not seen before, text that is not ASCII) goes to Python's methods, one record at a time.
`tests/unit/storage/test_compiled_words.py` holds the two against each other.

A number in a slot is read through a borrowed pointer: whoever reads holds the record, which never changes.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.math cimport isfinite
from libc.string cimport memcpy, memmove

from services.compiled.slots cimport get, offset_of, peek, put

from services.market_data.records import PROBE_EXCHANGE, PROBE_INSTRUMENT, DataIngestionFormat
from services.storage.entry import FLAG_FIELDS, EncodedTick
from services.storage.latest_hash import LatestHash
from services.storage.resp import BULK_HEAD, FLOAT_BULKS, INTEGER_BULKS
from services.storage.series import InstrumentSeries, fields_of
from services.storage.spool_format import MERGED

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    char *PyUnicode_1BYTE_DATA(object text)
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 greatest)
    bint is_float "PyFloat_CheckExact" (PyObject *number)
    double float_value "PyFloat_AS_DOUBLE" (PyObject *number)
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size)
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1
    char *bytes_data "PyBytes_AS_STRING" (PyObject *data)
    char *PyBytes_AS_STRING(object data)
    Py_ssize_t PyBytes_GET_SIZE(object data)

cdef extern from *:
    """
    /* Reads a whole number of at most 64 bits; 0 for anything else. */
    static inline int marketd_whole(PyObject *number, long long *value) {
        if (number == NULL || !PyLong_CheckExact(number)) return 0;
        int overflow = 0;
    #if PyLong_SHIFT == 30
        /* Two digits hold 60 bits: every time in milliseconds. */
    #if PY_VERSION_HEX >= 0x030C0000
        const digit *digits = ((PyLongObject *)number)->long_value.ob_digit;
        uintptr_t tag = ((PyLongObject *)number)->long_value.lv_tag;
        uintptr_t size = tag >> 3;
        int positive = (tag & 3) == 0;
    #else
        const digit *digits = ((PyLongObject *)number)->ob_digit;
        Py_ssize_t size = Py_SIZE(number);
        int positive = size > 0;
    #endif
        if (positive && size == 2) {
            *value = (long long)digits[0] | (long long)digits[1] << 30;
            return 1;
        }
        if (positive && size == 1) {
            *value = (long long)digits[0];
            return 1;
        }
        if (size == 0) {
            *value = 0;
            return 1;
        }
    #endif
        *value = PyLong_AsLongLongAndOverflow(number, &overflow);
        return overflow == 0;
    }
    """
    bint whole "marketd_whole" (PyObject *number, long long *value) noexcept

# ---- where the slots are ---------------------------------------------------------------------------

cdef object Tick = DataIngestionFormat
cdef Py_ssize_t AT_SYMBOL = offset_of(Tick, "symbol")
cdef Py_ssize_t AT_PRICE = offset_of(Tick, "price")
cdef Py_ssize_t AT_VOLUME = offset_of(Tick, "volume")
cdef Py_ssize_t AT_TIMESTAMP = offset_of(Tick, "timestamp")
cdef Py_ssize_t AT_PROVIDER = offset_of(Tick, "provider_code")
cdef Py_ssize_t AT_RECEIVED = offset_of(Tick, "received_ms")
cdef Py_ssize_t AT_CUMULATIVE = offset_of(Tick, "cumulative_volume")
cdef Py_ssize_t AT_BID = offset_of(Tick, "bid")
cdef Py_ssize_t AT_ASK = offset_of(Tick, "ask")
cdef Py_ssize_t AT_BID_SIZE = offset_of(Tick, "bid_size")
cdef Py_ssize_t AT_ASK_SIZE = offset_of(Tick, "ask_size")
cdef Py_ssize_t AT_OI = offset_of(Tick, "oi")
cdef Py_ssize_t AT_OPEN = offset_of(Tick, "day_open")
cdef Py_ssize_t AT_HIGH = offset_of(Tick, "day_high")
cdef Py_ssize_t AT_LOW = offset_of(Tick, "day_low")
cdef Py_ssize_t AT_CLOSE = offset_of(Tick, "previous_close")
cdef Py_ssize_t AT_FLAGS = offset_of(Tick, "flags")
cdef Py_ssize_t AT_EXCHANGE = offset_of(Tick, "exchange")
cdef Py_ssize_t AT_POSITION_MS = offset_of(Tick, "position_ms")
cdef Py_ssize_t AT_POSITION_SEQ = offset_of(Tick, "position_seq")

cdef Py_ssize_t ENCODED_RECORD = offset_of(EncodedTick, "record")
cdef Py_ssize_t ENCODED_PROVIDER = offset_of(EncodedTick, "provider")
cdef Py_ssize_t ENCODED_HEAD = offset_of(EncodedTick, "head")
cdef Py_ssize_t ENCODED_DAY_MASK = offset_of(EncodedTick, "day_mask")
cdef Py_ssize_t ENCODED_DAY_TEXT = offset_of(EncodedTick, "day_text")
cdef Py_ssize_t ENCODED_MASK = offset_of(EncodedTick, "mask")
cdef Py_ssize_t ENCODED_TEXT = offset_of(EncodedTick, "text")

cdef Py_ssize_t HASH_HEAD = offset_of(LatestHash, "head")
cdef Py_ssize_t HASH_MASK = offset_of(LatestHash, "mask")
cdef Py_ssize_t HASH_NEWEST = offset_of(LatestHash, "newest")

cdef Py_ssize_t SERIES_PRICE = offset_of(InstrumentSeries, "price")
cdef Py_ssize_t SERIES_VOLUME = offset_of(InstrumentSeries, "volume")
cdef Py_ssize_t SERIES_BID = offset_of(InstrumentSeries, "bid")
cdef Py_ssize_t SERIES_ASK = offset_of(InstrumentSeries, "ask")
cdef Py_ssize_t SERIES_OI = offset_of(InstrumentSeries, "oi")
cdef Py_ssize_t SERIES_MADE = offset_of(InstrumentSeries, "made")
cdef Py_ssize_t SERIES_NEWEST = offset_of(InstrumentSeries, "newest")
cdef Py_ssize_t SERIES_SLOT = offset_of(InstrumentSeries, "slot")

cdef PyObject *NONE = <PyObject *>None
cdef tuple FLAGS = FLAG_FIELDS
cdef tuple MASKS = tuple(range(1 << 12))
"""The masks as Python's numbers, made once."""
cdef object float_bulks = FLOAT_BULKS
cdef object integer_bulks = INTEGER_BULKS
cdef tuple bulk_heads = BULK_HEAD
cdef str PROBE = PROBE_INSTRUMENT
cdef str PROBES = PROBE_EXCHANGE

# The order of `entry.OPTIONAL_FIELDS`, and that of `keys.TICK_FIELDS`.
cdef enum:
    V = 1
    CV = 2
    B = 4
    A = 8
    BS = 16
    AS = 32
    OI = 64
    O = 128
    H = 256
    L = 512
    PC = 1024
    F = 2048

    PRICE = 1
    VOLUME = 2
    BID = 4
    ASK = 8
    INTEREST = 16

    # More than one number as a bulk string takes, with what is written behind it and not kept.
    NUMBER_ROOM = 64
    NUMBER_MOST = 40
    SCRATCH = 4096
    HEAD_MOST = 2048
    DAY_MOST = 512

cdef unsigned char WIDTH[1 << 12]
cdef int _mask
for _mask in range(1 << 12):
    WIDTH[_mask] = <unsigned char>_mask.bit_count()

# ---- bytes that grow -------------------------------------------------------------------------------

cdef struct Buffer:
    # `whole` is a bytes object of `size` bytes, of which `used` are written; nobody else has it.
    PyObject *whole
    char *data
    Py_ssize_t used
    Py_ssize_t size


cdef int resize(Buffer *buffer, Py_ssize_t size) except -1:
    if buffer.whole is NULL:
        buffer.whole = new_bytes(NULL, size)
        if buffer.whole is NULL:
            raise MemoryError()
    else:
        # When this fails, the object is gone and `whole` is NULL.
        _PyBytes_Resize(&buffer.whole, size)
    buffer.data, buffer.size = bytes_data(buffer.whole), size
    return 0


cdef int begin(Buffer *buffer, Py_ssize_t size) except -1:
    buffer.whole, buffer.data, buffer.used, buffer.size = NULL, NULL, 0, 0
    return resize(buffer, size)


cdef bytes take(Buffer *buffer):
    """Return what was written; the buffer is of no use after that."""
    resize(buffer, buffer.used)
    return <bytes>buffer.whole


cdef inline char *room(Buffer *buffer, Py_ssize_t more) except NULL:
    """Return where the next `more` bytes go."""
    if buffer.size - buffer.used < more:
        resize(buffer, 2 * buffer.size + more)
    return buffer.data + buffer.used


cdef int add(Buffer *buffer, str text) except -1:
    """Add text as `resp.to_bytes` encodes it."""
    cdef Py_ssize_t size
    cdef bytes encoded
    if PyUnicode_IS_COMPACT_ASCII(text):
        size = PyUnicode_GET_LENGTH(text)
        memcpy(room(buffer, size), PyUnicode_1BYTE_DATA(text), size)
    else:
        encoded = text.encode("utf-8", "replace")
        size = PyBytes_GET_SIZE(encoded)
        memcpy(room(buffer, size), PyBytes_AS_STRING(encoded), size)
    buffer.used += size
    return 0


# ---- numbers ---------------------------------------------------------------------------------------

cdef char PAIRS[200]
cdef int _pair
for _pair in range(100):
    PAIRS[2 * _pair] = <char>(48 + _pair // 10)
    PAIRS[2 * _pair + 1] = <char>(48 + _pair % 10)


cdef inline char *digits_before(char *end, unsigned long long number) noexcept nogil:
    """Write a number so that its last digit stands just before `end`; return where it begins."""
    cdef unsigned long long rest
    while number >= 100:
        rest = number // 100
        end -= 2
        memcpy(end, &PAIRS[2 * (number - 100 * rest)], 2)
        number = rest
    if number >= 10:
        end -= 2
        memcpy(end, &PAIRS[2 * number], 2)
    else:
        end -= 1
        end[0] = <char>(48 + number)
    return end


cdef inline char *integer_text(char *end, long long value) noexcept nogil:
    cdef char *begin
    if value >= 0:
        return digits_before(end, <unsigned long long>value)
    begin = digits_before(end, 0 - <unsigned long long>value) - 1
    begin[0] = b"-"
    return begin


cdef inline char *short_bulk(char *at, const char *text, Py_ssize_t size) noexcept nogil:
    """Write at most 32 bytes as a bulk string. Reads and writes 32 whatever the size is: it is quicker."""
    at[0] = b"$"
    if size < 10:
        at[1] = <char>(48 + size)
        at += 2
    else:
        memcpy(at + 1, &PAIRS[2 * size], 2)
        at += 3
    memcpy(at, b"\r\n", 2)
    memcpy(at + 2, text, 32)
    at += 2 + size
    memcpy(at, b"\r\n", 2)
    return at + 2


cdef inline char *integer_bulk(char *at, PyObject *number) noexcept:
    """Write a whole number, needs `NUMBER_ROOM`; NULL when it is none of 64 bits."""
    cdef char text[64]
    cdef char *begin
    cdef long long value
    if not whole(number, &value):
        return NULL
    begin = integer_text(&text[32], value)
    return short_bulk(at, begin, &text[32] - begin)


cdef inline char *decimal_bulk(char *at, double number) noexcept nogil:
    """Write a number that is a short decimal, needs `NUMBER_ROOM`; NULL when it is none.

    No two decimals of at most 15 digits read back as the same double. So one that does read back as the
    number is, without its trailing zeros, the shortest that does, which is what msgspec writes. That it does
    is proved by dividing, which rounds correctly: both numbers divided are whole and below 2**53. From 1e-5
    to 1e16 msgspec writes no exponent.
    """
    cdef char text[64]
    cdef char *end = &text[32]
    cdef char *begin
    cdef double size = -number if number < 0.0 else number
    cdef unsigned long long scaled, scale
    cdef int places
    if size == 0.0:
        memcpy(text, b"0.0", 3)
        return short_bulk(at, text, 3)
    if not 1e-5 <= size < 1e11:
        return NULL
    scaled = <unsigned long long>(size * 1e2 + 0.5)
    if <double>scaled / 1e2 == size:
        # Cents: most prices.
        memcpy(end - 2, &PAIRS[2 * (scaled % 100)], 2)
        (end - 3)[0] = b"."
        begin = digits_before(end - 3, scaled // 100)
        if (end - 1)[0] == b"0":
            end -= 1
    else:
        scaled, scale, places = <unsigned long long>(size * 1e4 + 0.5), 10_000, 4
        if <double>scaled / 1e4 != size:
            if size >= 1e7:
                return NULL
            scaled, scale, places = <unsigned long long>(size * 1e8 + 0.5), 100_000_000, 8
            if <double>scaled / 1e8 != size:
                return NULL
        # A one in front keeps the zeros that follow the point.
        digits_before(end, scale + scaled % scale)
        (end - places - 1)[0] = b"."
        begin = digits_before(end - places - 1, scaled // scale)
        # It ends: a fraction of cents is left.
        while (end - 1)[0] == b"0":
            end -= 1
    if number < 0.0:
        begin -= 1
        begin[0] = b"-"
    return short_bulk(at, begin, end - begin)


cdef inline char *float_bulk(char *at, PyObject *number) except? NULL:
    """Write a price, needs `NUMBER_ROOM`; NULL (no exception) when it is no finite float."""
    cdef char *done
    cdef Py_ssize_t size
    if number is NULL or not is_float(number):
        return NULL
    done = decimal_bulk(at, float_value(number))
    if done is not NULL:
        return done
    if not isfinite(float_value(number)):
        return NULL
    piece = float_bulks[<object>number]
    size = PyUnicode_GET_LENGTH(piece)
    if size > NUMBER_MOST:
        return NULL
    memcpy(at, PyUnicode_1BYTE_DATA(piece), size)
    return at + size


cdef struct Moment:
    # A time as a bulk string: `digits` is where in `words` its digits begin, `size` 0 while there are none.
    # Ticks that come together share their times.
    long long ms
    char words[64]
    Py_ssize_t size
    Py_ssize_t digits


cdef inline void note(Moment *moment, long long ms) noexcept:
    cdef char text[64]
    cdef char *first
    cdef Py_ssize_t size
    if moment.size == 0 or moment.ms != ms:
        first = integer_text(&text[32], ms)
        size = &text[32] - first
        moment.size = short_bulk(moment.words, first, size) - moment.words
        moment.digits = moment.size - size - 2
        moment.ms = ms


cdef inline char *moment_bulk(char *at, Moment *moment, PyObject *ms) noexcept:
    """Write a time, needs `NUMBER_ROOM`; NULL when it is no whole number of 64 bits."""
    cdef long long value
    if not whole(ms, &value):
        return NULL
    note(moment, value)
    memcpy(at, moment.words, 32)
    return at + moment.size


cdef inline int bits_of(PyObject *mask) noexcept:
    """Return a mask that is kept as one of Python's numbers."""
    cdef long long value = 0
    whole(mask, &value)
    return <int>value


# ---- one tick --------------------------------------------------------------------------------------

cdef inline bint known(object record, Py_ssize_t at) noexcept:
    return peek(record, at) != NONE


cdef inline bint same(object one, object other, Py_ssize_t at) noexcept:
    return peek(one, at) == peek(other, at)


cdef inline char *day_field(char *at, const char *name, Py_ssize_t size, PyObject *number) except? NULL:
    memcpy(at, name, size)
    return float_bulk(at + size, number)


cdef object words_of(dict ticks, object record, Moment *event, Moment *received):
    """Return the tick in words, as `EntryEncoder.tick` does; None where that is to do it itself."""
    cdef char scratch[SCRATCH]
    cdef char *at = scratch
    cdef char *day = NULL
    cdef PyObject *number
    cdef Py_ssize_t size
    cdef long long flags
    cdef int mask = 0, day_mask
    cdef PyObject *found = PyDict_GetItemWithError(ticks, get(record, AT_SYMBOL))
    if found is NULL:
        return None
    encoded = <object>found
    if peek(encoded, ENCODED_RECORD) == <PyObject *>record:
        return encoded
    if peek(encoded, ENCODED_PROVIDER) != peek(record, AT_PROVIDER):
        if get(encoded, ENCODED_PROVIDER) != get(record, AT_PROVIDER):
            return None
    head = get(encoded, ENCODED_HEAD)
    day_text = get(encoded, ENCODED_DAY_TEXT)
    if not PyUnicode_IS_COMPACT_ASCII(head) or not PyUnicode_IS_COMPACT_ASCII(day_text):
        return None
    if PyUnicode_GET_LENGTH(head) > HEAD_MOST or PyUnicode_GET_LENGTH(day_text) > DAY_MOST:
        return None
    if not whole(peek(record, AT_FLAGS), &flags) or flags < 0 or flags >= len(FLAGS):
        return None
    size = PyUnicode_GET_LENGTH(head)
    memcpy(at, PyUnicode_1BYTE_DATA(head), size)
    at = moment_bulk(at + size, event, peek(record, AT_TIMESTAMP))
    if at is NULL:
        return None
    memcpy(at, b"$1\r\nr\r\n", 7)
    at = moment_bulk(at + 7, received, peek(record, AT_RECEIVED))
    if at is NULL:
        return None
    memcpy(at, b"$1\r\np\r\n", 7)
    at = float_bulk(at + 7, peek(record, AT_PRICE))
    if at is NULL:
        return None
    number = peek(record, AT_VOLUME)
    if number != NONE:
        mask |= V
        memcpy(at, b"$1\r\nv\r\n", 7)
        at = integer_bulk(at + 7, number)
        if at is NULL:
            return None
    number = peek(record, AT_CUMULATIVE)
    if number != NONE:
        mask |= CV
        memcpy(at, b"$2\r\ncv\r\n", 8)
        at = integer_bulk(at + 8, number)
        if at is NULL:
            return None
    number = peek(record, AT_BID)
    if number != NONE:
        mask |= B
        memcpy(at, b"$1\r\nb\r\n", 7)
        at = float_bulk(at + 7, number)
        if at is NULL:
            return None
    number = peek(record, AT_ASK)
    if number != NONE:
        mask |= A
        memcpy(at, b"$1\r\na\r\n", 7)
        at = float_bulk(at + 7, number)
        if at is NULL:
            return None
    number = peek(record, AT_BID_SIZE)
    if number != NONE:
        mask |= BS
        memcpy(at, b"$2\r\nbs\r\n", 8)
        at = integer_bulk(at + 8, number)
        if at is NULL:
            return None
    number = peek(record, AT_ASK_SIZE)
    if number != NONE:
        mask |= AS
        memcpy(at, b"$2\r\nas\r\n", 8)
        at = integer_bulk(at + 8, number)
        if at is NULL:
            return None
    number = peek(record, AT_OI)
    if number != NONE:
        mask |= OI
        memcpy(at, b"$2\r\noi\r\n", 8)
        at = integer_bulk(at + 8, number)
        if at is NULL:
            return None
    last = get(encoded, ENCODED_RECORD)
    if (
        last is not None
        and same(record, last, AT_HIGH)
        and same(record, last, AT_LOW)
        and same(record, last, AT_OPEN)
        and same(record, last, AT_CLOSE)
    ):
        # The normaliser hands on the same objects until one of them changes.
        day_mask = bits_of(peek(encoded, ENCODED_DAY_MASK))
        size = PyUnicode_GET_LENGTH(day_text)
        memcpy(at, PyUnicode_1BYTE_DATA(day_text), size)
        at += size
    else:
        day, day_mask = at, 0
        if known(record, AT_OPEN):
            day_mask |= O
            at = day_field(at, b"$1\r\no\r\n", 7, peek(record, AT_OPEN))
            if at is NULL:
                return None
        if known(record, AT_HIGH):
            day_mask |= H
            at = day_field(at, b"$1\r\nh\r\n", 7, peek(record, AT_HIGH))
            if at is NULL:
                return None
        if known(record, AT_LOW):
            day_mask |= L
            at = day_field(at, b"$1\r\nl\r\n", 7, peek(record, AT_LOW))
            if at is NULL:
                return None
        if known(record, AT_CLOSE):
            day_mask |= PC
            at = day_field(at, b"$2\r\npc\r\n", 8, peek(record, AT_CLOSE))
            if at is NULL:
                return None
        day_text = PyUnicode_New(at - day, 127)
        memcpy(PyUnicode_1BYTE_DATA(day_text), day, at - day)
    mask |= day_mask
    if flags:
        mask |= F
        words = <object>PyTuple_GET_ITEM(FLAGS, flags)
        size = PyUnicode_GET_LENGTH(words)
        memcpy(at, PyUnicode_1BYTE_DATA(words), size)
        at += size
    text = PyUnicode_New(at - scratch, 127)
    memcpy(PyUnicode_1BYTE_DATA(text), scratch, at - scratch)
    if day is not NULL:
        put(encoded, ENCODED_DAY_TEXT, day_text)
        put(encoded, ENCODED_DAY_MASK, <object>PyTuple_GET_ITEM(MASKS, day_mask))
    put(encoded, ENCODED_TEXT, text)
    put(encoded, ENCODED_MASK, <object>PyTuple_GET_ITEM(MASKS, mask))
    put(encoded, ENCODED_RECORD, record)
    return encoded


# ---- the stream ------------------------------------------------------------------------------------

cdef int add_position(Buffer *body, Buffer *ids, Moment *moment, object ms, object sequence) except -1:
    """Add the id of an entry to both."""
    cdef char text[128]
    cdef char number[64]
    cdef char *first
    cdef char *place
    cdef long long value, place_in_ms
    cdef Py_ssize_t size
    if whole(<PyObject *>ms, &value) and whole(<PyObject *>sequence, &place_in_ms):
        note(moment, value)
        first = integer_text(&number[32], place_in_ms)
        size = moment.size - moment.digits - 2
        if size + 1 + (&number[32] - first) <= 32:
            memcpy(text, moment.words + moment.digits, 32)
            text[size] = b"-"
            memcpy(&text[size + 1], first, 32)
            size += 1 + (&number[32] - first)
            place = room(body, NUMBER_ROOM)
            size = short_bulk(place, text, size) - place
            body.used += size
            memcpy(room(ids, NUMBER_ROOM), place, NUMBER_ROOM)
            ids.used += size
            return 0
    position = f"{ms}-{sequence}"
    position = f"{bulk_heads[len(position)]}{position}\r\n"
    add(body, position)
    add(ids, position)
    return 0


cdef bytes answer_of(Buffer *ids, Py_ssize_t count):
    """Return what Redis answers when `count` entries are stored: each by its id, which was ours to choose."""
    cdef bytes middle = b"*%d\r\n" % count
    cdef Py_ssize_t size = PyBytes_GET_SIZE(middle)
    cdef bytes answer = PyBytes_FromStringAndSize(NULL, 5 + 9 * count + size + ids.used)
    cdef char *at = PyBytes_AS_STRING(answer)
    cdef Py_ssize_t number
    memcpy(at, b"+OK\r\n", 5)
    at += 5
    for number in range(count):
        memcpy(at, b"+QUEUED\r\n", 9)
        at += 9
    memcpy(at, PyBytes_AS_STRING(middle), size)
    memcpy(at + size, ids.data, ids.used)
    return answer


def _place(end):
    return end[1]


cdef int put_in_place_of(Buffer *buffer, Py_ssize_t place, str before, str after) except -1:
    """Put `after` where `before` was written at `place`."""
    cdef bytes old = before.encode("utf-8", "replace"), new = after.encode("utf-8", "replace")
    cdef Py_ssize_t behind = place + PyBytes_GET_SIZE(old), more = PyBytes_GET_SIZE(new) - PyBytes_GET_SIZE(old)
    if more > 0:
        room(buffer, more)
    memmove(buffer.data + behind + more, buffer.data + behind, buffer.used - behind)
    memcpy(buffer.data + place, PyBytes_AS_STRING(new), PyBytes_GET_SIZE(new))
    buffer.used += more
    return 0


def entries(writer, list taken, dict ticks, dict all_heads, no_heads):
    """Return `taken` as entries of streams, as `StreamWriter._entries` does.

    That is: the records sent, the transaction and its expected answer as bytes, and the probe's position.
    """
    cdef Buffer body, ids
    cdef Moment event, received, position
    cdef list records = taken
    cdef Py_ssize_t place, count = 0
    cdef long arguments, head_arguments = -1
    cdef str exchange = "", head = ""
    cdef dict ends = {}
    cdef Py_ssize_t newest_head = 0
    cdef object record, encoded, text, probe_ms = 0, heads = no_heads
    body.whole, ids.whole = NULL, NULL
    event.size, received.size, position.size = 0, 0, 0
    try:
        begin(&body, 64 + 512 * len(taken))
        begin(&ids, 64 + 32 * len(taken))
        memcpy(body.data, b"*1\r\n$5\r\nMULTI\r\n", 15)
        body.used = 15
        for place in range(len(taken)):
            record = <object>PyList_GET_ITEM(taken, place)
            is_tick = type(record) is Tick
            encoded = words_of(ticks, record, &event, &received) if is_tick else None
            if encoded is not None:
                text = get(encoded, ENCODED_TEXT)
                arguments = 12 + 2 * WIDTH[bits_of(peek(encoded, ENCODED_MASK)) & 4095]
            else:
                entry = writer._entry(record)
                if entry is None:
                    if records is taken:
                        records = taken[:place]
                    continue
                arguments, text = entry
            its_exchange = get(record, AT_EXCHANGE) if is_tick else record.exchange
            if its_exchange is not exchange and its_exchange != exchange:
                if exchange:
                    ends[exchange] = (newest_head, head)
                exchange = its_exchange
                heads = all_heads.get(exchange)
                if heads is None:
                    heads = writer._heads_of(exchange)
                head_arguments = -1
                if exchange == PROBES:
                    # Looked at again with the next record, which may be a newer probe.
                    probe_ms, exchange = record.position_ms, ""
            if arguments != head_arguments:
                head, head_arguments = heads[arguments], arguments
            newest_head = body.used
            add(&body, head)
            if is_tick:
                its_ms, its_seq = get(record, AT_POSITION_MS), get(record, AT_POSITION_SEQ)
            else:
                its_ms, its_seq = record.position_ms, record.position_seq
            add_position(&body, &ids, &position, its_ms, its_seq)
            add(&body, text)
            count += 1
            if records is not taken:
                records.append(record)
        if exchange and count:
            ends[exchange] = (newest_head, head)
        # From the back, so that the places in front of it stay what they are.
        for name, (place, head) in sorted(ends.items(), key=_place, reverse=True):
            put_in_place_of(&body, place, head, all_heads[name].trimming[head])
        memcpy(room(&body, 14), b"*1\r\n$4\r\nEXEC\r\n", 14)
        body.used += 14
        return records, take(&body), answer_of(&ids, count), probe_ms
    finally:
        Py_XDECREF(body.whole)
        Py_XDECREF(ids.whole)


cdef inline bint is_probe(symbol) except -1:
    return PyUnicode_IS_COMPACT_ASCII(symbol) and PyUnicode_1BYTE_DATA(symbol)[0] == b"_" and symbol == PROBE


# ---- the newest values -----------------------------------------------------------------------------

def hashes(writer, dict pending, Py_ssize_t count, dict ticks, dict targets):
    """Take up to `count` ticks and return them as commands, as `LatestValueWriter._commands` does.

    That is: the records sent, the commands as bytes, those that go before them, and the probe's position.
    """
    cdef Buffer body
    cdef Moment event, received
    cdef list symbols = [], taken = [], records, prelude = []
    cdef Py_ssize_t place, at = 0, size
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *found
    cdef int mask, before
    cdef object record, symbol, encoded, target, probe_ms = 0
    cdef char *out
    cdef char head[32]
    cdef char *first
    while len(taken) < count and PyDict_Next(pending, &at, &key, &value):
        symbols.append(<object>key)
        taken.append(<object>value)
    if len(taken) == len(pending):
        pending.clear()
    else:
        for symbol in symbols:
            del pending[symbol]
    records = taken
    body.whole = NULL
    event.size, received.size = 0, 0
    try:
        begin(&body, 64 + 512 * len(taken))
        for place in range(len(taken)):
            record = <object>PyList_GET_ITEM(taken, place)
            symbol = <object>PyList_GET_ITEM(symbols, place)
            encoded = words_of(ticks, record, &event, &received)
            if encoded is None:
                encoded = writer._words(record)
                if encoded is None:
                    if records is taken:
                        records = taken[:place]
                    continue
            found = PyDict_GetItemWithError(targets, symbol)
            target = <object>found if found is not NULL else writer._hash_of(symbol)
            mask = bits_of(peek(encoded, ENCODED_MASK))
            before = bits_of(peek(target, HASH_MASK))
            if before != mask:
                if before & ~mask:
                    prelude.append(writer._deletion(target, before & ~mask))
                put(target, HASH_MASK, get(encoded, ENCODED_MASK))
            put(target, HASH_NEWEST, record)
            first = digits_before(&head[16], 14 + 2 * WIDTH[mask & 4095])
            size = &head[16] - first
            out = room(&body, size + 3)
            out[0] = b"*"
            memcpy(out + 1, first, size)
            memcpy(out + 1 + size, b"\r\n", 2)
            body.used += size + 3
            add(&body, get(target, HASH_HEAD))
            add(&body, get(encoded, ENCODED_TEXT))
            if records is not taken:
                records.append(record)
            if is_probe(symbol):
                probe_ms = get(record, AT_POSITION_MS)
        return records, take(&body), prelude, probe_ms
    finally:
        Py_XDECREF(body.whole)


# ---- the series ------------------------------------------------------------------------------------

cdef inline unsigned int fields_known(object record) noexcept:
    """Return the fields that a tick has, as `series.mask_of` does."""
    cdef unsigned int mask = PRICE
    if known(record, AT_VOLUME):
        mask |= VOLUME
    if known(record, AT_BID):
        mask |= BID
    if known(record, AT_ASK):
        mask |= ASK
    if known(record, AT_OI):
        mask |= INTEREST
    return mask


cdef inline bint usual_float(PyObject *number) noexcept:
    return number is not NULL and is_float(number) and isfinite(float_value(number))


cdef inline bint usual_prices(object record) noexcept:
    cdef PyObject *bid = peek(record, AT_BID)
    cdef PyObject *ask = peek(record, AT_ASK)
    return (
        usual_float(peek(record, AT_PRICE))
        and (bid == NONE or usual_float(bid))
        and (ask == NONE or usual_float(ask))
    )


cdef object with_finite_prices(writer, record):
    """Return the tick itself when its prices can be put into words, else what the writer makes of it."""
    try:
        for price in (record.price, record.bid, record.ask):
            if price is not None or price is record.price:
                float_bulks[price]
    except ValueError:
        return writer._finite(record)
    return record


cdef inline bint later(PyObject *one, PyObject *other) except -1:
    cdef long long a, b
    if whole(one, &a) and whole(other, &b):
        return a > b
    return <object>one > <object>other


cdef int add_sample(
    Buffer *body,
    series,
    Py_ssize_t slot,
    str name,
    Moment *moment,
    str at_words,
    PyObject *number,
    bint price,
) except -1:
    """Add one sample: its key, its time (`at_words`, where that is none of 64 bits) and its number."""
    cdef PyObject *ready = peek(series, slot)
    cdef Py_ssize_t size
    cdef char *at
    cdef char *end
    # The words of a key are made when they are first asked for.
    key = <object>ready if ready is not NULL else getattr(series, name)
    if not PyUnicode_IS_COMPACT_ASCII(key):
        add(body, key)
        key = ""
    size = PyUnicode_GET_LENGTH(key)
    at = room(body, size + 2 * NUMBER_ROOM)
    memcpy(at, PyUnicode_1BYTE_DATA(key), size)
    body.used += size
    if at_words is None:
        at += size
        memcpy(at, moment.words, 32)
        at += moment.size
        body.used += moment.size
    else:
        add(body, at_words)
        at = room(body, NUMBER_ROOM)
    end = float_bulk(at, number) if price else integer_bulk(at, number)
    if end is not NULL:
        body.used += end - at
    else:
        add(body, float_bulks[<object>number] if price else integer_bulks[<object>number])
    return 0


cdef int add_samples(Buffer *body, series, record, Moment *moment) except -1:
    """Add the samples of one tick."""
    cdef str at_words = None
    cdef long long ms
    if whole(peek(record, AT_TIMESTAMP), &ms):
        note(moment, ms)
    else:
        at_words = integer_bulks[record.timestamp]
    add_sample(body, series, SERIES_PRICE, "price", moment, at_words, peek(record, AT_PRICE), True)
    if known(record, AT_VOLUME):
        add_sample(body, series, SERIES_VOLUME, "volume", moment, at_words, peek(record, AT_VOLUME), False)
    if known(record, AT_BID):
        add_sample(body, series, SERIES_BID, "bid", moment, at_words, peek(record, AT_BID), True)
    if known(record, AT_ASK):
        add_sample(body, series, SERIES_ASK, "ask", moment, at_words, peek(record, AT_ASK), True)
    if known(record, AT_OI):
        add_sample(body, series, SERIES_OI, "oi", moment, at_words, peek(record, AT_OI), False)
    return 0


cdef int add_stamps(Buffer *stamps, Moment *moment, record, int width) except -1:
    """Add the time of a record as so many integer replies."""
    cdef char *at
    cdef Py_ssize_t size
    cdef long long ms
    cdef int number
    if not whole(peek(record, AT_TIMESTAMP), &ms):
        add(stamps, f":{record.timestamp}\r\n" * width)
        return 0
    note(moment, ms)
    size = moment.size - moment.digits + 1
    at = room(stamps, width * size + NUMBER_ROOM)
    for number in range(width):
        at[0] = b":"
        memcpy(at + 1, moment.words + moment.digits, 32)
        at += size
    stamps.used += width * size
    return 0


def samples(writer, pending, dict series_of, final, bint diverting, long long first_slot, int full_from):
    """Take pending ticks and return them as samples, as `TimeSeriesWriter._samples_waiting` does.

    That is: the records sent, their samples and the expected answer's times as bytes, how many samples those
    are, the series to be made, the places of merged records, the probe's position, and the next slot.
    """
    cdef Buffer body, stamps
    cdef Moment moment
    cdef list records = [], places = [], making = [], merged = []
    cdef long long next_slot = first_slot, slot
    cdef int count = 0, width
    cdef unsigned int mask, made
    cdef Py_ssize_t place
    cdef PyObject *found
    cdef object record, series, newest, probe_ms = 0, popleft = pending.popleft
    body.whole, stamps.whole = NULL, NULL
    moment.size = 0
    try:
        begin(&stamps, 512)
        while count < full_from and len(pending):
            record = popleft()
            found = PyDict_GetItemWithError(series_of, get(record, AT_SYMBOL))
            series = <object>found if found is not NULL else writer._series_of(record)
            if not usual_prices(record):
                record = with_finite_prices(writer, record)
                if record is None:
                    continue
            mask = fields_known(record)
            newest = get(series, SERIES_NEWEST)
            if newest is None or later(peek(record, AT_TIMESTAMP), peek(newest, AT_TIMESTAMP)):
                put(series, SERIES_NEWEST, record)
                put(series, SERIES_SLOT, next_slot)
            else:
                record, slot, replaces = series.behind_newest(record, first_slot, next_slot)
                if diverting and slot == next_slot:
                    series.left_the_batch(record)
                    final.append((record, MERGED if replaces else 0))
                    continue
                if slot < next_slot:
                    records[slot - first_slot] = record
                    writer.counters.collapsed += 1
                    continue
                if replaces:
                    mask = fields_known(record)
                    merged.append(len(records))
            made = <unsigned int>bits_of(peek(series, SERIES_MADE))
            if mask & ~made:
                making += [(series, field) for field in fields_of(mask & ~made)]
                put(series, SERIES_MADE, <object>PyTuple_GET_ITEM(MASKS, (made | mask) & 4095))
            records.append(record)
            places.append(series)
            width = WIDTH[mask]
            add_stamps(&stamps, &moment, record, width)
            count += width
            next_slot += 1
            if is_probe(get(record, AT_SYMBOL)):
                probe_ms = get(record, AT_POSITION_MS)
        begin(&body, 64 + 96 * count)
        for place in range(len(records)):
            record = <object>PyList_GET_ITEM(records, place)
            add_samples(&body, <object>PyList_GET_ITEM(places, place), record, &moment)
        return records, take(&body), take(&stamps), count, making, merged, probe_ms, next_slot
    finally:
        Py_XDECREF(body.whole)
        Py_XDECREF(stamps.whole)
