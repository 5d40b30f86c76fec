"""What a token allows: scopes, and the instruments they hold for.

Pure: no I/O. A token is `name:secret`, which allows everything, or `name:secret:scopes`, or
`name:secret:scopes@instruments`:

    desk:correct-horse
    screen:battery-staple:ticks+history@NSE:*|NASDAQ:AAPL

Scopes are joined by `+`, instruments (`EXCHANGE:SYMBOL` or `EXCHANGE:*`) by `|`. A secret holds no colon,
so a slip in the scopes can never be read as part of a secret that allows everything.
"""

from __future__ import annotations

import msgspec

from services.gateway.protocol import is_well_formed

TICKS = "ticks"
"""Live data: `/ws`, `/api/stream`, quotes."""
HISTORY = "history"
"""Stored data: bars, coverage, option chains, news."""
ADMIN = "admin"
"""How the daemon itself is: provider and pipeline status, metrics."""
SCOPES = (TICKS, HISTORY, ADMIN)


class Grant(msgspec.Struct, frozen=True):
    """What a token allows; `instruments` None means every instrument."""

    scopes: frozenset[str] = frozenset(SCOPES)
    instruments: frozenset[str] | None = None

    def allows(self, scope: str) -> bool:
        """Tell whether the token has a scope."""
        return scope in self.scopes

    def covers(self, instrument: str) -> bool:
        """Tell whether an instrument (or all of an exchange, `NSE:*`) is among the token's."""
        allowed = self.instruments
        return allowed is None or instrument in allowed or f"{instrument.partition(':')[0]}:*" in allowed

    def touches(self, exchange: str) -> bool:
        """Tell whether any instrument of an exchange may lie within the token's instruments."""
        allowed = self.instruments
        return allowed is None or any(name.partition(":")[0] == exchange for name in allowed)


EVERYTHING = Grant()


def parse_secret(text: str) -> tuple[str, Grant]:
    """Return secret and grant of `secret[:scopes[@instruments]]`.

    Raises ValueError for what does not read; its message never holds the secret.
    """
    secret, separator, grant = text.partition(":")
    if not separator:
        return secret, EVERYTHING
    scopes_text, separator, instruments_text = grant.partition("@")
    scopes = scopes_text.split("+")
    if not all(scope in SCOPES for scope in scopes):
        raise ValueError(
            f"what follows the secret must be scopes out of {', '.join(SCOPES)}, joined by + "
            "(a secret holds no colon)"
        )
    if not separator:
        return secret, Grant(frozenset(scopes))
    instruments = instruments_text.split("|")
    if not all(is_well_formed(instrument) for instrument in instruments):
        raise ValueError("what follows @ must be instruments such as NSE:RELIANCE or NSE:*, joined by |")
    return secret, Grant(frozenset(scopes), frozenset(instruments))
