"""How much memory Redis needs for the chosen retention, from measured bytes per sample.

Part of `doctor`. The bytes are those of the embedded server (Redis 7.4, TimeSeries 1.12), with series, chunks
and labels as the writers make them and prices that walk at random by ticks of 0.05; where Redis holds enough
samples of ours already, what those take replaces them. The estimate is for full series: every mapped
instrument trades once a second in every regular session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.errors import MarketdError
from services.market_data.bars import INTERVAL_MS, INTERVALS
from services.market_data.calendar import MarketCalendar
from services.operations.doctor import Check
from services.operations.memory import allowed_bytes
from services.storage.client import make_client
from services.storage.retention import Retention

TICK_BYTES = 21.0
"""One tick: price, bid and ask 5.9 bytes each, quantity 2.9."""
BAR_BYTES = {"1m": 31.0, "5m": 37.0, "15m": 49.0, "1h": 49.0, "1d": 49.0}
"""One bar: its five samples."""
EMPTY_BYTES = 5 * 1_333 + 5 * (821 + 565 + 3 * 437)
"""The empty series of one instrument, with their labels."""
_DAY_MS = 86_400_000
_SAMPLED_SERIES = 20
_ENOUGH_SAMPLES = 20_000
_PRICE_SAMPLE_BYTES = {"tick": 5.9, "bar": 6.3}
_ALWAYS = (1.0, _DAY_MS)


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What the series of one exchange take when they are full, in bytes."""

    exchange: str
    instruments: int
    ticks: int
    bars: int

    @property
    def total(self) -> int:
        """Ticks and bars together."""
        return self.ticks + self.bars


def memory_need(
    instruments: Mapping[str, int],
    ticks: Retention,
    bars: Retention,
    calendar: MarketCalendar,
    today: date,
    *,
    scale: Mapping[str, float] = {},
) -> list[MemoryNeed]:
    """Return the need of each exchange, given how many instruments are mapped there.

    `scale` corrects the measured bytes of `tick` and `bar` samples by what this Redis really takes.
    """
    needs = []
    for exchange, count in sorted(instruments.items()):
        share, session_ms = _trading(calendar, exchange, today)
        tick_days = max(1.0, ticks.of(exchange) / _DAY_MS) if share < 1 else ticks.of(exchange) / _DAY_MS
        each_tick = TICK_BYTES * scale.get("tick", 1.0)
        bar_days = bars.of(exchange) / _DAY_MS * share
        each_bar = sum(BAR_BYTES[name] * -(-session_ms // INTERVAL_MS[name]) for name in INTERVALS)
        needs.append(
            MemoryNeed(
                exchange=exchange,
                instruments=count,
                ticks=round(count * (each_tick * tick_days * session_ms / 1000)),
                bars=round(count * (EMPTY_BYTES + each_bar * scale.get("bar", 1.0) * bar_days)),
            )
        )
    return needs


def judge_memory(needs: Sequence[MemoryNeed], limit_bytes: int, *, measured: bool) -> Check:
    """Compare the needs with what Redis may take; a warning when it is not enough."""
    total = sum(need.total for need in needs)
    parts = ", ".join(
        f"{need.exchange} {_size(need.total)} ({need.instruments} instruments: "
        f"ticks {_size(need.ticks)}, bars {_size(need.bars)})"
        for need in needs
    )
    source = "by the samples stored here" if measured else "by measured bytes per sample"
    detail = (
        f"about {_size(total)} when all series are full, {source}, at a tick a second: {parts or 'nothing'}"
    )
    short = bool(limit_bytes) and total > limit_bytes
    return Check(
        "redis memory",
        True,
        f"{detail}; {_size(limit_bytes)} allowed" if limit_bytes else detail,
        "keep ticks or bars for a shorter time (TICK_RETENTION_HOURS, BAR_RETENTION_DAYS, both "
        "..._BY_EXCHANGE), map fewer instruments, or give Redis more memory"
        if short
        else "",
        warning=short,
    )


async def check_memory(
    url: str,
    instruments: Awaitable[Sequence[str]],
    ticks: Retention,
    bars: Retention,
    calendar: MarketCalendar,
    today: date,
) -> Check:
    """Tell how much memory the retention needs for the mapped `instruments` (keys)."""
    client = make_client(url)
    try:
        counts = Counter(key.partition(":")[0] for key in await instruments)
        facts = await client.info("memory")
        scale = {kind: found for kind in ("tick", "bar") if (found := await _measure(client, kind))}
    except (MarketdError, RedisError, OSError) as error:
        return Check("redis memory", False, f"{type(error).__name__}: {error}", "see the check of redis")
    finally:
        await client.aclose()
    needs = memory_need(counts, ticks, bars, calendar, today, scale=scale)
    limit_bytes = (
        int(facts.get("maxmemory", 0)) or int(facts.get("total_system_memory", 0)) or allowed_bytes()
    )
    return judge_memory(needs, limit_bytes, measured=bool(scale))


async def _measure(client: Redis, kind: str) -> float:
    """Return what a price sample takes here, as a multiple of the usual; 0.0 where there are too few."""
    field = ("field=price", "kind=tick") if kind == "tick" else ("field=close", "kind=bar", "interval=1m")
    keys = await client.ts().queryindex(list(field))
    samples = size = 0
    for key in keys[:_SAMPLED_SERIES]:
        facts: Any = await client.ts().info(key)
        samples += facts.total_samples
        size += facts.memory_usage
    return size / samples / _PRICE_SAMPLE_BYTES[kind] if samples >= _ENOUGH_SAMPLES else 0.0


def _trading(calendar: MarketCalendar, exchange: str, today: date) -> tuple[float, int]:
    """Return which share of the days an exchange trades, and how long on the longest of them, in ms."""
    days = [today - timedelta(days=back) for back in range(28)]
    lengths = [
        sum(session.close_ms - session.open_ms for session in calendar.regular(exchange, day)) for day in days
    ]
    if calendar.always_open or not any(lengths):
        return _ALWAYS
    return sum(1 for length in lengths if length) / len(days), max(lengths)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
