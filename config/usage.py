"""Runs a command line: what is wrong with the words of a call is one sentence, as every other error is."""

from __future__ import annotations

import typer

from services.errors import ConfigurationError

INTERRUPTED = 130


def run_command_line(app: typer.Typer, *, prog_name: str | None = None) -> int:
    """Run what the process was called with; return the exit code of the command.

    `prog_name` is what help and completion call the command; None: as it was called.

    Raises `ConfigurationError` for a command, option or value that does not exist, and whatever the
    command raises.
    """
    try:
        code = app(prog_name=prog_name, standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as error:
        raise ConfigurationError(_sentence(error)) from error
    return code if isinstance(code, int) else 0


def _sentence(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    hint = "" if context is None else f": {context.command_path} -h shows how"
    if type(error).__name__ == "NoArgsIsHelpError":
        # The help was shown already.
        return f"no command was given{hint}"
    formatted = getattr(error, "format_message", error.__str__)()
    return f"{' '.join(str(formatted).split()).rstrip('.')}{hint}"
