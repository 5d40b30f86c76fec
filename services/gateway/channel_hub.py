"""Who watches which channel beside ticks and charts, and the feeds that fill them.

    tick flow, depth desk, option chains, news ──► feed ──► ChannelHub ──► outboxes of clients

Stands beside the broadcast. A feed is told when a topic gets its first watcher and loses its last one, so
what nobody watches costs nothing. An outlet only queues; nothing here waits, nothing is done per tick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from services.data_broadcast import Publication
from services.errors import ClientProtocolError
from services.gateway.side_messages import Channel, SideMessage
from services.market_data.events import NewsUpdate

Topic = tuple[str, str]
"""What a channel is watched for: the instrument key (`*` for all news), and a detail such as an expiry."""
Waiting = dict[Topic, SideMessage]
"""Newest message per topic that a conflating outlet has not sent yet."""


class ChannelRefused(ClientProtocolError):
    """A topic cannot be had; `code` says why in a word."""


class SideOutlet(Protocol):
    """What a watcher gives to `attach`. Both methods only queue: they never block and never raise."""

    def take_side(self, message: SideMessage) -> None:
        """Queue one message that may not be conflated."""
        ...

    def take_flow_control(self, publication: Publication) -> None:
        """Queue one control record of an instrument whose quotes or trades are watched."""
        ...


class Feed(Protocol):
    """What fills one channel. All of it is called on the event loop and never waits."""

    def opened(self, topic: Topic) -> None:
        """Begin to publish a topic; raises `ChannelRefused`, having changed nothing."""
        ...

    def closed(self, topic: Topic) -> None:
        """Publish a topic no longer."""
        ...

    def newest(self, topic: Topic) -> SideMessage | None:
        """Return what a new watcher begins with, None when there is nothing yet."""
        ...


class Audience:
    """Who watches one topic: with the newest only, or with every message."""

    __slots__ = ("conflated", "queued")

    def __init__(self) -> None:
        self.conflated: dict[SideOutlet, Waiting] = {}
        self.queued: dict[SideOutlet, Callable[[SideMessage], None]] = {}

    def tell(self, topic: Topic, message: SideMessage) -> None:
        """Hand a message to everybody."""
        for waiting in self.conflated.values():
            waiting[topic] = message
        for take in self.queued.values():
            take(message)

    def outlets(self) -> Iterable[SideOutlet]:
        """Return everybody."""
        return (*self.conflated, *self.queued)


class ChannelHub:
    """The channels of one gateway. `connect` their feeds before the first client comes."""

    def __init__(self) -> None:
        self._feeds: dict[Channel, Feed] = {}
        self._audiences: dict[Channel, dict[Topic, Audience]] = {}
        self.latest_news: Callable[[Iterable[str], int], list[NewsUpdate]] = lambda _instruments, _count: []
        """The newest articles about instruments (`*`: about anything), the last published first."""

    def connect(self, channel: Channel, feed: Feed) -> None:
        """Let `feed` fill a channel."""
        self._feeds[channel] = feed
        self._audiences[channel] = {}

    def has(self, channel: Channel) -> bool:
        """Tell whether a channel is filled in this process."""
        return channel in self._feeds

    def topics(self, channel: Channel) -> Mapping[Topic, Audience]:
        """Return what of a channel is watched just now, and by whom."""
        return self._audiences.get(channel, {})

    def attach(self, channel: Channel, topic: Topic, outlet: SideOutlet, waiting: Waiting | None) -> None:
        """Let `outlet` watch: through `waiting` (newest only), or every message when it is None.

        Raises `ChannelRefused`, having changed nothing. What is watched already changes over to this way.
        """
        audiences = self._audiences[channel]
        audience = audiences.get(topic)
        if audience is None:
            audience = audiences[topic] = Audience()
            try:
                self._feeds[channel].opened(topic)
            except ChannelRefused:
                del audiences[topic]
                raise
        if waiting is None:
            audience.conflated.pop(outlet, None)
            audience.queued[outlet] = outlet.take_side
        else:
            audience.queued.pop(outlet, None)
            audience.conflated[outlet] = waiting

    def detach(self, channel: Channel, topic: Topic, outlet: SideOutlet) -> None:
        """End a watch; harmless when there is none."""
        audiences = self._audiences.get(channel, {})
        audience = audiences.get(topic)
        if audience is None:
            return
        audience.conflated.pop(outlet, None)
        audience.queued.pop(outlet, None)
        if not audience.conflated and not audience.queued:
            del audiences[topic]
            self._feeds[channel].closed(topic)

    def newest(self, channel: Channel, topic: Topic) -> SideMessage | None:
        """Return what a new watcher of a topic begins with."""
        return self._feeds[channel].newest(topic)

    def publish(self, topic: Topic, message: SideMessage) -> None:
        """Hand a message to those who watch `topic` of its channel."""
        audience = self._audiences[message.channel].get(topic)
        if audience is not None:
            audience.tell(topic, message)

    def publish_once(self, topics: Iterable[Topic], message: SideMessage) -> None:
        """Queue a message with everybody who watches any of `topics`, once with each."""
        audiences = self._audiences[message.channel]
        takes: dict[SideOutlet, Callable[[SideMessage], None]] = {}
        for topic in topics:
            audience = audiences.get(topic)
            if audience is not None:
                takes.update(audience.queued)
        for take in takes.values():
            take(message)
