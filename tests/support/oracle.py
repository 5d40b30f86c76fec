"""The judge: compares what a simulator sent with what Redis holds, tick by tick.

Works on simulators in identity mode, where every tick of an instrument has a price of its own. Each
sent tick must be stored exactly once, in the stream and as a sample, with its second, its price
rounded to the tick size, and the quantity since the one before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulators.journal import SentTick


@dataclass
class Judgement:
    """The outcome; everything but `stored` and `repeated` must be empty or explained."""

    stored: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.foreign or self.changed)


@dataclass
class Stored:
    """What Redis holds of one instrument: stream entries, and samples by time."""

    entries: list[dict[str, str]] = field(default_factory=list)
    prices: dict[int, float] = field(default_factory=dict)
    volumes: dict[int, float] = field(default_factory=dict)


async def read_store(client: Any, instruments: Sequence[str]) -> dict[str, Stored]:
    """Read everything stored of `instruments` (`client` decodes responses)."""
    found: dict[str, Stored] = {key: Stored() for key in instruments}
    for exchange in sorted({key.partition(":")[0] for key in instruments}):
        ids = []
        for entry_id, fields in await client.xrange(f"md:ticks:{exchange}"):
            ids.append(tuple(map(int, entry_id.split("-"))))
            if fields["type"] == "tick":
                found.setdefault(fields["k"], Stored()).entries.append(fields)
        assert ids == sorted(set(ids)), "positions increase"
    for key, stored in found.items():
        for name, samples in (("price", stored.prices), ("volume", stored.volumes)):
            if await client.exists(f"md:ts:{{{key}}}:{name}"):
                samples.update(await client.ts().range(f"md:ts:{{{key}}}:{name}", "-", "+"))
    return found


def judge(
    sent: Sequence[SentTick], store: Mapping[str, Stored], instrument_of: Mapping[str, str]
) -> Judgement:
    """Compare. `instrument_of` maps provider symbols to instrument keys."""
    verdict = Judgement()
    by_instrument: dict[str, list[SentTick]] = defaultdict(list)
    for tick in sent:
        if tick.fault is None:
            by_instrument[instrument_of[tick.symbol]].append(tick)
    for key, stored in store.items():
        _judge_one(key, by_instrument.pop(key, []), stored, verdict)
    for key, ticks in by_instrument.items():
        verdict.lost += [f"{key} {tick.price_text}" for tick in ticks]
    return verdict


def _judge_one(key: str, sent: list[SentTick], stored: Stored, verdict: Judgement) -> None:
    entries: dict[float, list[dict[str, str]]] = defaultdict(list)
    for entry in stored.entries:
        entries[float(entry["p"])].append(entry)
    expected: dict[float, SentTick] = {}
    quantities: dict[float, int | None] = {}
    before: dict[int, int] = {}
    for tick in sent:
        quantity = None
        if tick.volume is not None:
            known = before.get(tick.connection)
            quantity = None if known is None else tick.volume - known
            before[tick.connection] = tick.volume
        if tick.price in expected:
            # The same trade again: a snapshot, or a copy of the frame.
            verdict.repeated += 1
            continue
        expected[tick.price] = tick
        quantities[tick.price] = quantity
    for price, tick in expected.items():
        label = f"{key} {tick.price_text} seq {tick.seq}"
        found = entries.pop(price, [])
        if not found:
            verdict.lost.append(label)
            continue
        if len(found) > 1:
            verdict.doubled.append(f"{label}: {found}")
        (entry, *_) = found
        time_ms = int(entry["t"])
        problems = []
        if time_ms // 1000 != tick.event_ms // 1000:
            problems.append(f"second {time_ms} instead of {tick.event_ms}")
        if stored.prices.get(time_ms) != price:
            problems.append(f"sample {stored.prices.get(time_ms)}")
        quantity = quantities[price]
        if entry.get("v") != (None if quantity is None else str(quantity)):
            problems.append(f"quantity {entry.get('v')} instead of {quantity}")
        if quantity is not None and stored.volumes.get(time_ms) != quantity:
            problems.append(f"volume sample {stored.volumes.get(time_ms)}")
        if problems:
            verdict.changed.append(f"{label}: {', '.join(problems)}")
        else:
            verdict.stored += 1
    verdict.foreign += [f"{key} {price}" for price in entries]
    if len(stored.prices) != len(stored.entries):
        verdict.foreign.append(f"{key}: {len(stored.prices)} samples for {len(stored.entries)} entries")
