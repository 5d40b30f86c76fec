"""The judge of the way from a vendor's wire to the sequencer: every tick is published, or in a gap.

Works on simulators in identity mode, where each tick of an instrument has a price of its own, so that
what was published can be told tick by tick. A tick that is missing is accounted for only when a `gap`
record of its instrument stands, in the published order, between the ticks before and after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.market_data.records import FLAG_LATE, ControlRecord, DataIngestionFormat, Record
from simulators.journal import SentTick

_AHEAD_MS = 5_000


@dataclass
class FeedJudgement:
    """The outcome; only `published` and `in_gaps` may be anything but zero or empty."""

    published: int = 0
    in_gaps: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.foreign or self.changed)

    @property
    def problems(self) -> str:
        kinds = {"lost": self.lost, "doubled": self.doubled, "foreign": self.foreign, "changed": self.changed}
        return "; ".join(f"{len(found)} {kind}, as {found[:4]}" for kind, found in kinds.items() if found)

    @property
    def in_words(self) -> str:
        return f"{self.in_gaps} of {self.in_gaps + self.published} ticks, all in declared gaps"


def judge_feed(
    published: Sequence[Record], sent: Sequence[SentTick], instrument_of: Mapping[str, str]
) -> FeedJudgement:
    """Compare. `instrument_of` maps provider symbols to instrument keys; damaged ticks are not expected."""
    verdict = FeedJudgement()
    positions = [record.position_ms * 1_000_000 + record.position_seq for record in published]
    by_exchange: dict[str, list[int]] = defaultdict(list)
    for record, position in zip(published, positions, strict=True):
        by_exchange[record.exchange].append(position)
    for exchange, found in by_exchange.items():
        assert found == sorted(set(found)), f"the positions of {exchange} increase"
    for symbol, instrument in instrument_of.items():
        # One tick may be sent several times: in copies of its frame, and as the snapshot of a reconnect.
        expected: dict[float, list[SentTick]] = defaultdict(list)
        for tick in sent:
            if tick.symbol == symbol and not tick.fault:
                expected[tick.price].append(tick)
        own = [record for record in published if record.symbol == instrument]
        _judge_one(instrument, list(expected.values()), own, verdict)
    return verdict


def _judge_one(instrument: str, expected: list[SentTick], own: list[Record], verdict: FeedJudgement) -> None:
    order = {copies[0].price: index for index, copies in enumerate(expected)}
    places: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    gaps: list[int] = []
    newest_ms = 0
    for place, record in enumerate(own):
        if isinstance(record, ControlRecord):
            if record.type == "gap":
                gaps.append(place)
            continue
        index = order.get(record.price)
        label = f"{instrument} {record.price}"
        if index is None:
            verdict.foreign.append(label)
            continue
        # The snapshot of an instrument that has not traded yet has a new time with every subscription.
        said = (index, record.timestamp // 1000)
        if said in seen:
            verdict.doubled.append(label)
        seen.add(said)
        places[index] = place
        verdict.changed += [f"{label}: {why}" for why in _changes(record, expected[index])]
        if not record.flags & FLAG_LATE:
            if record.timestamp < newest_ms:
                verdict.changed.append(f"{label}: older than the tick before it, and not marked late")
            newest_ms = record.timestamp
    verdict.published += len(places)
    for index, (tick, *_) in enumerate(expected):
        if index in places:
            continue
        before = max((places[other] for other in places if other < index), default=-1)
        after = min((places[other] for other in places if other > index), default=len(own))
        if any(before < gap < after for gap in gaps):
            verdict.in_gaps += 1
        else:
            verdict.lost.append(f"{instrument} {tick.price_text} seq {tick.seq}")


def _changes(record: DataIngestionFormat, copies: list[SentTick]) -> list[str]:
    problems = []
    if record.timestamp // 1000 not in {tick.event_ms // 1000 for tick in copies}:
        problems.append(f"second {record.timestamp} instead of {copies[0].event_ms}")
    if record.timestamp > record.received_ms + _AHEAD_MS:
        problems.append("a time in the future would poison the series")
    if record.cumulative_volume != copies[0].volume:
        problems.append(f"volume {record.cumulative_volume} instead of {copies[0].volume}")
    return problems
