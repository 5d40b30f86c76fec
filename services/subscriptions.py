"""What is subscribed upstream in dynamic mode: what the operator pinned, clients watch and leases ask for.

Stands between those who want instruments (the broadcast's audiences, `md:interest` in Redis, the setting
PINNED_INSTRUMENTS) and the ProviderManager. However fast clients come and go, the providers hear of it
at most ten times a second, as one difference. What clients watched is kept on disk, so that after a
restart it is subscribed before they are back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
from redis.exceptions import RedisError

from services.market_data.clock import Clock
from services.operations.state_dir import write_private
from services.pipeline.interest import LINGER_S, Allotment, Claim, Interest, allot, expand, strongest
from services.storage.client import make_client
from services.storage.leases import leased_instruments

_log = structlog.get_logger(__name__)

FILE = "interest.json"
_LEASE_POLL_S = 1.0
_SETTLE_S = 0.1
_SAVE_EVERY_S = 5.0
_COME_BACK_S = 60.0
_NAMED_IN_STATUS = 20


class Providers(Protocol):
    """What is asked of the ProviderManager."""

    async def set_interest(self, instruments: frozenset[str]) -> None:
        """Subscribe these and nothing else."""

    def places(self) -> Callable[[str], Iterable[str]]:
        """Answers at which providers (codes) an instrument would take a subscription just now."""
        ...

    def room(self) -> Mapping[str, int]:
        """How many subscriptions each provider that has a limit can hold."""
        ...

    def subscription_state(self, instrument: str) -> str:
        """`requested`, `acked` or `proven`."""
        ...


class DynamicSubscriptions:
    """Keeps the upstream subscriptions at what is wanted.

    `watched` answers the instruments and `EXCHANGE:*` patterns that clients watch, `known` the mapped
    instruments; `pinned` (keys or patterns) is always wanted. `file` remembers what clients watched.
    """

    def __init__(
        self,
        providers: Providers,
        *,
        redis_url: str,
        clock: Clock,
        watched: Callable[[], Collection[str]],
        known: Callable[[], Mapping[str, object]],
        pinned: Iterable[str] = (),
        file: Path | None = None,
        linger_s: float = LINGER_S,
    ) -> None:
        self._providers = providers
        self._redis_url = redis_url
        self._clock = clock
        self._watched = watched
        self._known = known
        self._pinned = tuple(pinned)
        self._file = file
        self._interest = Interest(linger_s)
        self._leased: set[str] = set()
        self._restored = _read(file)
        self._restored_until_s = clock.monotonic_s() + _COME_BACK_S
        self._saved: list[str] = sorted(self._restored)
        self._wake = asyncio.Event()
        self._claims: dict[str, Claim] = {}
        self._allotment = Allotment(frozenset(), {})
        self.changes = 0
        """How often the upstream subscriptions were changed."""

    @property
    def leased(self) -> frozenset[str]:
        """The members of `md:interest` as they were last seen."""
        return frozenset(self._leased)

    def changed(self) -> None:
        """Look soon: a client began or ceased to watch something."""
        self._wake.set()

    async def run(self) -> None:
        """Follow what is wanted until cancelled; what clients watch is saved every few seconds."""
        client = make_client(self._redis_url)
        leases_due_s = save_due_s = 0.0
        try:
            while True:
                now_s = self._clock.monotonic_s()
                if now_s >= leases_due_s:
                    leases_due_s = now_s + _LEASE_POLL_S
                    # While Redis is away its leases stand as they were last seen.
                    with contextlib.suppress(RedisError, OSError):
                        self._leased = await leased_instruments(client, self._clock.now_ms())
                await self.follow()
                if now_s >= save_due_s:
                    save_due_s = now_s + _SAVE_EVERY_S
                    await asyncio.to_thread(self.save)
                await asyncio.sleep(_SETTLE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LEASE_POLL_S - _SETTLE_S):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await client.aclose()

    async def follow(self) -> None:
        """Bring the subscriptions in line with what is wanted now."""
        known, now_s = self._known(), self._clock.monotonic_s()
        claims = strongest(
            (Claim.PINNED, expand(self._pinned, known)),
            (Claim.WATCHED, expand(self._remembered(), known)),
            (Claim.LEASED, expand(self._leased, known)),
        )
        wanted = self._interest.update(claims, now_s)
        self._claims = {instrument: claim for instrument, claim in wanted.items() if instrument in known}
        allotment = allot(self._claims, places=self._providers.places(), room=self._providers.room())
        self._say_shed(allotment)
        if allotment.admitted != self._allotment.admitted:
            self.changes += 1
        self._allotment = allotment
        await self._providers.set_interest(allotment.admitted)

    def claim(self, instrument: str) -> str | None:
        """Return why an instrument is wanted, in a word, and whether it found room; None when it is not."""
        claim = self._claims.get(instrument)
        if claim is None:
            return None
        full = self._allotment.shed.get(instrument)
        return claim.name.lower() + (f", but {full} has no room for it" if full else "")

    def status(self) -> dict[str, Any]:
        """Return what is wanted and why, how far each subscription got, and what found no room."""
        states = Counter(map(self._providers.subscription_state, self._allotment.admitted))
        shed = self._allotment.shed
        return {
            "mode": "dynamic",
            "wanted": len(self._claims),
            "subscribed": len(self._allotment.admitted),
            "by_claim": {
                claim.name.lower(): count for claim, count in sorted(Counter(self._claims.values()).items())
            },
            "by_state": {state: states.get(state, 0) for state in ("requested", "acked", "proven")},
            "shed": len(shed),
            "shed_at": dict(Counter(shed.values())),
            "shed_instruments": sorted(shed)[:_NAMED_IN_STATUS],
            "changes": self.changes,
        }

    def _say_shed(self, allotment: Allotment) -> None:
        if set(allotment.shed) == set(self._allotment.shed):
            return
        if allotment.shed:
            _log.warning(
                "interest_beyond_capacity",
                count=len(allotment.shed),
                at=dict(Counter(allotment.shed.values())),
                first=sorted(allotment.shed)[:_NAMED_IN_STATUS],
                remedy="ask for fewer instruments, or map some of them to another provider",
            )
        else:
            _log.info("interest_fits_again", subscribed=len(allotment.admitted))

    def save(self) -> None:
        """Remember on disk what clients watch; to be called before their sessions are ended."""
        watched = sorted(self._remembered())
        if self._file is None or watched == self._saved:
            return
        try:
            write_private(self._file, msgspec.json.encode(watched).decode() + "\n")
        except OSError as error:
            _log.warning("interest_not_saved", error=error.strerror)
        else:
            self._saved = watched

    def _remembered(self) -> set[str]:
        """Return what clients watch, and for a while after a start what they watched before it."""
        watched = set(self._watched())
        return watched | self._restored if self._clock.monotonic_s() < self._restored_until_s else watched


def _read(file: Path | None) -> set[str]:
    """Return what an earlier run saved; nothing where there is none or it cannot be read."""
    if file is None:
        return set()
    try:
        return set(msgspec.json.decode(file.read_bytes(), type=list[str]))
    except FileNotFoundError:
        return set()
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("saved_interest_not_read", file=file.name, error=str(error))
        return set()
