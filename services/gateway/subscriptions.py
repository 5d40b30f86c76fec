"""What one client watches: which instruments, on which channels, every tick or the newest.

Stands between the client's messages and the broadcast: it attaches the client's outlet and says the
answers. A message is obeyed as a whole or, when it is beyond a limit, not at all. Subscribing, the
snapshot and its position are one step of the event loop, so that nothing falls between them. A client
that resumes is answered when what it missed has been read; the tail of live records waits with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from services.data_broadcast import DataBroadcast, Outlet, Publication
from services.gateway.backend import GatewayBackend
from services.gateway.charts import ChartFeed
from services.gateway.directory import InstrumentDirectory
from services.gateway.encoding import INTERVAL_OF, raw_tick, text_frame, to_json
from services.gateway.grants import EVERYTHING, Grant
from services.gateway.limits import ClientLimits
from services.gateway.outbox import Outbox, Pace
from services.gateway.protocol import (
    DEFAULT_EVERY_MS,
    ClientMessageError,
    ListSubscriptions,
    Subscribe,
    Unsubscribe,
    is_well_formed,
)
from services.gateway.recovery import Recovery, RecoveryDesk, Tail
from services.gateway.resumption import NOTHING_YET, Spans, judge


class SubscriptionContext(msgspec.Struct, frozen=True):
    """What the subscriptions of all clients share; `spread()` gives a new pace its place in time, 0 to 1."""

    backend: GatewayBackend
    directory: InstrumentDirectory
    broadcast: DataBroadcast
    limits: ClientLimits
    spread: Callable[[], float]
    desk: RecoveryDesk


class _Watch(msgspec.Struct, frozen=True):
    """How one instrument is watched."""

    channels: tuple[str, ...]
    interval: str
    delivery: str
    every_ms: int


class _Return(msgspec.Struct, frozen=True):
    """A client on its way back: what it wished, the answer as far as it is known, its tail."""

    wish: Subscribe
    found: list[str]
    answer: dict[str, Any]
    tail: Tail
    recovery: Recovery


class Subscriptions:
    """The subscriptions of one client.

    `paced()` is called when its outbox has a new pace, `recovered()` when a resume has been answered.
    """

    def __init__(
        self,
        context: SubscriptionContext,
        outlet: Outlet,
        outbox: Outbox,
        *,
        paced: Callable[[], None],
        recovered: Callable[[], None],
    ) -> None:
        self._backend = context.backend
        self._directory = context.directory
        self._broadcast = context.broadcast
        self._limits = context.limits
        self._spread = context.spread
        self._desk = context.desk
        self._recovered = recovered
        self._return: _Return | None = None
        self._outlet = outlet
        self._outbox = outbox
        self._paced = paced
        self._charts = ChartFeed(outlet.take_control)
        self._watches: dict[str, _Watch] = {}
        self._wildcards: dict[str, Subscribe] = {}
        self._left_out: set[str] = set()

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def recovering(self) -> bool:
        """Whether a resume waits for its answer; nothing else may be obeyed before it."""
        return self._return is not None

    def position(self) -> dict[str, str]:
        """Return the bus's newest position of every exchange that is watched: all before it is queued."""
        return self._positions({instrument.partition(":")[0] for instrument in self._watches})

    def subscribe(self, wish: Subscribe, grant: Grant = EVERYTHING) -> None:
        """Watch what is wished, or change how it is delivered; queue the answer, at once or when it is known.

        Raises `ClientMessageError` (`too_many`), changing nothing, beyond the client's limits.
        """
        found, wildcards, rejected = self._resolve(wish, grant)
        self._check_limits(wish, found)
        self._wildcards.update(dict.fromkeys(wildcards, wish))
        self._left_out.difference_update(found)
        answer: dict[str, Any] = {
            "type": "subscribed",
            "id": wish.id,
            "accepted": [key for key in wish.instruments if key not in rejected],
            "rejected": rejected,
            "epoch": self._backend.epoch,
        }
        if wish.resume is None:
            self._watch(found, wish)
            self._begin(wish, found, answer)
        else:
            self._come_back(wish, found, answer)

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

    def catalogue_changed(self, grant: Grant = EVERYTHING) -> list[ClientMessageError]:
        """Take in what now belongs to the wildcards, let go of what is gone; return what did not fit."""
        self._stop_watching([key for key in self._watches if not self._backend.is_known(key)])
        refusals = []
        for exchange, wish in self._wildcards.items():
            found = [
                key
                for key in self._directory.keys_of(exchange)
                if key not in self._watches and key not in self._left_out and grant.covers(key)
            ]
            room = max(0, self._limits.instruments_per_client - len(self._watches))
            if len(found) > room:
                refusals.append(
                    ClientMessageError("too_many", f"{exchange}:* has grown beyond this client's limit")
                )
            self._watch(found[:room], wish)
        return refusals

    def resync(self) -> dict[str, Any]:
        """Return the notice of another epoch; it concerns everything that is watched."""
        return {
            "type": "resync",
            "instrumentKey": "*",
            "reason": "history_lost",
            "epoch": self._backend.epoch,
        }

    def clear(self) -> None:
        """Stop watching everything."""
        if self._return is not None:
            self._return.recovery.cancelled = True
            self._broadcast.detach(self._return.tail, self._return.found)
            self._return = None
        self._broadcast.detach(self._outlet, self._watches)
        self._broadcast.detach(self._charts, self._watches)
        self._charts.unwatch(self._watches)
        self._watches.clear()
        self._wildcards.clear()
        self._left_out.clear()
        self._outbox.paces.clear()

    def _resolve(self, wish: Subscribe, grant: Grant) -> tuple[list[str], list[str], dict[str, str]]:
        """Return the instruments meant, the exchanges of accepted wildcards, and what is refused and why."""
        found: dict[str, None] = {}
        wildcards: list[str] = []
        rejected: dict[str, str] = {}
        for key in wish.instruments:
            if not is_well_formed(key):
                rejected[key] = "malformed"
            elif key.endswith(":*"):
                members = [item for item in self._directory.keys_of(key[:-2]) if grant.covers(item)]
                if not grant.touches(key[:-2]):
                    rejected[key] = "forbidden"
                elif members:
                    found.update(dict.fromkeys(members))
                    wildcards.append(key[:-2])
                else:
                    rejected[key] = "unknown_exchange"
            elif not grant.covers(key):
                # Asked before whether it exists: the answer must not tell.
                rejected[key] = "forbidden"
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
        new_pace = not _paces_of(wish) <= paces.keys()
        if new_pace and len(paces) >= self._limits.paces_per_client:
            raise ClientMessageError(
                "too_many",
                f"a client may use {self._limits.paces_per_client} different every_ms; nothing was changed",
            )

    def _watch(self, instruments: list[str], wish: Subscribe, *, opening: bool = True) -> None:
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
        self._watch_charts(instruments, wish, opening=opening)
        self._drop_unused_paces()

    def _watch_charts(self, instruments: list[str], wish: Subscribe, *, opening: bool) -> None:
        """Show the bars of `instruments`, or no longer; with `opening` those of the last minutes first."""
        if "chart" not in wish.channels:
            self._broadcast.detach(self._charts, instruments)
            self._charts.unwatch(instruments)
            return
        charts = self._pace(_chart_pace(wish)).charts
        charts.intervals.update(dict.fromkeys(instruments, INTERVAL_OF[wish.interval]))
        if opening:
            charts.opening.update(dict.fromkeys(instruments))
        else:
            for instrument in instruments:
                newest = self._broadcast.latest(instrument)
                if newest is not None:
                    charts.ticks[instrument] = Publication(newest)
        self._charts.watch(instruments, charts, alone="tick" not in wish.channels)
        self._broadcast.attach(self._charts, instruments, charts.ticks)

    def _pace(self, every_ms: int) -> Pace:
        pace = self._outbox.paces.get(every_ms)
        if pace is None:
            first_s = every_ms / 1000 * self._spread()
            pace = Pace(every_ms, self._broadcast.clock.monotonic_s() + first_s)
            self._outbox.paces[every_ms] = pace
            self._paced()
        return pace

    def _drop_unused_paces(self) -> None:
        used = {every_ms for watch in set(self._watches.values()) for every_ms in _paces_of(watch)}
        for every_ms in [every_ms for every_ms in self._outbox.paces if every_ms not in used]:
            del self._outbox.paces[every_ms]

    def _stop_watching(self, instruments: list[str]) -> None:
        if not instruments:
            return
        self._broadcast.detach(self._outlet, instruments)
        self._broadcast.detach(self._charts, instruments)
        self._charts.unwatch(instruments)
        for instrument in instruments:
            del self._watches[instrument]
            self._outbox.forget(instrument)
        self._drop_unused_paces()

    def _positions(self, exchanges: set[str]) -> dict[str, str]:
        return {exchange: self._broadcast.position(exchange) or NOTHING_YET for exchange in sorted(exchanges)}

    def _begin(self, wish: Subscribe, found: list[str], answer: dict[str, Any], reason: str = "") -> None:
        """Answer with where the bus is now and the newest values."""
        answer["position"] = self._positions({instrument.partition(":")[0] for instrument in found})
        if reason:
            answer |= {"recovered": False, "reason": reason}
            self._desk.figures.count_refusal(reason)
        snapshot = {}
        if "tick" in wish.channels:
            for instrument in found:
                newest = self._broadcast.latest(instrument)
                if newest is not None:
                    snapshot[instrument] = raw_tick(newest)
        answer["snapshot"] = snapshot
        self._outbox.put(text_frame(to_json(answer)))

    # ---- coming back ----------------------------------------------------------------------------

    def _come_back(self, wish: Subscribe, found: list[str], answer: dict[str, Any]) -> None:
        """Answer a resume at once where nothing need be read; else hold back the tail and read."""
        resume = wish.resume
        assert resume is not None  # noqa: S101 - asked before the call
        exchanges = {instrument.partition(":")[0] for instrument in found}
        reason, spans = judge(resume, self._backend.epoch, exchanges, self._positions(exchanges))
        if spans and not self._desk.available:
            reason = reason or "history_unavailable"
        if reason:
            self._watch(found, wish)
            self._begin(wish, found, answer, reason)
            return
        # Where the client is when it has read the answer: still where it was.
        answer["position"] = {exchange: resume.position[exchange] for exchange in sorted(exchanges)}
        if spans:
            self._read_missed(wish, found, answer, spans)
        else:
            self._watch(found, wish, opening=False)
            self._join(wish, found, answer, [], Tail(0))

    def _read_missed(self, wish: Subscribe, found: list[str], answer: dict[str, Any], spans: Spans) -> None:
        ticks = "tick" in wish.channels
        bars = INTERVAL_OF[wish.interval] if "chart" in wish.channels else None
        tail = Tail(self._desk.limits.tail, ticks=ticks, bars=bars)
        conflated = wish.delivery == "latest" or not ticks
        # First the tail, then off with the old watch: nobody's interest in between is lost.
        self._broadcast.attach(tail, found, tail.pending if conflated else None)
        self._broadcast.detach(self._outlet, found)
        self._broadcast.detach(self._charts, found)
        self._charts.unwatch(found)
        watch = _Watch(wish.channels, wish.interval, wish.delivery, wish.every_ms)
        for instrument in found:
            self._watches[instrument] = watch
            self._outbox.forget(instrument)
        recovery = Recovery(
            spans,
            frozenset(found),
            ticks=not conflated,
            bars=bars,
            done=self._missed_read,
            asked_s=self._broadcast.clock.monotonic_s(),
        )
        self._return = _Return(wish, found, answer, tail, recovery)
        self._desk.submit(recovery)

    def _missed_read(self, recovery: Recovery) -> None:
        """Answer a resume: with all that was missed and the tail behind it, or with a new beginning."""
        waiting, self._return = self._return, None
        assert waiting is not None  # noqa: S101 - one that was cancelled is not called
        tail, wish = waiting.tail, waiting.wish
        reason = recovery.refusal or ("too_far_behind" if tail.overfull else "")
        if waiting.answer["epoch"] != self._backend.epoch:
            waiting.answer["epoch"] = self._backend.epoch
            reason = "epoch_changed"
        found = [instrument for instrument in waiting.found if instrument in self._watches]
        self._watch(found, wish, opening=bool(reason))
        self._broadcast.detach(tail, waiting.found)
        if reason:
            self._begin(wish, found, waiting.answer, reason)
        else:
            self._join(wish, found, waiting.answer, recovery.found, tail)
        self._recovered()

    def _join(
        self, wish: Subscribe, found: list[str], answer: dict[str, Any], missed: list[Publication], tail: Tail
    ) -> None:
        """Queue what was missed and the tail, in order, in front of everything that comes from now on."""
        answer |= {"recovered": True, "snapshot": {}}
        self._desk.figures.recovered += 1
        self._outbox.restore(text_frame(to_json(answer)), (*missed, *tail.items))
        if wish.delivery == "latest" and "tick" in wish.channels:
            pending = self._pace(wish.every_ms).pending
            pending.update(tail.pending)
            # Positions of conflated ticks say nothing of other instruments: everyone's newest is sent.
            for instrument in found:
                newest = self._broadcast.latest(instrument)
                if newest is not None and instrument not in pending:
                    pending[instrument] = Publication(newest)


def _paces_of(wish: Subscribe | _Watch) -> set[int]:
    """Return the paces, in ms, at which a client is served what it wishes."""
    paces = {wish.every_ms} if wish.delivery == "latest" and "tick" in wish.channels else set()
    return paces | ({_chart_pace(wish)} if "chart" in wish.channels else set())


def _chart_pace(wish: Subscribe | _Watch) -> int:
    """Return how often a forming bar is shown, in ms; with `all` too it is not shown with every tick."""
    return wish.every_ms if wish.delivery == "latest" else DEFAULT_EVERY_MS
