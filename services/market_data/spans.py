"""Spans of time and their algebra: union, difference, what they have in common.

Beneath coverage and history. Pure. A span is `(from_ms, to_ms)` in UTC epoch ms, `to_ms` the first moment
after it. Functions take spans in any order and return them ascending, merged where they touch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

Span = tuple[int, int]


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the union; empty and turned-round spans are left out."""
    result: list[Span] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if result and begin <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((begin, end))
    return result


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Return what of `spans` does not lie in `taken`."""
    result: list[Span] = []
    holes = merged(taken)
    for begin, end in merged(spans):
        # The first that may reach into this span is the one before the first that begins behind it.
        at = max(0, bisect_right(holes, (begin, begin)) - 1)
        while begin < end and at < len(holes) and holes[at][0] < end:
            hole_begin, hole_end = holes[at]
            if hole_end > begin:
                if hole_begin > begin:
                    result.append((begin, hole_begin))
                begin = max(begin, hole_end)
            at += 1
        if begin < end:
            result.append((begin, end))
    return result


def common(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return what lies in both."""
    left, right = merged(spans), merged(others)
    result: list[Span] = []
    i = j = 0
    while i < len(left) and j < len(right):
        begin, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if begin < end:
            result.append((begin, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return result


def total_ms(spans: Iterable[Span]) -> int:
    """Return how long all spans are together, counting no moment twice."""
    return sum(end - begin for begin, end in merged(spans))


def widened(span: Span, step_ms: int) -> Span:
    """Return the smallest span of whole steps (minutes, say) that holds `span`."""
    begin, end = span
    return begin - begin % step_ms, end + -end % step_ms
