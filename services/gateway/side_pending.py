"""What waits for a client's pace of the channels beside ticks and charts. Pure."""

from __future__ import annotations

from itertools import islice

from services.gateway.channel_hub import Topic, Waiting
from services.gateway.side_messages import GROUPED, MAX_MESSAGES_PER_FRAME, Channel, SideMessage, frames_of


class SidePending:
    """The newest message per channel and topic of one pace."""

    __slots__ = ("_by_channel",)

    def __init__(self) -> None:
        self._by_channel: dict[Channel, Waiting] = {}

    def of(self, channel: Channel) -> Waiting:
        """Return where a channel's messages wait."""
        return self._by_channel.setdefault(channel, {})

    @property
    def waiting(self) -> bool:
        """Whether there is anything to send."""
        return any(self._by_channel.values())

    def forget(self, channel: Channel, topic: Topic) -> None:
        """Drop what waits of a topic."""
        waiting = self._by_channel.get(channel)
        if waiting:
            waiting.pop(topic, None)

    def taken_before(self, instrument: str, exchange: str) -> list[SideMessage]:
        """Take the quotes that a control record concerns: of an instrument, or (empty) of an exchange."""
        quotes = self._by_channel.get("quote")
        if not quotes:
            return []
        if instrument:
            before = quotes.pop((instrument, ""), None)
            return [] if before is None else [before]
        concerned = [topic for topic in quotes if topic[0].startswith(f"{exchange}:")]
        return [quotes.pop(topic) for topic in concerned]

    def pop(self, budget_bytes: int) -> list[bytes]:
        """Take frames of about `budget_bytes`."""
        taken: list[bytes] = []
        size = 0
        for channel, waiting in self._by_channel.items():
            most = MAX_MESSAGES_PER_FRAME if channel in GROUPED else 1
            while waiting and size < budget_bytes:
                batch = [waiting.pop(topic) for topic in list(islice(waiting, most))]
                made = frames_of(batch)
                taken += made
                size += sum(map(len, made))
        return taken
