"""What a WebSocket library must offer to the connection runner, so that it can be exchanged.

Stands between the runner and the one module that imports the library. Everything but opening and
closing is a plain call on the event loop; frames arrive by callback, without an await per frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import msgspec

from services.redaction import redact


class Endpoint(msgspec.Struct, frozen=True):
    """Where to connect, made anew for every attempt. Its text form hides what may be secret."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Endpoint({redact(self.url.partition('?')[0])!r})"


class TransportLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one connection: seconds for opening, bytes of one message, bytes the kernel may buffer.

    The receive buffer bounds how long one burst can keep the event loop busy.
    """

    open_timeout_s: float = 10.0
    max_message_bytes: int = 4 << 20
    receive_buffer_bytes: int = 128 << 10


class CloseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection ended. `code` is the peer's close code, None where it sent none.

    `failure` is what made our own side end it: a violation of the protocol, a bug in a callback.
    """

    close_frame: bool = False
    code: int | None = None
    reason: str = ""
    failure: BaseException | None = None


class TransportListener(Protocol):
    """Who is called while a connection is open."""

    def on_frame(self, raw: str | bytes) -> None:
        """One whole message: text as `str`, binary as `bytes`."""

    def on_sign_of_life(self) -> None:
        """A ping of the peer; it has been answered."""

    def on_pong(self) -> None:
        """The answer to one of our pings."""

    def on_closed(self) -> None:
        """The connection has ended; `Transport.wait_closed` returns at once now."""


class Transport(ABC):
    """One open connection."""

    @abstractmethod
    def send(self, payload: str | bytes) -> None:
        """Send one message; text for `str`. Dropped when the connection has ended."""

    @abstractmethod
    def ping(self) -> None:
        """Send a ping; the listener hears of the answer."""

    @abstractmethod
    def abort(self) -> None:
        """Cut the connection without any farewell."""

    @abstractmethod
    async def close(self, within_s: float) -> None:
        """Say goodbye, wait at most `within_s` seconds for the peer's answer, then cut."""

    @abstractmethod
    async def wait_closed(self) -> CloseInfo:
        """Wait until the connection has ended and return how."""


class Connector(Protocol):
    """Opens connections."""

    async def open(
        self,
        endpoint: Endpoint,
        listener: TransportListener,
        limits: TransportLimits,
        *,
        has_credentials: bool,
    ) -> Transport:
        """Open a connection within `open_timeout_s`. Raises a `ProviderError` that holds no secret."""
        ...
