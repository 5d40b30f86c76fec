"""How one note changes what is known of an instrument's past: have, missing, unavailable.

Beneath the ledger that keeps it. Pure. Of one moment at most one state is known, and `have` of several
sources may lie over each other. What a stream gave (`LIVE`) yields to a gap in it; what a source of past
bars gave does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from services.market_data.candles import CoverageSpan
from services.market_data.spans import Span, merged, without

HAVE, MISSING, UNAVAILABLE = "have", "missing", "unavailable"
LIVE = "LIVE"
"""The source of what came over the streams, whichever provider it was."""
TICKS, MINUTES, DAYS = "ticks", "1m", "1d"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something learned about a span. Times are UTC epoch ms.

    A `missing` note with `broken` says that a stream had a gap: it takes back what the stream gave. One
    without is a wish: only what is not known yet becomes missing. `again` wishes for the unavailable too.
    """

    instrument: str
    type: str
    state: str
    from_ms: int
    to_ms: int
    source: str = ""
    reason: str = ""
    broken: bool = False
    again: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Which part of the ledger it changes."""
        return self.instrument, self.type


_Group = tuple[str, str, str]
_Choice = Callable[[_Group], bool]


def apply(known: Iterable[CoverageSpan], notes: Iterable[Note]) -> list[CoverageSpan]:
    """Return what is known of one instrument and type after `notes`, in their order.

    The same notes again change nothing.
    """
    groups: dict[_Group, list[Span]] = {}
    instrument = kind = ""
    for row in known:
        instrument, kind = row.instrument, row.type
        groups.setdefault((row.state, row.source, row.reason), []).append((row.from_ms, row.to_ms))
    for note in notes:
        instrument, kind = note.instrument, note.type
        _take(groups, note)
    rows = [
        CoverageSpan(
            instrument=instrument,
            type=kind,
            state=state,
            source=source,
            reason=reason,
            from_ms=begin,
            to_ms=end,
        )
        for (state, source, reason), spans in groups.items()
        for begin, end in merged(spans)
    ]
    rows.sort(key=lambda row: (row.from_ms, row.to_ms, row.state, row.source, row.reason))
    return rows


def _take(groups: dict[_Group, list[Span]], note: Note) -> None:
    spans: list[Span] = [(note.from_ms, note.to_ms)]
    if note.state == HAVE:
        _cut(groups, spans, lambda group: group[0] != HAVE)
    elif note.state == UNAVAILABLE:
        spans = without(spans, _of(groups, lambda group: group[0] == HAVE))
        _cut(groups, spans, lambda group: group[0] != HAVE)
    elif note.broken:
        spans = without(spans, _of(groups, lambda group: group[0] == HAVE and group[1] != LIVE))
        _cut(groups, spans, lambda group: group[1] == LIVE or group[0] == MISSING)
    else:
        known = (HAVE, MISSING) if note.again else (HAVE, MISSING, UNAVAILABLE)
        spans = without(spans, _of(groups, lambda group: group[0] in known))
        _cut(groups, spans, lambda group: group[0] != HAVE)
    if spans:
        group = (note.state, note.source, note.reason)
        groups[group] = merged([*groups.get(group, []), *spans])


def _of(groups: dict[_Group, list[Span]], chosen: _Choice) -> list[Span]:
    return [span for group, spans in groups.items() if chosen(group) for span in spans]


def _cut(groups: dict[_Group, list[Span]], taken: list[Span], chosen: _Choice) -> None:
    for group in [group for group in groups if chosen(group)]:
        left = without(groups[group], taken)
        if left:
            groups[group] = left
        else:
            del groups[group]


def spans_of(known: Iterable[CoverageSpan], *states: str) -> list[Span]:
    """Return the spans of some states, merged."""
    return merged((row.from_ms, row.to_ms) for row in known if row.state in states)
