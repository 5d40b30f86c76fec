"""Which change of the order the scores of the last days speak for. Proposes; a human applies. Pure.

Nothing is proposed on a day's mood: both providers must have been scored on the same days, the better one
clearly better on the whole and better on most of them, and never a delayed one in place of a real-time one.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

import msgspec

from services.quality.figures import Score

LEAST_DAYS = 3
LEAST_POINTS = 5.0
LEAST_SHARE_OF_DAYS = 0.7
_REAL_TIME = "real_time"


class Place(msgspec.Struct, frozen=True):
    """One provider's place on one exchange, as the tables have it."""

    exchange: str
    provider: str
    is_primary: bool
    priority: int
    delivery: str = _REAL_TIME


class Suggestion(msgspec.Struct, frozen=True):
    """Put `provider` before `instead_of` on `exchange`: why, and how as a command and as SQL."""

    exchange: str
    provider: str
    instead_of: str
    reason: str
    command: str
    sql: str


def suggestions(scores: Iterable[Score], places: Iterable[Place]) -> list[Suggestion]:
    """Return the proposals, at most one for each exchange."""
    by_feed: dict[tuple[str, str], dict[object, float]] = {}
    for one in scores:
        if one.score is not None:
            by_feed.setdefault((one.exchange, one.provider), {})[one.day] = one.score
    orders: dict[str, list[Place]] = {}
    for place in places:
        orders.setdefault(place.exchange, []).append(place)
    found: list[Suggestion] = []
    for exchange, order in sorted(orders.items()):
        order.sort(key=lambda place: (not place.is_primary, place.priority, place.provider))
        first = order[0]
        ranked = []
        for other in order[1:]:
            if first.delivery == _REAL_TIME and other.delivery != _REAL_TIME:
                continue
            compared = _compared(
                by_feed.get((exchange, first.provider), {}), by_feed.get((exchange, other.provider), {})
            )
            if compared is not None:
                ranked.append((compared[1] - compared[0], other, compared))
        if ranked:
            _, other, compared = max(ranked, key=lambda entry: entry[0])
            found.append(_suggestion(first, other, *compared))
    return found


def _compared(first: dict[object, float], other: dict[object, float]) -> tuple[float, float, int] | None:
    """Return both means and the number of days, if the other provider was clearly better."""
    days = first.keys() & other.keys()
    if len(days) < LEAST_DAYS:
        return None
    means = fmean(first[day] for day in days), fmean(other[day] for day in days)
    better = sum(1 for day in days if other[day] > first[day])
    if means[1] - means[0] < LEAST_POINTS or better < LEAST_SHARE_OF_DAYS * len(days):
        return None
    return *means, len(days)


def _suggestion(first: Place, other: Place, mean: float, better: float, days: int) -> Suggestion:
    exchange, code = other.exchange, other.provider
    of_exchange = f"exchange_id = (SELECT id FROM exchanges WHERE code = '{exchange}')"  # noqa: S608 - printed for a human, never executed
    chosen = f"{of_exchange} AND provider_id = (SELECT id FROM providers WHERE code = '{code}')"  # noqa: S608
    change = "UPDATE exchange_provider_mappings SET"
    if first.is_primary or first.priority == 0:
        # An exchange has one primary at most: the old one steps down first.
        command = f"{other.priority} --primary"
        sql = (
            f"BEGIN; {change} is_primary = false WHERE {of_exchange} AND is_primary; "
            f"{change} is_primary = true WHERE {chosen}; COMMIT;"
        )
    else:
        command = str(first.priority - 1)
        sql = f"{change} priority = {first.priority - 1} WHERE {chosen};"
    return Suggestion(
        exchange=exchange,
        provider=code,
        instead_of=first.provider,
        reason=(
            f"on {days} days both were scored {code} had {better:.1f} points on average, "
            f"{first.provider} {mean:.1f}"
        ),
        command=f"python main.py providers priority {exchange} {code} {command}",
        sql=sql,
    )
