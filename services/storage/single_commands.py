"""One command at a time over a connection of its own, for what is asked of Redis again and again.

Stands beside redis-py, which costs twice as much a command and more: for the looks and reports that are due
every second, also while nothing happens. Connects at the first command and again after a loss. Repeats
nothing: an outcome that is unknown is an error, and the next turn asks anew.
"""

from __future__ import annotations

import asyncio

import hiredis

from services.errors import StorageError, StorageUnavailable
from services.storage.address import parse_address
from services.storage.connection import RedisConnection, open_connection
from services.storage.failures import server_refusal
from services.storage.resp import command, to_bytes


class SingleCommands:
    """Sends commands one after the other; `name` is what Redis lists the connection as."""

    def __init__(self, redis_url: str, name: str) -> None:
        self._address = parse_address(redis_url)
        self._name = name
        self._connection: RedisConnection | None = None

    async def ask(self, *words: str) -> object:
        """Return the reply to one command: text, a number, a list or None.

        Raises `StorageError` when Redis does not answer in time, or refuses.
        """
        connection = self._connection
        if connection is None or connection.closed_by is not None:
            connection = self._connection = await open_connection(self._address, self._name)
        answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def take(replies: list[object]) -> None:
            if not answered.done():
                answered.set_result(replies[0])

        def closed() -> None:
            if not answered.done():
                answered.set_result(None)

        connection.on_closed = closed
        connection.send(to_bytes([command(*words)]), 1, take)
        reply = await answered
        if connection.closed_by is not None:
            if isinstance(connection.closed_by, StorageError):
                raise connection.closed_by
            raise StorageUnavailable(f"the connection to Redis was lost: {connection.closed_by}")
        if isinstance(reply, hiredis.ReplyError):
            raise server_refusal(str(reply)) or StorageUnavailable(f"Redis refuses {words[0]}: {reply}")
        return reply

    def close(self) -> None:
        """Cut the connection; harmless when there is none. The next command opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort(StorageUnavailable("the connection was closed"))
