"""From the bytes of a Redis connection to the answer of each batch, in order.

Beneath `connection`, which owns the socket. Who knows what Redis answers when all is well says so: that
answer is compared as it came, byte for byte, and only another one is taken apart. Never judges a reply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import hiredis

ReplyError: type[Exception] = hiredis.ReplyError
Reply = object
"""What hiredis makes of a reply: `str`, `int`, `list`, None, or a `ReplyError`."""
OnReplies = Callable[[list[Reply]], None]
AS_EXPECTED: list[Reply] = []
"""Stands for the replies of a batch whose answer was, byte for byte, the expected one."""


class Answers:
    """The batches that wait for an answer, first in, first out."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace")
        self._waiting: deque[tuple[int, OnReplies, bytes]] = deque()
        self._replies: list[Reply] = []
        self._parsing = False
        self._held = b""

    def __bool__(self) -> bool:
        """Whether a batch waits for its answer."""
        return bool(self._waiting)

    def expect(self, replies: int, on_replies: OnReplies, expected: bytes) -> None:
        """Give the next `replies` replies to `on_replies`, or `AS_EXPECTED` if all of them are `expected`."""
        self._waiting.append((replies, on_replies, expected))

    def clear(self) -> None:
        """Expect nothing any more."""
        self._waiting.clear()

    def take(self, data: bytes) -> Reply:
        """Hand out what `data` completes; return a reply that nobody waits for, else False.

        Raises `hiredis.ProtocolError` for what is none of Redis's protocol.
        """
        if not self._parsing:
            data = self._compare(self._held + data if self._held else data)
            if not data:
                return False
            self._parsing = True
        reader = self._reader
        reader.feed(data)
        next_reply = reader.gets
        replies = self._replies
        while self._waiting:
            wanted, on_replies, _ = self._waiting[0]
            missing = wanted - len(replies)
            while missing:
                reply = next_reply()
                if reply is False:
                    return False
                replies.append(reply)
                missing -= 1
            self._waiting.popleft()
            self._replies = []
            on_replies(replies)
            replies = self._replies
            if not reader.has_data():
                # Nothing is half read: the next answer can be compared as it comes.
                self._parsing = False
                return False
        return next_reply()

    def last_error(self) -> str | None:
        """Return the first error among the replies of a batch whose answer is not complete."""
        return first_error(self._replies)

    def _compare(self, data: bytes) -> bytes:
        """Hand out the answers that are as expected; return what is left, which is to be taken apart."""
        self._held = b""
        while self._waiting and data:
            _, on_replies, expected = self._waiting[0]
            if expected and data.startswith(expected):
                self._waiting.popleft()
                data = data[len(expected) :]
                on_replies(AS_EXPECTED)
            elif expected.startswith(data):
                self._held = data
                return b""
            else:
                break
        return data


def first_error(replies: list[Reply]) -> str | None:
    """Return the text of the first error among `replies`, None when there is none."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            return str(reply)
    return None
