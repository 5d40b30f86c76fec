"""The decode path of a recording: message handler, normaliser, the recorded routes, sequencer.

Stands where providers and `ProviderManager` stand in the daemon. Opens nothing and writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.errors import ProviderError, TemporaryError
from services.market_data.instruments import InstrumentMapping, MappingSnapshot
from services.market_data.normaliser import Normaliser
from services.market_data.records import ControlRecord, ProviderTick, Record
from services.pipeline.sequencer import Sequencer
from services.pipeline.supervisor import Supervisor
from services.provider_registry import ProviderFactory
from services.recording.entries import FRAMES, Context, Entry, Kind, read_context
from services.recording.files import Reading

_NOTES = {Kind.ASKING: "asking", Kind.ASKED: "asked", Kind.LOST: "lost"}


class RecordedClock:
    """Says what the recording says; moved by the replay alone."""

    def __init__(self) -> None:
        self.at_ms = 0

    def now_ms(self) -> int:
        """Return the recorded time, UTC epoch ms."""
        return self.at_ms

    def monotonic_s(self) -> float:
        """Return the recorded time in seconds."""
        return self.at_ms / 1000

    def wall_step_ms(self) -> int:
        """Return 0: the recording's clock is believed."""
        return 0


class ReplayReport(msgspec.Struct, kw_only=True):
    """What a replay did. Times in UTC epoch ms; `digest` is over every record in its order and final form.

    `lost_frames` are those the recorder could not keep up with, `unread` says what of the files could not be
    read, `stored` and `refused` are per sink.
    """

    name: str
    prefix: str
    frames: dict[str, int] = {}
    damaged_frames: int = 0
    ticks: int = 0
    controls: int = 0
    standby: int = 0
    rejected: dict[str, int] = {}
    from_ms: int = 0
    to_ms: int = 0
    lost_frames: int = 0
    unread: Reading = msgspec.field(default_factory=Reading)
    stored: dict[str, int] = {}
    refused: dict[str, int] = {}
    digest: str = ""


class _Player:
    """One provider without a connection, with its normaliser."""

    def __init__(self, provider: BaseMarketDataProvider, normaliser: Normaliser) -> None:
        self.provider = provider
        self.normaliser = normaliser
        self.instrument_of: dict[str, InstrumentMapping] = {}


class Decoding:
    """The decode path of a recording; gives its records to `publish`, in order, with their positions."""

    def __init__(
        self,
        publish: Callable[[Record], None],
        supervisor: Supervisor,
        report: ReplayReport,
        factories: Mapping[str, ProviderFactory],
    ) -> None:
        self.clock = RecordedClock()
        self._sequencer = Sequencer(self.clock)
        self._publish = publish
        self._supervisor = supervisor
        self._report = report
        self._factories = factories
        self._context: Context | None = None
        self._players: dict[str, _Player] = {}
        self._routes: dict[str, str] = {}
        self._fallback: dict[str, str] = {}
        self._rebased: set[str] = set()

    async def feed(self, entry: Entry) -> None:
        """Do what one entry did to the daemon that recorded it."""
        self.clock.at_ms = entry.at_ms
        if entry.kind in FRAMES:
            await self._frame(entry)
        elif entry.kind in _NOTES:
            player = self._player_of(entry)
            if player is not None:
                symbols = msgspec.json.decode(entry.payload, type=list[str])
                player.provider.replay_note(_NOTES[Kind(entry.kind)], symbols)
        elif entry.kind == Kind.CONTROL:
            self._control(msgspec.json.decode(entry.payload, type=ControlRecord))
        elif entry.kind == Kind.CONTEXT:
            self._take_context(read_context(entry.payload))
        elif entry.kind == Kind.ROUTES:
            self._take_routes(msgspec.json.decode(entry.payload, type=dict[str, str | None]))
        elif entry.kind == Kind.DROPPED:
            self._report.lost_frames += int(entry.payload)

    def settle(self) -> None:
        """Add up what the normalisers refused."""
        for player in self._players.values():
            for reason, count in player.normaliser.counters.rejected.items():
                self._report.rejected[reason] = self._report.rejected.get(reason, 0) + count

    # ---- entries --------------------------------------------------------------------------------

    def _player_of(self, entry: Entry) -> _Player | None:
        codes = self._context.providers if self._context is not None else []
        return self._players.get(codes[entry.provider]) if entry.provider < len(codes) else None

    async def _frame(self, entry: Entry) -> None:
        player = self._player_of(entry)
        if player is None:
            self._report.damaged_frames += 1
            return
        provider, frames = player.provider, self._report.frames
        frames[provider.code] = frames.get(provider.code, 0) + 1
        raw: str | bytes = entry.payload
        if entry.kind == Kind.TEXT:
            raw = entry.payload.decode("utf-8", "surrogatepass")
        damaged = sum(provider.counters.wire_errors.values())
        try:
            provider.handle(raw)
        except ProviderError:
            # The message said that the session is over; what came of that is recorded behind it.
            return
        while provider.counters.waiting:  # noqa: ASYNC110 - a handler of any kind works it off
            await asyncio.sleep(0)
        self._report.damaged_frames += sum(provider.counters.wire_errors.values()) - damaged

    def _control(self, record: ControlRecord) -> None:
        if record.type == "switched":
            self._routes[record.symbol] = str(record.fields["to_src"])
            self._rebased.add(record.symbol)
        self._report.controls += 1
        self._stamp(record)

    def _take_context(self, context: Context) -> None:
        known, self._context = self._context, context
        if known is None or known.daemon != context.daemon:
            # Another run of the daemon: its providers began without memory.
            self.settle()
            self._players = {}
        self._routes = dict(context.routes)
        self._load(context.snapshot)
        for code in context.providers:
            memory = context.memory.get(code)
            player = self._players.get(code)
            if player is None:
                player = self._players[code] = self._new_player(code, context.snapshot)
                if memory is not None:
                    player.provider.recall(memory.wanted, memory.fresh, memory.dark)

    def _take_routes(self, changed: dict[str, str | None]) -> None:
        for instrument, code in changed.items():
            if code is None:
                self._routes.pop(instrument, None)
            else:
                self._routes[instrument] = code

    # ---- providers ------------------------------------------------------------------------------

    def _load(self, snapshot: MappingSnapshot) -> None:
        recorded = set(self._context.providers) if self._context is not None else set()
        best: dict[str, InstrumentMapping] = {}
        for row in snapshot.mappings:
            if row.provider_code in recorded:
                known = best.get(row.instrument)
                if known is None or _rank(row) < _rank(known):
                    best[row.instrument] = row
        self._fallback = {instrument: row.provider_code for instrument, row in best.items()}
        for code, player in self._players.items():
            self._give_rows(player, code, snapshot)

    def _new_player(self, code: str, snapshot: MappingSnapshot) -> _Player:
        factory = self._factories.get(code)
        if factory is None:
            raise TemporaryError(f"the recording has frames of {code}: install the package of that provider")
        normaliser = Normaliser(code)
        context = ProviderContext(
            clock=self.clock,
            deliver=self._deliverer(code, normaliser),
            settings=dict,
            spawn=self._supervisor.spawn,
            connection_lost=lambda *_: None,
            connection_restored=lambda symbols, _: normaliser.rebase(list(symbols)),
        )
        player = _Player(factory(context), normaliser)
        self._give_rows(player, code, snapshot)
        return player

    @staticmethod
    def _give_rows(player: _Player, code: str, snapshot: MappingSnapshot) -> None:
        rows = [row for row in snapshot.mappings if row.provider_code == code]
        player.normaliser.load(rows)

    def _deliverer(self, code: str, normaliser: Normaliser) -> Callable[[ProviderTick, int], None]:
        accept = normaliser.accept

        def deliver(tick: ProviderTick, received_ms: int) -> None:
            record = accept(tick, received_ms)
            if record is None:
                normaliser.reference_quote = None
                return
            instrument = record.symbol
            serving = self._routes.get(instrument)
            if serving not in self._players:
                serving = self._fallback.get(instrument)
            if serving != code:
                self._report.standby += 1
                return
            if instrument in self._rebased:
                # What was traded between the old source's last tick and this one is unknown.
                self._rebased.discard(instrument)
                record.volume = None
            self._report.ticks += 1
            self._stamp(record)

        return deliver

    def _stamp(self, record: Record) -> None:
        self._sequencer.stamp(record)
        self._publish(record)


def _rank(mapping: InstrumentMapping) -> tuple[bool, int, str]:
    return (not mapping.is_primary, mapping.priority, mapping.provider_code)
