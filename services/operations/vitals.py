"""What the process uses of the machine, looked at once a second, and what is done when it is too much.

Beside the flow. Says at the start how much all queues and outboxes can hold together, and when compiled parts
are there that cannot be used. When the resident
memory comes to 70 % of what is allowed, `relieve(True)` is called: the gateway then takes no new clients
and gives those it has less; `relieve(False)` follows once there is room again. Ticks are never touched.

What a start, a minute's end or a flood needed for a moment, the C library keeps in pieces all over its heap.
Whenever the resident memory has grown, it is made to give that back.

What has come to stay, the state of instruments that ticked for the first time, is kept from the collector,
which would otherwise stop everything while it walks over it.
"""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from services.compiled import BUILD, REMEDY
from services.operations.memory import allowed_bytes, give_back, open_descriptors, rss_bytes

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
SOFT_LIMIT = 0.7
"""From this part of the allowed memory on the gateway relieves the process."""
RELIEVED_BELOW = 0.65
GROWN_BYTES = 8 << 20
"""After so much growth there may be something to give back."""
REST_LOOKS = 5
"""So many looks lie between two times, however quickly the memory grows."""
SETTLED_BYTES = 16 << 20
"""After so much growth beyond any before there may be more that has come to stay."""
_MIB = 1 << 20


class Vitals:
    """The process's own figures. `limit_bytes` 0 means what its control group or the machine allows.

    `caps` names what each kind of queue can hold at most, in bytes.
    """

    def __init__(
        self,
        *,
        limit_bytes: int,
        caps: Mapping[str, int],
        relieve: Callable[[bool], None],
        rss: Callable[[], int] = rss_bytes,
        give_back: Callable[[], bool] = give_back,
    ) -> None:
        self.limit_bytes = limit_bytes or allowed_bytes()
        self.under_pressure = False
        self.pressures = 0
        self.log_lines_dropped: Callable[[], int] = lambda: 0
        self._caps = dict(caps)
        self._relieve = relieve
        self._rss = rss
        self._give_back = give_back
        self._least_bytes = self._rested = self._settled_bytes = 0
        self.given_back = 0
        """How often memory was given back."""

    @property
    def budget_bytes(self) -> int:
        """How much everything that can fill up holds when all of it is full."""
        return sum(self._caps.values())

    def announce(self) -> None:
        """Say what the queues may grow to, and when that is more than half of what is allowed.

        And that compiled parts lie there unused, where they do not fit.
        """
        if BUILD.problem:
            _log.warning("compiled_path_unused", reason=BUILD.reason, remedy=REMEDY)
        figures = {name: value // _MIB for name, value in self._caps.items()}
        _log.info(
            "memory_budget",
            sum_mib=self.budget_bytes // _MIB,
            allowed_mib=self.limit_bytes // _MIB,
            relief_at_mib=int(self.limit_bytes * SOFT_LIMIT) // _MIB,
            **figures,
        )
        if self.limit_bytes and self.budget_bytes > self.limit_bytes // 2:
            _log.warning(
                "memory_budget_above_half",
                sum_mib=self.budget_bytes // _MIB,
                allowed_mib=self.limit_bytes // _MIB,
                remedy="lower API_MAX_CLIENTS or allow more memory (MEMORY_LIMIT_MIB, MemoryMax)",
            )

    async def run(self) -> None:
        """Look once a second until cancelled."""
        while True:
            await self.tidy()
            self.settle()
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def tidy(self) -> None:
        """Give back what is held without need, if there may be any."""
        used = self._rss()
        self._rested += 1
        self._least_bytes = min(self._least_bytes, used)
        if self._rested <= REST_LOOKS or used - self._least_bytes < GROWN_BYTES:
            return
        # In a thread: it takes some milliseconds and needs no interpreter.
        await asyncio.to_thread(self._give_back)
        self.given_back += 1
        self._least_bytes, self._rested = self._rss(), 0

    def settle(self) -> None:
        """Keep the collector from all there is, if there is more than ever before.

        It takes no time. What has become garbage in a cycle since the collector last came stays for good,
        once for each new height that the memory grows to.
        """
        used = self._rss()
        if used - self._settled_bytes >= SETTLED_BYTES:
            gc.freeze()
            self._settled_bytes = used

    def look(self) -> None:
        """Compare the resident memory with what is allowed; relieve the process, or end the relief."""
        used = self._rss()
        part = used / self.limit_bytes if self.limit_bytes else 0.0
        if not self.under_pressure and part >= SOFT_LIMIT:
            self.under_pressure = True
            self.pressures += 1
            _log.warning(
                "memory_pressure",
                rss_mib=used // _MIB,
                allowed_mib=self.limit_bytes // _MIB,
                remedy="new clients are refused and the others get less until there is room",
            )
            self._relieve(True)
        elif self.under_pressure and part < RELIEVED_BELOW:
            self.under_pressure = False
            _log.info("memory_pressure_over", rss_mib=used // _MIB, allowed_mib=self.limit_bytes // _MIB)
            self._relieve(False)

    def figures(self) -> dict[str, Any]:
        """Return the figures for status and metrics; memory in bytes."""
        return {
            "rss_bytes": self._rss(),
            "memory_limit_bytes": self.limit_bytes,
            "memory_budget_bytes": self.budget_bytes,
            "memory_pressure": self.under_pressure,
            "memory_pressures": self.pressures,
            "open_descriptors": open_descriptors(),
            "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "log_lines_dropped": self.log_lines_dropped(),
        }
