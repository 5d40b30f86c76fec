"""Every fault a simulator can be told to have, as one typed request each, and the state they leave.

Stands between the control interface (Python or HTTP) and the simulators. A request is JSON with the key
`fault` and the parameters below; `FaultState` holds those that last until changed or cleared.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class _Fault(msgspec.Struct, kw_only=True, tag_field="fault", forbid_unknown_fields=True):
    """Base: the tag `fault` names the request. `connection` None means all of them."""


class Close(_Fault, tag="close"):
    """Close with a close frame, now. `code` None sends a close frame without a status (seen as 1005)."""

    code: int | None = 1000
    reason: str = ""
    connection: int | None = None


class Abort(_Fault, tag="abort"):
    """Reset the TCP connection, without a close frame."""

    connection: int | None = None


class Mute(_Fault, tag="mute"):
    """Stay connected and answer pings, but send no data: for these provider symbols, or None for all."""

    symbols: tuple[str, ...] | None = None
    on: bool = True


class Pause(_Fault, tag="pause"):
    """Stop (or resume) the timer: nothing trades. Snapshots and `emit` still work."""

    on: bool = True


class DropSubscriptions(_Fault, tag="drop_subscriptions"):
    """Forget each newly requested symbol with this probability."""

    probability: float = 0.1


class Garbage(_Fault, tag="garbage"):
    """Send these bytes (hexadecimal) as binary frames, or this text as text frames."""

    data: str = "ff00ff00"
    text: str | None = None
    count: int = 1


class Truncated(_Fault, tag="truncated"):
    """Send the next packet of a symbol cut to `size` bytes (None: to half)."""

    symbol: str
    size: int | None = None


class Duplicate(_Fault, tag="duplicate"):
    """Send every frame this many times; 1 is normal."""

    copies: int = 2


class OutOfOrder(_Fault, tag="out_of_order"):
    """Hold back every n-th tick of a symbol until after its next one; 0 is normal."""

    every: int = 2


class BadPrice(_Fault, tag="bad_price"):
    """Put a damaged price into the next `count` ticks, of these symbols or of all."""

    value: Literal["nan", "inf", "-inf", "zero", "negative", "absurd"] = "nan"
    count: int = 1
    symbols: tuple[str, ...] | None = None


class Skew(_Fault, tag="skew"):
    """Shift all event times by `ms`; 0 is normal. Wires with whole seconds carry whole seconds of it."""

    ms: int = 0


class SnapshotAge(_Fault, tag="snapshot_age"):
    """Date the snapshot sent on subscribe this far back; with 0 it has the time of the last trade."""

    seconds: float = 0.0


class Flood(_Fault, tag="flood"):
    """Multiply all rates; 1 is normal."""

    factor: float = 20.0


class Refuse(_Fault, tag="refuse"):
    """Stop listening: new TCP connections are refused. Open ones stay."""

    on: bool = True


class Hang(_Fault, tag="hang"):
    """Accept TCP connections and never answer the handshake."""

    on: bool = True


class HandshakeStatus(_Fault, tag="handshake_status"):
    """Answer the handshake with this HTTP status instead of 101; None is normal."""

    status: int | None = 429
    retry_after_s: int | None = None
    body: str = ""


class CloseOnConnect(_Fault, tag="close_on_connect"):
    """Accept the handshake and end the connection at once: a close code, or `abort`; None is normal."""

    how: int | Literal["abort"] | None = 1011


class Clear(_Fault, tag="clear"):
    """Return to normal: every lasting fault is lifted."""


class Stacked(_Fault, tag="stacked"):
    """Dhan: put up to this many packets into one frame; 1 is normal."""

    packets: int = 5


class UnknownPacket(_Fault, tag="unknown_packet"):
    """Dhan: send a well-formed packet of a kind nobody knows."""

    code: int = 99
    length: int = 16
    symbol: str | None = None


class Heartbeat(_Fault, tag="heartbeat"):
    """Dhan: send a code 0 packet. Yahoo: send a message of quote type 7."""


class MarketStatusPacket(_Fault, tag="market_status"):
    """Dhan: send a code 7 packet for a segment."""

    segment: int = 1


class Disconnect(_Fault, tag="disconnect"):
    """Dhan: send a code 50 packet with this reason, then close."""

    reason: int = 805
    connection: int | None = None


class ExpireToken(_Fault, tag="expire_token"):
    """Dhan: the access token expires now; its connections get 50/807 and are closed."""


class RejectTokens(_Fault, tag="reject_tokens"):
    """Dhan: how a bad token is answered."""

    reaction: Literal["808", "809", "810", "abort", "http_429", "http_401"] = "809"


class DataPlan(_Fault, tag="data_plan"):
    """Dhan: whether the account has the data plan; without it the feed answers 50/806."""

    active: bool = False


class Depth(_Fault, tag="depth"):
    """Dhan: what the feeds of 20 and 200 levels do to their books; None is normal.

    `crossed`: the best bid lies above the best ask. `bid`, `ask`: only packets of that side come. `apart`:
    both sides come, in messages of their own. `unordered`: the best level is not the first. `empty_bid`: the
    bid side has no level. `lingering`: what is unsubscribed goes on.
    """

    how: Literal["crossed", "bid", "ask", "apart", "unordered", "empty_bid", "lingering"] | None = "crossed"


class OtherEnvelope(_Fault, tag="other_envelope"):
    """Yahoo: send an envelope of another type than `pricing`."""

    type: str = "status"


class BadBase64(_Fault, tag="bad_base64"):
    """Yahoo: send an envelope whose message is not base64."""


class MarketHours(_Fault, tag="market_hours"):
    """Yahoo: claim this session (0 pre, 1 regular, 2 post, 4 overnight) in every message; None is normal."""

    value: int | None = 2


CommonFault = (
    Close
    | Abort
    | Mute
    | Pause
    | DropSubscriptions
    | Garbage
    | Truncated
    | Duplicate
    | OutOfOrder
    | BadPrice
    | Skew
    | SnapshotAge
    | Flood
    | Refuse
    | Hang
    | HandshakeStatus
    | CloseOnConnect
    | Clear
    | Heartbeat
)
DhanFault = (
    CommonFault
    | Stacked
    | UnknownPacket
    | MarketStatusPacket
    | Disconnect
    | ExpireToken
    | RejectTokens
    | DataPlan
    | Depth
)
YahooFault = CommonFault | OtherEnvelope | BadBase64 | MarketHours
AnyFault = DhanFault | YahooFault


class FaultState(msgspec.Struct):
    """The faults that last. Fields may be set directly; `inject` of a simulator sets them too."""

    muted: bool = False
    muted_symbols: set[str] = msgspec.field(default_factory=set)
    paused: bool = False
    drop_probability: float = 0.0
    copies: int = 1
    out_of_order_every: int = 0
    bad_price: BadPrice | None = None
    bad_prices_left: int = 0
    truncate: dict[str, int | None] = msgspec.field(default_factory=dict)
    skew_ms: int = 0
    snapshot_age_s: float = 0.0
    flood_factor: float = 1.0
    refusing: bool = False
    hanging: bool = False
    handshake: HandshakeStatus | None = None
    close_on_connect: int | str | None = None
    stacked_packets: int = 1
    market_hours: int | None = None
    depth: str | None = None

    def is_muted(self, symbol: str) -> bool:
        """Tell whether nothing may be sent of this provider symbol."""
        return self.muted or symbol in self.muted_symbols

    def take_bad_price(self, symbol: str) -> str | None:
        """Return the damage for the next tick of this symbol, and count it down."""
        wanted = self.bad_price
        if wanted is None or (wanted.symbols is not None and symbol not in wanted.symbols):
            return None
        self.bad_prices_left -= 1
        if self.bad_prices_left <= 0:
            self.bad_price = None
        return wanted.value
