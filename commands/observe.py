"""What the running daemon does: `status`, `why` and `tap`, asked over its own HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from commands.context import AsJson, out, running_daemon
from services.errors import ConfigurationError, TemporaryError
from services.operations.daemon_client import fetch
from services.operations.daemon_client import tap as tap_records
from services.operations.terminal_views import status_view, tap_lines, why_view


def status(
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
) -> None:
    """Show providers and pipeline of the running daemon."""
    answer = _status()
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(answer, as_json=as_json)
    elif as_json:
        print(json.dumps(answer, indent=2))
    else:
        out.print(status_view(answer))


def _status() -> Any:
    api_url, token = running_daemon()
    return asyncio.run(fetch(api_url, "/api/providers/status", token))


def _watch(first: Any, *, as_json: bool) -> None:
    """Show the status every second; a daemon that is away is waited for."""
    if as_json:
        print(json.dumps(first), flush=True)
        while True:
            time.sleep(1)
            # One object a line: what reads this is told nothing else.
            with contextlib.suppress(TemporaryError):
                print(json.dumps(_status()), flush=True)
    from rich.live import Live
    from rich.text import Text

    with Live(status_view(first), console=out, refresh_per_second=2) as live:
        while True:
            time.sleep(1)
            try:
                live.update(status_view(_status()))
            except TemporaryError as error:
                live.update(Text(f"{error}; waiting for it, Ctrl-C ends this"))


def why(
    instrument: Annotated[str, typer.Argument(help="An instrument key, such as NSE:RELIANCE.")],
    as_json: AsJson = False,
) -> None:
    """Say where an instrument's ticks are, what stands in their way and what to do."""
    api_url, token = running_daemon()
    answer = asyncio.run(fetch(api_url, f"/api/why/{quote(instrument, safe=':')}", token))
    if "error" in answer:
        raise ConfigurationError(answer["error"]["message"])
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        out.print(why_view(answer))


def tap(
    instruments: Annotated[
        list[str], typer.Argument(help="Instrument keys; 'NSE:*' means a whole exchange.")
    ],
    count: Annotated[int, typer.Option("--count", min=0, help="Stop after so many records; 0: never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print live records of the running daemon."""
    api_url, token = running_daemon()

    async def follow() -> None:
        seen = 0
        async for message in tap_records(api_url, token, instruments):
            for line in tap_lines(message, as_json=as_json):
                print(line, flush=True)
                seen += 1
                if count and seen >= count:
                    return

    asyncio.run(follow())
