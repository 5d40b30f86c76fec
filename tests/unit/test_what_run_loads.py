"""What the daemon's process loads: not what only commands for a terminal, or for the schema, need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_NEEDED = ("alembic", "rich.live", "rich.progress", "sqlalchemy", "typer.rich_utils")


def test_what_only_other_commands_need_is_not_loaded() -> None:
    program = (
        "import sys, main, services.live_data_ingestion\n"
        f"print([name for name in {NOT_NEEDED!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
