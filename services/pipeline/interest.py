"""Who wants which instrument, how strongly, for how much longer; and what of it fits upstream.

Pure. In dynamic mode the answer is what is subscribed at the providers. An instrument that nobody wants
any more stays for a while, so that clients that come and go cause no traffic there; and where a
provider's limits cannot hold everything, the weakest claims are let go by name, before they fail.

    pinned by the operator > watched by a client > leased in Redis > lingering
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

import msgspec

LINGER_S = 30.0


class Claim(IntEnum):
    """Why an instrument is wanted; the lower number is the stronger claim."""

    PINNED = 0
    WATCHED = 1
    LEASED = 2
    LINGERING = 3


class Allotment(msgspec.Struct, frozen=True):
    """`admitted` are to be subscribed; `shed` found no room, with the code of the provider that is full."""

    admitted: frozenset[str]
    shed: dict[str, str]


class _Want(msgspec.Struct):
    claim: Claim
    since_s: float
    last_s: float


class Interest:
    """Everything wanted, with its claim. `linger_s` is how long one stays after its last interest."""

    def __init__(self, linger_s: float = LINGER_S) -> None:
        self._linger_s = linger_s
        self._wants: dict[str, _Want] = {}

    def update(self, claims: Mapping[str, Claim], now_s: float) -> dict[str, Claim]:
        """Take note of what is wanted now; return all that is to stay, the strongest claims first.

        Among equal claims the one that is wanted for longer comes first, so that newcomers push nobody
        out. `now_s` is monotonic.
        """
        for instrument, claim in claims.items():
            want = self._wants.get(instrument)
            if want is None:
                self._wants[instrument] = _Want(claim, now_s, now_s)
            else:
                want.claim, want.last_s = claim, now_s
        gone = []
        for instrument, want in self._wants.items():
            if instrument not in claims:
                want.claim = Claim.LINGERING
                if now_s - want.last_s > self._linger_s:
                    gone.append(instrument)
        for instrument in gone:
            del self._wants[instrument]
        ordered = sorted(self._wants.items(), key=lambda item: (item[1].claim, item[1].since_s))
        return {instrument: want.claim for instrument, want in ordered}


def strongest(*claims: tuple[Claim, Iterable[str]]) -> dict[str, Claim]:
    """Return each instrument with the strongest of its claims."""
    found: dict[str, Claim] = {}
    for claim, instruments in sorted(claims, key=lambda entry: entry[0]):
        for instrument in instruments:
            found.setdefault(instrument, claim)
    return found


def allot(
    wanted: Iterable[str],
    *,
    places: Callable[[str], Iterable[str]],
    room: Mapping[str, int],
) -> Allotment:
    """Admit what fits, in the order of `wanted`.

    `places` answers the codes of the providers at which an instrument takes a subscription, `room` how
    many subscriptions a provider can hold in all; one without an entry has no limit.
    """
    left = dict(room)
    admitted: set[str] = set()
    shed: dict[str, str] = {}
    for instrument in wanted:
        needed = list(places(instrument))
        full = next((code for code in needed if left.get(code, 1) <= 0), None)
        if full is not None:
            shed[instrument] = full
            continue
        for code in needed:
            if code in left:
                left[code] -= 1
        admitted.add(instrument)
    return Allotment(frozenset(admitted), shed)


def expand(patterns: Iterable[str], known: Iterable[str]) -> set[str]:
    """Return the known instruments that `patterns` name; `NSE:*` names a whole exchange."""
    known = known if isinstance(known, (set, frozenset, dict)) else set(known)
    found: set[str] = set()
    for pattern in patterns:
        if pattern.endswith(":*"):
            prefix = pattern[:-1]
            found.update(instrument for instrument in known if instrument.startswith(prefix))
        elif pattern in known:
            found.add(pattern)
    return found
