"""The compiled loops of the writers against the Python ones: the same bytes, answers, counts and state.

Three sets of writers take the same records: one in Python, one compiled, and one that changes from batch to
batch, since what one of the two leaves behind is what the other goes on from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.compiled import load
from services.market_data.clock import ManualClock
from services.market_data.records import (
    PROBE_EXCHANGE,
    PROBE_INSTRUMENT,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from services.storage import latest_value_writer, stream_writer, time_series_writer
from services.storage.batch import Batch
from services.storage.entry import EntryEncoder
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.redis_sink import RedisSink
from services.storage.resp import FLOAT_BULKS
from services.storage.series import InstrumentSeries
from services.storage.series_sink import SeriesBatch
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter

COMPILED = load("words")
pytestmark = pytest.mark.skipif(
    COMPILED is None, reason="services/compiled/words is not built: python scripts/compile.py"
)

URL = "redis://127.0.0.1:1/0"
START_MS = 1_790_000_000_000
ASIDE = DataIngestionFormat("NSE:A", 1.0, 1, START_MS, "DHAN", exchange="NSE")

grid = st.integers(-(10**7), 10**7).map(lambda steps: steps / 20)
decimals = st.builds(
    lambda number, places: number / 10**places, st.integers(-(10**16), 10**16), st.integers(0, 12)
)
tiny = st.floats(0.0, 1e-3)
prices = st.one_of(grid, grid, grid, decimals, tiny, st.floats(), st.just(-0.0), st.integers(-5, 5))
usable_prices = st.one_of(grid, grid, decimals, st.floats(allow_nan=False, allow_infinity=False))
quantities = st.one_of(
    st.integers(0, 10_000), st.integers(0, 2**33), st.integers(-(2**65), 2**65), st.integers(0, 10**70)
)
moments = st.one_of(
    st.integers(START_MS, START_MS + 4),
    st.integers(START_MS, START_MS + 4),
    st.integers(0, 2**63 + 5),
    st.just(10**40),
)
SYMBOLS = ("NSE:A", "NSE:A", "NSE:B", "BSE:C", "BSE:₹ü", "NSE:\ud800", PROBE_INSTRUMENT, ":NONE", "_P:1")
DAYS = (*(number / 20 for number in range(1_000, 1_004)), 1e22, -0.0, float("nan"), None, None)
"""Few objects, so that ticks often have the very one that the tick before had."""


def tick_of(values: dict[str, Any]) -> DataIngestionFormat:
    return DataIngestionFormat(exchange=values["symbol"].partition(":")[0], **values)


def ticks_of(numbers: st.SearchStrategy[Any], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "symbol": st.sampled_from(SYMBOLS),
        "price": numbers,
        "volume": st.none() | quantities,
        "timestamp": moments,
        "provider_code": st.sampled_from(["DHAN", "YF", "Ü"]),
        "received_ms": moments,
        "cumulative_volume": st.none() | st.integers(0, 2**40),
        "bid": st.none() | numbers,
        "ask": st.none() | numbers,
        "bid_size": st.none() | quantities,
        "ask_size": st.none() | quantities,
        "oi": st.none() | quantities,
        "day_open": st.sampled_from(DAYS),
        "day_high": st.sampled_from(DAYS),
        "day_low": st.sampled_from(DAYS),
        "previous_close": st.sampled_from(DAYS),
        "flags": st.integers(0, 31),
        "position_ms": moments,
        "position_seq": st.integers(0, 3) | st.integers(0, 10**30),
    }
    return st.fixed_dictionaries(fields | fixed).map(tick_of)


plain_ticks = ticks_of(
    grid,
    symbol=st.sampled_from(["NSE:A", "NSE:B", "BSE:C"]),
    provider_code=st.just("DHAN"),
    timestamp=st.integers(START_MS, START_MS + 50),
    received_ms=st.integers(START_MS, START_MS + 50),
    day_open=st.sampled_from(DAYS[:4]),
    day_high=st.sampled_from(DAYS[:4]),
    day_low=st.just(DAYS[0]),
    previous_close=st.just(DAYS[0]),
)
controls = st.builds(
    ControlRecord,
    type=st.sampled_from(["gap", "session", "bar"]),
    symbol=st.sampled_from(["", *SYMBOLS]),
    exchange=st.sampled_from(["NSE", "BSE", ""]),
    timestamp=moments,
    received_ms=moments,
    provider_code=st.sampled_from(["", "DHAN"]),
    fields=st.dictionaries(st.sampled_from(["from", "to", "reason"]), st.text(max_size=3) | st.integers()),
    position_ms=moments,
    position_seq=st.integers(0, 3),
)
records = st.one_of(plain_ticks, plain_ticks, ticks_of(prices), ticks_of(usable_prices), controls)

_ONE_BY_ONE: dict[str, Any] = {
    "cumulative_volume": 70,
    "volume": 9,
    "bid": 10.0,
    "ask": 10.1,
    "bid_size": 3,
    "ask_size": 4,
    "oi": 8,
    "day_open": 11.0,
    "day_high": 12.0,
    "day_low": 9.5,
    "previous_close": 10.5,
}


class Burst(NamedTuple):
    """Records that come together, whether the mixed writers take them compiled, whether one lies aside."""

    records: list[Record]
    compiled: bool
    aside: bool


bursts = st.lists(
    st.builds(
        Burst, st.lists(records, min_size=1, max_size=6), st.booleans(), st.sampled_from([False] * 4 + [True])
    ),
    min_size=1,
    max_size=5,
)


@contextmanager
def words(module: ModuleType | None) -> Iterator[None]:
    """Let the writers use these loops."""
    with (
        patch.object(stream_writer, "_words", module),
        patch.object(time_series_writer, "_words", module),
        patch.object(latest_value_writer, "_words", module),
    ):
        yield


class Writers:
    """The writers of one exchange's ticks as the daemon has them, on one encoder, without connections."""

    def __init__(self) -> None:
        self.encoder = EntryEncoder()
        self.stream = StreamWriter(URL, encoder=self.encoder)
        self.series = TimeSeriesWriter(URL, clock=ManualClock(START_MS))
        self.latest = LatestValueWriter(URL, encoder=self.encoder)

    @property
    def all(self) -> tuple[RedisSink, ...]:
        return self.stream, self.series, self.latest

    def take(self, burst: Sequence[Record], aside: bool, module: ModuleType | None) -> list[str]:
        """Offer some records and return all that came of it; while `aside`, one lies before the disk."""
        said = []
        if aside:
            self.series._final.append((ASIDE, 0))
        with words(module):
            for writer in self.all:
                for record in burst:
                    writer.offer(record)
                try:
                    while writer._pending_count:
                        said.append(batch_said(writer._encode()))
                except (ArithmeticError, IndexError) as error:
                    # A price or a quantity that no provider can send: what matters is that both refuse it.
                    said.append(f"{writer.name}: {error!r}")
        said.append(repr(self.series._final))
        self.series._final.clear()
        return said + self.state()

    def state(self) -> list[str]:
        """Everything the loops read and write."""
        return [
            *(repr(asdict(writer.counters)) for writer in self.all),
            *(repr([writer._pending_count, writer.queued]) for writer in self.all),
            *(encoded_said(self.encoder, symbol) for symbol in self.encoder.remembered),
            *(
                repr([symbol, target.key, target.head, target.mask, target.newest])
                for symbol, target in self.latest._hashes.items()
            ),
            *(series_said(series) for series in self.series._series.values()),
            repr(self.series._slots_used),
        ]


def batch_said(batch: Batch | None) -> str:
    if batch is None:
        return "nothing"
    making = [(s.exchange, s.key(f), f) for s, f in batch.making] if isinstance(batch, SeriesBatch) else []
    return "\n".join(
        map(
            repr,
            (
                batch.records,
                batch.body,
                batch.body_replies,
                batch.prelude,
                batch.merged,
                batch.probe_ms,
                batch.answer,
                batch.expected,
                batch.payload(),
                making,
            ),
        )
    )


def encoded_said(encoder: EntryEncoder, symbol: str) -> str:
    encoded = encoder.remembered[symbol]
    if encoded.record is None:
        return repr([symbol, encoded.provider])
    return repr(
        [
            symbol,
            encoded.record,
            encoded.provider,
            encoded.head,
            encoded.day_mask,
            encoded.day_text,
            encoded.mask,
            encoded.text,
        ]
    )


def series_said(series: InstrumentSeries) -> str:
    return repr([series.instrument, series.made, series.newest, series.late, series.slot, series.late_slot])


def identities(writers: Writers, burst: Sequence[Record]) -> list[Any]:
    """Tell which of the very records the state holds."""
    places = {id(record): place for place, record in enumerate(burst)}
    return [
        [places.get(id(encoded.record)) for encoded in writers.encoder.remembered.values()],
        [places.get(id(target.newest)) for target in writers.latest._hashes.values()],
        [
            (places.get(id(series.newest)), places.get(id(series.late)))
            for series in writers.series._series.values()
        ],
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(bursts)
def test_both_say_the_same_of_any_records(sequence: list[Burst]) -> None:
    async def play() -> None:
        plain, quick, mixed = Writers(), Writers(), Writers()
        for burst in sequence:
            wanted = plain.take(burst.records, burst.aside, None)
            assert quick.take(burst.records, burst.aside, COMPILED) == wanted
            assert mixed.take(burst.records, burst.aside, COMPILED if burst.compiled else None) == wanted
            assert identities(quick, burst.records) == identities(plain, burst.records)

    asyncio.run(play())


@settings(deadline=None)
@given(st.lists(st.one_of(decimals, tiny, st.floats(allow_nan=False, allow_infinity=False)), max_size=90))
def test_a_price_is_the_text_that_msgspec_writes(numbers: list[float]) -> None:
    writer = TimeSeriesWriter(URL, clock=ManualClock(START_MS))
    for number, price in enumerate(numbers):
        writer.offer(DataIngestionFormat("NSE:A", price, None, START_MS + number, "DHAN", exchange="NSE"))
    with words(COMPILED):
        batch = writer._encode()
    if batch is None:
        assert not numbers
        return
    written = batch.body.split(b"\r\n")
    # Six pieces a sample: the heads and texts of its key, its time and its number, behind two and the head.
    texts = written[3:-1][5::6]
    assert [text.decode() for text in texts] == [FLOAT_BULKS[price].split("\r\n")[1] for price in numbers]


@pytest.mark.parametrize("field", [*_ONE_BY_ONE])
def test_one_field_alone_changes(field: str) -> None:
    base = DataIngestionFormat(
        symbol="NSE:A",
        price=10.05,
        timestamp=START_MS,
        provider_code="DHAN",
        exchange="NSE",
        position_ms=START_MS,
        **_ONE_BY_ONE,
    )
    value = _ONE_BY_ONE[field]
    changed = msgspec.structs.replace(base, timestamp=START_MS + 1, **{field: 2 * value})
    unknown = msgspec.structs.replace(base, timestamp=START_MS + 2, **{field: None})
    again = msgspec.structs.replace(base, timestamp=START_MS + 3)

    async def play() -> None:
        plain, quick = Writers(), Writers()
        for tick in (base, changed, unknown, again):
            wanted = plain.take([tick], False, None)
            assert quick.take([tick], False, COMPILED) == wanted

    asyncio.run(play())


def test_a_flood_is_cut_into_the_same_batches() -> None:
    flood = [
        DataIngestionFormat(
            f"NSE:S{number % 2_300}",
            100 + number % 700 / 20,
            number % 9 or None,
            START_MS + number // 7_000,
            "DHAN",
            received_ms=START_MS,
            bid=99.95 if number % 4 else None,
            exchange="NSE",
            position_ms=START_MS + number // 100,
            position_seq=number % 100,
        )
        for number in range(9_000)
    ]

    async def play() -> None:
        plain, quick = Writers(), Writers()
        assert quick.take(flood, False, COMPILED) == plain.take(flood, False, None)

    asyncio.run(play())


def test_the_probe_is_found_among_others() -> None:
    probe = DataIngestionFormat(
        PROBE_INSTRUMENT, 1.0, 1, START_MS, "", exchange=PROBE_EXCHANGE, position_ms=START_MS + 7
    )
    other = DataIngestionFormat("NSE:A", 1.0, 1, START_MS, "DHAN", exchange="NSE", position_ms=START_MS)

    async def play() -> None:
        writers = Writers()
        for _ in range(2):
            with words(COMPILED):
                for writer in writers.all:
                    for record in (other, probe, other):
                        writer.offer(record)
                    batch = writer._encode()
                    assert batch is not None
                    assert batch.probe_ms == START_MS + 7

    asyncio.run(play())
