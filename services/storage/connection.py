"""One connection to Redis for one writer: whole batches of commands out, their replies back in order.

Stands beneath the writers. A batch is opaque bytes with the number of replies it will cause; batches
are answered first in, first out (`answers`). When the server is silent too long, or anything else goes
wrong, the connection is cut and every batch still on it has an unknown outcome: its owner sends it again.
Never retries, never reconnects and never interprets the reply of a batch.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

import hiredis

from services.errors import StorageError, StorageMisconfigured, StorageUnavailable
from services.storage.address import RedisAddress
from services.storage.answers import Answers, OnReplies, Reply, ReplyError
from services.storage.credentials import current_login
from services.storage.failures import server_refusal
from services.storage.resp import command, to_bytes

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 2.0
_WRITE_BUFFER_BYTES = 1 << 20
_LATE_TIMER_S = 0.25


class Fence(NamedTuple):
    """What a connection must prove before it is used, and what must hold at every batch.

    The key must hold `value` after the connection got its name; `is_open` is asked before each batch.
    """

    key: str
    value: str
    is_open: Callable[[], bool]


class RedisConnection(asyncio.Protocol):
    """A connection that is logged in and answers. Made by `open_connection`.

    `closed_by` is None while the connection is usable, then the reason it is not. `on_closed` is
    called once when that happens.
    """

    def __init__(self, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self.closed_by: Exception | None = None
        self.on_closed: Callable[[], None] | None = None
        self.writable = True
        self.fence: Fence | None = None
        self.guard: Callable[[bytes], None] | None = None
        """Looks at every batch before it is sent, and raises `StorageError` for one that must not be."""
        self._reply_timeout_s = reply_timeout_s
        self._answers = Answers()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._progress_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def send(
        self,
        payload: bytes,
        replies: int,
        on_replies: OnReplies,
        expected: bytes = b"",
    ) -> None:
        """Send one batch; `on_replies` gets its replies, unless the connection is lost before that.

        It gets `AS_EXPECTED` when the whole answer is `expected`; empty where nothing special is.
        """
        if self._transport is None or self.closed_by is not None:
            return
        if self.guard is not None:
            self.guard(payload)
        if not self._answers:
            self._progress_s = self._loop.time()
            if self._timer is None:
                self._arm(self._reply_timeout_s)
        self._answers.expect(replies, on_replies, expected)
        self._transport.write(payload)

    def takes_a_batch(self) -> bool:
        """Tell whether a batch may be sent now; a connection whose fence has closed is cut."""
        if not self.writable or self.closed_by is not None:
            return False
        if self.fence is not None and not self.fence.is_open():
            self.abort(StorageUnavailable("the lease of this Redis was not renewed in time"))
            return False
        return True

    def abort(self, reason: Exception) -> None:
        """Cut the connection at once. Harmless when it is cut already."""
        if self.closed_by is not None:
            return
        self.closed_by = reason
        self._answers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        if self.on_closed is not None:
            self.on_closed()

    # ---- called by the event loop ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport and bound its write buffer."""
        # uvloop's transports are no subclasses of asyncio's, so there is nothing to check against.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Parse replies and hand each complete batch of them to its owner."""
        self._progress_s = self._loop.time()
        try:
            surplus = self._answers.take(data)
        except hiredis.ProtocolError as error:
            self.abort(StorageUnavailable(f"Redis answered something that is not its protocol: {error}"))
        else:
            if surplus is not False:
                self.abort(_surplus(surplus))

    def eof_received(self) -> bool:
        """Let the transport close: a half-open Redis is of no use."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Say why the connection ended, in the server's own words where it left any."""
        if exc is not None and not isinstance(exc, OSError):
            self.abort(exc)
            return
        said = self._answers.last_error()
        if said is not None:
            self.abort(server_refusal(said) or StorageUnavailable(f"Redis said: {said}"))
            return
        self.abort(StorageUnavailable(f"the connection to Redis was lost{f': {exc}' if exc else ''}"))

    def pause_writing(self) -> None:
        """Note that the socket takes no more for the moment."""
        self.writable = False

    def resume_writing(self) -> None:
        """Note that the socket takes data again."""
        self.writable = True

    # ---- silence --------------------------------------------------------------------------------

    def _arm(self, after_s: float) -> None:
        self._timer = self._loop.call_later(after_s, self._check_silence, self._loop.time() + after_s)

    def _check_silence(self, due_s: float) -> None:
        now_s = self._loop.time()
        self._timer = None
        if not self._answers:
            return
        left_s = self._progress_s + self._reply_timeout_s - now_s
        if left_s > 0:
            self._arm(left_s)
        elif now_s - due_s > _LATE_TIMER_S:
            # It was our own loop that stood still: the answer may lie in the socket already.
            self._arm(_LATE_TIMER_S)
        else:
            self.abort(StorageUnavailable(f"Redis did not answer within {self._reply_timeout_s:g} s"))


async def open_connection(
    address: RedisAddress,
    name: str,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    reply_timeout_s: float = REPLY_TIMEOUT_S,
    fence: Fence | None = None,
) -> RedisConnection:
    """Connect, log in, select the database and name the connection, within `connect_timeout_s`.

    With a `fence` the server must say, after the naming, that it stands.

    Raises `StorageUnavailable` when it may work later, `StorageMisconfigured` when an operator must act.
    """
    loop = asyncio.get_running_loop()
    connection = RedisConnection(reply_timeout_s)
    try:
        async with asyncio.timeout(connect_timeout_s):
            if address.path is not None:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=address.tls)
            await _log_in(connection, address, name, fence)
    except TimeoutError as error:
        connection.abort(StorageUnavailable("given up"))
        raise StorageUnavailable(
            f"Redis at {address} did not answer within {connect_timeout_s:g} s"
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise StorageMisconfigured(
            f"TLS with Redis at {address} failed: {error.reason}, {error.verify_message.rstrip('.')} "
            "(renew the certificate, or name its authority in REDIS_URL with ssl_ca_certs)"
        ) from error
    except ssl.SSLError as error:
        raise StorageMisconfigured(f"TLS with Redis at {address} failed: {error.reason or error}") from error
    except OSError as error:
        raise StorageUnavailable(
            f"Redis at {address} cannot be reached: {error.strerror or error}"
        ) from error
    except BaseException:
        connection.abort(StorageUnavailable("given up"))
        raise
    return connection


async def _log_in(connection: RedisConnection, address: RedisAddress, name: str, fence: Fence | None) -> None:
    hello = ["HELLO", "2"]
    login = current_login(address)
    if login.password is not None:
        hello += ["AUTH", login.username or "default", login.password]
    commands = [command(*hello, "SETNAME", name)]
    if address.database:
        commands.append(command("SELECT", str(address.database)))
    # A server that cannot take writes (loading, failed snapshot, lost master) refuses this one too.
    commands.append(command("PING"))
    if fence is not None:
        commands.append(command("GET", fence.key))
    answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

    def take(replies: list[Reply]) -> None:
        if not answered.done():
            answered.set_result(replies)

    def closed() -> None:
        if not answered.done():
            answered.set_result([])

    connection.on_closed = closed
    connection.send(to_bytes(commands), len(commands), take)
    replies = await answered
    connection.on_closed = None
    if connection.closed_by is not None:
        raise connection.closed_by
    for reply in replies:
        if isinstance(reply, ReplyError):
            error = server_refusal(str(reply)) or StorageMisconfigured(
                f"Redis refuses to work with us: {reply}"
            )
            connection.abort(error)
            raise error
    greeting = replies[0]
    if isinstance(greeting, list):
        facts = dict(zip(greeting[::2], greeting[1::2], strict=False))
        if facts.get("role") == "replica":
            refusal = server_refusal("READONLY")
            assert refusal is not None  # noqa: S101 - READONLY is in the table
            connection.abort(refusal)
            raise refusal
    if fence is not None:
        if replies[-1] != fence.value or not fence.is_open():
            lost = StorageUnavailable("the lease of this Redis is not ours any more")
            connection.abort(lost)
            raise lost
        connection.fence = fence


def _surplus(reply: Reply) -> StorageError:
    """Return why a reply came that nobody waits for: the server's last words before it closes."""
    text = str(reply)
    return server_refusal(text) or StorageUnavailable(f"Redis said, without being asked: {text[:80]}")
