"""What the commands share: consoles, settings, servers, and the way to the running daemon.

With `main.py` the only reader of `config.settings` besides the scripts of `data_migration`. Commands
raise errors of `services.errors`; `main.py` turns them into one sentence and the exit code.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from config.credential_store import CredentialStore
from config.live_settings import LiveSettings
from config.logging import configure_logging
from config.settings import PROJECT_ROOT, Settings, load_settings, secret_file
from services.errors import TemporaryError
from services.operations.state_dir import StateDirectory
from services.provider_plugins import plugged_in_codes

# Each command imports what it needs, so that `status` does not wait for the whole daemon to load.
if TYPE_CHECKING:
    from services.operations.server_process import EmbeddedServer

EXIT_INTERNAL, EXIT_TEMPORARY, EXIT_CONFIGURATION = 70, 75, 78
DEMO_STATE_DIR = PROJECT_ROOT / ".state-demo"

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the raw answer.")]


def examples_of(*lines: str) -> str:
    """Return what stands below a command's help: these command lines, each a paragraph."""
    return "\n\n".join(("Examples:", *(f"python main.py {line}" for line in lines)))


# ---- settings ---------------------------------------------------------------------------------------


def provider_prefixes() -> tuple[str, ...]:
    """Return what the settings of providers found at run time begin with."""
    return tuple(f"{code}_" for code in plugged_in_codes())


def live_settings() -> Settings:
    """Return the settings of environment and `.env`. Raises `ConfigurationError` with all that is wrong."""
    return load_settings(provider_prefixes=provider_prefixes())


def demo_settings() -> Settings:
    """Return settings that touch nothing live: no `.env`, embedded servers, a state directory of its own."""
    chosen = os.environ.get("STATE_DIR", "")
    # The demo's markets never close: a day of minutes is as much as four days elsewhere.
    backfill = {"backfill_minute_days": 1, "backfill_daily_days": 90}
    return load_settings(
        use_dotenv=False,
        overrides={
            "database_url": None,
            "redis_url": None,
            "state_dir": Path(chosen) if chosen else DEMO_STATE_DIR,
            "market_calendar": "always_open",
            **{name: days for name, days in backfill.items() if name.upper() not in os.environ},
        },
    )


def settings_reader(settings: Settings, *, demo: bool) -> LiveSettings:
    """Return the settings as a reader that sees changes of `.env` and of secret files."""
    return LiveSettings(
        settings,
        demo_settings if demo else live_settings,
        use_dotenv=not demo,
        provider_prefixes=provider_prefixes(),
    )


def credential_store(
    settings: Settings, given: Callable[[], Mapping[str, str]], *, demo: bool
) -> CredentialStore:
    """Return the providers' settings with what was renewed since, and where to keep what is renewed."""
    return CredentialStore(settings.state_dir, given, lambda name: secret_file(name, use_dotenv=not demo))


def market_day_files(settings: Settings) -> tuple[Path, ...]:
    """Return the files that say which days are different, the operator's last."""
    from services.market_data.calendar import SHIPPED

    return (SHIPPED,) if settings.market_days is None else (SHIPPED, settings.market_days)


@contextlib.contextmanager
def quiet_logs(settings: Settings, level: str = "WARNING") -> Iterator[None]:
    """Log at `level` and above while a command runs."""
    listener = configure_logging(level, settings.log_format)
    try:
        yield
    finally:
        listener.stop()


# ---- servers and the daemon -------------------------------------------------------------------------


async def use_servers(
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    *,
    database: bool = True,
    started: list[EmbeddedServer] | None = None,
) -> tuple[str, str]:
    """Return the URLs of PostgreSQL and Redis, starting embedded ones where none is set.

    Without `database` the URL of PostgreSQL is empty and none is started. What is started is added
    to `started`, for whoever wants to watch over it.
    """
    from services.operations.embedded import EmbeddedPostgres, EmbeddedRedis

    async def postgres() -> str:
        if settings.database_url is not None:
            return settings.database_url.get_secret_value()
        return await embedded(EmbeddedPostgres(settings.state_dir))

    async def redis() -> str:
        if settings.redis_url is not None:
            return settings.redis_url.get_secret_value()
        return await embedded(EmbeddedRedis(settings.state_dir))

    async def embedded(server: EmbeddedServer) -> str:
        await stack.enter_async_context(server)
        if started is not None:
            started.append(server)
        return await server.start()

    return await postgres() if database else "", await redis()


def running_daemon() -> tuple[str, str | None]:
    """Return the URL of the running daemon, live before demo, and a token for it (None: none is needed).

    Raises `TemporaryError` when none runs.
    """
    settings = live_settings()
    token = _own_secret(settings)
    for folder in (settings.state_dir, DEMO_STATE_DIR):
        runtime = StateDirectory.read_runtime(folder)
        if runtime is not None:
            return str(runtime["api_url"]), token
    raise TemporaryError(
        f"no daemon is running on {settings.state_dir}: start one with make run, or try make demo"
    )


def daemon_of(settings: Settings) -> tuple[str, str | None] | None:
    """Return URL and token of the daemon that runs on the state directory of `settings`, None without one."""
    runtime = StateDirectory.read_runtime(settings.state_dir)
    return None if runtime is None else (str(runtime["api_url"]), _own_secret(settings))


def _own_secret(settings: Settings) -> str | None:
    """Return the secret of a token that may see how the daemon is, else of any token, None without tokens."""
    from services.gateway.grants import ADMIN, parse_secret

    tokens = sorted(
        map(parse_secret, settings.tokens().values()), key=lambda token: not token[1].allows(ADMIN)
    )
    return tokens[0][0] if tokens else None
