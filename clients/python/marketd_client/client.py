"""The WebSocket of a daemon as an async iterator that comes back by itself.

    async with Client(url, ["NSE:RELIANCE"], delivery="all") as records:
        async for record in records:
            ...

One task reads the connection into a bounded buffer. When the buffer is full it stops reading, so that a
slow consumer is felt by the daemon (which skips and says so, or cuts the connection) and not by the
memory of this process. All decisions about the protocol are in `session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from marketd_client.backoff import Backoff
from marketd_client.errors import ConnectionRefused
from marketd_client.records import Disconnected, Record, ResumePoint
from marketd_client.session import OutOfOrder, Session, Unreadable

Token = str | Callable[[], str | Awaitable[str]]

_ABNORMAL = 1006
_LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024
_PASSING_STATUS = (408, 425, 429)
"""The 4xx statuses that may go away by themselves."""

_Batch = tuple[list[Record], ResumePoint | None]


class Client:
    """Records of `instruments` (keys, or `EXCHANGE:*`), over as many connections as it takes.

    `url`: the daemon's address, or those of several gateways on one Redis; after every connection that ends,
    or cannot be made, the next one is tried, and goes on where the last one stopped.
    `delivery`: `all` for every tick, `latest` for the newest value every `every_ms`. `channels`: any of
    `tick`, `chart` (with `interval` in minutes as text), `quote`, `trade`, `depth` (with `levels` 5, 20 or
    200), `options` (with `expiry`, a date or epoch seconds; None: the next) and `news` (instrument `*`: all).
    `token`: the secret, or a function that returns
    one, asked at every attempt. `resume`: a `resume_point` of an earlier run. `buffer_frames`: how many
    messages may wait for the consumer.

    Iterating raises `ConnectionRefused` or `SubscriptionRefused` when coming back is of no use.
    """

    def __init__(
        self,
        url: str | Iterable[str],
        instruments: Iterable[str],
        *,
        delivery: Literal["all", "latest"] = "latest",
        every_ms: int = 100,
        channels: Iterable[str] = ("tick",),
        interval: str = "1",
        expiry: str | int | None = None,
        levels: int | None = None,
        token: Token | None = None,
        resume: ResumePoint | None = None,
        buffer_frames: int = 1_000,
        backoff: Backoff | None = None,
        open_timeout_s: float = 10.0,
    ) -> None:
        self._urls = [websocket_url(one) for one in ([url] if isinstance(url, str) else url)]
        if not self._urls:
            raise ValueError("no address of a daemon was given")
        self._turn = 0
        self._session = Session(
            instruments,
            delivery=delivery,
            every_ms=every_ms,
            channels=channels,
            interval=interval,
            expiry=expiry,
            levels=levels,
            resume=resume,
        )
        self._token = token
        self._backoff = backoff or Backoff()
        self._open_timeout_s = open_timeout_s
        self._buffer: asyncio.Queue[_Batch | None] = asyncio.Queue(max(1, buffer_frames))
        self._records: list[Record] = []
        self._point_after: ResumePoint | None = resume
        self._point = resume
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """The address that is connected to, or tried next."""
        return self._urls[self._turn % len(self._urls)]

    @property
    def instruments(self) -> tuple[str, ...]:
        """What is wanted at present."""
        return self._session.instruments

    @property
    def resume_point(self) -> ResumePoint | None:
        """Where the records handed out so far end; moves with the last record of each frame.

        None before the first answer, and always with `latest`.
        """
        return self._point

    async def subscribe(self, *instruments: str) -> None:
        """Watch more; the answer comes as a `Subscribed` record."""
        await self._say(self._session.add(instruments))

    async def unsubscribe(self, *instruments: str) -> None:
        """Watch less; records that are on their way still come."""
        await self._say(self._session.remove(instruments))

    # ---- iterating ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="marketd-client")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; iterating ends after what is buffered. Harmless when it is ended already."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        with contextlib.suppress(asyncio.QueueFull):
            self._buffer.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        while not self._records:
            if self._task is None and self._buffer.empty():
                raise StopAsyncIteration
            batch = await self._buffer.get()
            if batch is None:
                self._task = None
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            records, self._point_after = batch
            self._records = records[::-1]
        record = self._records.pop()
        if not self._records:
            self._point = self._point_after
        return record

    # ---- connecting -----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                code, reason, at_least_s = await self._one_connection()
                self._turn += 1
                retry_in_s = self._backoff.next_s(at_least_s)
                await self._hand_over([Disconnected(code, reason, retry_in_s)])
                await asyncio.sleep(retry_in_s)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever iterates, whatever it is
            self._failure = error
            await self._buffer.put(None)

    async def _one_connection(self) -> tuple[int, str, float]:
        """Serve one connection; return its close code, why it ended and the shortest wait it asks for.

        Raises `ConnectionRefused` and `SubscriptionRefused`.
        """
        loop = asyncio.get_running_loop()
        opened_s = None
        try:
            async with connect(
                self.url,
                additional_headers=await self._headers(),
                compression=None,
                open_timeout=self._open_timeout_s,
                close_timeout=2,
                max_size=_LARGEST_MESSAGE_BYTES,
            ) as socket:
                opened_s = loop.time()
                for message in self._session.opening():
                    await socket.send(message)
                self._socket = socket
                await self._read(socket)
        except InvalidStatus as refusal:
            return _refused(refusal)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else _ABNORMAL
            reason = closed.rcvd.reason if closed.rcvd else "connection lost"
            if 4500 <= code <= 4999:
                raise ConnectionRefused(code, reason) from None
            return code, reason, 0.0
        except OutOfOrder as error:
            self._session.forget_position()
            return _ABNORMAL, f"out_of_order: {error}", 0.0
        except (Unreadable, OSError, TimeoutError, InvalidHandshake) as error:
            return _ABNORMAL, str(error) or type(error).__name__, 0.0
        finally:
            self._socket = None
            if opened_s is not None:
                self._backoff.lasted(loop.time() - opened_s)
        return 1000, "closed", 0.0

    async def _read(self, socket: ClientConnection) -> None:
        hear = self._session.hear
        while True:
            records = hear(await socket.recv())
            if records:
                await self._hand_over(records)

    async def _hand_over(self, records: list[Record]) -> None:
        await self._buffer.put((records, self._session.resume_point()))

    async def _headers(self) -> dict[str, str]:
        token = self._token
        if token is None:
            return {}
        given = token if isinstance(token, str) else token()
        secret = await given if inspect.isawaitable(given) else given
        return {"Authorization": f"Bearer {secret}"}

    async def _say(self, messages: list[str]) -> None:
        # Without a connection there is nothing to say: the next one begins with all that is wanted.
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed):
                for message in messages:
                    await self._socket.send(message)


def websocket_url(url: str) -> str:
    """Return the address of the WebSocket of a daemon at `url` (http, https, ws or wss).

    Raises ValueError for another scheme, and for a secret in the URL: it would stand in logs.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(f"{url!r} is no address of a daemon; expected http://HOST:PORT")
    if parts.username or parts.query:
        raise ValueError("no secrets and no query in the URL: pass token=")
    path = parts.path if parts.path.rstrip("/").endswith("/ws") else parts.path.rstrip("/") + "/ws"
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def _refused(refusal: InvalidStatus) -> tuple[int, str, float]:
    status = refusal.response.status_code
    if 400 <= status < 500 and status not in _PASSING_STATUS:
        raise ConnectionRefused(status, _reason(refusal)) from None
    after = refusal.response.headers.get("Retry-After", "")
    return (
        _ABNORMAL,
        f"HTTP {status}: {_reason(refusal)}",
        min(float(after), 60.0) if after.isdigit() else 0.0,
    )


def _reason(refusal: InvalidStatus) -> str:
    body = bytes(refusal.response.body or b"")[:500].decode(errors="replace").strip()
    return body or refusal.response.reason_phrase
