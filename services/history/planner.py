"""Which windows to ask a provider for, newest first. Pure: no clock, no I/O.

Missing spans of one instrument that fit one request of a source become one window, however many they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec

from services.history.source import Offer
from services.market_data.bars import Interval
from services.market_data.candles import CoverageSpan
from services.market_data.spans import Span, merged, total_ms


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One request to be made: what is missing of one instrument within one request's span, UTC epoch ms."""

    instrument: str
    interval: Interval
    spans: tuple[Span, ...]

    @property
    def from_ms(self) -> int:
        """Where the request begins."""
        return self.spans[0][0]

    @property
    def to_ms(self) -> int:
        """The first moment behind the request."""
        return self.spans[-1][1]

    @property
    def missing_ms(self) -> int:
        """How much time is missing in it."""
        return total_ms(self.spans)


def windows_of(
    instrument: str, interval: Interval, spans: Iterable[Span], window_ms: int, cuts: Iterable[int] = ()
) -> list[Window]:
    """Return the windows that cover `spans`, newest first, each at most `window_ms` long.

    None reaches over one of `cuts` (how far back one of the sources goes).
    """
    pieces: list[Span] = []
    for begin, end in merged(spans):
        edges = sorted({begin, end, *(cut for cut in cuts if begin < cut < end)})
        pieces += pairwise(edges)
    windows: list[Window] = []
    taken: list[Span] = []
    limits, current = sorted(cuts), 0

    def close() -> None:
        if taken:
            windows.append(Window(instrument=instrument, interval=interval, spans=tuple(sorted(taken))))
            taken.clear()

    for begin, end in reversed(pieces):
        reach = bisect_right(limits, begin)
        while end > begin:
            if taken and (reach != current or end <= taken[0][1] - window_ms):
                close()
            current = reach
            part = max(begin, (taken[0][1] if taken else end) - window_ms)
            taken.append((part, end))
            end = part
    close()
    return windows


def plan(
    missing: Sequence[CoverageSpan],
    offers: Callable[[str, str], Mapping[str, Offer]],
    now_ms: int,
) -> list[Window]:
    """Return the windows for missing spans of bars, those that end last first.

    `offers(instrument, interval)` are the offers by provider; where there is none, one window holds all,
    so that what nobody has is found out at once.
    """
    by_key: dict[tuple[str, Interval], list[Span]] = {}
    for row in missing:
        interval: Interval = "1d" if row.type == "1d" else "1m"
        by_key.setdefault((row.instrument, interval), []).append((row.from_ms, row.to_ms))
    windows: list[Window] = []
    for (instrument, interval), spans in by_key.items():
        offered = offers(instrument, interval).values()
        window_ms = max((offer.window_ms for offer in offered), default=now_ms)
        cuts = [now_ms - offer.depth_ms for offer in offered if offer.depth_ms]
        windows += windows_of(instrument, interval, spans, window_ms, cuts)
    windows.sort(key=newest_first)
    return windows


def newest_first(window: Window) -> tuple[int, str]:
    """Return what windows are sorted by: those that end last come first."""
    return -window.to_ms, window.instrument


def runs_of(starts: Sequence[int], step_ms: int) -> list[Span]:
    """Return ascending starts of bars as spans, joined where they follow each other."""
    spans: list[Span] = []
    for start in starts:
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], start + step_ms)
        else:
            spans.append((start, start + step_ms))
    return spans
