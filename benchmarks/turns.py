"""Several things measured in turn, in slices so short that they share the machine's moods.

A machine that others share is at times a third slower, for seconds or for minutes, and not for everything
alike. So nothing is measured once and as a whole: each has its slice, one after the other, many times over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar


class Slice(NamedTuple):
    """What was done in one slice: `count` things in `seconds`, by the clock or of a processor."""

    count: float
    seconds: float


Name = TypeVar("Name")
Taken = TypeVar("Taken")
Take = Callable[[], Awaitable[Slice]]


async def in_turn(
    rounds: int, takes: Mapping[Name, Callable[[], Awaitable[Taken]]]
) -> dict[Name, list[Taken]]:
    """Give each its slice in every round, each round beginning with another; return all slices by name."""
    names = list(takes)
    found: dict[Name, list[Taken]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(await takes[name]())
    return found


def rate(slices: Sequence[Slice]) -> float:
    """Return things a second over all slices together."""
    return sum(one.count for one in slices) / sum(one.seconds for one in slices)
