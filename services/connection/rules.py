"""What the connections of one vendor have to keep to: limits, pace, liveness. Values, no behaviour."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from services.connection.transport import CloseInfo, TransportLimits


class ConnectionRules(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and times of a vendor's connections; all times in seconds.

    A ping goes out after `ping_after_s` without any sign of life, and the connection is cut when
    none has come `pong_within_s` later. `pace_s` lies between two requests of one connection, `stagger_s` at
    least between two connection attempts of the provider; before the first attempt of a connection
    `first_stagger_s` is enough, because none has failed yet (None: `stagger_s`). `resubscribe_every_s`
    repeats the whole list, as some vendors forget; `resubscribe_missing_after_s` repeats once what brought
    nothing by then, and declares it lost. `settle_s` is how long after the server's answer to a ping its
    answer to our requests may still come.
    """

    symbols_per_connection: int
    max_connections: int
    transport: TransportLimits = TransportLimits()
    ping_after_s: float = 10.0
    pong_within_s: float = 10.0
    pace_s: float = 0.0
    stagger_s: float = 0.5
    first_stagger_s: float | None = None
    settle_s: float = 0.2
    close_within_s: float = 0.8
    resubscribe_every_s: float | None = None
    resubscribe_missing_after_s: float | None = 15.0


class Request(NamedTuple):
    """One message that asks for `symbols`."""

    payload: str | bytes
    symbols: tuple[str, ...]


class ConnectionEnd(NamedTuple):
    """How a connection that had been open came to its end, by the peer or by the network."""

    info: CloseInfo
    frames: int
    uptime_s: float
