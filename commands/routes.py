"""Who serves what: `routes`, and `providers active|switch|backup`, asked of the running daemon."""

from __future__ import annotations

import asyncio
import getpass
import json
import re
from typing import Annotated, Any
from urllib.parse import quote

import typer

from commands.context import AsJson, out, running_daemon
from services.errors import ConfigurationError
from services.operations.daemon_client import fetch, send
from services.operations.route_views import providers_view, route_view

_Instrument = Annotated[str, typer.Argument(help="An instrument key, such as NSE:RELIANCE.")]
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_to(providers: typer.Typer) -> None:
    """Add `active`, `backup` and `switch` to the group `providers`."""
    providers.command("active")(active)
    providers.command("backup")(backup)
    providers.command("switch")(switch)


def routes(
    instrument: Annotated[
        str | None, typer.Argument(help="An instrument key; without one all providers are shown.")
    ] = None,
    events: Annotated[int, typer.Option("--events", min=1, max=1000, help="So many decisions.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show who serves an instrument, who could, and what was decided; or what every provider serves."""
    if instrument is None:
        answer = _asked("/api/routes")
    else:
        answer = _asked(f"/api/routes/{quote(instrument, safe=':')}?events={events}")
    if as_json:
        print(json.dumps(answer, indent=2))
    elif instrument is None:
        out.print(providers_view(answer))
    else:
        out.print(route_view(answer))


def active(instrument: _Instrument, as_json: AsJson = False) -> None:
    """Print the code of the provider that serves an instrument."""
    code = _asked(_address(instrument))["active"]
    print(json.dumps(code) if as_json else code or "none")


def backup(instrument: _Instrument, as_json: AsJson = False) -> None:
    """Print who would take over from it, best first, one code a line."""
    codes = _asked(_address(instrument))["backup"]
    print(json.dumps(codes) if as_json else "\n".join(codes) or "none")


def switch(
    instrument: _Instrument,
    to: Annotated[str, typer.Argument(help="A provider's code, or 'order' for the order of the mappings.")],
    for_: Annotated[
        str, typer.Option("--for", help="How long, such as 30m, 2h or 1d; then the order counts again.")
    ] = "1h",
    why: Annotated[str, typer.Option("--why", help="The reason, kept with the decision.")] = "",
    as_json: AsJson = False,
) -> None:
    """Prefer a provider for an instrument for a while; it takes over when it has proved itself."""
    api_url, token = running_daemon()
    body = {
        "to": None if to.lower() == "order" else to,
        "for_s": duration_s(for_),
        "why": " ".join(filter(None, (why, f"({getpass.getuser()})"))),
    }
    answer = asyncio.run(send(api_url, f"{_address(instrument)}/switch", token, body))
    _refuse(answer)
    forced = answer["forced"]
    if as_json:
        print(json.dumps(answer, indent=2))
    elif forced is None:
        out.print(f"{instrument} follows the order of the mappings; {answer['active'] or 'nobody'} serves it")
    elif answer["active"] == forced["to"]:
        out.print(f"{instrument} is served by {forced['to']}")
    else:
        out.print(
            f"{instrument} goes to {forced['to']} when that has proved itself; until then "
            f"{answer['active'] or 'nobody'} serves it (python main.py routes {instrument} shows how it goes)"
        )


def duration_s(text: str) -> float:
    """Return the seconds of `90`, `30s`, `15m`, `2h` or `1d`. Raises `ConfigurationError` for others."""
    found = re.fullmatch(r"(\d{1,7}(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r} is no duration: say it as 30s, 15m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _address(instrument: str) -> str:
    return f"/api/routes/{quote(instrument, safe=':')}"


def _asked(path: str) -> Any:
    api_url, token = running_daemon()
    answer = asyncio.run(fetch(api_url, path, token))
    _refuse(answer)
    return answer


def _refuse(answer: Any) -> None:
    if "error" in answer:
        raise ConfigurationError(answer["error"]["message"])
