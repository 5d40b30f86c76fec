"""What the daemon needs to know: one value, made of the settings by `main.py`. It reads none itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from services.depth.desk import STALE_AFTER_S
from services.history.backfill import BackfillDepth
from services.market_data.calendar import SHIPPED as SHIPPED_MARKET_DAYS
from services.operations.notices import Delivery
from services.options.sources import DEFAULT_ORDER
from services.pipeline.interest import LINGER_S
from services.storage.bar_series_writer import BAR_RETENTION_MS
from services.storage.depth_stream_writer import DEPTH_STREAM_MAX_AGE_MS, DEPTH_STREAM_MAX_ENTRIES
from services.storage.leadership import LeasePolicy, LeaseTimes
from services.storage.spool import LIMIT_BYTES
from services.storage.stream_keeper import STREAM_MAX_AGE_MS

DepthSwitch = Literal["on_demand", "all", "off"]


class IngestionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon needs to know; made from the settings by `main.py`.

    `dynamic_subscriptions`: subscribe only what a client watches, a lease in Redis asks for, or
    `pinned_instruments` (keys or `EXCHANGE:*`) names, and `subscription_linger_s` seconds longer.
    `always_open`: every market trades at any time, so that silence is always a fault; otherwise the
    calendar of `market_day_files` (a later file wins) counts.
    `notices` are where administrators are told of troubles.
    `tick_retention_ms` is how long the time series keep single ticks, `bar_retention_ms` how long they keep
    bars, both with exceptions `..._by_exchange`; `stream_max_entries` is how many
    entries an exchange's stream keeps and `stream_max_age_ms` for how long, `spool_limit_bytes` how much
    disk the records may take that wait for Redis. `api_tokens` maps name to secret, empty for none.
    `backfill` says how far back bars are fetched without being asked for; nothing is where it is all 0.
    `lease_policy` says what to do while another daemon writes the same Redis. `memory_limit_bytes` 0: what
    the machine has. `exchanges` (codes) makes the daemon a shard that ingests these only, beside others on
    the same Redis; without `serves_clients` it answers health and status, and sends clients to gateways.
    `option_order` are the sources of option chains, `option_rates` interest in percent a
    year by currency, `option_year_days` the day count of greeks.
    `depth` is `on_demand`, `all` (five levels of everything that sends them) or `off`; `depth_instruments`
    are pairs of a key or `EXCHANGE:*` and how many levels are always wanted of it.
    `news_every_s` is how often the news of an instrument, or of one of `news_topics`, are fetched; 0: never.
    """

    database_url: str
    redis_url: str
    state_dir: Path
    demo: bool = False
    api_host: str = "127.0.0.1"
    api_port: int = 8080
    api_port_fallback: bool = False
    api_tokens: Mapping[str, str] = {}
    api_allowed_origins: tuple[str, ...] = ()
    dynamic_subscriptions: bool = False
    pinned_instruments: tuple[str, ...] = ()
    subscription_linger_s: float = LINGER_S
    market_day_files: tuple[Path, ...] = (SHIPPED_MARKET_DAYS,)
    always_open: bool = False
    notices: tuple[Delivery, ...] = ()
    tick_retention_ms: int = 48 * 3_600_000
    tick_retention_by_exchange: Mapping[str, int] = {}
    bar_retention_ms: int = BAR_RETENTION_MS
    bar_retention_by_exchange: Mapping[str, int] = {}
    backfill: BackfillDepth = BackfillDepth()
    stream_max_entries: int = 250_000
    stream_max_age_ms: int = STREAM_MAX_AGE_MS
    spool_limit_bytes: int = LIMIT_BYTES
    lease_policy: LeasePolicy = "standby"
    lease_times: LeaseTimes = LeaseTimes()
    option_order: tuple[str, ...] = DEFAULT_ORDER
    option_rates: Mapping[str, float] = {}
    option_year_days: float = 365.0
    depth: DepthSwitch = "on_demand"
    depth_instruments: tuple[tuple[str, int], ...] = ()
    depth_stale_after_s: float = STALE_AFTER_S
    depth_stream_max_entries: int = DEPTH_STREAM_MAX_ENTRIES
    depth_stream_max_age_ms: int = DEPTH_STREAM_MAX_AGE_MS
    news_every_s: float = 0.0
    news_topics: tuple[str, ...] = ()
    api_max_clients: int = 2_000
    memory_limit_bytes: int = 0
    exchanges: tuple[str, ...] = ()
    serves_clients: bool = True
