"""Settings that may change while the daemon runs: secrets, in `.env` or in files of their own.

Made and asked by `main.py`. Looks at the files' times once a second and reads them again when one
changed, or at once when told to (SIGHUP). What cannot be read, or is readable by others, changes
nothing: what was read before still holds, and that is said once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from config.settings import Settings, dotenv_path, secret_names, survey_environment
from services.errors import ConfigurationError
from services.redaction import redact

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
_TRIES = 3

_Signature = tuple[tuple[str, int, int, int, int] | str, ...]


class LiveSettings:
    """The settings as they are now. `on_change(settings)` hears of every reload; it must not block.

    `load` reads settings as at the start and raises `ConfigurationError` with every problem.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        *,
        use_dotenv: bool = True,
        provider_prefixes: tuple[str, ...] = (),
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self.settings = settings
        self._load = load
        self.on_change: Callable[[Settings], None] = lambda _settings: None
        self._use_dotenv = use_dotenv
        self._prefixes = provider_prefixes
        self._look_every_s = look_every_s
        self._files: tuple[Path, ...] = ()
        self._signature: _Signature | None = None
        self._problem = ""
        self._for_providers: dict[str, str] = {}
        self._read()

    def for_providers(self) -> Mapping[str, str]:
        """Return the providers' settings by name in capitals, as the files say at this moment."""
        if self._sign() != self._signature:
            self._read()
        return self._for_providers

    def reload(self) -> None:
        """Read everything again now, changed or not, and say so; the handler of SIGHUP."""
        self._problem = ""
        if self._read():
            _log.info("settings_read_again")
            self.on_change(self.settings)

    async def watch(self) -> None:
        """Look at the files until cancelled; what changed is read and passed on."""
        seen = self._signature
        while True:
            await asyncio.sleep(self._look_every_s)
            if await asyncio.to_thread(self._sign) != self._signature:
                self._read()
            # A provider that looked before us has read the change already; the others hear of it here.
            if self._signature != seen:
                seen = self._signature
                if not self._problem:
                    self.on_change(self.settings)

    # ---- inner ----------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Read environment and files; return whether they can be used."""
        try:
            for _ in range(_TRIES):
                # Signed before it is read: a change meanwhile is found at the next look.
                signature = self._sign()
                found = survey_environment(use_dotenv=self._use_dotenv, provider_prefixes=self._prefixes)
                known, self._files = self._files, found.files
                if known == self._files:
                    break
            self._signature = signature
            fresh = self._load()
        except ConfigurationError as error:
            self._note(str(error))
            return False
        self._note("")
        changed = [name for name in secret_names() if _differs(self.settings, fresh, name)]
        if changed:
            _log.info("secrets_changed", names=changed)
        # Only secrets change while we run; everything else stays as it was at the start.
        self.settings = self.settings.model_copy(
            update={name.lower(): getattr(fresh, name.lower()) for name in secret_names()}
        )
        self._for_providers = self._defaults() | {
            name: value for name, value in found.values.items() if value
        }
        return True

    def _defaults(self) -> dict[str, str]:
        return {
            name.upper(): plain(getattr(self.settings, name))
            for name in Settings.model_fields
            if name.startswith(("dhan_", "yahoo_", "nse_"))
        }

    def _note(self, problem: str) -> None:
        problem = redact(problem)
        if problem and problem != self._problem:
            _log.error("settings_not_read_again", reason=problem)
        self._problem = problem

    def _sign(self) -> _Signature:
        """Return what changes when one of the files does, its rights included."""
        dotenv = dotenv_path() if self._use_dotenv else None
        files = self._files if dotenv is None or dotenv in self._files else (dotenv, *self._files)
        signs: list[tuple[str, int, int, int, int] | str] = []
        for path in files:
            try:
                status = path.stat()
            except OSError:
                signs.append(str(path))
            else:
                signs.append(
                    (str(path), status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
                )
        return tuple(signs)


def plain(value: Any) -> str:
    """Return a setting's value as text, a secret's too."""
    secret = getattr(value, "get_secret_value", None)
    return str(secret() if secret else value)


def _differs(one: Settings, other: Settings, name: str) -> bool:
    return plain(getattr(one, name.lower())) != plain(getattr(other, name.lower()))
