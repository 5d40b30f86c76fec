"""What the judge of silence learned, kept on disk over a restart: `STATE_DIR/silence.json`.

Stands beside the judge, which knows no files. Without the file everything is learned anew, which takes part
of a session; what cannot be read is said once and left behind.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import structlog

from services.operations.state_dir import write_private
from services.silence.judge import SilenceJudge

_log = structlog.get_logger(__name__)

FILE = "silence.json"
_SAVE_EVERY_S = 60.0


class LearnedSilence:
    """Restores a judge from `file`, and saves what it learns every minute and at the end."""

    def __init__(self, judge: SilenceJudge, file: Path) -> None:
        self._judge = judge
        self._file = file

    def restore(self) -> None:
        """Take over what an earlier run learned; nothing where there is none."""
        try:
            self._judge.restore(msgspec.json.decode(self._file.read_bytes(), type=dict[str, object]))
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("learned_silence_not_read", file=self._file.name, error=str(error))

    async def run(self) -> None:
        """Save now and then until cancelled."""
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Write what is known now; a full disk is said and tried again."""
        # The judge is read on the loop, which it belongs to; text and disk may take their time elsewhere.
        state = self._judge.state()
        try:
            await asyncio.to_thread(self._write, state)
        except OSError as error:
            _log.warning("learned_silence_not_saved", error=error.strerror)

    def _write(self, state: dict[str, object]) -> None:
        write_private(self._file, msgspec.json.encode(state).decode() + "\n")
