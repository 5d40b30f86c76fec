"""The client's side of the protocol: what to say, what was heard, where we are. Pure, no I/O.

One `Session` lives as long as its `Client` and sees every connection. The rule that makes resuming
exact: the position is that of the last message that was taken in, and nothing else moves it. With
`latest` there is no such position (newer values overtake older ones of other instruments), so a
reconnection begins with a snapshot there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from marketd_client.errors import SubscriptionRefused
from marketd_client.positions import START, is_after, order
from marketd_client.records import (
    Bar,
    Control,
    Record,
    ResumePoint,
    ServerNotice,
    Skipped,
    Subscribed,
    Tick,
)
from marketd_client.side_messages import article, quote, trade, updates_of

MAX_MESSAGE_BYTES = 15 * 1024
"""The daemon takes 16 KiB; the rest of a message needs some of it."""


class OutOfOrder(Exception):
    """The daemon sent a position that is not later than the one before it."""


class Unreadable(Exception):
    """The other side does not speak this protocol."""


class _Wish(NamedTuple):
    """A subscription that is not answered yet: whether it repeats one, and whether it resumes."""

    again: bool
    resumes: bool


class Session:
    """What one client wants, has asked for and has heard."""

    def __init__(
        self,
        instruments: Iterable[str],
        *,
        delivery: Literal["all", "latest"] = "latest",
        every_ms: int = 100,
        channels: Iterable[str] = ("tick",),
        interval: str = "1",
        expiry: str | int | None = None,
        levels: int | None = None,
        resume: ResumePoint | None = None,
    ) -> None:
        """Raises ValueError for a resume point that is none, or one that `latest` cannot use."""
        if resume is not None and delivery != "all":
            raise ValueError('only delivery="all" can be resumed: "latest" begins with a snapshot')
        self._wanted: dict[str, None] = dict.fromkeys(instruments)
        self._options: dict[str, Any] = {"delivery": delivery, "channels": list(channels)}
        if delivery == "latest":
            self._options["every_ms"] = every_ms
        if "chart" in self._options["channels"]:
            self._options["interval"] = interval
        if expiry is not None:
            self._options["expiry"] = expiry
        if levels is not None:
            self._options["levels"] = levels
        self.resumable = delivery == "all"
        self._several = len({*self._options["channels"]} & {"tick", "quote", "trade"}) > 1
        self._epoch = resume.epoch if resume else ""
        self._position: dict[str, str] = dict(resume.position) if resume else {}
        for text in self._position.values():
            order(text)
        self._was_here = resume is not None
        self._next_id = 0
        self._asked: dict[int, _Wish] = {}

    @property
    def instruments(self) -> tuple[str, ...]:
        """What is wanted at present."""
        return tuple(self._wanted)

    def resume_point(self) -> ResumePoint | None:
        """Return where everything taken in so far ends, None before the first answer or with `latest`."""
        return ResumePoint(self._epoch, dict(self._position)) if self.resumable and self._epoch else None

    # ---- saying ---------------------------------------------------------------------------------

    def opening(self) -> list[str]:
        """Return the messages that begin a connection."""
        self._asked.clear()
        batches = _batches(self._wanted)
        point = self.resume_point()
        if len(batches) > 1:
            # Two messages would be resumed one after the other, out of order with each other.
            point = None
        if point is None:
            self._position = {}
        return [self._subscribe(batch, point, again=self._was_here) for batch in batches]

    def add(self, instruments: Iterable[str]) -> list[str]:
        """Want more; return the messages that say so on an open connection."""
        added = [key for key in dict.fromkeys(instruments) if key not in self._wanted]
        self._wanted.update(dict.fromkeys(added))
        return [self._subscribe(batch, None, again=False) for batch in _batches(added)]

    def remove(self, instruments: Iterable[str]) -> list[str]:
        """Want less; return the messages that say so on an open connection."""
        removed = [key for key in dict.fromkeys(instruments) if key in self._wanted]
        for key in removed:
            del self._wanted[key]
        return [
            json.dumps({"action": "unsubscribe", "id": self._new_id(), "instruments": batch})
            for batch in _batches(removed)
        ]

    def forget_position(self) -> None:
        """Do not resume at the next connection: what was heard cannot be trusted."""
        self._position = {}
        self._epoch = ""

    def _subscribe(self, instruments: list[str], point: ResumePoint | None, *, again: bool) -> str:
        message_id = self._new_id()
        self._asked[message_id] = _Wish(again, resumes=point is not None)
        message = {"action": "subscribe", "id": message_id, "instruments": instruments, **self._options}
        if point is not None:
            message["resume"] = {"epoch": point.epoch, "position": dict(point.position)}
        return json.dumps(message)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # ---- hearing --------------------------------------------------------------------------------

    def hear(self, text: str | bytes) -> list[Record]:
        """Return the records in one message.

        Raises `OutOfOrder`, `Unreadable`, and `SubscriptionRefused` when the daemon refuses our wish.
        """
        try:
            message = json.loads(text)
            kind = message["type"]
            if kind == "raw_tick":
                self._advance(message["position"])
                return [tick(key, data) for key, data in message["data"].items()]
            records = self._heard_other(kind, message)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreadable(f"not a message of this protocol: {text[:80]!r}") from error
        return records

    def _heard_other(self, kind: str, message: dict[str, Any]) -> list[Record]:
        updates = updates_of(kind, message)
        if updates is not None:
            self._advance(message.get("position", {}))
            return list(updates)
        match kind:
            case "subscribed":
                return [self._subscribed(message)]
            case "chart_update":
                key, interval = message["instrumentKey"], message["interval"]
                return [Bar(key, interval, *candle[:6]) for candle in message["ohlcv"]]
            case "skipped":
                return [Skipped(message["n"], message.get("instruments", {}), message.get("channels", {}))]
            case "error":
                code, text = message["code"], message.get("message", "")
                if message.get("id") in self._asked:
                    raise SubscriptionRefused(code, text)
                return [ServerNotice(code, text)]
            case "pong":
                self._advance(message.get("position", {}))
                return []
            case "unsubscribed" | "subscriptions" | "authenticated":
                return []
            case "resync":
                # Redis begins anew; positions only go on, so the next resume names the new epoch.
                self._epoch = message["epoch"]
        position = message.get("position", {})
        self._advance(position)
        known = ("type", "instrumentKey", "ts_ms", "src", "position")
        fields = {name: value for name, value in message.items() if name not in known}
        where = next(iter(position.values()), None)
        return [
            Control(
                kind, message["instrumentKey"], message.get("ts_ms"), message.get("src", ""), fields, where
            )
        ]

    def _subscribed(self, message: dict[str, Any]) -> Subscribed:
        wish = self._asked.pop(message["id"])
        recovered = bool(message.get("recovered")) if wish.again else None
        accepted, position, epoch = message["accepted"], message["position"], message["epoch"]
        if wish.resumes and not recovered:
            self._position = {}
        for key in accepted:
            # What was missed follows a recovery, so a position that we have stays. An exchange without
            # one has no record yet: all that it will ever have is still to come.
            exchange = key.partition(":")[0]
            if exchange == "*":
                continue
            self._position.setdefault(exchange, position.get(exchange, START))
        self._epoch, self._was_here = epoch, True
        snapshot = {key: tick(key, data) for key, data in message["snapshot"].items()}
        reason = message.get("reason", "")
        newest = message.get("snapshots", {})
        return Subscribed(
            tuple(accepted),
            message["rejected"],
            epoch,
            position,
            snapshot,
            recovered,
            reason,
            message.get("refused", {}),
            {key: quote(key, data) for key, data in newest.get("quote", {}).items()},
            {key: trade(key, data) for key, data in newest.get("trade", {}).items()},
            tuple(map(article, newest.get("news", ()))),
        )

    def _advance(self, position: Mapping[str, str]) -> None:
        if not self.resumable:
            return
        for exchange, text in position.items():
            last = self._position.get(exchange)
            # With several channels one record is told of in several messages.
            stays = text == last and self._several
            if last is not None and not stays and not is_after(text, last):
                raise OutOfOrder(f"{exchange}: {text} came after {last}")
        self._position.update(position)


def tick(instrument: str, data: Mapping[str, Any]) -> Tick:
    """Return the tick in one value of a `raw_tick` message or a snapshot."""
    return Tick(
        instrument,
        data["last_price"],
        data["ts_ms"],
        data.get("ltq"),
        data.get("bid"),
        data.get("ask"),
        None,
        None,
        data.get("cumulative_volume"),
        data.get("oi"),
        data.get("open"),
        data.get("high"),
        data.get("low"),
        data.get("previous_close"),
        data.get("src", ""),
        tuple(data.get("flags") or ()),
    )


def _batches(instruments: Iterable[str]) -> list[list[str]]:
    batches: list[list[str]] = []
    size = MAX_MESSAGE_BYTES
    for key in instruments:
        needed = len(json.dumps(key)) + 2
        if not batches or size + needed > MAX_MESSAGE_BYTES - 1_500:
            batches.append([])
            size = 0
        batches[-1].append(key)
        size += needed
    return batches
