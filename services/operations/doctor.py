"""The checks behind `doctor`: each answers one question an operator would ask, with the remedy.

Every check returns, none raises: a check that cannot be made is a failed check that says why.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import time
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import msgspec
import redis.exceptions

from services.catalogue.loader import Catalogue
from services.compiled import BUILD, REMEDY, Build
from services.credential_state import EXPIRING_MS, credential_expiry_ms
from services.errors import MarketdError
from services.market_data.calendar import HOURS, MarketCalendar
from services.market_data.clock import SystemClock
from services.storage.client import check_server, make_client

NEEDED_DESCRIPTORS = 4_096
NEEDED_DISK_BYTES = 1 << 30
CLOCK_TOLERANCE_MS = 1_000


MARKET_DAYS_AHEAD = timedelta(days=30)


class Check(msgspec.Struct, frozen=True):
    """One answered question. `remedy` is empty when there is nothing to do.

    `warning` marks what works but should be mended; it has passed.
    """

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    warning: bool = False


def check_market_days(calendar: MarketCalendar, today: date) -> Check:
    """Tell how long the holidays are known; a warning when that is less than `MARKET_DAYS_AHEAD` days."""
    known = {exchange: last for exchange in HOURS if (last := calendar.known_until(exchange)) is not None}
    soon = sorted(exchange for exchange, last in known.items() if last - today < MARKET_DAYS_AHEAD)
    ends = ", ".join(f"{exchange} {last}" for exchange, last in sorted(known.items()))
    return Check(
        "market days",
        True,
        f"holidays are known until: {ends}",
        f"name the next holidays of {', '.join(soon)} in MARKET_DAYS, or install a newer version"
        if soon
        else "",
        warning=bool(soon),
    )


async def check_database(url: str, state_dir: Path) -> list[Check]:
    """Check that PostgreSQL answers, that its schema is at head, and that instruments are mapped."""
    catalogue = Catalogue(url, state_dir / "mappings.json", SystemClock())
    try:
        await catalogue.check_schema()
        snapshot = await catalogue.read()
    except MarketdError as error:
        return [Check("database", False, str(error), "see the message")]
    finally:
        await catalogue.close()
    checks = [Check("database", True, "reachable, schema at head")]
    if snapshot.mappings:
        instruments = len({mapping.instrument for mapping in snapshot.mappings})
        providers = ", ".join(entry.code for entry in snapshot.providers)
        checks.append(Check("mappings", True, f"{instruments} instruments, providers {providers}"))
    else:
        checks.append(
            Check(
                "mappings",
                False,
                "no instrument is mapped to an active provider",
                "run python data_migration/populate_instrument_mappings.py",
            )
        )
    return checks


async def mapped_instruments(url: str, state_dir: Path) -> list[str]:
    """Return the keys of all mapped instruments. Raises `MarketdError` when PostgreSQL does not answer."""
    catalogue = Catalogue(url, state_dir / "mappings.json", SystemClock())
    try:
        snapshot = await catalogue.read()
    finally:
        await catalogue.close()
    return sorted({mapping.instrument for mapping in snapshot.mappings})


async def check_redis(url: str) -> list[Check]:
    """Check that Redis has TimeSeries, writes to disk, never evicts, and agrees with our clock."""
    client = make_client(url)
    try:
        facts = await check_server(client)
        seconds, microseconds = await client.time()
    except MarketdError as error:
        return [Check("redis", False, str(error), "see the message")]
    except (redis.exceptions.RedisError, OSError) as error:
        return [Check("redis", False, f"{type(error).__name__}: {error}", "check REDIS_URL and the server")]
    finally:
        await client.aclose()
    checks = [Check("redis", True, f"{facts.version}, TimeSeries {facts.timeseries_version}, {facts.role}")]
    checks.append(
        Check("redis persistence", True, "append-only file on")
        if facts.aof_enabled
        else Check(
            "redis persistence",
            False,
            "append-only file off: a crash loses everything",
            "CONFIG SET appendonly yes, appendfsync everysec, and CONFIG REWRITE",
        )
    )
    checks.append(
        Check("redis memory policy", True, "noeviction")
        if facts.maxmemory_policy in ("noeviction", "")
        else Check(
            "redis memory policy",
            False,
            f"{facts.maxmemory_policy}: keys vanish when memory is full",
            "CONFIG SET maxmemory-policy noeviction",
        )
    )
    skew_ms = time.time_ns() // 1_000_000 - (seconds * 1000 + microseconds // 1000)
    checks.append(
        Check("clock", True, f"{skew_ms:+d} ms against Redis")
        if abs(skew_ms) <= CLOCK_TOLERANCE_MS
        else Check("clock", False, f"{skew_ms:+d} ms against Redis", "synchronise the clocks (chrony, NTP)")
    )
    return checks


def check_credentials(settings: Mapping[str, str], now_ms: int) -> Check:
    """Check that Dhan's credentials are set and not expired; Yahoo needs none."""
    client_id = settings.get("DHAN_CLIENT_ID", "")
    token = settings.get("DHAN_ACCESS_TOKEN", "")
    if not client_id and not token:
        return Check("credentials DHAN", True, "not set: Dhan stays parked, Yahoo Finance needs none")
    if not client_id or not token:
        missing = "DHAN_CLIENT_ID" if not client_id else "DHAN_ACCESS_TOKEN"
        return Check("credentials DHAN", False, f"{missing} is empty", f"set {missing} in .env")
    expires_ms = credential_expiry_ms(token)
    if expires_ms is None:
        return Check("credentials DHAN", True, "set; the token does not say when it expires")
    hours = (expires_ms - now_ms) / 3_600_000
    if hours <= 0:
        return Check(
            "credentials DHAN",
            False,
            f"the token expired {-hours:.1f} h ago",
            "put a new DHAN_ACCESS_TOKEN in .env",
        )
    left = f"{int(hours)} h {int(hours * 60) % 60:02d} min"
    if expires_ms - now_ms < EXPIRING_MS:
        return Check(
            "credentials DHAN",
            True,
            f"only {left} left",
            "the running daemon renews it, if it was made on web.dhan.co; else put a new one in .env",
            warning=True,
        )
    return Check("credentials DHAN", True, f"{left} left")


def check_host(state_dir: Path) -> list[Check]:
    """Check file descriptors, free disk space and who can read the state directory."""
    # The gateway raises the soft limit by itself; what counts is how far it may.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = (
        Check("file descriptors", True, "unlimited" if hard == resource.RLIM_INFINITY else str(hard))
        if hard >= NEEDED_DESCRIPTORS or hard == resource.RLIM_INFINITY
        else Check(
            "file descriptors",
            False,
            f"at most {hard}",
            f"ulimit -Hn {NEEDED_DESCRIPTORS} (systemd: LimitNOFILE=8192)",
        )
    )
    existing = state_dir
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    disk = (
        Check("disk", True, f"{free_bytes / 1e9:.1f} GB free at {existing}")
        if free_bytes >= NEEDED_DISK_BYTES
        else Check("disk", False, f"{free_bytes / 1e6:.0f} MB free at {existing}", "free at least 1 GB")
    )
    checks = [limits, disk]
    if not os.access(existing, os.W_OK):
        checks.append(
            Check("state directory", False, f"{existing} is not writable", "set STATE_DIR or its permissions")
        )
    return checks


def check_path(build: Build = BUILD) -> Check:
    """Tell whether the path of a tick runs compiled; a warning when what was compiled cannot be used."""
    why = f" ({build.reason})" if build.reason else ""
    return Check("path of a tick", True, f"{build}{why}", REMEDY, warning=build.problem)


def check_secret_file(path: Path | None) -> Check:
    """Check that `.env`, which holds secrets, is readable by its owner alone."""
    if path is None:
        return Check("settings file", True, "no .env: defaults and environment")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check(
            "settings file", False, f"{path} can be read by others ({mode:04o})", f"chmod 600 {path}"
        )
    return Check("settings file", True, f"{path}, readable by its owner only")
