"""A small model of Redis for the writers' commands, behind a connection that tests control step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from services.storage.answers import AS_EXPECTED, Reply, ReplyError
from services.storage.resp import bulk

OUT_OF_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."


class RedisModel:
    """What the writers' commands do to the data, in the order they are carried out."""

    def __init__(self) -> None:
        self.series: dict[str, dict[int, float]] = {}
        self.streams: dict[str, list[tuple[tuple[int, int], dict[str, str]]]] = {}
        self.hashes: dict[str, dict[str, str]] = {}
        self.trims: list[tuple[str, tuple[int, int]]] = []
        """The stream and the position of every entry that came with a trimming. Nothing is removed."""
        self.full = False
        self.hidden: set[str] = set()
        """Series that refuse samples, as missing ones do, until they are made again; they keep their data."""
        self._transaction: list[list[str]] | None = None
        self._spoiled = False

    def execute(self, words: list[str]) -> Reply:
        """Carry out one command and return its reply."""
        name = words[0]
        if name == "MULTI":
            self._transaction, self._spoiled = [], False
            return "OK"
        if name == "EXEC":
            return self._execute_transaction()
        if self.full:
            self._spoiled = True
            return ReplyError(OUT_OF_MEMORY)
        if self._transaction is not None:
            self._transaction.append(words)
            return "QUEUED"
        return self._carry_out(words)

    def disconnect(self) -> None:
        """Forget what only lives as long as the connection."""
        self._transaction = None

    def _execute_transaction(self) -> Reply:
        commands, self._transaction = self._transaction, None
        if commands is None or self._spoiled:
            return ReplyError("EXECABORT Transaction discarded because of previous errors.")
        return [self._carry_out(words) for words in commands]

    def _carry_out(self, words: list[str]) -> Reply:
        handlers: dict[str, Callable[[list[str]], Reply]] = {
            "TS.CREATE": self._create,
            "TS.ALTER": lambda arguments: "OK" if arguments[0] in self.series else ReplyError("TSDB: no key"),
            "TS.MADD": self._add_samples,
            "XADD": self._add_entry,
            "HSET": self._set_fields,
            "HDEL": self._delete_fields,
        }
        return handlers[words[0]](words[1:])

    def _create(self, arguments: list[str]) -> Reply:
        if arguments[0] in self.hidden:
            self.hidden.remove(arguments[0])
            return "OK"
        if arguments[0] in self.series:
            return ReplyError("ERR TSDB: key already exists")
        self.series[arguments[0]] = {}
        return "OK"

    def _add_samples(self, arguments: list[str]) -> Reply:
        replies: list[Reply] = []
        for key, at_ms, value in zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True):
            if key in self.series and key not in self.hidden:
                self.series[key][int(at_ms)] = float(value)
                replies.append(int(at_ms))
            else:
                replies.append(ReplyError("ERR TSDB: the key is not a TSDB key"))
        return replies

    def _add_entry(self, arguments: list[str]) -> Reply:
        key, *rest = arguments
        stream = self.streams.setdefault(key, [])
        trims = rest[0] == "MAXLEN"
        entry_id, *fields = rest[3:] if trims else rest
        ms, _, seq = entry_id.partition("-")
        position = (int(ms), int(seq))
        if stream and position <= stream[-1][0]:
            return ReplyError(
                "ERR The ID specified in XADD is equal or smaller than the target stream top item"
            )
        if trims:
            self.trims.append((key, position))
        stream.append((position, dict(zip(fields[::2], fields[1::2], strict=True))))
        return entry_id

    def _set_fields(self, arguments: list[str]) -> Reply:
        fields = self.hashes.setdefault(arguments[0], {})
        before = len(fields)
        fields.update(zip(arguments[1::2], arguments[2::2], strict=True))
        return len(fields) - before

    def _delete_fields(self, arguments: list[str]) -> Reply:
        fields = self.hashes.get(arguments[0], {})
        return sum(fields.pop(name, None) is not None for name in arguments[1:])


class ModelConnection:
    """Stands in for `RedisConnection`: what was sent waits until the test carries it out and answers."""

    def __init__(self, model: RedisModel) -> None:
        self.model = model
        self.closed_by: Exception | None = None
        self.on_closed: Callable[[], None] | None = None
        self.writable = True
        self.sent: deque[tuple[bytes, int, Callable[[list[Reply]], None], bytes]] = deque()

    def takes_a_batch(self) -> bool:
        return self.writable and self.closed_by is None

    def send(
        self,
        payload: bytes,
        replies: int,
        on_replies: Callable[[list[Reply]], None],
        expected: bytes = b"",
    ) -> None:
        if self.closed_by is None:
            self.sent.append((payload, replies, on_replies, expected))

    def abort(self, reason: Exception) -> None:
        if self.closed_by is None:
            self.closed_by = reason
            self.sent.clear()
            self.model.disconnect()
            if self.on_closed is not None:
                self.on_closed()

    def answer_next(self) -> None:
        """Carry out the oldest batch and deliver its replies."""
        payload, announced, on_replies, expected = self.sent.popleft()
        replies = [self.model.execute(words) for words in _commands(payload)]
        assert len(replies) == announced, "the batch does not cause the replies it announces"
        as_expected = b"".join(map(_as_bytes, replies)) == expected
        on_replies(AS_EXPECTED if as_expected else replies)

    def waiting(self) -> list[list[str]]:
        """Return the commands that were sent and not carried out."""
        return [words for payload, *_ in self.sent for words in _commands(payload)]

    def carry_out(self, commands: int) -> None:
        """Carry out so many commands of what was sent, and deliver nothing."""
        for words in self.waiting()[:commands]:
            self.model.execute(words)


def _as_bytes(reply: Reply) -> bytes:
    """Return a reply as Redis sends it: a word as a status, other text as a bulk string."""
    match reply:
        case list():
            return b"*%d\r\n%b" % (len(reply), b"".join(map(_as_bytes, reply)))
        case int():
            return b":%d\r\n" % reply
        case Exception():
            return b"-%b\r\n" % str(reply).encode()
        case "OK" | "QUEUED":
            return b"+%b\r\n" % str(reply).encode()
    return bulk(str(reply)).encode()


def _commands(payload: bytes) -> list[Any]:
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    reader.feed(payload)
    commands = []
    while (words := reader.gets()) is not False:
        commands.append(words)
    return commands
