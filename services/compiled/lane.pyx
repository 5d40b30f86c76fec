# cython: language_level=3, boundscheck=False, wraparound=False
"""From a packet of one known instrument to its tick, in one piece: decoded, judged, remembered, handed on.

Does for the usual packet what `DhanProvider._lone_quote` and `_lone_full`, `BaseMarketDataProvider.emit`,
`Normaliser.accept` and the manager's `deliver` do one after another, on the same objects. Whatever is not usual
(a first tick, an odd time, a price nobody has seen, a repeat, a late tick, a volume that goes back, ...) is left
to them: then nothing has been changed here. The Python functions say what is right; tests hold the two equal.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Check, PyDict_GetItem
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_Append, PyList_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from libc.math cimport isfinite
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

from services.compiled.slots cimport bump, fill, get, marketd_new, offset_of, peek, put

from services.base_provider import BaseMarketDataProvider
from services.daemon.flow import LONGEST_RUN, Flow
from services.market_data.instrument_state import LAST_PLACE, SECOND_MS, InstrumentState
from services.market_data.normaliser import Normaliser
from services.market_data.normaliser_counters import NormaliserCounters
from services.market_data.odd_times import OddTimes, time_in_order
from services.market_data.quality import EARLIEST_EVENT_MS, FUTURE_TOLERANCE_MS, LARGEST_PRICE, STALE_AFTER_MS
from services.market_data.records import DataIngestionFormat
from services.provider_frames import FrameIntake, ProviderCounters
from services.provider_runtime import ProviderRuntime
from services.silence.pulse import Pulse
from services.wire.dhan import IST_OFFSET_S
from services.wire.dhan_lone import FULL_BYTES, FULL_START, QUOTE_BYTES, QUOTE_START, KnownInstrument

cdef extern from *:
    """
    #if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the packets are read as little endian numbers"
    #endif
    """

cdef double MOST = LARGEST_PRICE
cdef long long FUTURE_MS = FUTURE_TOLERANCE_MS
cdef long long STALE_MS = STALE_AFTER_MS
cdef long long SECOND = SECOND_MS
cdef long long IST_S = IST_OFFSET_S
cdef long long EARLIEST_MS = EARLIEST_EVENT_MS
cdef long LAST = LAST_PLACE
cdef Py_ssize_t LONGEST = LONGEST_RUN
cdef Py_ssize_t QUOTE_SIZE = QUOTE_BYTES
cdef Py_ssize_t FULL_SIZE = FULL_BYTES
cdef bytes QUOTE_HEAD = QUOTE_START
cdef bytes FULL_HEAD = FULL_START
cdef object ZERO = 0

# What the packets say lies where `services.wire.dhan_lone` says it does.
cdef enum:
    PRICE = 8
    TIME = 14
    VOLUME = 22
    QUOTE_DAY = 34
    OPEN_INTEREST = 34
    FULL_DAY = 46
    DAY_BYTES = 16
    BID_SIZE = 62
    ASK_SIZE = 66
    BID = 74
    ASK = 78

# Slots of one instrument at one provider.
cdef Py_ssize_t S_BAND = offset_of(InstrumentState, "band")
cdef Py_ssize_t S_FLAGS = offset_of(InstrumentState, "base_flags")
cdef Py_ssize_t S_BASELINE = offset_of(InstrumentState, "baseline")
cdef Py_ssize_t S_BEGINS = offset_of(InstrumentState, "begins_ms")
cdef Py_ssize_t S_CLEAN = offset_of(InstrumentState, "clean_price")
cdef Py_ssize_t S_CLOSE = offset_of(InstrumentState, "previous_close")
cdef Py_ssize_t S_DAY_MARK = offset_of(InstrumentState, "day_mark")
cdef Py_ssize_t S_DECIMALS = offset_of(InstrumentState, "price_decimals")
cdef Py_ssize_t S_ENDS = offset_of(InstrumentState, "ends_ms")
cdef Py_ssize_t S_EXCHANGE = offset_of(InstrumentState, "exchange")
cdef Py_ssize_t S_GRID = offset_of(InstrumentState, "grid")
cdef Py_ssize_t S_HIGH = offset_of(InstrumentState, "day_high")
cdef Py_ssize_t S_INSTRUMENT = offset_of(InstrumentState, "instrument")
cdef Py_ssize_t S_KNOWN = offset_of(InstrumentState, "known")
cdef Py_ssize_t S_LAST = offset_of(InstrumentState, "last")
cdef Py_ssize_t S_LAST_RAW = offset_of(InstrumentState, "last_raw_event_ms")
cdef Py_ssize_t S_LAST_VOLUME = offset_of(InstrumentState, "last_volume")
cdef Py_ssize_t S_LOW = offset_of(InstrumentState, "day_low")
cdef Py_ssize_t S_OI = offset_of(InstrumentState, "oi")
cdef Py_ssize_t S_ON_GRID = offset_of(InstrumentState, "on_grid")
cdef Py_ssize_t S_OPEN = offset_of(InstrumentState, "day_open")
cdef Py_ssize_t S_PLACE = offset_of(InstrumentState, "place")
cdef Py_ssize_t S_RAW_PRICE = offset_of(InstrumentState, "raw_price")
cdef Py_ssize_t S_RECENT = offset_of(InstrumentState, "recent")
cdef Py_ssize_t S_REFERENCE = offset_of(InstrumentState, "reference")
cdef Py_ssize_t S_SEEDED = offset_of(InstrumentState, "seeded_ms")
cdef Py_ssize_t S_SUSPECTS = offset_of(InstrumentState, "suspects")
cdef Py_ssize_t S_TRADES = offset_of(InstrumentState, "volume_means_trades")

# Slots of a tick.
cdef Py_ssize_t T_SYMBOL = offset_of(DataIngestionFormat, "symbol")
cdef Py_ssize_t T_PRICE = offset_of(DataIngestionFormat, "price")
cdef Py_ssize_t T_VOLUME = offset_of(DataIngestionFormat, "volume")
cdef Py_ssize_t T_TIME = offset_of(DataIngestionFormat, "timestamp")
cdef Py_ssize_t T_PROVIDER = offset_of(DataIngestionFormat, "provider_code")
cdef Py_ssize_t T_PROVIDER_SYMBOL = offset_of(DataIngestionFormat, "provider_symbol")
cdef Py_ssize_t T_RECEIVED = offset_of(DataIngestionFormat, "received_ms")
cdef Py_ssize_t T_CUMULATIVE = offset_of(DataIngestionFormat, "cumulative_volume")
cdef Py_ssize_t T_BID = offset_of(DataIngestionFormat, "bid")
cdef Py_ssize_t T_ASK = offset_of(DataIngestionFormat, "ask")
cdef Py_ssize_t T_BID_SIZE = offset_of(DataIngestionFormat, "bid_size")
cdef Py_ssize_t T_ASK_SIZE = offset_of(DataIngestionFormat, "ask_size")
cdef Py_ssize_t T_OI = offset_of(DataIngestionFormat, "oi")
cdef Py_ssize_t T_OPEN = offset_of(DataIngestionFormat, "day_open")
cdef Py_ssize_t T_HIGH = offset_of(DataIngestionFormat, "day_high")
cdef Py_ssize_t T_LOW = offset_of(DataIngestionFormat, "day_low")
cdef Py_ssize_t T_CLOSE = offset_of(DataIngestionFormat, "previous_close")
cdef Py_ssize_t T_FLAGS = offset_of(DataIngestionFormat, "flags")
cdef Py_ssize_t T_EXCHANGE = offset_of(DataIngestionFormat, "exchange")
cdef Py_ssize_t T_POSITION_MS = offset_of(DataIngestionFormat, "position_ms")
cdef Py_ssize_t T_POSITION_SEQ = offset_of(DataIngestionFormat, "position_seq")
if len(DataIngestionFormat.__struct_fields__) != 21:
    raise ImportError("a tick has other fields than those that are filled here")

cdef Py_ssize_t N_STATES = offset_of(Normaliser, "_states")
cdef Py_ssize_t N_RECORDS = offset_of(NormaliserCounters, "records")
cdef Py_ssize_t N_ACCEPTED = offset_of(NormaliserCounters, "accepted")
cdef Py_ssize_t O_SUSPECTS = offset_of(OddTimes, "suspects")
cdef Py_ssize_t U_TICKS = offset_of(Pulse, "ticks")
cdef Py_ssize_t U_RECEIVED = offset_of(Pulse, "received_ms")
cdef Py_ssize_t U_EVENT = offset_of(Pulse, "event_ms")
cdef Py_ssize_t U_PRICE = offset_of(Pulse, "price")
cdef Py_ssize_t R_PASSED = offset_of(ProviderRuntime, "passed")
cdef Py_ssize_t P_FRESH = offset_of(BaseMarketDataProvider, "_fresh")
cdef Py_ssize_t W_RUN = offset_of(Flow, "_run")
cdef Py_ssize_t C_RECORDS = offset_of(ProviderCounters, "records")
cdef Py_ssize_t C_TICKS = offset_of(ProviderCounters, "ticks")
cdef Py_ssize_t F_CURRENT = offset_of(FrameIntake, "current_ms")
cdef Py_ssize_t K_SYMBOL = offset_of(KnownInstrument, "symbol")
cdef Py_ssize_t K_SEGMENT = offset_of(KnownInstrument, "segment")
cdef Py_ssize_t K_DERIVATIVE = offset_of(KnownInstrument, "derivative")
cdef Py_ssize_t K_DAY_BYTES = offset_of(KnownInstrument, "day_bytes")


cdef inline uint32_t number(const char *at) noexcept:
    cdef uint32_t found
    memcpy(&found, at, 4)
    return found


cdef inline double decimal(const char *at) noexcept:
    cdef float found
    memcpy(&found, at, 4)
    return found


cdef inline bint is_float(object o) noexcept:
    return PyFloat_CheckExact(o)


cdef inline tuple on_grid(object state, object known, object price):
    """Return what `PriceGrid.clean` says of a price, which must not be 0; None for a number that is none."""
    cdef PyObject *found = PyDict_GetItem(known, price)
    if found is not NULL:
        return <tuple>found
    if not isfinite(PyFloat_AS_DOUBLE(price)):
        return None
    return get(state, S_GRID).clean(price, None)


cdef class TickLane:
    """What the manager gives a provider to deliver to: `slow` for any tick, and the short way for usual ones."""

    cdef object slow, runtime, normaliser, counters, times, beside, publish, note_latency, code, flow
    cdef dict passing, pulses
    cdef object _raw
    cdef long long _raw_ms

    def __init__(self, slow, runtime, passing, beside, publish):
        self.slow = slow
        self.runtime = runtime
        self.normaliser = runtime.normaliser
        self.counters = runtime.normaliser.counters
        self.times = runtime.normaliser._times
        self.code = runtime.entry.code
        self.pulses = runtime.pulses
        self.note_latency = runtime.latencies_ms.append
        self.passing, self.beside, self.publish = passing, beside, publish
        flow = getattr(publish, "__self__", None)
        self.flow = flow if type(flow) is Flow and publish == flow.publish else None
        self._raw_ms = 0
        self._raw = ZERO

    def __call__(self, tick, received_ms):
        self.slow(tick, received_ms)

    cdef bint take(
        self,
        object symbol,
        double price,
        long long raw_ms,
        object received,
        object volume,
        double best_bid,
        double best_ask,
        object bid_size,
        object ask_size,
        object oi,
        object day_mark,
    ) except -1:
        """Take one tick; return False where the long way is to be gone, with nothing changed."""
        cdef long long received_ms, event_ms, last_ms, last_raw_ms, flags, quantity_now
        cdef double clean_now, reference, band
        cdef PyObject *found
        cdef tuple cleaned
        cdef object state, pulse, clean, last, known, quantity, baseline, event, raw, record, place, bid, ask

        found = PyDict_GetItem(<dict>get(self.normaliser, N_STATES), symbol)
        if found is NULL:
            return False
        state = <object>found
        if type(state) is not InstrumentState:
            return False
        found = PyDict_GetItem(self.pulses, symbol)
        if found is NULL:
            return False
        pulse = <object>found
        if peek(state, S_DAY_MARK) is not <PyObject *>day_mark or day_mark is None:
            return False
        if not 0.0 < price <= MOST:
            return False
        if get(self.times, O_SUSPECTS):
            return False
        received_ms = received
        if not (<long long>get(state, S_BEGINS) <= raw_ms < <long long>get(state, S_ENDS)):
            return False
        if not -FUTURE_MS <= received_ms - raw_ms <= STALE_MS:
            return False

        # The price on the grid.
        known = get(state, S_KNOWN)
        clean = get(state, S_RAW_PRICE)
        raw_price = None
        if is_float(clean) and PyFloat_AS_DOUBLE(clean) == price and get(state, S_DECIMALS) is None:
            clean = get(state, S_CLEAN)
            if get(state, S_ON_GRID) is not True:
                return False
        else:
            raw_price = price
            cleaned = on_grid(state, known, raw_price)
            if cleaned is None or cleaned[1] is not True:
                return False
            clean = cleaned[0]
        if not is_float(clean):
            return False
        clean_now = PyFloat_AS_DOUBLE(clean)
        bid = ask = None
        if best_bid != 0.0:
            cleaned = on_grid(state, known, best_bid)
            if cleaned is None:
                return False
            bid = cleaned[0]
        if best_ask != 0.0:
            cleaned = on_grid(state, known, best_ask)
            if cleaned is None:
                return False
            ask = cleaned[0]

        # Is it a repeat, or late?
        last = get(state, S_LAST)
        if type(last) is not DataIngestionFormat:
            return False
        if get(state, S_TRADES) is not True:
            volume = None
        last_raw_ms = get(state, S_LAST_RAW)
        if raw_ms < last_raw_ms:
            return False
        last_price = get(last, T_PRICE)
        if not is_float(last_price):
            return False
        if PyFloat_AS_DOUBLE(last_price) == clean_now:
            last_volume = get(state, S_LAST_VOLUME)
            if volume is None or volume == last_volume:
                if raw_ms == last_raw_ms or raw_ms == <long long>get(state, S_SEEDED):
                    return False

        # What was traded since.
        quantity = None
        baseline = get(state, S_BASELINE)
        if volume is not None and baseline is not None:
            quantity_now = <long long>volume - <long long>baseline
            if quantity_now < 0:
                return False
            quantity = quantity_now

        # Is it likely?
        band = get(state, S_BAND)
        if band != 0.0:
            reference = get(state, S_REFERENCE)
            if not (reference > 0.0 and reference / band <= clean_now <= reference * band):
                return False

        # From here on nothing is left to others.
        last_ms = get(last, T_TIME)
        event_ms = raw_ms
        if raw_ms == self._raw_ms:
            raw = self._raw
        else:
            raw = self._raw = raw_ms
            self._raw_ms = raw_ms
        if last_ms < received_ms and 0 <= received_ms - event_ms < SECOND and event_ms % SECOND == 0:
            event = received
        else:
            event = time_in_order(last_ms, raw, SECOND, received, skewed=False)
        bump(self.counters, N_RECORDS)
        if oi is not None:
            put(state, S_OI, oi)
        if raw_price is not None:
            put(state, S_RAW_PRICE, raw_price)
            put(state, S_DECIMALS, None)
            put(state, S_CLEAN, clean)
            put(state, S_ON_GRID, True)
        if volume is not None:
            put(state, S_LAST_VOLUME, volume)
            put(state, S_BASELINE, volume)
        if band != 0.0:
            put(state, S_REFERENCE, clean)
            put(state, S_SUSPECTS, ZERO)
        put(state, S_LAST_RAW, raw)
        place = get(state, S_PLACE)
        (<list>get(state, S_RECENT))[<Py_ssize_t>place] = hash((raw, clean, volume))
        put(state, S_PLACE, <long>place + 1 & LAST)
        bump(self.counters, N_ACCEPTED)

        instrument = get(state, S_INSTRUMENT)
        record = marketd_new(<PyTypeObject *>DataIngestionFormat)
        fill(record, T_SYMBOL, instrument)
        fill(record, T_PRICE, clean)
        fill(record, T_VOLUME, quantity)
        fill(record, T_TIME, event)
        fill(record, T_PROVIDER, self.code)
        fill(record, T_PROVIDER_SYMBOL, symbol)
        fill(record, T_RECEIVED, received)
        fill(record, T_CUMULATIVE, volume)
        fill(record, T_BID, bid)
        fill(record, T_ASK, ask)
        fill(record, T_BID_SIZE, bid_size)
        fill(record, T_ASK_SIZE, ask_size)
        fill(record, T_OI, get(state, S_OI))
        fill(record, T_OPEN, get(state, S_OPEN))
        fill(record, T_HIGH, get(state, S_HIGH))
        fill(record, T_LOW, get(state, S_LOW))
        fill(record, T_CLOSE, get(state, S_CLOSE))
        fill(record, T_FLAGS, get(state, S_FLAGS))
        fill(record, T_EXCHANGE, get(state, S_EXCHANGE))
        fill(record, T_POSITION_MS, ZERO)
        fill(record, T_POSITION_SEQ, ZERO)
        put(state, S_LAST, record)

        # What the manager's `deliver` does.
        bump(pulse, U_TICKS)
        put(pulse, U_RECEIVED, received)
        put(pulse, U_PRICE, clean)
        if raw_ms > <long long>get(pulse, U_EVENT):
            put(pulse, U_EVENT, raw)
        found = PyDict_GetItem(self.passing, instrument)
        if found is NULL or (
            found is not <PyObject *>self.code and <object>found != self.code
        ):
            if not self.beside(self.runtime, record):
                return True
        bump(self.runtime, R_PASSED)
        self.note_latency(received_ms - raw_ms)
        if self.flow is not None:
            # A run that has begun and is not full yet takes one more; `Flow.publish` begins and ends it.
            run = get(self.flow, W_RUN)
            if 0 < PyList_GET_SIZE(run) < LONGEST - 1:
                PyList_Append(run, record)
                return True
        self.publish(record)
        return True


cdef class DhanLane:
    """Reads a quote or full packet that is alone in its message, of an instrument that was asked for."""

    cdef object provider, intake, counters
    cdef TickLane lane
    cdef dict known, open_interest

    def __init__(self, provider, TickLane lane):
        self.provider, self.lane = provider, lane
        self.intake, self.counters = provider._intake, provider.counters
        self.known, self.open_interest = provider._known, provider._open_interest

    def take(self, raw):
        """Take one message; return False, with nothing changed, where `message_handler` has to."""
        cdef const char *at
        cdef Py_ssize_t size
        cdef PyObject *found
        cdef object known, symbol, received, volume, day_mark, oi, bid_size, ask_size
        cdef double bid = 0.0, ask = 0.0
        cdef long long event_ms
        cdef bint is_full
        if not PyBytes_CheckExact(raw):
            return False
        at, size = PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)
        if size == QUOTE_SIZE and memcmp(at, PyBytes_AS_STRING(QUOTE_HEAD), 3) == 0:
            is_full = False
        elif size == FULL_SIZE and memcmp(at, PyBytes_AS_STRING(FULL_HEAD), 3) == 0:
            is_full = True
        else:
            return False
        found = PyDict_GetItem(self.known, PyBytes_FromStringAndSize(at + 3, 5))
        if found is NULL:
            return False
        known = <object>found
        symbol = get(known, K_SYMBOL)
        fresh = get(self.provider, P_FRESH)
        if fresh and symbol in fresh:
            return False
        received = get(self.intake, F_CURRENT)
        if not received:
            return False
        day_mark = get(known, K_DAY_BYTES)
        if (
            PyBytes_GET_SIZE(day_mark) != DAY_BYTES
            or memcmp(at + (FULL_DAY if is_full else QUOTE_DAY), PyBytes_AS_STRING(day_mark), DAY_BYTES) != 0
        ):
            return False
        event_ms = (<long long>number(at + TIME) - IST_S) * 1000
        if event_ms < EARLIEST_MS:
            return False
        volume = number(at + VOLUME) if get(known, K_SEGMENT) else None
        oi = bid_size = ask_size = None
        if is_full:
            if self.provider.depth_tap is not None:
                return False
            if get(known, K_DERIVATIVE):
                oi = number(at + OPEN_INTEREST)
            bid, ask = decimal(at + BID), decimal(at + ASK)
            if bid != 0.0:
                bid_size = number(at + BID_SIZE)
            if ask != 0.0:
                ask_size = number(at + ASK_SIZE)
        elif get(known, K_DERIVATIVE):
            found = PyDict_GetItem(self.open_interest, symbol)
            if found is not NULL:
                oi = <object>found
        if not self.lane.take(
            symbol, decimal(at + PRICE), event_ms, received, volume, bid, ask, bid_size, ask_size, oi, day_mark
        ):
            return False
        bump(self.counters, C_RECORDS)
        bump(self.counters, C_TICKS)
        return True


def dhan_lane(provider):
    """Return the short way into what `provider` delivers to; None where there is none."""
    return DhanLane(provider, provider._deliver) if type(provider._deliver) is TickLane else None
