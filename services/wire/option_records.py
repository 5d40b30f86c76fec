"""What a vendor's option chain says, the same shape for every vendor; filled by the codecs beside it."""

from __future__ import annotations

from typing import Literal

import msgspec

OptionSide = Literal["call", "put"]


class OptionQuote(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a provider says of one leg of a chain; None where it says nothing, never zero instead.

    `strike` is plain decimal text (`25650`, `92.5`), prices are in the underlying's currency, sizes,
    `volume` and open interest in the provider's own unit. `iv` is in percent a year, `delta` and `gamma`
    for a move of the underlying by 1, `theta` for a calendar day, `vega` for one percentage point of
    `iv`. `event_ms` is when the leg was last traded, UTC epoch ms.
    """

    side: OptionSide
    strike: str
    contract: str | None = None
    last_price: float | None = None
    bid: float | None = None
    bid_size: int | None = None
    ask: float | None = None
    ask_size: int | None = None
    volume: int | None = None
    oi: int | None = None
    oi_change: int | None = None
    iv: float | None = None
    delta: float | None = None
    gamma: float | None = None
    theta: float | None = None
    vega: float | None = None
    event_ms: int | None = None


class ChainAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The legs of one underlying and expiry, in the vendor's order.

    `timestamp` is in UTC epoch ms: the vendor's own time where it gives one, else when it was received.
    `expiry` is the end of the contracts in UTC epoch **seconds**.
    """

    quotes: tuple[OptionQuote, ...]
    timestamp: int
    underlying_price: float | None
    expiry: int
