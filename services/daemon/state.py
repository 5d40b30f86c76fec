"""How far the daemon has come, as its parts see it. Changed by `live_data_ingestion` alone."""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal["starting", "standing_by", "running", "stopping", "stopped"]


class DaemonState(msgspec.Struct, kw_only=True):
    """`obstacle` says why a daemon that leads does not take up its work, `epoch` names the key space."""

    started_ms: int
    phase: Phase = "starting"
    obstacle: str = ""
    epoch: str = ""

    @property
    def running(self) -> bool:
        """Whether data flows through this daemon, rather than through another or not yet."""
        return self.phase == "running"
