"""What one client watches: which instruments, on which channels, every tick or the newest.

Stands between the client's messages and the broadcast: it attaches the client's outlet and says the
answers. A message is obeyed as a whole or, when it is beyond a limit, not at all. Subscribing, the
snapshot and its position are one step of the event loop, so that nothing falls between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from services.data_broadcast import DataBroadcast, Outlet
from services.gateway.backend import GatewayBackend
from services.gateway.directory import InstrumentDirectory
from services.gateway.encoding import raw_tick
from services.gateway.limits import ClientLimits
from services.gateway.outbox import Outbox, Pace
from services.gateway.protocol import (
    ClientMessageError,
    ListSubscriptions,
    ResumePoint,
    Subscribe,
    Unsubscribe,
    is_well_formed,
)


class SubscriptionContext(msgspec.Struct, frozen=True):
    """What the subscriptions of all clients share; `spread()` gives a new pace its place in time, 0 to 1."""

    backend: GatewayBackend
    directory: InstrumentDirectory
    broadcast: DataBroadcast
    limits: ClientLimits
    spread: Callable[[], float]


class _Watch(msgspec.Struct, frozen=True):
    """How one instrument is watched."""

    channels: tuple[str, ...]
    interval: str
    delivery: str
    every_ms: int


class Subscriptions:
    """The subscriptions of one client. `paced()` is called when its outbox has a new pace."""

    def __init__(
        self, context: SubscriptionContext, outlet: Outlet, outbox: Outbox, paced: Callable[[], None]
    ) -> None:
        self._backend = context.backend
        self._directory = context.directory
        self._broadcast = context.broadcast
        self._limits = context.limits
        self._spread = context.spread
        self._outlet = outlet
        self._outbox = outbox
        self._paced = paced
        self._watches: dict[str, _Watch] = {}
        self._wildcards: dict[str, Subscribe] = {}
        self._left_out: set[str] = set()

    def __len__(self) -> int:
        return len(self._watches)

    def subscribe(self, wish: Subscribe) -> dict[str, Any]:
        """Watch what is wished, or change how it is delivered; return the answer.

        Raises `ClientMessageError` (`too_many`), changing nothing, beyond the client's limits.
        """
        found, wildcards, rejected = self._resolve(wish)
        self._check_limits(wish, found)
        self._wildcards.update(dict.fromkeys(wildcards, wish))
        self._left_out.difference_update(found)
        self._watch(found, wish)
        return self._subscribed(wish, found, rejected)

    def unsubscribe(self, message: Unsubscribe) -> dict[str, Any]:
        """Stop watching; return the answer, which names what was watched until now."""
        ended: dict[str, None] = {}
        for key in message.instruments:
            if key.endswith(":*"):
                exchange = key[:-2]
                self._wildcards.pop(exchange, None)
                ended.update(dict.fromkeys(item for item in self._watches if item.startswith(f"{exchange}:")))
            elif key in self._watches:
                ended[key] = None
                self._left_out.add(key)
        self._stop_watching(list(ended))
        return {"type": "unsubscribed", "id": message.id, "instruments": list(ended)}

    def listed(self, message: ListSubscriptions) -> dict[str, Any]:
        """Return the answer that lists what is watched and how."""
        return {
            "type": "subscriptions",
            "id": message.id,
            "instruments": self._watches,
            "wildcards": [f"{exchange}:*" for exchange in self._wildcards],
        }

    def catalogue_changed(self) -> list[ClientMessageError]:
        """Take in what now belongs to the wildcards, let go of what is gone; return what did not fit."""
        self._stop_watching([key for key in self._watches if not self._backend.is_known(key)])
        refusals = []
        for exchange, wish in self._wildcards.items():
            found = [
                key
                for key in self._directory.keys_of(exchange)
                if key not in self._watches and key not in self._left_out
            ]
            room = max(0, self._limits.instruments_per_client - len(self._watches))
            if len(found) > room:
                refusals.append(
                    ClientMessageError("too_many", f"{exchange}:* has grown beyond this client's limit")
                )
            self._watch(found[:room], wish)
        return refusals

    def resync(self) -> dict[str, Any]:
        """Return the notice of another epoch, with the positions in it of what is watched."""
        exchanges = sorted({key.partition(":")[0] for key in self._watches})
        position = {name: text for name in exchanges if (text := self._broadcast.position(name)) is not None}
        return {
            "type": "resync",
            "reason": "history_lost",
            "epoch": self._backend.epoch,
            "position": position,
        }

    def clear(self) -> None:
        """Stop watching everything."""
        self._broadcast.detach(self._outlet, self._watches)
        self._watches.clear()
        self._wildcards.clear()
        self._left_out.clear()
        self._outbox.paces.clear()

    def _resolve(self, wish: Subscribe) -> tuple[list[str], list[str], dict[str, str]]:
        """Return the instruments meant, the exchanges of accepted wildcards, and what is refused and why."""
        found: dict[str, None] = {}
        wildcards: list[str] = []
        rejected: dict[str, str] = {}
        for key in wish.instruments:
            if not is_well_formed(key):
                rejected[key] = "malformed"
            elif key.endswith(":*"):
                members = self._directory.keys_of(key[:-2])
                if members:
                    found.update(dict.fromkeys(members))
                    wildcards.append(key[:-2])
                else:
                    rejected[key] = "unknown_exchange"
            elif self._backend.is_known(key):
                found[key] = None
            else:
                rejected[key] = "unknown_instrument"
        return list(found), wildcards, rejected

    def _check_limits(self, wish: Subscribe, found: list[str]) -> None:
        watched = len(self._watches) + sum(1 for key in found if key not in self._watches)
        if watched > self._limits.instruments_per_client:
            raise ClientMessageError(
                "too_many",
                f"a client may watch {self._limits.instruments_per_client} instruments; "
                f"this would make {watched}; nothing was changed",
            )
        paces = self._outbox.paces
        new_pace = wish.delivery == "latest" and wish.every_ms not in paces
        if new_pace and len(paces) >= self._limits.paces_per_client:
            raise ClientMessageError(
                "too_many",
                f"a client may use {self._limits.paces_per_client} different every_ms; nothing was changed",
            )

    def _watch(self, instruments: list[str], wish: Subscribe) -> None:
        watch = _Watch(wish.channels, wish.interval, wish.delivery, wish.every_ms)
        for instrument in instruments:
            self._watches[instrument] = watch
            # The snapshot in the answer is as new as anything that was pending.
            self._outbox.forget(instrument)
        if not instruments:
            return
        if "tick" not in wish.channels:
            self._broadcast.detach(self._outlet, instruments)
        elif wish.delivery == "all":
            self._broadcast.attach(self._outlet, instruments)
        else:
            self._broadcast.attach(self._outlet, instruments, self._pace(wish.every_ms).pending)
        self._drop_unused_paces()

    def _pace(self, every_ms: int) -> Pace:
        pace = self._outbox.paces.get(every_ms)
        if pace is None:
            first_s = every_ms / 1000 * self._spread()
            pace = Pace(every_ms, self._broadcast.clock.monotonic_s() + first_s)
            self._outbox.paces[every_ms] = pace
            self._paced()
        return pace

    def _drop_unused_paces(self) -> None:
        used = {
            watch.every_ms
            for watch in self._watches.values()
            if watch.delivery == "latest" and "tick" in watch.channels
        }
        for every_ms in [every_ms for every_ms in self._outbox.paces if every_ms not in used]:
            del self._outbox.paces[every_ms]

    def _stop_watching(self, instruments: list[str]) -> None:
        if not instruments:
            return
        self._broadcast.detach(self._outlet, instruments)
        for instrument in instruments:
            del self._watches[instrument]
            self._outbox.forget(instrument)
        self._drop_unused_paces()

    def _subscribed(self, wish: Subscribe, found: list[str], rejected: dict[str, str]) -> dict[str, Any]:
        broadcast = self._broadcast
        exchanges = sorted({instrument.partition(":")[0] for instrument in found})
        position = {
            exchange: text for exchange in exchanges if (text := broadcast.position(exchange)) is not None
        }
        answer: dict[str, Any] = {
            "type": "subscribed",
            "id": wish.id,
            "accepted": [key for key in wish.instruments if key not in rejected],
            "rejected": rejected,
            "epoch": self._backend.epoch,
            "position": position,
        }
        recovered = False
        if wish.resume is not None:
            recovered = self._nothing_missed(wish.resume, exchanges, position)
            answer["recovered"] = recovered
        snapshot = {}
        if "tick" in wish.channels and not recovered:
            for instrument in found:
                newest = broadcast.latest(instrument)
                if newest is not None:
                    snapshot[instrument] = raw_tick(newest)
        answer["snapshot"] = snapshot
        return answer

    def _nothing_missed(self, resume: ResumePoint, exchanges: list[str], position: dict[str, str]) -> bool:
        # All or nothing: the epoch is the same, and no exchange that is asked for has moved since.
        return resume.epoch == self._backend.epoch and all(
            exchange in position and resume.position.get(exchange) == position[exchange]
            for exchange in exchanges
        )
