"""OptionChainSnapshot: the chain of one underlying and expiry at one moment, as streams and clients carry it.

Made from what the options side assembled, written to the stream `md:options:{UNDERLYING}` and read back from
it the same. One object from one provider's answer: legs of two answers are never mixed. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Side = Literal["call", "put"]

_FACTS = {
    "p": "underlying_price",
    "fw": "forward",
    "fwb": "forward_by",
    "atm": "atm_strike",
    "st": "style",
    "pcr": "pcr",
    "pcrv": "pcr_volume",
    "mp": "max_pain",
}
_NUMBERS = frozenset({"p", "fw", "pcr", "pcrv"})


class OptionLeg(msgspec.Struct, gc=False, array_like=True):
    """One leg: what is said of it and its greeks; None for unknown, never zero.

    `symbol` is its instrument key (or the vendor's contract symbol), `iv` in percent, `event_ms` when the
    vendor says the leg was so (UTC epoch ms, None where it says nothing), `greeks_by` `vendor` or `computed`.
    """

    symbol: str
    strike: str
    side: Side
    last_price: float | None = None
    volume: int | None = None
    oi: int | None = None
    oi_change: int | None = None
    delta: float | None = None
    gamma: float | None = None
    theta: float | None = None
    vega: float | None = None
    iv: float | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: int | None = None
    ask_size: int | None = None
    event_ms: int | None = None
    greeks_by: str | None = None


class OptionChainSnapshot(msgspec.Struct, gc=False, kw_only=True):
    """All legs of one underlying and expiry at one moment.

    `symbol` is the underlying's instrument key, `timestamp` when the provider says it was so, UTC epoch
    **microseconds**, `received_ms` UTC epoch ms. `expiry` is UTC epoch **seconds**, `expiry_date` the day
    where the contracts are listed, `is_next` whether no other of this underlying ends before. `missing` are
    the legs that are absent although their strike has the other one. `position_ms` and `position_seq` are the
    id of its entry in the stream, 0 before it has one.
    """

    symbol: str
    exchange: str
    provider_code: str
    timestamp: int
    received_ms: int
    expiry: int
    expiry_date: str
    is_next: bool
    legs: tuple[OptionLeg, ...]
    missing: tuple[tuple[str, Side], ...] = ()
    underlying_price: float | None = None
    forward: float | None = None
    forward_by: str | None = None
    atm_strike: str | None = None
    style: str | None = None
    pcr: float | None = None
    pcr_volume: float | None = None
    max_pain: str | None = None
    position_ms: int = 0
    position_seq: int = 0

    @property
    def position(self) -> str:
        """The id of its entry in the underlying's stream, `<ms>-<seq>`."""
        return f"{self.position_ms}-{self.position_seq}"

    @property
    def completeness(self) -> float:
        """The share of the legs that are there, 1.0 when each strike has both."""
        there = len(self.legs)
        return round(there / (there + len(self.missing)), 4) if there else 0.0

    def says_the_same(self, other: OptionChainSnapshot) -> bool:
        """Tell whether the vendor says the same as in `other`; greeks that time alone moved do not count."""
        return (
            self.provider_code == other.provider_code
            and self.expiry == other.expiry
            and self.is_next == other.is_next
            and self.underlying_price == other.underlying_price
            and self.missing == other.missing
            and list(map(_said, self.legs)) == list(map(_said, other.legs))
        )


class ChainRefusal(msgspec.Struct, gc=False):
    """Why the chain of an underlying cannot be had just now; `expiry_date` is empty for the next expiry."""

    symbol: str
    expiry_date: str
    received_ms: int
    reason: str
    position_ms: int = 0
    position_seq: int = 0


def _said(leg: OptionLeg) -> tuple[Any, ...]:
    said = (leg.symbol, leg.side, leg.last_price, leg.volume, leg.oi, leg.oi_change)
    quoted = (leg.bid, leg.ask, leg.bid_size, leg.ask_size)
    return said + quoted + ((leg.iv, leg.delta) if leg.greeks_by == "vendor" else ())


def refusal_entry(refusal: ChainRefusal) -> dict[str, str]:
    """Return the fields of a refusal's stream entry."""
    fields = {"type": "refused", "k": refusal.symbol, "d": refusal.expiry_date}
    return fields | {"r": str(refusal.received_ms), "reason": refusal.reason}


def refusal_of_entry(fields: Mapping[str, str]) -> ChainRefusal | None:
    """Return the refusal of a stream entry; None for an entry that is none."""
    if fields.get("type") != "refused":
        return None
    try:
        return ChainRefusal(fields["k"], fields["d"], int(fields["r"]), fields["reason"])
    except (KeyError, ValueError):
        return None


def entry_of(chain: OptionChainSnapshot) -> dict[str, str]:
    """Return the fields of its stream entry; times there are ms, what is unknown is absent.

    `c` holds the legs as JSON, an array each in the order of `OptionLeg`, `m` the missing ones.
    """
    fields = {
        "type": "chain",
        "k": chain.symbol,
        "t": str(chain.timestamp // 1000),
        "r": str(chain.received_ms),
        "src": chain.provider_code,
        "e": str(chain.expiry),
        "d": chain.expiry_date,
        "nx": "1" if chain.is_next else "0",
    }
    for short, name in _FACTS.items():
        value = getattr(chain, name)
        if value is not None:
            fields[short] = str(value)
    if chain.missing:
        fields["m"] = msgspec.json.encode(chain.missing).decode()
    fields["c"] = msgspec.json.encode(chain.legs).decode()
    return fields


def chain_of_entry(position: tuple[int, int], fields: Mapping[str, str]) -> OptionChainSnapshot | None:
    """Return the chain of a stream entry; None for an entry that is none."""
    if fields.get("type") != "chain":
        return None
    try:
        facts: dict[str, Any] = {
            name: float(fields[short]) if short in _NUMBERS else fields[short]
            for short, name in _FACTS.items()
            if short in fields
        }
        return OptionChainSnapshot(
            symbol=fields["k"],
            exchange=fields["k"].partition(":")[0],
            provider_code=fields["src"],
            timestamp=int(fields["t"]) * 1000,
            received_ms=int(fields["r"]),
            expiry=int(fields["e"]),
            expiry_date=fields["d"],
            is_next=fields.get("nx") == "1",
            legs=_decode_legs(fields["c"]),
            missing=_decode_missing(fields["m"]) if "m" in fields else (),
            position_ms=position[0],
            position_seq=position[1],
            **facts,
        )
    except (KeyError, ValueError, msgspec.MsgspecError):
        return None


_decode_legs = msgspec.json.Decoder(tuple[OptionLeg, ...]).decode
_decode_missing = msgspec.json.Decoder(tuple[tuple[str, Side], ...]).decode
