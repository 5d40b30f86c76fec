"""Resolves host names without ever keeping the process from stopping.

Stands under the dialler. The event loop's own resolver uses threads that the process waits for at its
end; a name server that does not answer would hold up a stop for half a minute. These threads are
daemons, and there is at most one for each name.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


class Resolver:
    """Looks up stream addresses; callers that ask for the same name share one look-up."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], asyncio.Future[list[AddressInfo]]] = {}

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of `host`. Raises `socket.gaierror` (an `OSError`) for an unknown name."""
        with contextlib.suppress(socket.gaierror):
            return _look_up(host, port, socket.AI_NUMERICHOST)
        key = (host, port)
        answer = self._pending.get(key)
        if answer is None or answer.get_loop() is not asyncio.get_running_loop():
            answer = asyncio.get_running_loop().create_future()
            self._pending[key] = answer
            answer.add_done_callback(lambda done: self._settle(key, done))
            threading.Thread(
                target=_work, args=(host, port, answer), name=f"resolve-{host}", daemon=True
            ).start()
        return await asyncio.shield(answer)

    def _settle(self, key: tuple[str, int], done: asyncio.Future[list[AddressInfo]]) -> None:
        if self._pending.get(key) is done:
            del self._pending[key]
        if not done.cancelled():
            # Whoever asked may have given up; the outcome is nobody's loss then.
            done.exception()


def _look_up(host: str, port: int, flags: int = 0) -> list[AddressInfo]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def _work(host: str, port: int, answer: asyncio.Future[list[AddressInfo]]) -> None:
    try:
        found = _look_up(host, port)
    except (OSError, UnicodeError) as error:
        _tell(answer, None, error)
    else:
        _tell(answer, found, None)


def _tell(
    answer: asyncio.Future[list[AddressInfo]], found: list[AddressInfo] | None, error: Exception | None
) -> None:
    def settle() -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found or [])

    # The loop may be closed by the time the answer comes.
    with contextlib.suppress(RuntimeError):
        answer.get_loop().call_soon_threadsafe(settle)
