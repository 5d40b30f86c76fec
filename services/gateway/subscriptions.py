"""What one client watches: which instruments, on which channels, every tick or the newest.

Stands between the client's messages and the broadcast: it attaches the client's outlet and says the
answers. A message is obeyed as a whole or, when it is beyond a limit, not at all. Subscribing, the
snapshot and its position are one step of the event loop, so that nothing falls between them. A client
that resumes is answered when what it missed has been read; the tail of live records waits with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from services.data_broadcast import DataBroadcast, Outlet, Publication
from services.gateway.backend import GatewayBackend
from services.gateway.channel_hub import ChannelHub
from services.gateway.charts import ChartFeed
from services.gateway.directory import InstrumentDirectory
from services.gateway.encoding import INTERVAL_OF, raw_tick, text_frame, to_json
from services.gateway.grants import EVERYTHING, HISTORY, Grant
from services.gateway.limits import ClientLimits
from services.gateway.outbox import Outbox, Pace
from services.gateway.protocol import (
    CHANNELS,
    DEFAULT_EVERY_MS,
    FLOW_CHANNELS,
    ClientMessageError,
    ListSubscriptions,
    Subscribe,
    Unsubscribe,
    is_well_formed,
)
from services.gateway.recovery import Early, Recovery, RecoveryDesk, Tail
from services.gateway.resumption import NOTHING_YET, Spans, ahead, judge
from services.gateway.side_messages import SideMessage
from services.gateway.side_subscriptions import (
    ALL_NEWS,
    FROM_TICKS,
    SideSubscriptions,
    every_ms_of,
    side_channels_of,
)
from services.gateway.tick_views import quote_message, trade_message
from services.market_data.records import DataIngestionFormat
from services.market_data.trades_and_quotes import QuoteUpdate, is_same_quote, quote_of, trade_of
from services.pipeline.sequencer import parse_position


class SubscriptionContext(msgspec.Struct, frozen=True):
    """What the subscriptions of all clients share; `spread()` gives a new pace its place in time, 0 to 1."""

    backend: GatewayBackend
    directory: InstrumentDirectory
    broadcast: DataBroadcast
    limits: ClientLimits
    spread: Callable[[], float]
    desk: RecoveryDesk
    hub: ChannelHub


class _Watch(msgspec.Struct, frozen=True):
    """How the ticks and charts of one instrument are watched."""

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
        self._early: Early | None = None
        self._outlet = outlet
        self._outbox = outbox
        self._paced = paced
        self._charts = ChartFeed(outlet.take_control)
        self._watches: dict[str, _Watch] = {}
        self._sides = SideSubscriptions(context.hub, outbox, self._pace, self._in_flow)
        self._wildcards: dict[tuple[str, str], Subscribe] = {}
        self._left_out: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._watches.keys() | self._sides.symbols())

    @property
    def recovering(self) -> bool:
        """Whether a resume waits for its answer; nothing else may be obeyed before it."""
        return self._return is not None or self._early is not None

    def position(self) -> dict[str, str]:
        """Return the bus's newest position of every exchange that is watched: all before it is queued."""
        ours = {instrument.partition(":")[0] for instrument in self._watches}
        return self._positions(ours | self._sides.positioned())

    def subscribe(self, wish: Subscribe, grant: Grant = EVERYTHING) -> None:
        """Watch what is wished, or change how it is delivered; queue the answer, at once or when it is known.

        Raises `ClientMessageError`, changing nothing, beyond the client's limits (`too_many`), without the
        right to a channel (`forbidden`), or for one that is not here (`channel_unavailable`).
        """
        if {"options", "news"} & set(wish.channels) and not grant.allows(HISTORY):
            raise ClientMessageError("forbidden", "options and news need a token with the scope history")
        found, wildcards, rejected = self._resolve(wish, grant)
        self._check_limits(wish, found)
        self._sides.check(wish, found, self._limits.chains_per_client)
        self._sides.grant = grant
        groups = _groups_of(wish.channels)
        self._wildcards.update(((exchange, group), wish) for exchange in wildcards for group in groups)
        self._left_out.difference_update((key, group) for key in found for group in groups)
        answer: dict[str, Any] = {
            "type": "subscribed",
            "id": wish.id,
            "accepted": [key for key in wish.instruments if key not in rejected],
            "rejected": rejected,
            "epoch": self._backend.epoch,
        }
        if wish.resume is None:
            self._watch(found, wish, answer)
            self._begin(wish, found, answer)
        elif not {*FLOW_CHANNELS, *FROM_TICKS} & set(wish.channels):
            self._watch(found, wish, answer)
            self._begin(wish, found, answer, "channel_not_resumable")
        else:
            self._come_back(wish, found, answer)

    def unsubscribe(self, message: Unsubscribe) -> dict[str, Any]:
        """Stop watching; return the answer, which names what was watched until now."""
        groups = _groups_of(message.channels or ("tick", *side_channels_of(CHANNELS)))
        ended: dict[str, None] = {}
        for key in message.instruments:
            if key.endswith(":*"):
                exchange = key[:-2]
                for group in groups:
                    self._wildcards.pop((exchange, group), None)
                watched = (*self._watches, *sorted(self._sides.symbols()))
                ended.update(dict.fromkeys(item for item in watched if item.startswith(f"{exchange}:")))
            else:
                ended[key] = None
                self._left_out.update((key, group) for group in groups)
        stopped = self._stop_watching(list(ended), groups)
        return {
            "type": "unsubscribed",
            "id": message.id,
            "instruments": [key for key in ended if key in stopped],
        }

    def listed(self, message: ListSubscriptions) -> dict[str, Any]:
        """Return the answer that lists what is watched and how."""
        answer: dict[str, Any] = {
            "type": "subscriptions",
            "id": message.id,
            "instruments": self._watches,
            "wildcards": list(dict.fromkeys(f"{exchange}:*" for exchange, _ in self._wildcards)),
        }
        if beside := self._sides.listed():
            answer["channels"] = beside
        return answer

    def catalogue_changed(self, grant: Grant = EVERYTHING) -> list[ClientMessageError]:
        """Take in what now belongs to the wildcards, let go of what is gone; return what did not fit."""
        watched = (*self._watches, *self._sides.symbols())
        self._stop_watching([key for key in watched if not self._backend.is_known(key)])
        refusals = []
        for (exchange, group), wish in self._wildcards.items():
            found = [
                key
                for key in self._directory.keys_of(exchange)
                if (key, group) not in self._left_out
                and grant.covers(key)
                and not self._is_watched(key, group)
            ]
            room = max(0, self._limits.instruments_per_client - len(self))
            new = [key for key in found if key not in self._watches and key not in self._sides.symbols()]
            if len(new) > room:
                refusals.append(
                    ClientMessageError("too_many", f"{exchange}:* has grown beyond this client's limit")
                )
            beyond = set(new[room:])
            fitting = [key for key in found if key not in beyond]
            only = FLOW_CHANNELS if group == _FLOW else (group,)
            channels = tuple(channel for channel in wish.channels if channel in only)
            self._watch(fitting, msgspec.structs.replace(wish, channels=channels), {})
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
        if self._early is not None:
            self._early.cancelled = True
            self._early = None
        if self._return is not None:
            self._return.recovery.cancelled = True
            self._broadcast.detach(self._return.tail, self._return.found)
            self._return = None
        self._sides.clear()
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
            if key == ALL_NEWS and wish.channels == ("news",):
                continue
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
        watched = len(self._watches.keys() | self._sides.symbols() | set(found))
        if watched > self._limits.instruments_per_client:
            raise ClientMessageError(
                "too_many",
                f"a client may watch {self._limits.instruments_per_client} instruments; "
                f"this would make {watched}; nothing was changed",
            )
        paces = self._outbox.paces
        if len(paces.keys() | _paces_of(wish)) > max(len(paces), self._limits.paces_per_client):
            raise ClientMessageError(
                "too_many",
                f"a client may use {self._limits.paces_per_client} different every_ms; nothing was changed",
            )

    def _watch(
        self, instruments: list[str], wish: Subscribe, answer: dict[str, Any], *, opening: bool = True
    ) -> None:
        """Watch the wished channels; `answer` is told what of the channels beside ticks is refused."""
        self._watch_flow(instruments, wish, opening=opening)
        refused = self._sides.watch(_with_all_news(instruments, wish), wish, snapshot=opening)
        if refused:
            answer["refused"] = refused
        self._drop_unused_paces()

    def _watch_flow(self, instruments: list[str], wish: Subscribe, *, opening: bool) -> None:
        channels = tuple(channel for channel in wish.channels if channel in FLOW_CHANNELS)
        if not channels:
            return
        watch = _Watch(channels, wish.interval, wish.delivery, wish.every_ms)
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
        used |= self._sides.paces()
        for every_ms in [every_ms for every_ms in self._outbox.paces if every_ms not in used]:
            del self._outbox.paces[every_ms]

    def _stop_watching(self, instruments: list[str], groups: Iterable[str] | None = None) -> set[str]:
        """End channels (without `groups` all) of `instruments`; return those that were watched."""
        if not instruments:
            return set()
        beside = side_channels_of(CHANNELS if groups is None else groups)
        stopped = set(self._sides.unwatch(instruments, beside))
        flow = [key for key in instruments if key in self._watches]
        if flow and (groups is None or _FLOW in groups):
            self._broadcast.detach(self._outlet, flow)
            self._broadcast.detach(self._charts, flow)
            self._charts.unwatch(flow)
            for instrument in flow:
                self._watches.pop(instrument, None)
                self._outbox.forget(instrument)
            stopped.update(flow)
        self._drop_unused_paces()
        return stopped

    def _is_watched(self, instrument: str, group: str) -> bool:
        if group == _FLOW:
            return instrument in self._watches
        return any(self._sides.has(channel, instrument) for channel in side_channels_of((group,)))

    def _in_flow(self, instrument: str) -> bool:
        """Tell whether control records of an instrument, or of `EXCHANGE:*`, come with ticks or charts."""
        if not instrument.endswith(":*"):
            return instrument in self._watches
        return any(key.startswith(instrument[:-1]) for key in self._watches)

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
        if beside := self._sides.snapshots(_with_all_news(found, wish), wish):
            answer["snapshots"] = beside
        self._outbox.put(text_frame(to_json(answer)))

    # ---- coming back ----------------------------------------------------------------------------

    def _come_back(
        self, wish: Subscribe, found: list[str], answer: dict[str, Any], *, patient: bool = True
    ) -> None:
        """Answer a resume at once where nothing need be read; else hold back the tail and read."""
        resume = wish.resume
        assert resume is not None  # noqa: S101 - asked before the call
        exchanges = {instrument.partition(":")[0] for instrument in found}
        reason, spans = judge(resume, self._backend.epoch, exchanges, self._positions(exchanges))
        if reason == "position_ahead" and patient and self._desk.limits.ahead_s:
            self._await_bus(wish, found, answer, exchanges)
            return
        if spans and not self._desk.available:
            reason = reason or "history_unavailable"
        if reason:
            self._watch(found, wish, answer)
            self._begin(wish, found, answer, reason)
            return
        # Where the client is when it has read the answer: still where it was.
        answer["position"] = {exchange: resume.position[exchange] for exchange in sorted(exchanges)}
        if spans:
            self._read_missed(wish, found, answer, spans)
        else:
            self._watch(found, wish, answer, opening=False)
            self._join(wish, found, answer, [], Tail(0))

    def _await_bus(
        self, wish: Subscribe, found: list[str], answer: dict[str, Any], exchanges: set[str]
    ) -> None:
        """Put the resume off until the bus is where the client is."""
        resume, epoch = wish.resume, self._backend.epoch
        assert resume is not None  # noqa: S101 - asked before the call
        there = ahead(resume, exchanges, self._positions(exchanges))

        def reached() -> bool:
            now = self._positions(set(there))
            here = all(parse_position(now[exchange]) >= was for exchange, was in there.items())
            return here or self._backend.epoch != epoch

        def done() -> None:
            self._early = None
            answer["epoch"] = self._backend.epoch
            known = [instrument for instrument in found if self._backend.is_known(instrument)]
            self._come_back(wish, known, answer, patient=False)
            if not self.recovering:
                self._recovered()

        self._early = self._desk.await_bus(reached, done)

    def _read_missed(self, wish: Subscribe, found: list[str], answer: dict[str, Any], spans: Spans) -> None:
        told = _told_of_ticks(wish)
        ticks = "tick" in wish.channels or bool(told)
        bars = INTERVAL_OF[wish.interval] if "chart" in wish.channels else None
        tail = Tail(self._desk.limits.tail, ticks=ticks, bars=bars)
        conflated = not told and (wish.delivery == "latest" or not ticks)
        # First the tail, then off with the old watch: nobody's interest in between is lost.
        self._broadcast.attach(tail, found, tail.pending if conflated else None)
        self._sides.unwatch(found, side_channels_of(set(wish.channels) & set(FROM_TICKS)))
        channels = tuple(channel for channel in wish.channels if channel in FLOW_CHANNELS)
        if channels:
            self._broadcast.detach(self._outlet, found)
            self._broadcast.detach(self._charts, found)
            self._charts.unwatch(found)
            watch = _Watch(channels, wish.interval, wish.delivery, wish.every_ms)
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
        # What went from the catalogue meanwhile is not watched again.
        found = [instrument for instrument in waiting.found if self._backend.is_known(instrument)]
        self._watch(found, wish, waiting.answer, opening=bool(reason))
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
        told = _told_of_ticks(wish)
        again = (*missed, *tail.items)
        self._outbox.restore(text_frame(to_json(answer)), _tell(again, told, wish) if told else again)
        if wish.delivery == "latest" and "tick" in wish.channels:
            pending = self._pace(wish.every_ms).pending
            pending.update(tail.pending)
            # Positions of conflated ticks say nothing of other instruments: everyone's newest is sent.
            for instrument in found:
                newest = self._broadcast.latest(instrument)
                if newest is not None and instrument not in pending:
                    pending[instrument] = Publication(newest)


_FLOW = "tick"
"""The name of ticks and charts together: one subscription, that another `subscribe` replaces."""


def _groups_of(channels: Iterable[str]) -> tuple[str, ...]:
    """Return the subscriptions that channels make: one of ticks and charts, one of each other channel."""
    return tuple(dict.fromkeys(_FLOW if channel in FLOW_CHANNELS else channel for channel in channels))


def _with_all_news(instruments: list[str], wish: Subscribe) -> list[str]:
    wanted = wish.channels == ("news",) and ALL_NEWS in wish.instruments
    return [*instruments, ALL_NEWS] if wanted else instruments


def _told_of_ticks(wish: Subscribe) -> frozenset[str]:
    """Return the channels of a wish that are made of every tick."""
    return frozenset(
        channel for channel in FROM_TICKS if channel in wish.channels and every_ms_of(channel, wish) is None
    )


def _tell(
    again: Iterable[Publication], told: frozenset[str], wish: Subscribe
) -> Iterator[Publication | SideMessage]:
    """Yield what was missed as the channels of a wish tell it, in order."""
    with_ticks = "tick" in wish.channels and wish.delivery == "all"
    last: dict[str, QuoteUpdate] = {}
    for publication in again:
        tick = publication.record
        if not isinstance(tick, DataIngestionFormat):
            yield publication
            continue
        if with_ticks:
            yield publication
        if "trade" in told and (trade := trade_of(tick)) is not None:
            yield trade_message(trade)
        if "quote" in told and not is_same_quote(last.get(tick.symbol), tick):
            quote = quote_of(tick)
            if quote is not None:
                last[tick.symbol] = quote
                yield quote_message(quote)


def _paces_of(wish: Subscribe | _Watch) -> set[int]:
    """Return the paces, in ms, at which a client is served what it wishes."""
    paces = {wish.every_ms} if wish.delivery == "latest" and "tick" in wish.channels else set()
    if isinstance(wish, Subscribe):
        beside = (every_ms_of(channel, wish) for channel in side_channels_of(wish.channels))
        paces |= {every_ms for every_ms in beside if every_ms is not None}
    return paces | ({_chart_pace(wish)} if "chart" in wish.channels else set())


def _chart_pace(wish: Subscribe | _Watch) -> int:
    """Return how often a forming bar is shown, in ms; with `all` too it is not shown with every tick."""
    return wish.every_ms if wish.delivery == "latest" else DEFAULT_EVERY_MS
