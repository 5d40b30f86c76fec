"""Leadership: which of several daemons on one Redis may write, and that no other one can.

    standing_by --lease taken--> leading --another leads--> lost --stepped down--> standing_by
         `------------------ released (stopped) <------'

Only a leader connects to providers and writes. It renews the lease every `renew_s`; when that does not
succeed for `hold_s` (Redis away, or this process paused) it may not write until it does. When another
daemon leads by then, this one steps down. Two things keep a deposed leader out whatever its clock says:
its connections were cut by the new leader before that read or wrote anything, and a new connection is
used only after the server itself said, behind its naming, that the lease is still ours (see
docs/adr/0005-one-writer.md). Decides nothing about data and starts no task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Protocol

import msgspec
import structlog

from services.errors import StorageError, StorageMisconfigured, StorageUnavailable, TemporaryError
from services.market_data.clock import Clock
from services.storage.address import RedisAddress
from services.storage.connection import Fence, RedisConnection, open_connection
from services.storage.keys import LEASE
from services.storage.redis_lease import Lease, LeaseAnswer

_log = structlog.get_logger(__name__)

LeasePolicy = Literal["standby", "exit"]
_RELEASE_WITHIN_S = 2.0


class Role(str, Enum):
    """Where this daemon stands."""

    STANDING_BY = "standing_by"
    LEADING = "leading"
    LOST = "lost"
    RELEASED = "released"


class LeaseTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: how long a lease lasts, is renewed, may be used without renewal, and is tried again.

    `hold_s` is shorter than `ttl_s`: a leader stops before anybody can follow it.
    """

    ttl_s: float = 15.0
    renew_s: float = 5.0
    hold_s: float = 10.0
    retry_s: float = 1.0


class LeaseStore(Protocol):
    """Where the lease is kept: `RedisLease`."""

    async def acquire(self) -> LeaseAnswer:
        """Take the lease if nobody holds it. Raises `StorageError`."""
        ...

    async def renew(self, lease: Lease) -> LeaseAnswer:
        """Make it last. Raises `StorageError`."""
        ...

    async def release(self, lease: Lease) -> None:
        """Let go of it. Raises `StorageError`."""
        ...

    async def fence_off(self, lease: Lease) -> bool:
        """Cut the connections of every other leader. Raises `StorageError`."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Leadership:
    """The state machine. `begin` once, keep `run` running, `release` at the end.

    `on_change`, when set, is called after every change of `role` and whenever writing became possible
    again. `ended` is set when the policy wants this daemon to end.
    """

    def __init__(
        self,
        store: LeaseStore,
        clock: Clock,
        *,
        policy: LeasePolicy = "standby",
        times: LeaseTimes | None = None,
        lease_key: str = LEASE,
    ) -> None:
        self.role = Role.STANDING_BY
        self.reason = "the lease was not asked for yet"
        self.holder: Lease | None = None
        self.lease: Lease | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.ended: TemporaryError | None = None
        self.fenced = True
        self.confirmed_ms = 0
        """When the lease was last known to be ours, UTC epoch ms."""
        self._store = store
        self._clock = clock
        self._policy = policy
        self._lease_key = lease_key
        self._times = times or LeaseTimes()
        self._write_until_s = 0.0
        self._renewed_s: float | None = None
        self._logged = ""
        self._look = asyncio.Event()

    # ---- what others ask ------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Whether this daemon leads, even if it cannot write just now."""
        return self.role is Role.LEADING

    def may_write(self) -> bool:
        """Tell whether writing is allowed at this very moment; asked before every batch."""
        return self.role is Role.LEADING and self._clock.monotonic_s() < self._write_until_s

    async def connect(self, address: RedisAddress, name: str) -> RedisConnection:
        """Open a writer's connection that can be used only under this lease. Raises `StorageError`."""
        lease = self.lease
        if lease is None or not self.may_write():
            self.poke()
            raise StorageUnavailable(self.reason or "the lease could not be renewed in time")
        fence = Fence(self._lease_key, lease.text, self.may_write)
        try:
            return await open_connection(address, f"{name}:{lease.token}", fence=fence)
        except StorageUnavailable:
            self.poke()
            raise

    def status(self) -> dict[str, Any]:
        """Return role and holder; `renewed_s` is the age of the last renewal, None when not leading.

        `fenced` is False where Redis does not let us cut the connections of a deposed leader.
        """
        holder = self.holder
        renewed_s = self._renewed_s if self.leading else None
        return {
            "role": self.role.value,
            "reason": self.reason,
            "holder": None
            if holder is None
            else {"host": holder.host, "pid": holder.pid, "epoch": holder.epoch},
            "renewed_s": None if renewed_s is None else round(self._clock.monotonic_s() - renewed_s, 1),
            "fenced": self.fenced,
        }

    # ---- life -----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Make the first attempt. A Redis that is away is none of the errors: `run` goes on trying.

        Raises `StorageMisconfigured` when an operator must act, `TemporaryError` naming the holder
        when another leads and the policy is to exit.
        """
        try:
            await self._stand_by()
        except StorageMisconfigured:
            raise
        except StorageError as error:
            self._cannot(error)
        if self.ended is not None:
            raise self.ended

    async def run(self) -> None:
        """Take the lease when it is free and renew it while it is ours, until cancelled."""
        wait_s = self._times.renew_s if self.leading else self._times.retry_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            wait_s = await self.turn()

    async def turn(self) -> float:
        """Do what is due; return after how many seconds to look again."""
        try:
            match self.role:
                case Role.STANDING_BY:
                    await self._stand_by()
                case Role.LEADING:
                    await self._renew()
                case Role.LOST | Role.RELEASED:
                    pass
        except StorageError as error:
            self._cannot(error)
            return self._times.retry_s
        return self._times.renew_s if self.role is Role.LEADING else self._times.retry_s

    def poke(self) -> None:
        """Look at the lease now rather than when it is due."""
        self._look.set()

    def stepped_down(self) -> None:
        """Take note that nothing of the lost leadership runs any more: from now on stand by."""
        if self.role is Role.LOST:
            self.role = Role.STANDING_BY
            self.poke()

    async def release(self) -> None:
        """Let go of the lease, so that another can lead at once. Harmless when there is none."""
        lease, self.lease = self.lease, None
        self.role = Role.RELEASED
        self.reason = "the lease was released"
        self.holder = None
        try:
            if lease is not None:
                async with asyncio.timeout(_RELEASE_WITHIN_S):
                    await self._store.release(lease)
        except (StorageError, TimeoutError) as error:
            reason = str(error) or f"Redis did not answer within {_RELEASE_WITHIN_S:g} s"
            _log.warning("lease_not_released", error=reason, ends_by_itself_s=self._times.ttl_s)
        finally:
            await self._store.close()

    # ---- inner ----------------------------------------------------------------------------------

    async def _stand_by(self) -> None:
        asked_s = self._clock.monotonic_s()
        answer = await self._store.acquire()
        if not answer.ours:
            self.lease = None
            self._held_by(answer.lease, awaited=answer.awaited)
            return
        lease = self.lease = answer.lease
        # Nothing is read or written before the last leader's connections are gone.
        self.fenced = await self._store.fence_off(lease)
        if self.role is not Role.STANDING_BY:
            return
        self.holder = lease
        self._confirmed(asked_s)
        self.role = Role.LEADING
        self._log_once("lease_taken", epoch=lease.epoch)
        self.on_change()

    async def _renew(self) -> None:
        lease = self.lease
        assert lease is not None  # noqa: S101 - a leader has one
        asked_s = self._clock.monotonic_s()
        answer = await self._store.renew(lease)
        if self.role is not Role.LEADING:
            return
        if not answer.ours:
            self._lost(answer.lease)
            return
        could_write = self.may_write()
        if answer.lapsed:
            _log.warning("lease_renewed_late", epoch=lease.epoch)
        self._confirmed(asked_s)
        if self._logged != "lease_taken":
            self._log_once("lease_taken", epoch=lease.epoch)
        if answer.lapsed or not could_write:
            self.on_change()

    def _confirmed(self, asked_s: float) -> None:
        # Counted from before the question: the server's time begins later, so it ends later.
        self._renewed_s = asked_s
        self.confirmed_ms = self._clock.now_ms()
        self._write_until_s = asked_s + self._times.hold_s
        self.reason = ""

    def _held_by(self, lease: Lease, *, awaited: bool) -> None:
        self.holder = lease if lease.text else None
        what = "may come back to the lease of this Redis" if awaited else "holds the lease of this Redis"
        if self._policy == "exit":
            self.ended = TemporaryError(
                f"{lease} {what}: stop it, set another REDIS_URL, or LEASE_POLICY=standby to wait for it"
            )
            self.reason = str(self.ended)
            self.on_change()
            return
        self.reason = f"this daemon stands by: {lease} {what}"
        self._log_once("lease_held", holder_pid=lease.pid, holder_host=lease.host, epoch=lease.epoch)

    def _lost(self, lease: Lease) -> None:
        self.role = Role.LOST
        self.lease = None
        self.holder = lease if lease.text else None
        self.reason = f"this daemon lost the lease of this Redis to {lease}"
        self._log_once("lease_lost", to=str(lease))
        if self._policy == "exit":
            self.ended = TemporaryError(f"{self.reason}, and LEASE_POLICY=exit does not wait for it")
        self.on_change()

    def _cannot(self, error: StorageError) -> None:
        if self.role is Role.LEADING:
            self.reason = f"the lease cannot be renewed: {error}"
            self._log_once("lease_not_renewed", error=str(error))
        else:
            self.holder = None
            self.reason = f"this daemon waits for Redis: {error}"
            self._log_once("lease_not_reached", error=str(error))

    def _log_once(self, event: str, **fields: Any) -> None:
        """Say a state when it begins, not while it lasts."""
        if event != self._logged:
            self._logged = event
            (_log.info if event in ("lease_taken", "lease_held") else _log.warning)(event, **fields)
