"""The conservation oracle: every tick a simulator sent is stored once, or declared, or counted. Or lost.

Works on simulators in identity mode, where every tick of an instrument has a price of its own, and with
one provider for each instrument. Reads what a consumer reads: an exchange's stream in its order. Ticks
that are not stored are declared when a `gap` record of their instrument lies between their stored
neighbours; the time series must hold exactly what the stream holds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from simulators.journal import SentTick

_PAGE = 5_000
_SHOWN = 8
# A connection whose last tick is this close to a kill was ended by it.
_ENDED_BY_KILL_MS = 1_000
# From a simulator's hand to the daemon's acceptance, by which dropped records are told.
_ON_THE_WAY_MS = 250


class StoredTick(NamedTuple):
    """A tick in the stream: event time and receive time in UTC epoch ms, price, quantity."""

    time_ms: int
    received_ms: int
    price: float
    volume: int | None


class StoredGap(NamedTuple):
    """A gap record in the stream, times in UTC epoch ms."""

    from_ms: int
    to_ms: int
    reason: str


@dataclass
class InstrumentStore:
    """What Redis holds of one instrument: the stream in its order, and the samples by time."""

    entries: list[StoredTick | StoredGap] = field(default_factory=list)
    prices: dict[int, float] = field(default_factory=dict)
    volumes: dict[int, float] = field(default_factory=dict)


class Lost(NamedTuple):
    """Ticks one after the other that are not stored and not declared."""

    instrument: str
    first: SentTick
    last: SentTick
    count: int  # type: ignore[assignment]


@dataclass
class Verdict:
    """What became of the ticks. `lost`, `doubled`, `foreign`, `changed`, `disordered` must be empty."""

    sent: int = 0
    stored: int = 0
    repeated: int = 0
    collapsed: int = 0
    declared: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    killed_oldest_ms: int = 0
    lost: list[Lost] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)

    @property
    def lost_count(self) -> int:
        """Ticks that are neither stored nor declared nor on their way when the process was killed."""
        return sum(run.count for run in self.lost)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong; ticks counted as dropped must be subtracted by the caller before."""
        return not (self.lost or self.doubled or self.foreign or self.changed or self.disordered)

    def lines(self) -> list[str]:
        """Return the verdict for people."""
        declared = ", ".join(f"{reason} {count}" for reason, count in sorted(self.declared.items()))
        text = [
            f"sent {self.sent} different ticks ({self.repeated} repeats)",
            f"stored once with their values {self.stored} ({self.collapsed} share a sample with another)",
            f"inside a declared gap {self.declared.total()}" + (f" ({declared})" if declared else ""),
            f"of the missing ones sent before a SIGKILL {self.killed}, the oldest {self.killed_oldest_ms} ms",
            f"LOST {self.lost_count}  DUPLICATE {len(self.doubled)}  FOREIGN {len(self.foreign)}"
            f"  CHANGED {len(self.changed)}  DISORDERED {len(self.disordered)}",
        ]
        text += [
            f"  lost: {run.instrument} {run.count} ticks, seq {run.first.seq} to {run.last.seq}, "
            f"sent at {run.first.sent_ms} to {run.last.sent_ms}, connection {run.first.connection}"
            for run in self.lost[:_SHOWN]
        ]
        for name in ("doubled", "foreign", "changed", "disordered"):
            text += [f"  {name}: {item}" for item in getattr(self, name)[:_SHOWN]]
        return text


async def read_everything(client: Any, instruments: Iterable[str]) -> dict[str, InstrumentStore]:
    """Read all that is stored of `instruments`, page by page (`client` decodes responses)."""
    found = {key: InstrumentStore() for key in instruments}
    for exchange in sorted({key.partition(":")[0] for key in found}):
        start = "-"
        while page := await client.xrange(f"md:ticks:{exchange}", start, "+", count=_PAGE):
            for _, fields in page:
                _take_entry(found, exchange, fields)
            start = f"({page[-1][0]}"
    for key, store in found.items():
        for name, samples in (("price", store.prices), ("volume", store.volumes)):
            if await client.exists(f"md:ts:{{{key}}}:{name}"):
                samples.update(await client.ts().range(f"md:ts:{{{key}}}:{name}", "-", "+"))
    return found


def _take_entry(found: dict[str, InstrumentStore], exchange: str, fields: Mapping[str, str]) -> None:
    kind = fields["type"]
    if kind == "tick":
        volume = fields.get("v")
        tick = StoredTick(
            int(fields["t"]),
            int(fields["r"]),
            float(fields["p"]),
            None if volume is None else int(volume),
        )
        found.setdefault(fields["k"], InstrumentStore()).entries.append(tick)
    elif kind == "gap":
        gap = StoredGap(int(fields["from"]), int(fields["to"]), fields["reason"])
        # Without an instrument it speaks of all of the exchange.
        for key in (
            [fields["k"]] if "k" in fields else [key for key in found if key.startswith(f"{exchange}:")]
        ):
            found.setdefault(key, InstrumentStore()).entries.append(gap)


class _Expected(NamedTuple):
    tick: SentTick
    quantity: int | None
    first_of_connection: bool


def judge_all(
    sent: Sequence[SentTick],
    store: Mapping[str, InstrumentStore],
    instrument_of: Mapping[str, str],
    *,
    kills_ms: Sequence[int] = (),
    kill_bound_ms: int = 0,
    by_time: frozenset[str] = frozenset(),
) -> Verdict:
    """Compare. Gaps of the reasons `by_time` are told after what was dropped, so their times count.

    `kills_ms` are the times at which the process was killed without warning.

    A tick sent at most `kill_bound_ms` before a kill may be missing, or be in only one of stream and series.
    """
    verdict = Verdict()
    by_instrument: dict[str, list[SentTick]] = defaultdict(list)
    for tick in sent:
        if tick.fault is None:
            by_instrument[instrument_of[tick.symbol]].append(tick)
    kills = sorted(kills_ms)
    for key in sorted(set(by_instrument) | set(store)):
        case = _Case(key, store.get(key, InstrumentStore()), verdict, kills, kill_bound_ms, by_time)
        case.judge(by_instrument.get(key, []))
    return verdict


class _Case:
    """One instrument before the judge."""

    def __init__(
        self,
        key: str,
        store: InstrumentStore,
        verdict: Verdict,
        kills_ms: list[int],
        kill_bound_ms: int,
        by_time: frozenset[str],
    ) -> None:
        self._key = key
        self._store = store
        self._verdict = verdict
        self._kills_ms = kills_ms
        self._kill_bound_ms = kill_bound_ms
        self._dropped = [
            entry for entry in store.entries if isinstance(entry, StoredGap) and entry.reason in by_time
        ]
        self._last_sent_ms: dict[int, int] = {}

    def judge(self, sent: list[SentTick]) -> None:
        self._last_sent_ms = {tick.connection: tick.sent_ms for tick in sent}
        expected = self._expect(sent)
        index_of = {item.tick.price: index for index, item in enumerate(expected)}
        places: dict[int, int] = {}
        newest = -1
        for place, entry in enumerate(self._store.entries):
            if isinstance(entry, StoredGap):
                continue
            index = index_of.get(entry.price)
            if index is None:
                self._verdict.foreign.append(f"{self._key} {entry}")
            elif index in places:
                self._verdict.doubled.append(f"{self._key} seq {expected[index].tick.seq} {entry}")
            else:
                places[index] = place
                if index < newest:
                    self._verdict.disordered.append(f"{self._key} seq {expected[index].tick.seq} {entry}")
                newest = max(newest, index)
        self._judge_values(expected, places)
        self._judge_missing(expected, places)

    def _expect(self, sent: list[SentTick]) -> list[_Expected]:
        """Return the different ticks in the order of sending, with the quantity each must be stored with."""
        expected: list[_Expected] = []
        seen: set[float] = set()
        before: dict[int, int] = {}
        fresh: set[int] = set()
        for tick in sent:
            quantity = None
            if tick.volume is not None:
                known = before.get(tick.connection)
                quantity = None if known is None else tick.volume - known
                before[tick.connection] = tick.volume
            if tick.price in seen:
                self._verdict.repeated += 1
                continue
            seen.add(tick.price)
            first = tick.connection not in fresh
            fresh.add(tick.connection)
            expected.append(_Expected(tick, quantity, first))
        self._verdict.sent += len(expected)
        return expected

    def _judge_values(self, expected: list[_Expected], places: dict[int, int]) -> None:
        entries = self._store.entries
        at_time: dict[int, list[StoredTick]] = defaultdict(list)
        for entry in entries:
            if isinstance(entry, StoredTick):
                at_time[entry.time_ms].append(entry)
        for index, place in places.items():
            item, entry = expected[index], entries[place]
            if isinstance(entry, StoredGap):
                continue
            tick, problems = item.tick, []
            if entry.time_ms // 1000 != tick.event_ms // 1000:
                problems.append(f"second {entry.time_ms} instead of {tick.event_ms}")
            unknown = entry.volume is None and (
                item.first_of_connection or (place > 0 and isinstance(entries[place - 1], StoredGap))
            )
            if entry.volume != item.quantity and not unknown:
                problems.append(f"quantity {entry.volume} instead of {item.quantity}")
            problems += self._sample_problems(entry, at_time[entry.time_ms])
            if problems:
                self._verdict.changed.append(f"{self._key} seq {tick.seq}: {', '.join(problems)}")
            else:
                self._verdict.stored += 1
        prices = {item.tick.price for item in expected}
        for time_ms, price in self._store.prices.items():
            if time_ms in at_time or (price in prices and self._is_near_a_kill(time_ms)):
                continue
            if price in prices and self._reason_at(time_ms) is not None:
                continue
            self._verdict.foreign.append(f"{self._key} sample {price} at {time_ms} without an entry")

    def _sample_problems(self, entry: StoredTick, together: list[StoredTick]) -> list[str]:
        """Compare with the series: for ticks of one time it holds the last price and the summed quantity."""
        if entry is not together[-1]:
            self._verdict.collapsed += 1
            return []
        sample = self._store.prices.get(entry.time_ms)
        if sample is None and self._is_near_a_kill(entry.received_ms):
            return []
        if sample is None and self._reason_at(entry.received_ms) is not None:
            return []
        if sample != entry.price:
            return [f"sample {sample} instead of {entry.price} at {entry.time_ms}"]
        quantities = [other.volume for other in together if other.volume is not None]
        if quantities and self._store.volumes.get(entry.time_ms) != sum(quantities):
            found = self._store.volumes.get(entry.time_ms)
            return [f"volume sample {found} instead of {sum(quantities)} at {entry.time_ms}"]
        return []

    def _judge_missing(self, expected: list[_Expected], places: dict[int, int]) -> None:
        index = 0
        while index < len(expected):
            if index in places:
                index += 1
                continue
            first = index
            while index < len(expected) and index not in places:
                index += 1
            self._judge_run([item.tick for item in expected[first:index]], first, index, places)

    def _judge_run(self, run: list[SentTick], first: int, end: int, places: dict[int, int]) -> None:
        """Judge ticks that are missing one after the other: declared, killed on their way, or lost."""
        entries = self._store.entries
        begin = places[first - 1] + 1 if first else 0
        until = places.get(end, len(entries))
        gaps = [entry for entry in entries[begin:until] if isinstance(entry, StoredGap)]
        if gaps:
            self._verdict.declared[gaps[0].reason] += len(run)
            if any(gap.reason == "daemon_down" for gap in gaps):
                self._note_killed(run)
            return
        for tick in run:
            if (reason := self._reason_at(tick.sent_ms)) is not None:
                self._verdict.declared[reason] += 1
        run = [tick for tick in run if self._reason_at(tick.sent_ms) is None]
        kept = [tick for tick in run if not self._is_near_a_kill(tick.sent_ms)]
        self._note_killed([tick for tick in run if self._is_near_a_kill(tick.sent_ms)])
        if kept:
            self._verdict.lost.append(Lost(self._key, kept[0], kept[-1], len(kept)))

    def _note_killed(self, run: list[SentTick]) -> None:
        """Note how long before the kill that ended its connection each missing tick was sent."""
        for tick in run:
            last_ms = self._last_sent_ms[tick.connection]
            kill_ms = min(self._kills_ms, key=lambda at_ms: abs(at_ms - last_ms), default=None)
            if kill_ms is None or abs(kill_ms - last_ms) > _ENDED_BY_KILL_MS or tick.sent_ms > kill_ms:
                continue
            self._verdict.killed += 1
            self._verdict.killed_oldest_ms = max(self._verdict.killed_oldest_ms, kill_ms - tick.sent_ms)

    def _reason_at(self, at_ms: int) -> str | None:
        """Return the reason of the gap that was told of this time, among those whose times count."""
        for gap in self._dropped:
            if gap.from_ms - _ON_THE_WAY_MS <= at_ms <= gap.to_ms:
                return gap.reason
        return None

    def _is_near_a_kill(self, at_ms: int) -> bool:
        after = bisect_left(self._kills_ms, at_ms)
        return after < len(self._kills_ms) and self._kills_ms[after] - at_ms <= self._kill_bound_ms
