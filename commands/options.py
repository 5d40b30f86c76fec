"""`options`: a chain of the running daemon on the terminal."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from commands.context import AsJson, out, running_daemon
from services.errors import ConfigurationError, TemporaryError
from services.operations.daemon_client import fetch

_WITHIN_S = 45.0
"""Every source may take its time before the next one is asked."""


def options(
    underlying: Annotated[str, typer.Argument(help="A symbol such as NIFTY, or a key such as NASDAQ:AAPL.")],
    expiry: Annotated[
        str,
        typer.Option("--expiry", metavar="DATE", help="The day it ends, as in 2026-12-29; else the next."),
    ] = "",
    strikes: Annotated[
        int, typer.Option("--strikes", min=0, help="So many each way of the strike at the money; 0: all.")
    ] = 10,
    expiries: Annotated[bool, typer.Option("--expiries", help="Only say which expiries there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the option chain of an underlying: prices, open interest, volatility and greeks."""
    from services.operations.option_views import chain_view, expiries_view

    api_url, token = running_daemon()
    base = f"/api/options/{quote(underlying, safe=':')}"

    async def ask(path: str) -> Any:
        answer = await fetch(api_url, base + path, token, within_s=_WITHIN_S)
        if "error" in answer:
            unavailable = answer["error"]["code"] in ("no_source_answers", "not_here")
            raise (TemporaryError if unavailable else ConfigurationError)(answer["error"]["message"])
        return answer

    async def both() -> tuple[Any, Any]:
        chain = await ask(f"/chain?expiry={quote(expiry, safe='')}" if expiry else "/chain")
        return chain, await ask("/expiries")

    if expiries:
        answer = asyncio.run(ask("/expiries"))
        if as_json:
            print(json.dumps(answer, indent=2))
        else:
            out.print(expiries_view(answer))
        return
    chain, known = asyncio.run(both())
    if as_json:
        print(json.dumps(chain, indent=2))
        return
    days = dict(zip(known["expiries"], known["dates"], strict=True))
    out.print(chain_view(chain, days.get(chain["expiry"], str(chain["expiry"])), strikes, out.width))
