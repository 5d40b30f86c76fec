"""The documented and captured frames that the codec tests read, and strategies for made-up records."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from services.wire import dhan

_FRAMES = Path(__file__).parents[2] / "frames"
_DHAN = json.loads((_FRAMES / "dhan.json").read_text(encoding="utf-8"))
_YAHOO = json.loads((_FRAMES / "yahoo.json").read_text(encoding="utf-8"))

Vector = dict[str, Any]


def given(*args: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis' `given` without its limits of time: a busy machine is no fault of a codec."""
    unhurried = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    return lambda test: unhurried(hypothesis.given(*args, **named)(test))


DHAN_LIVE: list[Vector] = [vector for vector in _DHAN["vectors"] if vector["feed"] == "live"]
DHAN_DEPTH: list[Vector] = [vector for vector in _DHAN["vectors"] if vector["feed"] != "live"]
DHAN_REQUESTS: dict[str, Any] = {request["name"]: request["json"] for request in _DHAN["requests"]}
YAHOO: list[Vector] = _YAHOO["vectors"] + _YAHOO["captured_reference"]
YAHOO_BUILT: list[Vector] = _YAHOO["vectors"]


def name_of(vector: Vector) -> str:
    """Return what a vector is called in a test's name."""
    return str(vector["name"])


def frame_of(vector: Vector) -> bytes:
    """Return the binary message of a Dhan vector."""
    return bytes.fromhex(vector["hex"])


def dhan_frame(name: str) -> bytes:
    """Return the binary message of the Dhan vector called `name`."""
    return next(frame_of(vector) for vector in DHAN_LIVE + DHAN_DEPTH if vector["name"] == name)


def payload_of(vector: Vector) -> bytes:
    """Return the protobuf bytes of a Yahoo vector."""
    return base64.b64decode(vector["b64"])


def wire_fields_of(vector: Vector) -> dict[str, Any]:
    """Return the fields that are present on the wire in a Yahoo vector."""
    return dict(vector.get("expected_wire_fields") or vector["wire_fields"])


u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
f32 = st.floats(width=32, allow_nan=False)

levels = st.builds(dhan.DepthLevel, u32, u32, u16, u16, f32, f32)
five_levels = st.tuples(levels, levels, levels, levels, levels)
tickers = st.builds(dhan.Ticker, u8, u32, f32, u32)
quotes = st.builds(dhan.Quote, u8, u32, f32, u16, u32, f32, u32, u32, u32, f32, f32, f32, f32)
open_interests = st.builds(dhan.OpenInterest, u8, u32, u32)
previous_closes = st.builds(dhan.PreviousClose, u8, u32, f32, u32)
fulls = st.builds(
    dhan.Full,
    *(u8, u32, f32, u16, u32, f32, u32, u32, u32, u32, u32, u32, f32, f32, f32, f32),
    five_levels,
)
market_depths_v1 = st.builds(dhan.MarketDepthV1, u8, u32, f32, five_levels)
unknowns = st.builds(
    lambda code, segment, security_id, payload: dhan.Unknown(
        segment, security_id, code, 8 + len(payload), payload
    ),
    st.sampled_from(sorted(set(range(256)) - {0, 2, 3, 4, 5, 6, 7, 8, 50})),
    u8,
    u32,
    st.binary(max_size=40),
)
priced_records = st.one_of(tickers, quotes, open_interests, previous_closes, fulls, market_depths_v1)
dhan_records = st.one_of(
    priced_records,
    st.builds(dhan.MarketStatus, u8, u32),
    st.builds(dhan.Heartbeat, u8, u32),
    st.builds(dhan.Disconnect, u16, u8, u32),
    unknowns,
)


@st.composite
def flipped(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    """Draw a frame with one to eight of its bits flipped."""
    frame = bytearray(draw(frames))
    for _ in range(draw(st.integers(1, 8))):
        frame[draw(st.integers(0, len(frame) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(frame)
