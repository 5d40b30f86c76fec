"""Judges where a client says it was against where the bus is.

Pure: no I/O. A client is recovered for all exchanges it asks for, or for none.

| reason | a client begins anew because |
|---|---|
| `epoch_changed` | its positions belong to another series: the history was lost or replaced |
| `position_unknown` | it names no position for an exchange it asks for, or one that the stream never had |
| `position_ahead` | it is ahead of the bus: what it saw last was never stored |
| `trimmed` | the stream no longer reaches back to it |
| `too_far_behind` | more was missed than is sent at once |
| `history_behind` | the stream has not got what the bus has, as while records wait on disk |
| `history_unavailable` | the streams cannot be read |
| `busy` | too much waits for other clients already |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.gateway.protocol import ResumePoint
from services.pipeline.sequencer import START, Position, parse_position

NOTHING_YET = f"{START[0]}-{START[1]}"
"""The position of an exchange that has had no record yet."""

Spans = dict[str, tuple[Position, Position]]


def judge(
    resume: ResumePoint, epoch: str, exchanges: Iterable[str], positions: Mapping[str, str]
) -> tuple[str, Spans]:
    """Return why the client cannot be recovered, empty if it may be, and what it missed by exchange.

    `positions` holds the bus's newest position of each exchange. Exchanges of which nothing was missed
    are left out.
    """
    if resume.epoch != epoch:
        return "epoch_changed", {}
    spans: Spans = {}
    for exchange in exchanges:
        claimed = resume.position.get(exchange)
        if claimed is None:
            return "position_unknown", {}
        was, now = parse_position(claimed), parse_position(positions[exchange])
        if was > now:
            return "position_ahead", {}
        if was < now:
            spans[exchange] = (was, now)
    return "", spans
