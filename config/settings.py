"""Every setting of the daemon: its name, type, unit and default, in one place.

Values come from the environment, then from `.env` (in the working directory, else beside
`main.py`); a secret may stand in a file of its own that `NAME_FILE` names. A name in `.env` that we do
not know is refused, with the nearest one we do know: a typing error must never silently become a
default. Whatever is wrong is said at once, in one message without the values of secrets.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import unquote

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.secret_files import SUFFIX, exposure, read_secrets
from services.errors import ConfigurationError
from services.gateway.grants import parse_secret
from services.redaction import make_known

PROJECT_ROOT = Path(__file__).resolve().parent.parent
_PASSWORD_IN_URL = re.compile(r"[^:/?#]+://[^/@:]*:([^/@]+)@")
_TOKEN = re.compile(r"^[A-Za-z0-9_.-]{1,64}:[^\s:]{8,}(:\S+)?$")
_DEPTH_OF = re.compile(r"^[A-Za-z]+:[^@\s]+(@(5|20|200))?$")
_RATE = re.compile(r"^[A-Z]{3}:-?\d{1,2}(\.\d+)?$")
_INSTRUMENT = re.compile(r"^[A-Z0-9_]+:(\*|[^\s*,]+)$")

_BY_EXCHANGE = re.compile(r"^[A-Z][A-Z0-9_]{0,15}=[1-9][0-9]{0,5}$")
_HOUR_MS = 3_600_000


class Settings(BaseSettings):
    """The daemon's settings; every field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=False, env_ignore_empty=True)

    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL, as postgresql://user:password@host:port/name. Empty: an embedded server.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis with TimeSeries, as redis://, rediss:// or unix://. Empty: an embedded server.",
    )
    state_dir: Path = Field(
        Path(".state"),
        description="Directory for the embedded servers' data, the lock, caches and runtime.json.",
    )
    dhan_client_id: str = Field(
        "", description="Dhan client id. Empty: Dhan is parked.", json_schema_extra={"secret": True}
    )
    dhan_access_token: SecretStr = Field(
        SecretStr(""), description="Dhan access token, valid 24 hours; re-read at every connection attempt."
    )
    dhan_feed_url: str = Field("wss://api-feed.dhan.co", description="Dhan live feed (WebSocket).")
    dhan_rest_url: str = Field("https://api.dhan.co/v2", description="Dhan REST API.")
    dhan_feed_mode: Literal["full", "quote", "ticker"] = Field(
        "full",
        description="What Dhan sends per tick: full (with depth), quote or ticker. Indices always get quote.",
    )
    dhan_depth_20_url: str = Field(
        "wss://depth-api-feed.dhan.co/twentydepth", description="Dhan's feed of 20 levels (WebSocket)."
    )
    dhan_depth_200_url: str = Field(
        "wss://full-depth-api.dhan.co/", description="Dhan's feed of 200 levels (WebSocket)."
    )
    depth: Literal["on_demand", "all", "off"] = Field(
        "on_demand",
        description="Order books: on_demand (of what somebody wants), all (five levels of whatever sends "
        "them) or off.",
    )
    depth_instruments: str = Field(
        "",
        description="Whose order book is always wanted: comma-separated keys or EXCHANGE:*, each with @5 (or "
        "nothing), @20 or @200 for the levels, as in NSE:RELIANCE@20.",
    )
    depth_stale_after_s: float = Field(
        30, ge=1, le=3_600, description="Seconds without news after which an order book counts as stale."
    )
    depth_stream_max_entries: int = Field(
        50_000, ge=1_000, description="Entries each stream of order books keeps, about."
    )
    depth_stream_max_age_s: int = Field(
        600, ge=10, description="Seconds that each stream of order books goes back, about."
    )
    yahoo_stream_url: str = Field(
        "wss://streamer.finance.yahoo.com/?version=2", description="Yahoo Finance stream (WebSocket)."
    )
    yahoo_rest_url: str = Field("https://query2.finance.yahoo.com", description="Yahoo Finance REST API.")
    nse_rest_url: str = Field(
        "https://www.nseindia.com", description="NSE's website, a source of option chains."
    )
    option_providers: str = Field(
        "DHAN,NSE,YF",
        description="Who is asked for option chains, first choice first: DHAN, NSE (its website), YF.",
    )
    option_rates: str = Field(
        "INR:6.5,USD:4.25",
        description="Interest for greeks, in percent a year (continuous), by currency; others count as 0.",
    )
    option_year_days: float = Field(
        365, ge=200, le=366, description="Days that make a year for greeks: 365 calendar days by default."
    )
    news_every_s: int = Field(
        300,
        ge=0,
        le=86_400,
        description="Seconds between two requests for one instrument's news (of Yahoo); 0 asks for none.",
    )
    news_topics: str = Field(
        "^GSPC,^NSEI",
        description="What news are always asked for: comma-separated Yahoo symbols or words; may be empty.",
    )
    api_host: str = Field("127.0.0.1", description="Address the HTTP and WebSocket server listens on.")
    api_port: int = Field(
        8080, ge=0, le=65535, description="Its port; 0 takes any free port and writes it to runtime.json."
    )
    api_tokens: SecretStr = Field(
        SecretStr(""),
        description="Comma-separated name:secret pairs (secret at least 8 characters, no colon), which allow "
        "everything, or name:secret:scopes@instruments, as in desk:some-long-secret:ticks+history@"
        "NSE:*|NASDAQ:AAPL with the scopes ticks, history and admin. "
        "Empty is allowed on a loopback address only.",
    )
    api_allowed_origins: str = Field(
        "", description="Comma-separated browser origins allowed besides the dashboard's own."
    )
    api_max_clients: int = Field(
        2_000, ge=1, le=1_000_000, description="WebSocket clients at a time; further ones are refused."
    )
    subscription_mode: Literal["static", "dynamic"] = Field(
        "static",
        description="static: all mapped instruments of active exchanges. "
        "dynamic: only those somebody is interested in.",
    )
    pinned_instruments: str = Field(
        "",
        description="Dynamic mode: comma-separated instrument keys, or EXCHANGE:*, always subscribed.",
    )
    subscription_linger_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Dynamic mode: seconds an instrument stays subscribed after its last interest.",
    )
    market_calendar: Literal["exchange", "always_open"] = Field(
        "exchange",
        description="exchange: judge silence and sessions by the exchanges' calendars. "
        "always_open: every market is open at any time (tests, demo).",
    )
    market_days: Path | None = Field(
        None,
        description="A file of your own with holidays and special sessions, laid out as "
        "services/market_data/data/market_days.csv; its rows win.",
    )
    tick_retention_hours: int = Field(
        48, ge=1, le=24 * 366, description="Hours that single ticks stay in Redis TimeSeries."
    )
    bar_retention_days: int = Field(
        365, ge=1, le=36_600, description="Days that bars stay in Redis TimeSeries."
    )
    tick_retention_by_exchange: str = Field(
        "",
        description="Exceptions from TICK_RETENTION_HOURS: comma-separated EXCHANGE=hours, as in "
        "CRYPTO=12,NFO=24.",
    )
    bar_retention_by_exchange: str = Field(
        "",
        description="Exceptions from BAR_RETENTION_DAYS: comma-separated EXCHANGE=days, as in NFO=90.",
    )
    backfill_minute_days: int = Field(
        5,
        ge=0,
        le=1825,
        description="Days back that minute bars are fetched by themselves. With 0 here and in "
        "BACKFILL_DAILY_DAYS only what is asked for.",
    )
    backfill_daily_days: int = Field(
        365, ge=0, le=36_600, description="Days back that daily bars are fetched by themselves."
    )
    stream_max_entries: int = Field(
        250_000, ge=1_000, description="Entries each exchange's Redis stream keeps (approximately)."
    )
    stream_max_age_hours: int = Field(
        48,
        ge=1,
        le=24 * 366,
        description="Hours that entries stay in each exchange's Redis stream, counted back from its newest.",
    )
    spool_limit_mib: int = Field(
        512, ge=16, description="MiB on disk, under STATE_DIR/spool, for what Redis cannot take."
    )
    lease_policy: Literal["standby", "exit"] = Field(
        "standby",
        description="What to do while another daemon writes the same Redis. standby: wait, and take over "
        "when it ends. exit: end with exit code 75.",
    )
    memory_limit_mib: int = Field(
        0,
        ge=0,
        description="MiB of memory the daemon may use; from 70 % on it refuses new clients. "
        "0: what its container or the machine has.",
    )
    notice_webhook_url: SecretStr = Field(
        SecretStr(""),
        description="Where troubles are told: JSON is posted there, with the text that Slack shows. "
        "Empty: nowhere.",
    )
    notice_command: str = Field(
        "",
        description="A command that is run, without a shell, with the same JSON on its input. Empty: none.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="console for people, json for machines."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from `load_settings` alone, which has already merged environment and `.env`."""
        return (init_settings,)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"^postgres(ql)?(\+asyncpg)?://", value.get_secret_value()):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"^(rediss?|unix)://", value.get_secret_value()):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("depth_instruments")
    @classmethod
    def _check_depth_instruments(cls, value: str) -> str:
        for entry in _split(value):
            if not _DEPTH_OF.match(entry):
                raise ValueError(f"{entry} is no instrument with 5, 20 or 200 levels such as NSE:RELIANCE@20")
        return value

    @field_validator("dhan_feed_url", "yahoo_stream_url", "dhan_depth_20_url", "dhan_depth_200_url")
    @classmethod
    def _check_websocket_url(cls, value: str) -> str:
        if not re.match(r"^wss?://[^/\s]+", value):
            raise ValueError("must start with ws:// or wss://")
        return value

    @field_validator("dhan_rest_url", "yahoo_rest_url", "nse_rest_url")
    @classmethod
    def _check_http_url(cls, value: str) -> str:
        if not re.match(r"^https?://[^/\s]+", value):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_log_level(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("state_dir", "market_days")
    @classmethod
    def _absolute_path(cls, value: Path | None) -> Path | None:
        return value if value is None or value.is_absolute() else PROJECT_ROOT / value

    @field_validator("option_rates")
    @classmethod
    def _check_rates(cls, value: str) -> str:
        for entry in _split(value):
            if not _RATE.match(entry):
                raise ValueError(f"{entry} is no rate in percent such as INR:6.5")
        return value

    @field_validator("notice_webhook_url")
    @classmethod
    def _check_webhook(cls, value: SecretStr) -> SecretStr:
        if not re.match(r"^(https?://[^/\s]+\S*)?$", value.get_secret_value()):
            raise ValueError("must start with https:// or http://")
        return value

    @field_validator("notice_command")
    @classmethod
    def _check_command(cls, value: str) -> str:
        try:
            shlex.split(value)
        except ValueError as error:
            raise ValueError(f"cannot be read as a command: {error}") from error
        return value

    @field_validator("pinned_instruments")
    @classmethod
    def _check_pinned(cls, value: str) -> str:
        for entry in _split(value):
            if not _INSTRUMENT.match(entry):
                raise ValueError(f"{entry} is neither an instrument key such as NSE:RELIANCE nor NSE:*")
        return value

    @field_validator("tick_retention_by_exchange", "bar_retention_by_exchange")
    @classmethod
    def _check_by_exchange(cls, value: str) -> str:
        names = [entry.partition("=")[0] for entry in _split(value)]
        for entry in _split(value):
            if not _BY_EXCHANGE.match(entry):
                raise ValueError(f"{entry} is not EXCHANGE=number, as in CRYPTO=12")
        if len(set(names)) < len(names):
            raise ValueError("an exchange is named twice")
        return value

    @field_validator("api_tokens")
    @classmethod
    def _check_tokens(cls, value: SecretStr) -> SecretStr:
        names: set[str] = set()
        for pair in _split(value.get_secret_value()):
            if not _TOKEN.match(pair):
                raise ValueError(
                    "each entry must be name:secret, the secret at least 8 characters without spaces"
                )
            name, _, secret = pair.partition(":")
            try:
                parse_secret(secret)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if name in names:
                raise ValueError(f"the name {name} appears twice")
            names.add(name)
        return value

    @model_validator(mode="after")
    def _open_bind_needs_tokens(self) -> Settings:
        problem = _open_bind(self.api_host, bool(self.tokens()))
        if problem:
            raise ValueError(problem)
        return self

    def tokens(self) -> dict[str, str]:
        """Return the API tokens as name → `secret[:scopes[@instruments]]`, empty when none are set."""
        pairs = _split(self.api_tokens.get_secret_value())
        return {name: secret for name, _, secret in (pair.partition(":") for pair in pairs)}

    def tick_retention_ms(self) -> tuple[int, dict[str, int]]:
        """Return how long single ticks are kept, in ms: usually, and by exchange."""
        return self.tick_retention_hours * _HOUR_MS, _by_exchange(self.tick_retention_by_exchange, _HOUR_MS)

    def bar_retention_ms(self) -> tuple[int, dict[str, int]]:
        """Return how long bars are kept, in ms: usually, and by exchange."""
        day_ms = 24 * _HOUR_MS
        return self.bar_retention_days * day_ms, _by_exchange(self.bar_retention_by_exchange, day_ms)

    def pinned(self) -> tuple[str, ...]:
        """Return the instrument keys and `EXCHANGE:*` patterns that are always subscribed."""
        return tuple(_split(self.pinned_instruments))

    def depth_wanted(self) -> tuple[tuple[str, int], ...]:
        """Return the instruments and `EXCHANGE:*` patterns whose order book is always wanted, with levels."""
        parts = (entry.upper().rpartition("@") for entry in _split(self.depth_instruments))
        return tuple((name or text, int(text) if name else 5) for name, _, text in parts)

    def rates(self) -> dict[str, float]:
        """Return the interest for greeks, percent a year by currency."""
        pairs = (entry.partition(":") for entry in _split(self.option_rates))
        return {currency: float(rate) for currency, _, rate in pairs}

    def option_order(self) -> tuple[str, ...]:
        """Return who is asked for option chains, first choice first."""
        return tuple(code.upper() for code in _split(self.option_providers))

    def topics(self) -> tuple[str, ...]:
        """Return what news are always asked for."""
        return tuple(_split(self.news_topics))

    def allowed_origins(self) -> tuple[str, ...]:
        """Return the configured browser origins."""
        return tuple(_split(self.api_allowed_origins))


def is_loopback(host: str) -> bool:
    """Tell whether a bind address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def dotenv_path() -> Path | None:
    """Return the `.env` that applies: the working directory's, else the project's, else None."""
    for folder in (Path.cwd(), PROJECT_ROOT):
        candidate = folder / ".env"
        if candidate.is_file():
            return candidate
    return None


class Environment(NamedTuple):
    """All settings given, names in capitals; the files they came from; and every problem in words."""

    values: dict[str, str]
    files: tuple[Path, ...]
    problems: tuple[str, ...]


def survey_environment(*, use_dotenv: bool = True, provider_prefixes: tuple[str, ...] = ()) -> Environment:
    """Return environment over `.env`, with the secrets that stand in files, read anew at every call.

    Names that begin with one of `provider_prefixes` (as in `ALPACA_`) belong to providers found at run
    time and are let through.
    """
    merged: dict[str, str] = {}
    files: list[Path] = []
    problems: list[str] = []
    path = dotenv_path() if use_dotenv else None
    if path is not None:
        files.append(path)
        values, wrong = _read_dotenv(path, provider_prefixes)
        merged.update(values)
        problems += wrong
    for name, value in os.environ.items():
        if value != "" or name.upper() not in merged:
            merged[name.upper()] = value
    found = read_secrets(merged, secret_names(), base=PROJECT_ROOT, plugin_prefixes=provider_prefixes)
    make_known(_secrets_in(merged | found.values))
    return Environment(merged | found.values, (*files, *found.files), (*problems, *found.problems))


def secret_file(name: str, *, use_dotenv: bool = True) -> Path | None:
    """Return the file that `NAME_FILE` says a secret stands in, None where there is no such setting."""
    given = os.environ.get(name + SUFFIX, "").strip()
    path = dotenv_path() if use_dotenv else None
    if not given and path is not None:
        given = str(_read_dotenv(path, ())[0].get(name + SUFFIX, "")).strip()
    return PROJECT_ROOT / Path(given).expanduser() if given else None


def read_environment(*, use_dotenv: bool = True, provider_prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """Return `survey_environment(...).values`. Raises `ConfigurationError` with every problem."""
    found = survey_environment(use_dotenv=use_dotenv, provider_prefixes=provider_prefixes)
    if found.problems:
        raise _wrong(found.problems)
    return found.values


def _read_dotenv(path: Path, provider_prefixes: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    try:
        text_values = dotenv_values(path, interpolate=False)
        status = path.stat()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path} cannot be read: {error}. Make it a readable UTF-8 file"]
    known = (*setting_names(), *(name + SUFFIX for name in secret_names()))
    unknown: list[str] = []
    values: dict[str, str] = {}
    for name, value in text_values.items():
        upper = name.upper()
        if upper not in known and not upper.startswith(provider_prefixes or ("\0",)):
            near = difflib.get_close_matches(upper, known, n=1, cutoff=0.0)
            unknown.append(f"{name} (did you mean {near[0]}?)")
        elif value is not None:
            values[upper] = value
    problems = []
    if unknown:
        problems.append(f"{path} has unknown settings: {', '.join(unknown)}; correct or remove them")
    exposed = exposure(path, status) if _holds_secret(values, provider_prefixes) else None
    if exposed is not None:
        problems.append(f"{exposed} (it holds secrets)")
    return values, problems


def _holds_secret(values: Mapping[str, str], provider_prefixes: tuple[str, ...]) -> bool:
    """Tell whether settings hold a secret; a URL does when there is a password in it."""
    for name, value in values.items():
        if not value.strip():
            continue
        if name.endswith("_URL"):
            if _PASSWORD_IN_URL.match(value):
                return True
        elif name in secret_names() or (
            not name.endswith(SUFFIX) and name.startswith(provider_prefixes or ("\0",))
        ):
            return True
    return False


def setting_names() -> tuple[str, ...]:
    """Return the names of all settings, in capitals, in the order of their definition."""
    return tuple(name.upper() for name in Settings.model_fields)


def _secrets_in(values: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets among settings as they may turn up in a text: of a URL its password."""
    for name in secret_names():
        value = values.get(name, "").strip()
        password = _PASSWORD_IN_URL.match(value)
        if name == "API_TOKENS":
            yield from (pair.partition(":")[2].partition(":")[0] for pair in _split(value))
        elif name.endswith("_URL"):
            if password is not None:
                yield password[1]
                yield unquote(password[1])
        else:
            yield value


def secret_names() -> tuple[str, ...]:
    """Return the names of the settings that are secrets, in capitals: those may stand in files."""
    return tuple(name.upper() for name, field in Settings.model_fields.items() if _is_secret(field))


def _is_secret(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    marked = isinstance(extra, dict) and extra.get("secret") is True
    return marked or field.annotation is SecretStr or SecretStr in get_args(field.annotation)


def load_settings(
    *,
    use_dotenv: bool = True,
    provider_prefixes: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read and check all settings. Raises `ConfigurationError` with every problem in one message.

    `overrides` (lower-case field names) win over the environment. No value of a secret is ever
    part of a message.
    """
    environment = survey_environment(use_dotenv=use_dotenv, provider_prefixes=provider_prefixes)
    problems = list(environment.problems)
    values: dict[str, Any] = {
        field: environment.values[field.upper()]
        for field in Settings.model_fields
        if environment.values.get(field.upper(), "").strip() != ""
    }
    values.update(overrides or {})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += _explain(error)
        # Pydantic looks at the settings together only when each of them is right.
        together = _open_bind(str(values.get("api_host", "127.0.0.1")), bool(values.get("api_tokens")))
        if together and together not in problems:
            problems.append(together)
    if problems:
        raise _wrong(problems)
    return settings


def _open_bind(api_host: str, has_tokens: bool) -> str | None:
    if has_tokens or is_loopback(api_host):
        return None
    return (
        f"API_HOST={api_host} is reachable from other machines: "
        "set API_TOKENS=name:secret, or API_HOST=127.0.0.1"
    )


def _explain(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_input=False, include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        message = str(item["msg"]).removeprefix("Value error, ")
        described = Settings.model_fields.get(field)
        if described is not None and described.description and item["type"] != "value_error":
            message += f" ({described.description.rstrip('.')})"
        problems.append(f"{field.upper()}: {message}" if field else message)
    return problems


def _wrong(problems: Iterable[str]) -> ConfigurationError:
    return ConfigurationError("wrong settings: " + "; ".join(problems))


def _by_exchange(text: str, unit_ms: int) -> dict[str, int]:
    entries = (entry.partition("=") for entry in _split(text))
    return {exchange: int(number) * unit_ms for exchange, _, number in entries}


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
