"""The decode path of a recording: routes, restarts, damage and handlers of every kind, as they were."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest

from services.base_provider import BaseMarketDataProvider
from services.errors import CredentialsRejected, TemporaryError, WireFormatError
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord, DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.recording.entries import FORMAT, Context, Kind, ProviderMemory, pack, pack_json, unpack
from services.replay.decoding import Decoding, ReplayReport

START_MS = 1_700_000_000_000
CODES = ["ONE", "TWO"]


class One(BaseMarketDataProvider):
    """Messages are `{"p": price, "v": day volume}`, of one symbol."""

    code: ClassVar[str] = "ONE"
    snapshot_first: ClassVar[bool] = True

    async def connect_websocket(self) -> None:
        raise AssertionError("a replay connects to nobody")

    async def disconnect_websocket(self) -> None: ...

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        raise AssertionError("a replay subscribes nothing")

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None: ...

    def message_handler(self, raw: str | bytes) -> Any:
        if raw == b"end":
            raise CredentialsRejected("over", reason="over")
        if raw == b"?":
            raise WireFormatError("bad", reason="bad", frame=b"?")
        self.emit(self._tick(raw))
        return None

    def _tick(self, raw: str | bytes) -> ProviderTick:
        said = json.loads(raw)
        return ProviderTick(
            provider_symbol="S",
            price=said["p"],
            event_ms=self.context.clock.now_ms(),
            cumulative_volume=said.get("v"),
        )


class Two(One):
    """The same, with a handler that is a coroutine."""

    code: ClassVar[str] = "TWO"
    snapshot_first: ClassVar[bool] = False

    async def message_handler(self, raw: str | bytes) -> Any:  # type: ignore[override]
        return self._tick(raw)


def snapshot() -> MappingSnapshot:
    rows = tuple(
        InstrumentMapping(
            mapping_id=number,
            instrument="NSE:TCS",
            exchange="NSE",
            symbol="TCS",
            name="TCS",
            asset_class=AssetClass.EQUITY,
            currency="INR",
            provider_code=code,
            search_code="S",
            priority=number,
        )
        for number, code in enumerate(CODES)
    )
    entries = tuple(ProviderEntry(code=code, name=code) for code in CODES)
    return MappingSnapshot(version=1, loaded_ms=START_MS, providers=entries, mappings=rows)


class Tape:
    """Writes a recording in memory, a tenth of a second between entries."""

    def __init__(self) -> None:
        self.data = b""
        self.at_ms = START_MS

    def _next(self) -> int:
        self.at_ms += 100
        return self.at_ms

    def context(self, daemon: str = "a", routes: dict[str, str] | None = None, **more: Any) -> None:
        context = Context(
            format=more.pop("format", FORMAT),
            daemon=daemon,
            demo=True,
            at_ms=self.at_ms,
            providers=CODES,
            partial=[],
            snapshot=snapshot(),
            routes={"NSE:TCS": "ONE"} if routes is None else routes,
            memory={"ONE": ProviderMemory(["S"]), "TWO": ProviderMemory(["S"])} | more,
        )
        self.data += pack_json(Kind.CONTEXT, 255, self._next(), context)

    def frame(
        self, code: str, price: float = 0.0, volume: int | None = None, raw: bytes | None = None
    ) -> None:
        payload = raw or json.dumps({"p": price, "v": volume}).encode()
        self.data += pack(Kind.BINARY, CODES.index(code), self._next(), payload)

    def note(self, kind: Kind, code: str, *symbols: str) -> None:
        self.data += pack_json(kind, CODES.index(code), self._next(), list(symbols))

    def control(self, kind: Any, **fields: str | int) -> None:
        record = ControlRecord(kind, "NSE:TCS", "NSE", self.at_ms, self._next(), "", fields)
        self.data += pack_json(Kind.CONTROL, 255, self.at_ms, record)

    async def played(self) -> tuple[list[Record], ReplayReport]:
        records: list[Record] = []
        report = ReplayReport(name="x", prefix="md:replay:x:")
        supervisor = Supervisor()
        decoding = Decoding(records.append, supervisor, report, {"ONE": One, "TWO": Two})
        for entry in unpack(self.data):
            await decoding.feed(entry)
        decoding.settle()
        await supervisor.stop()
        return records, report


@pytest.fixture
async def tape() -> Tape:
    return Tape()


def words(records: list[Record]) -> list[Any]:
    return [
        (record.provider_code, record.price, record.volume)
        if isinstance(record, DataIngestionFormat)
        else record.type
        for record in records
    ]


async def test_ticks_get_the_recorded_times_and_positions(tape: Tape) -> None:
    tape.context()
    tape.frame("ONE", 100.0, 10)
    tape.frame("ONE", 101.0, 25)
    records, report = await tape.played()
    assert words(records) == [("ONE", 100.0, None), ("ONE", 101.0, 15)]
    assert [record.position for record in records] == [f"{START_MS + 200}-0", f"{START_MS + 300}-0"]
    assert [record.received_ms for record in records] == [START_MS + 200, START_MS + 300]
    assert (report.frames, report.ticks) == ({"ONE": 2}, 2)


async def test_a_switch_is_followed_where_it_was_made_and_standbys_are_counted(tape: Tape) -> None:
    tape.context()
    tape.frame("ONE", 100.0, 10)
    tape.frame("TWO", 100.5, 10)
    tape.control("switched", from_src="ONE", to_src="TWO", reason="priority")
    tape.frame("TWO", 101.0, 30)
    tape.frame("ONE", 102.0, 40)
    tape.frame("TWO", 103.0, 50)
    records, report = await tape.played()
    assert words(records) == [("ONE", 100.0, None), "switched", ("TWO", 101.0, None), ("TWO", 103.0, 20)]
    assert (report.standby, report.controls) == (2, 1)


async def test_silent_changes_of_routes_count_and_an_unserved_instrument_takes_the_first(
    tape: Tape,
) -> None:
    tape.context(routes={})
    tape.frame("TWO", 99.0)
    tape.frame("ONE", 100.0)
    tape.data += pack_json(Kind.ROUTES, 255, tape._next(), {"NSE:TCS": "TWO"})
    tape.frame("ONE", 101.0)
    tape.frame("TWO", 102.0)
    tape.data += pack_json(Kind.ROUTES, 255, tape._next(), {"NSE:TCS": None})
    tape.frame("TWO", 103.0)
    tape.frame("ONE", 104.0)
    records, _ = await tape.played()
    assert words(records) == [("ONE", 100.0, None), ("TWO", 102.0, None), ("ONE", 104.0, None)]


async def test_a_lost_connection_makes_volumes_begin_anew_and_the_first_tick_a_snapshot(
    tape: Tape,
) -> None:
    tape.context()
    tape.frame("ONE", 100.0, 10)
    tape.note(Kind.LOST, "ONE", "S")
    tape.note(Kind.ASKING, "ONE", "S")
    tape.note(Kind.ASKED, "ONE", "S")
    tape.frame("ONE", 101.0, 500)
    tape.frame("ONE", 102.0, 510)
    records, _ = await tape.played()
    assert words(records) == [("ONE", 100.0, None), ("ONE", 101.0, None), ("ONE", 102.0, 10)]
    assert [record.flags for record in records if isinstance(record, DataIngestionFormat)] == [0, 1, 0]


async def test_a_restarted_daemon_begins_without_memory_and_positions_go_on(tape: Tape) -> None:
    tape.context("a")
    tape.frame("ONE", 100.0, 10)
    tape.context("a")
    tape.frame("ONE", 101.0, 20)
    tape.context("b")
    tape.frame("ONE", 102.0, 30)
    records, report = await tape.played()
    assert [record[2] for record in words(records)] == [None, 10, None]
    assert [record.position for record in records] == sorted(record.position for record in records)
    assert report.ticks == 3


async def test_a_clock_that_was_set_back_gives_increasing_positions(tape: Tape) -> None:
    tape.context()
    tape.frame("ONE", 100.0)
    tape.at_ms -= 60_000
    tape.frame("ONE", 101.0)
    records, _ = await tape.played()
    assert [record.position for record in records] == [f"{START_MS + 200}-0", f"{START_MS + 200}-1"]


async def test_damaged_frames_and_the_end_of_a_session_are_survived_and_counted(tape: Tape) -> None:
    tape.context()
    tape.frame("ONE", raw=b"?")
    tape.frame("ONE", raw=b"{}")
    tape.frame("ONE", raw=b"end")
    tape.data += pack(Kind.BINARY, 9, tape._next(), b"of nobody")
    tape.data += pack_json(Kind.DROPPED, 255, tape._next(), 7)
    tape.frame("ONE", 100.0)
    records, report = await tape.played()
    assert words(records) == [("ONE", 100.0, None)]
    assert (report.damaged_frames, report.lost_frames) == (3, 7)


async def test_what_is_refused_is_counted_by_reason(tape: Tape) -> None:
    tape.context()
    tape.frame("ONE", 100.0)
    tape.frame("ONE", -5.0)
    _, report = await tape.played()
    assert sum(report.rejected.values()) == 1


async def test_frames_of_a_provider_that_is_not_installed_are_an_error_with_the_remedy(tape: Tape) -> None:
    tape.context()
    decoding = Decoding(print, Supervisor(), ReplayReport(name="x", prefix="y"), {"ONE": One})
    [context] = unpack(tape.data)
    with pytest.raises(TemporaryError, match="frames of TWO: install the package"):
        await decoding.feed(context)
