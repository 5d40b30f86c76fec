"""`providers score` and `mappings suggest`: how good each provider's data was, and what that speaks for."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from commands.context import AsJson, demo_settings, live_settings, out
from services.errors import ConfigurationError
from services.operations.state_dir import StateDirectory

if TYPE_CHECKING:
    from services.quality.figures import Score
    from services.quality.suggestions import Place

_Days = Annotated[int, typer.Option("--days", min=1, max=400, help="So many days back.")]
_Exchange = Annotated[str | None, typer.Option("--exchange", help="Only this exchange, such as NSE.")]
_Demo = Annotated[bool, typer.Option("--demo", help="The demo's database instead of the live one.")]


def add_to(app: typer.Typer) -> None:
    """Add `score` to the group `providers` and `suggest` to the group `mappings`, which may be new."""
    for name, command, help_text in (
        ("providers", score, "Providers: who serves what, and how well."),
        ("mappings", suggest, "Mappings: which provider comes first."),
    ):
        group = next((it.typer_instance for it in app.registered_groups if it.name == name), None)
        if group is None:
            group = typer.Typer(help=help_text, no_args_is_help=True)
            app.add_typer(group, name=name)
        group.command()(command)


def score(exchange: _Exchange = None, days: _Days = 14, as_json: AsJson = False, demo: _Demo = False) -> None:
    """Show the quality score of every provider and exchange, what it is made of, and its trend."""
    from services.quality.views import score_rows, score_view

    scores, _ = _stored(days, exchange, demo=demo)
    if as_json:
        print(json.dumps(score_rows(scores), indent=2))
    else:
        out.print(score_view(scores, days))


def suggest(
    exchange: _Exchange = None, days: _Days = 14, as_json: AsJson = False, demo: _Demo = False
) -> None:
    """Propose a change of the order where another provider was clearly better; nothing is changed."""
    from services.quality.suggestions import suggestions
    from services.quality.views import suggestion_view

    scores, places = _stored(days, exchange, demo=demo)
    found = suggestions(scores, places)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        out.print(suggestion_view(found))


def _stored(days: int, exchange: str | None, *, demo: bool) -> tuple[list[Score], list[Place]]:
    from services.quality.reader import stored_scores

    settings = demo_settings() if demo else live_settings()
    if settings.database_url is not None:
        database_url = settings.database_url.get_secret_value()
    else:
        runtime = StateDirectory.read_runtime(settings.state_dir)
        if runtime is None or not runtime.get("database_url"):
            raise ConfigurationError(
                "scores are in the database: set DATABASE_URL, or start the daemon whose embedded one it is."
            )
        database_url = str(runtime["database_url"])
    return asyncio.run(
        stored_scores(database_url, days=days, exchange=exchange.upper() if exchange else None)
    )
