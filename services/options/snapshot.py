"""From an assembled chain to the snapshot that streams and clients carry. Pure."""

from __future__ import annotations

from services.market_data.option_chains import OptionChainSnapshot, OptionLeg
from services.options.chain import Chain, Leg, leg_figures
from services.options.source import Underlying
from services.wire.option_fields import expiry_day


def snapshot_of(chain: Chain, underlying: Underlying, *, is_next: bool) -> OptionChainSnapshot:
    """Return a chain as a snapshot without a position yet."""
    return OptionChainSnapshot(
        symbol=chain.underlying,
        exchange=underlying.exchange,
        provider_code=chain.source,
        timestamp=chain.timestamp * 1000,
        received_ms=chain.received_ms,
        expiry=chain.expiry,
        expiry_date=expiry_day(chain.expiry, underlying.zone).isoformat(),
        is_next=is_next,
        legs=tuple(map(_leg, chain.legs)),
        missing=chain.missing,
        underlying_price=chain.underlying_price,
        forward=chain.forward,
        forward_by=chain.forward_by,
        atm_strike=chain.atm_strike,
        style=chain.style,
        pcr=chain.pcr_oi,
        pcr_volume=chain.pcr_volume,
        max_pain=chain.max_pain,
    )


def _leg(leg: Leg) -> OptionLeg:
    quote = leg.quote
    delta, gamma, theta, vega, iv = leg_figures(leg)
    return OptionLeg(
        leg.symbol,
        quote.strike,
        quote.side,
        quote.last_price,
        quote.volume,
        quote.oi,
        quote.oi_change,
        delta,
        gamma,
        theta,
        vega,
        iv,
        quote.bid,
        quote.ask,
        quote.bid_size,
        quote.ask_size,
        quote.event_ms,
        leg.greeks_by,
    )
