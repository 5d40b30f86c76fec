"""What a daemon is made of, out of the settings: its configuration, and what changes while it runs."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from commands.context import market_day_files
from config.credential_store import CredentialStore
from config.settings import Settings
from services.errors import ConfigurationError

# Takes a second to load: what is not run does not wait for it.
if TYPE_CHECKING:
    from services.gateway_daemon import GatewayDaemon, GatewayDaemonConfig
    from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
    from services.operations.notices import Delivery

    Daemon = LiveDataIngestion | GatewayDaemon


class Part(str, Enum):
    """Which part of the daemon a process is."""

    ALL = "all"
    INGEST = "ingest"
    GATEWAY = "gateway"


def compose(
    settings: Settings,
    urls: tuple[str, str],
    credentials: CredentialStore,
    part: Part,
    exchanges: tuple[str, ...],
    *,
    demo: bool,
) -> Daemon:
    """Return the daemon that this process is, of these servers (PostgreSQL, Redis).

    Loading it takes a second: a second daemon is told off before.
    """
    if part is Part.GATEWAY:
        from services.gateway_daemon import GatewayDaemon

        return GatewayDaemon(gateway_config(settings, *urls))
    from services.live_data_ingestion import LiveDataIngestion

    config = ingestion_config(settings, *urls, demo=demo)
    if part is Part.INGEST:
        config = msgspec.structs.replace(config, exchanges=exchanges, serves_clients=False)
    return LiveDataIngestion(
        config, provider_settings=credentials.settings, save_credentials=credentials.save
    )


def ingestion_config(settings: Settings, database_url: str, redis_url: str, *, demo: bool) -> IngestionConfig:
    """Return the configuration of a daemon that ingests."""
    from services.history.backfill import BackfillDepth
    from services.live_data_ingestion import IngestionConfig

    tick_retention_ms, ticks_by_exchange = settings.tick_retention_ms()
    bar_retention_ms, bars_by_exchange = settings.bar_retention_ms()
    return IngestionConfig(
        database_url=database_url,
        redis_url=redis_url,
        state_dir=settings.state_dir,
        demo=demo,
        api_host=settings.api_host,
        api_port=settings.api_port,
        api_port_fallback=demo,
        api_tokens=settings.tokens(),
        api_allowed_origins=settings.allowed_origins(),
        dynamic_subscriptions=settings.subscription_mode == "dynamic",
        pinned_instruments=settings.pinned(),
        subscription_linger_s=settings.subscription_linger_s,
        notices=_notices(settings),
        market_day_files=market_day_files(settings),
        always_open=settings.market_calendar == "always_open",
        tick_retention_ms=tick_retention_ms,
        tick_retention_by_exchange=ticks_by_exchange,
        bar_retention_ms=bar_retention_ms,
        bar_retention_by_exchange=bars_by_exchange,
        backfill=BackfillDepth(settings.backfill_minute_days, settings.backfill_daily_days),
        stream_max_entries=settings.stream_max_entries,
        stream_max_age_ms=settings.stream_max_age_hours * 3_600_000,
        spool_limit_bytes=settings.spool_limit_mib << 20,
        lease_policy=settings.lease_policy,
        option_order=settings.option_order(),
        option_rates=settings.rates(),
        option_year_days=settings.option_year_days,
        depth=settings.depth,
        depth_instruments=settings.depth_wanted(),
        depth_stale_after_s=settings.depth_stale_after_s,
        depth_stream_max_entries=settings.depth_stream_max_entries,
        depth_stream_max_age_ms=settings.depth_stream_max_age_s * 1_000,
        news_every_s=settings.news_every_s,
        news_topics=settings.topics(),
        api_max_clients=settings.api_max_clients,
        memory_limit_bytes=settings.memory_limit_mib << 20,
    )


def gateway_config(settings: Settings, database_url: str, redis_url: str) -> GatewayDaemonConfig:
    """Return the configuration of a gateway."""
    from services.gateway_daemon import GatewayDaemonConfig

    return GatewayDaemonConfig(
        database_url=database_url,
        redis_url=redis_url,
        state_dir=settings.state_dir,
        api_host=settings.api_host,
        api_port=settings.api_port,
        api_tokens=settings.tokens(),
        api_allowed_origins=settings.allowed_origins(),
        api_max_clients=settings.api_max_clients,
        dynamic_subscriptions=settings.subscription_mode == "dynamic",
        market_day_files=market_day_files(settings),
        always_open=settings.market_calendar == "always_open",
        memory_limit_bytes=settings.memory_limit_mib << 20,
    )


def check_gateway_servers(settings: Settings) -> None:
    """A gateway with servers of its own would have nothing to show. Raises `ConfigurationError`."""
    missing = [
        name
        for name, url in (("REDIS_URL", settings.redis_url), ("DATABASE_URL", settings.database_url))
        if url is None
    ]
    if missing:
        raise ConfigurationError(
            f"--role gateway needs {' and '.join(missing)}: the servers of the ingest daemon "
            "(redis_url and database_url in its STATE_DIR/runtime.json)"
        )


def pass_on(settings: Settings, daemon: Daemon) -> None:
    """Tell the daemon of settings that were read again; an embedded server keeps its URL."""
    started_with = daemon.config
    database, redis = settings.database_url, settings.redis_url
    daemon.secrets_changed(
        database_url=database.get_secret_value() if database else started_with.database_url,
        redis_url=redis.get_secret_value() if redis else started_with.redis_url,
        api_tokens=settings.tokens(),
    )


def _notices(settings: Settings) -> tuple[Delivery, ...]:
    from services.operations.notices import CommandHook, Webhook

    url, command = settings.notice_webhook_url.get_secret_value(), settings.notice_command
    return (*([Webhook(url)] if url else []), *([CommandHook(command)] if command else []))
