"""`coverage` and `backfill`: what is had of the past, and fetching what is not.

The daemon that runs does the fetching, because the vendors count requests per account and it keeps the
count; the command tells it what is wanted and shows how far it is. Where no daemon runs the command does the
work itself, and what it stored is announced by the next daemon. Ending the command does not end a daemon's
work; begun again, it goes on with what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from commands.context import (
    AsJson,
    err,
    live_settings,
    market_day_files,
    out,
    quiet_logs,
    running_daemon,
    settings_reader,
    use_servers,
)
from services.errors import ConfigurationError, TemporaryError
from services.operations.daemon_client import fetch, send
from services.operations.state_dir import StateDirectory

if TYPE_CHECKING:
    from services.history.past import Past
    from services.market_data.instruments import MappingSnapshot

_COLOURS = {"have": "green", "missing": "yellow", "unavailable": "red"}
_LOOK_EVERY_S = 0.5
_DEFAULT_DAYS = 30
_MOST_REFUSED_SHOWN = 5


def coverage(
    instrument: Annotated[str, typer.Argument(help="An instrument key, such as NSE:RELIANCE.")],
    kind: Annotated[str, typer.Option("--type", help="Only ticks, 1m or 1d.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what is had, missing and not to be had of an instrument's past."""
    api_url, token = running_daemon()
    query = f"?type={quote(kind)}" if kind else ""
    answer = asyncio.run(fetch(api_url, f"/api/coverage/{quote(instrument, safe=':')}{query}", token))
    _raise_refusal(answer)
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    spans = answer["spans"]
    if not spans:
        out.print(
            f"nothing is known of the past of {escape(instrument)} yet: "
            f"main.py backfill --instrument {escape(instrument)} fetches it"
        )
        return
    table = Table(box=None, header_style="bold")
    for title in ("type", "state", "from (UTC)", "to (UTC)", "source", "reason"):
        table.add_column(title)
    for span in spans:
        colour = _COLOURS[span["state"]]
        table.add_row(
            span["type"],
            f"[{colour}]{span['state']}[/]",
            _utc(span["from_ms"]),
            _utc(span["to_ms"]),
            span["source"],
            escape(span["reason"]),
        )
    out.print(table)


def backfill(
    instrument: Annotated[
        list[str], typer.Option("--instrument", help="An instrument key, or 'NSE:*'; may be repeated.")
    ],
    interval: Annotated[str, typer.Option("--interval", help="1m or 1d.")] = "1m",
    from_text: Annotated[
        str, typer.Option("--from", help="Date or time, as 2026-11-02 or 2026-11-02T09:15+05:30.")
    ] = "",
    to_text: Annotated[str, typer.Option("--to", help="The last date, or a time; now if not given.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, no bar.")] = False,
) -> None:
    """Fetch bars of the past that are not stored; begun again it goes on with what is left."""
    if interval not in ("1m", "1d"):
        raise ConfigurationError("--interval must be 1m or 1d: all others are made of these when read")
    exchange = instrument[0].partition(":")[0]
    now_s = int(time.time())
    to_s = moment_s(to_text, exchange, end=True) if to_text else now_s
    from_s = moment_s(from_text, exchange, end=False) if from_text else to_s - _DEFAULT_DAYS * 86_400
    if from_s >= min(to_s, now_s):
        raise ConfigurationError("--from must be before --to, and in the past")
    order = {"instruments": instrument, "interval": interval, "from": from_s, "to": min(to_s, now_s)}
    try:
        api_url, token = running_daemon()
    except TemporaryError:
        job = asyncio.run(_without_daemon(order, show=not as_json))
    else:
        job = asyncio.run(_by_daemon(api_url, token, order, show=not as_json))
    if as_json:
        print(json.dumps(job, indent=2))
    else:
        out.print(summary(job))
    if job["failed"]:
        raise TemporaryError(
            f"{job['failed']} requests were refused again and again; they stay in the ledger as missing. "
            "Begin the command again later"
        )


def moment_s(text: str, exchange: str, *, end: bool) -> int:
    """Return a moment in UTC epoch seconds; a date is midnight where the exchange is, its `end` a day later.

    A time without a zone is UTC. Raises `ConfigurationError` for what is neither.
    """
    from services.market_data.trading_time import midnight_ms

    if text.isascii() and text.isdigit() and len(text) > 8:
        return int(text)
    try:
        if len(text) == 10:
            day = date.fromisoformat(text) + timedelta(days=end)
            return midnight_ms(exchange, day) // 1000
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no date or time: write 2026-11-02, 2026-11-02T09:15 (UTC) or 2026-11-02T09:15+05:30"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def summary(job: dict[str, Any]) -> str:
    """Return what became of a job, in one or two sentences."""
    if not job["windows"]:
        return "everything that was asked for is stored, or known not to be had: nothing to fetch"
    spent_s = ((job["finished_ms"] or int(time.time() * 1000)) - job["started_ms"]) / 1000
    text = (
        f"{job['bars']} bars of {job['instruments']} instruments stored, {job['done'] - job['failed']} of "
        f"{job['windows']} requests settled in {spent_s:.0f} s"
    )
    return text + (f"; refused: {_refused(job)}" if job["refused"] else "")


async def _by_daemon(api_url: str, token: str | None, order: dict[str, Any], *, show: bool) -> dict[str, Any]:
    job: dict[str, Any] = await send(api_url, "/api/backfill", token, order)
    _raise_refusal(job)
    with _Shown(job, show) as shown:
        while job["finished_ms"] is None:
            await asyncio.sleep(_LOOK_EVERY_S)
            status = await fetch(api_url, "/api/backfill", token)
            _raise_refusal(status)
            found = [one for one in status["jobs"] if one["id"] == job["id"]]
            if not found or found[0]["started_ms"] != job["started_ms"]:
                raise TemporaryError(
                    "the daemon was started again meanwhile: begin the command again, it goes on with "
                    "what is left"
                )
            job = found[0]
            shown.update(job)
    return job


async def _without_daemon(order: dict[str, Any], *, show: bool) -> dict[str, Any]:
    from services.catalogue.loader import Catalogue
    from services.market_data.clock import SystemClock

    settings = live_settings()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(quiet_logs(settings, "ERROR"))
        state = stack.enter_context(StateDirectory(settings.state_dir, demo=False))
        state.lock_daemon()
        database_url, redis_url = await use_servers(settings, stack)
        clock = SystemClock()
        catalogue = Catalogue(database_url, settings.state_dir / "mappings.json", clock)
        stack.push_async_callback(catalogue.close)
        await catalogue.check_schema()
        snapshot = await catalogue.load()
        past = _past(settings, database_url, redis_url, clock)
        stack.push_async_callback(past.close)
        past.load(snapshot)
        await past.open()
        keys = _keys(order["instruments"], snapshot)
        await past.ask(keys, order["interval"], order["from"] * 1000, order["to"] * 1000)
        job = past.status()["jobs"][-1]
        with _Shown(job, show) as shown:
            work = asyncio.ensure_future(past.backfill.work_off())
            stack.callback(work.cancel)
            flushed_s = time.monotonic()
            while not work.done():
                await asyncio.wait([work], timeout=_LOOK_EVERY_S)
                job = past.status()["jobs"][-1]
                shown.update(job)
                if time.monotonic() - flushed_s > 1.0:
                    # What is done must be known, should we be killed now.
                    await past.ledger.flush()
                    flushed_s = time.monotonic()
            await work
        return dict(past.status()["jobs"][-1])


def _past(settings: Any, database_url: str, redis_url: str, clock: Any) -> Past:
    from services.history.past import FOLDER, Past, PastConfig, keep_for_the_daemon
    from services.market_data.calendar import MarketCalendar

    retention_ms, by_exchange = settings.bar_retention_ms()
    folder = settings.state_dir / FOLDER
    return Past(
        PastConfig(
            database_url=database_url,
            redis_url=redis_url,
            folder=folder,
            retention_ms=retention_ms,
            retention_by_exchange=by_exchange,
        ),
        clock=clock,
        calendar=MarketCalendar(
            market_day_files(settings), always_open=settings.market_calendar == "always_open"
        ),
        settings=settings_reader(settings, demo=False).for_providers,
        publish=keep_for_the_daemon(folder),
    )


def _keys(names: list[str], snapshot: MappingSnapshot) -> list[str]:
    known = dict.fromkeys(mapping.instrument for mapping in snapshot.mappings)
    keys: dict[str, None] = {}
    for name in names:
        exchange, _, symbol = name.partition(":")
        found = [key for key in known if key.startswith(f"{exchange}:")] if symbol == "*" else [name]
        if not found or found[0] not in known:
            raise ConfigurationError(f"not known: {name}. main.py status and /api/instruments list what is")
        keys.update(dict.fromkeys(found))
    return list(keys)


class _Shown:
    """The progress bar: requests done, rate, what is left, what was refused."""

    def __init__(self, job: dict[str, Any], show: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
            console=err,
            disable=not show or not job["windows"],
        )
        self._task = self._progress.add_task("requests", total=job["windows"] or 1, rate="", told="")

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, job: dict[str, Any]) -> None:
        spent_s = max(0.001, time.time() - job["started_ms"] / 1000)
        told = f"refused: {_refused(job)}" if job["refused"] else ""
        if job["waiting"]:
            told += f" waiting: {job['waiting'][:80]}"
        self._progress.update(
            self._task,
            completed=job["done"],
            rate=f"{job['done'] / spent_s:.1f}/s {job['bars']} bars",
            told=escape(told),
        )


def _refused(job: dict[str, Any]) -> str:
    most = sorted(job["refused"].items(), key=lambda item: -item[1])[:_MOST_REFUSED_SHOWN]
    return ", ".join(f"{name} x{count}" for name, count in most)


def _raise_refusal(answer: Any) -> None:
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        error = answer["error"]
        kind: Callable[[str], Exception] = ConfigurationError
        if error.get("code") in ("unavailable", "starting"):
            kind = TemporaryError
        raise kind(error["message"])


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
