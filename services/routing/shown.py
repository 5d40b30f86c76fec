"""The routes in plain words and figures, for status, `why`, `routes` and HTTP. Reads; changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from services.market_data.instruments import InstrumentMapping
from services.routing.announcer import NAMED_AT_MOST
from services.routing.book import RouteBook
from services.routing.conditions import Conditions


def describe(book: RouteBook, instrument: str) -> dict[str, Any]:
    """Return the route of an instrument as it is; times in UTC epoch ms, None where unknown."""
    now_s, now_ms = book.clock.monotonic_s(), book.clock.now_ms()
    watch, history = book.watches.get(instrument), book.history(instrument)
    forced, gap = book.forced.get(instrument), book.gaps.open_gap(instrument)
    trials = {} if watch is None else watch.trials
    since_s = history.since_s
    return {
        "active": book.active.get(instrument),
        "pending": next(iter(trials), None),
        "wanted": book.wanted(instrument),
        "open_gap": None if gap is None else {"from": gap[0], "reason": gap[1]},
        "since_ms": None if since_s is None else now_ms - round((now_s - since_s) * 1000),
        "trouble": (watch.trouble or None) if watch is not None else None,
        "stale_since_ms": watch.stale_since_ms if watch is not None else None,
        "delivery": book.delivery(instrument, book.active.get(instrument, "")),
        "switches_in_window": history.recent(now_s, book.rules),
        "switches_at_most": book.rules.switches_at_most,
        "window_s": book.rules.window_s,
        "forced": None
        if forced is None
        else {"to": forced.to, "until_ms": forced.until_ms, "by": forced.by, "why": forced.why},
        "standbys": [
            {
                "provider": code,
                "listening_ms": round((now_s - trial.since_s) * 1000),
                "fresh_ticks": trial.fresh,
                "agrees": trial.agrees,
                "off_bps": None if trial.off_bps is None else round(trial.off_bps, 2),
                "clean_ms": round(trial.view(now_s).clean_s * 1000),
            }
            for code, trial in trials.items()
        ],
    }


def standing(book: RouteBook, conditions: Conditions, row: InstrumentMapping) -> dict[str, Any]:
    """Return how a candidate stands to be routed to."""
    history, judgement = book.history(row.instrument), conditions.judgement(row)
    held_s = history.held_until_s(row.provider_code, book.rules) - book.clock.monotonic_s()
    silence = None
    if judgement is not None:
        silence = ": ".join(filter(None, (judgement.finding.value, judgement.reason)))
    return {
        "delivery": book.delivery(row.instrument, row.provider_code),
        "allowed": conditions.may_serve(row),
        "silence": silence,
        "trouble": conditions.trouble(row, book.watches.get(row.instrument)) or None,
        "held_down_ms": round(held_s * 1000) if held_s > 0 else None,
    }


def summary(book: RouteBook) -> dict[str, Any]:
    """Return how many instruments each provider serves, and what is not as it should be."""
    stale = [name for name, watch in book.watches.items() if watch.stale_since_ms is not None]
    return {
        "routed": dict(Counter(book.active.values())),
        "away_from_first": len(book.away),
        "in_trouble": sum(bool(watch.trouble) for watch in book.watches.values()),
        "stale": len(stale),
        "stale_instruments": sorted(stale)[:NAMED_AT_MOST],
        "forced": {name: forced.to for name, forced in sorted(book.forced.items())},
        "covered": book.covered,
    }
