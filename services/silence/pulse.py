"""The pulse of one instrument at one provider: what the hot path notes down, and nothing more.

The provider's runtime writes it with every accepted tick; the judge reads it about once in two seconds.
Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pulse:
    """What is known of the data of one provider symbol; heartbeats and refused ticks never count.

    `ticks` counts the ticks the normaliser accepted. `received_ms` is our wall clock at the newest of them
    and `event_ms` the newest time the source itself gave (never the one that the normaliser made
    increasing), both UTC epoch ms and 0 before the first. `price` is that of the newest tick.
    """

    ticks: int = 0
    received_ms: int = 0
    event_ms: int = 0
    price: float = 0.0
