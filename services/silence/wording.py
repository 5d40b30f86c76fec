"""What was found, in words with figures for an operator. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from services.market_data.calendar import MarketCalendar
from services.silence.feed import Feed
from services.silence.findings import Finding
from services.silence.rules import LEARNED_SPAN_S
from services.silence.watch import NEVER_LOOKED, Watch

_QUIET_FROM_S = 60.0
_NAMED = 10
_CLOSED_TICKS = 30
_CLOSED_SHARE = 0.25
_CLOSED_WINDOW_S = 300.0


def shown_finding(watch: Watch, feed: Feed, now_s: float) -> Finding:
    """Return the finding as it is told: a healthy instrument that is silent for long is quiet."""
    finding = watch.finding
    if feed.session is None or finding.is_fault or watch.session_ms == NEVER_LOOKED:
        return finding
    silence_s = watch.silence_s(now_s)
    if finding is Finding.PROVING:
        return Finding.QUIET if watch.rate > 0.0 and silence_s > _QUIET_FROM_S else finding
    return Finding.QUIET if silence_s > _QUIET_FROM_S or not watch.started else Finding.FLOWING


def reason(
    watch: Watch, feed: Feed, finding: Finding, now_ms: int, now_s: float, calendar: MarketCalendar
) -> str:
    """Say why an instrument is judged as it is."""
    silence = duration(watch.silence_s(now_s) if watch.session_ms != NEVER_LOOKED else 0.0)
    usual = pace(watch.rate) if watch.rate > 0.0 else ""
    usually = f"; usual are {usual}" if usual else "; its usual rate is not known yet"
    if feed.session is None:
        return closed(feed, now_ms, calendar)
    if finding is Finding.MUTE:
        return (
            f"silent for {silence}{usually}, and the longest ordinary silence was {duration(watch.longest_s)}"
            + (witnesses(watch))
        )
    if finding is Finding.NEVER_STARTED:
        since = "the open" if feed.session.open_ms >= watch.armed_ms else "it was subscribed"
        return f"not one tick since {since}, {silence} ago{usually}{witnesses(watch)}"
    if finding is Finding.BROWN_OUT:
        span_s = max(1.0, now_s - watch.evidence_since_s)
        return f"{watch.evidence_ticks} ticks in {duration(span_s)}{usually}{witnesses(watch)}"
    if finding is Finding.REPLAYED:
        age = duration((now_ms - watch.pulse.event_ms) / 1000.0)
        lag = duration(max(0.0, watch.usual_lag_ms) / 1000.0)
        return f"ticks come, but their time is {age} old where {lag} is usual"
    if finding is Finding.PROVING:
        return f"subscribed {duration((now_ms - watch.armed_ms) / 1000.0)} ago, no tick yet{usually}"
    if finding is Finding.QUIET:
        return f"silent for {silence}, which is ordinary{usually}"
    return f"newest tick {silence} ago{usually}"


def feed_reason(feed: Feed, now_ms: int, now_s: float, calendar: MarketCalendar) -> str:
    """Say why the whole feed of an exchange is judged as it is."""
    count = len(feed.watches)
    if feed.session is None:
        return closed(feed, now_ms, calendar)
    silence = duration(now_s - feed.quiet_since_s)
    usual = f"; usual are {pace(feed.usual_rate)}" if feed.usual_rate > 0.0 else ""
    if feed.finding is Finding.MUTE:
        return f"none of {count} instruments has ticked for {silence}{usual}"
    if feed.finding is Finding.NEVER_STARTED:
        return (
            f"none of {count} instruments has ticked since the subscription or the open, {silence} ago{usual}"
        )
    if feed.finding is Finding.BROWN_OUT:
        span = duration(now_s - feed.evidence_since_s)
        return f"{feed.evidence_ticks} ticks in {span} where about {feed.evidence_expected:.0f} are usual"
    if feed.finding is Finding.REPLAYED:
        replayed = sum(1 for watch in feed.faulty.values() if watch.finding is Finding.REPLAYED)
        return f"{replayed} of {count} instruments bring old ticks as if they were live"
    if feed.finding is Finding.PROVING:
        return f"no tick of {count} instruments yet"
    faulty = f", {len(feed.faulty)} of them not as they should" if feed.faulty else ""
    return f"{count} instruments{faulty}, newest tick {silence} ago{usual}"


def closed(feed: Feed, now_ms: int, calendar: MarketCalendar) -> str:
    """Say that the market is closed, why, and until when."""
    following = calendar.next_session(feed.exchange, now_ms)
    until = f" until {moment(following.open_ms)}" if following else ""
    if calendar.session_at(feed.exchange, now_ms) is not None:
        return f"{feed.exchange} is outside its regular hours{until}"
    if calendar.next_session(feed.exchange, now_ms) is None:
        return f"the hours of {feed.exchange} are not known, so its silence is not judged"
    return f"{feed.exchange} is closed{until}" + (f" ({feed.special})" if feed.special else "")


def witnesses(watch: Watch) -> str:
    """Say what the other providers bring of the instrument meanwhile."""
    came = watch.others_ticks() - watch.witness_mark if watch.others else 0
    names = ", ".join(sorted(other.provider for other in watch.others))
    return f"; {names} brought {came} ticks meanwhile" if watch.others else ""


def alarms(feeds: Iterable[Feed], now_ms: int, now_s: float, calendar: MarketCalendar) -> dict[str, str]:
    """Return what an administrator should hear of, by a stable key."""
    found: dict[str, str] = {}
    by_exchange: dict[str, list[Feed]] = {}
    for feed in feeds:
        by_exchange.setdefault(feed.exchange, []).append(feed)
        name = f"{feed.provider}:{feed.exchange}"
        if feed.finding.is_fault:
            found[f"silence:{name}"] = (
                f"{feed.provider} {feed.exchange} is {_word(feed.finding)}: "
                f"{feed_reason(feed, now_ms, now_s, calendar)}"
            )
        elif feed.faulty:
            named = sorted(feed.faulty)
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            found[f"silence:{name}:instruments"] = f"{feed.provider} fails for single instruments: " + (
                ", ".join(f"{key} ({_word(feed.faulty[key].finding)})" for key in named[:_NAMED]) + more
            )
        if ticks_though_closed(feed):
            found[f"calendar:{feed.exchange}"] = (
                f"{feed.exchange} is closed by the calendar, yet {feed.provider} brought "
                f"{feed.closed_ticks:.0f} fresh ticks in five minutes: a special session? "
                "check the market days and this machine's clock"
            )
    for exchange, group in by_exchange.items():
        if all(feed.finding in (Finding.MUTE, Finding.NEVER_STARTED) for feed in group):
            since = min(feed.since_ms for feed in group)
            names = ", ".join(sorted(feed.provider for feed in group))
            found[f"calendar:{exchange}"] = (
                f"{exchange} is open by the calendar, but {names} brought nothing since {moment(since)}: "
                "an unannounced holiday or halt, or every feed is down"
            )
    return found


def ticks_though_closed(feed: Feed) -> bool:
    """Tell whether a market that is closed by the calendar trades all the same."""
    if feed.session is not None or feed.closed_ticks < _CLOSED_TICKS:
        return False
    usual = sum(watch.rate for watch in feed.watches) * _CLOSED_WINDOW_S
    known = sum(1 for watch in feed.watches if watch.span_s >= LEARNED_SPAN_S)
    return known == 0 or feed.closed_ticks >= _CLOSED_SHARE * usual


def pace(rate: float) -> str:
    """Return a rate in ticks per second in words: `5.2 ticks a second`, `a tick in 3 min`."""
    if rate >= 0.95:
        return f"{rate:.1f} ticks a second"
    if rate * 60.0 >= 1.5:
        return f"{rate * 60.0:.0f} ticks a minute"
    return f"a tick in {duration(1.0 / rate)}"


def duration(seconds: float) -> str:
    """Return a span of time as in `14 s`, `3 min`, `2.5 h`."""
    if seconds < 0.95:
        return "less than a second"
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    if seconds < 7_200.0:
        return f"{seconds / 60.0:.0f} min"
    return f"{seconds / 3_600.0:.1f} h"


def moment(at_ms: int) -> str:
    """Return a moment as in `2026-12-01 03:45 UTC`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _word(finding: Finding) -> str:
    return finding.value.replace("_", " ")
