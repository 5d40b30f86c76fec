"""Takes raw messages one after another: stamps, counts, decodes through the provider, survives damage.

Stands between a provider's reader and its `message_handler`. Tells an odd damaged frame from a
connection that brings nothing else. Never awaits on the hot path and never logs per frame.
"""

from __future__ import annotations

import asyncio
import inspect
import struct
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import structlog

from services.errors import ProviderError, WireFormatError
from services.market_data.clock import Clock
from services.market_data.records import ProviderTick
from services.redaction import redact

_log = structlog.get_logger(__name__)

DECODE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    msgspec.MsgspecError,
)
"""What a decoder raises on bytes that it did not expect, besides `WireFormatError`."""

_PENDING_LIMIT = 1_024
_LOG_EVERY_S = 10.0
_async_received_ms: ContextVar[int] = ContextVar("received_ms", default=0)


class RecordingTap(Protocol):
    """Who records what a provider gets."""

    def frame(self, received_ms: int, raw: str | bytes) -> None:
        """Take one message as it came, with its receive time in UTC epoch ms."""

    def note(self, kind: str, symbols: Iterable[str]) -> None:
        """Take note that `symbols` are being asked for (`asking`), were (`asked`), or were `lost`."""


@dataclass(slots=True)
class ProviderCounters:
    """Plain counts, exported on demand. `frames = decoded + sum(wire_errors) + waiting`.

    `records` counts what came out of decoded frames, `ticks` what was emitted, `ignored` records that
    carry no market data (heartbeats, unknown kinds), by kind. `resubscribed` counts symbols that were
    asked for again because nothing had come, `waiting` messages that an `async def` handler is not done with.
    """

    frames: int = 0
    decoded: int = 0
    waiting: int = 0
    records: int = 0
    ticks: int = 0
    reconnects: int = 0
    connects: int = 0
    resubscribed: int = 0
    wire_errors: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def ignore(self, kind: str) -> None:
        """Count one record of `kind` that carries no market data."""
        self.ignored[kind] = self.ignored.get(kind, 0) + 1


class DamageMeter:
    """Tells an odd damaged frame from a connection that brings nothing else."""

    def __init__(self, per_second: int = 50, seconds: int = 2) -> None:
        self._per_second = per_second
        self._seconds = seconds
        self._second = 0
        self._in_second = 0
        self._bad_seconds = 0

    def add(self, now_s: float) -> bool:
        """Count one damaged frame; True when there were too many in each of the last few seconds."""
        second = int(now_s)
        if second != self._second:
            over = self._in_second > self._per_second and second == self._second + 1
            self._bad_seconds = self._bad_seconds + 1 if over else 0
            self._second, self._in_second = second, 0
        self._in_second += 1
        return self._bad_seconds + (self._in_second > self._per_second) >= self._seconds


class FrameIntake:
    """Runs every raw message of one provider through its handler.

    `damaged()` is called after each damaged frame, outside the hot path. `spawn` starts the one task
    that works off messages of an `async def` handler, in their order.
    """

    __slots__ = ("__dict__", "__weakref__", "current_ms")

    def __init__(
        self,
        *,
        code: str,
        clock: Clock,
        counters: ProviderCounters,
        handler: Callable[[str | bytes], Any],
        emit: Callable[[ProviderTick], None],
        damaged: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        secrets: Callable[[], Iterable[str]],
    ) -> None:
        self.last_frame_ms = 0
        self.current_ms = 0
        """When the message being handled arrived, UTC epoch ms; 0 while none is."""
        self._code = code
        self._clock = clock
        self._now_ms = clock.now_ms
        self._counters = counters
        self._handler = self._unrecorded = handler
        self._emit = emit
        self._damaged = damaged
        self._spawn = spawn
        self._secrets = secrets
        self._pending: deque[tuple[int, Any]] = deque()
        self._pending_added = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._logged: dict[str, tuple[float, int]] = {}

    @property
    def received_ms(self) -> int:
        """When the message being handled arrived, UTC epoch ms; now, while none is."""
        return self.current_ms or _async_received_ms.get() or self._now_ms()

    def handle(self, raw: str | bytes) -> int:
        """Give one raw message to the handler; returns its receive time in UTC epoch ms, 0 when damaged.

        A `ProviderError` of the handler goes through: it ends the session.
        """
        counters = self._counters
        received_ms = self.last_frame_ms = self.current_ms = self._now_ms()
        counters.frames += 1
        try:
            result = self._handler(raw)
            if result is not None:
                return received_ms if self._take(result, raw) else 0
        except WireFormatError as error:
            self._count_damage(error.reason, error, raw)
            return 0
        except DECODE_ERRORS as error:
            self._count_damage(f"handler_{type(error).__name__}", error, raw)
            return 0
        except ProviderError:
            counters.decoded += 1
            raise
        finally:
            self.current_ms = 0
        counters.decoded += 1
        return received_ms

    def record_to(self, tap: Callable[[int, str | bytes], None] | None) -> None:
        """Show every message to `tap`, with its receive time (UTC epoch ms); None ends that.

        A message is shown once it is handled: what its handling caused, as the end of a gap, stands before
        it in a recording as it does for consumers. The handler itself is exchanged, so that without a
        recording nothing is paid.
        """
        handler = self._unrecorded
        if tap is None:
            self._handler = handler
            return

        def shown(raw: str | bytes) -> Any:
            try:
                return handler(raw)
            finally:
                tap(self.current_ms, raw)

        self._handler = shown

    def close(self) -> None:
        """Forget messages that an `async def` handler has not come to."""
        for _, unhandled in self._pending:
            _discard(unhandled)
            self._count("handler_cancelled")
            self._counters.waiting -= 1
        self._pending.clear()
        self._worker = None

    def _take(self, result: Any, raw: str | bytes) -> bool:
        """Emit the ticks that the handler returned, or queue what it still has to do."""
        if not _is_async(result):
            self._emit_all(result)
            self._counters.decoded += 1
            return True
        if len(self._pending) >= _PENDING_LIMIT:
            _discard(result)
            self._count_damage("handler_overrun", ProviderError("message_handler is too slow"), raw)
            return False
        self._pending.append((self.current_ms, result))
        self._counters.waiting += 1
        self._pending_added.set()
        if self._worker is None or self._worker.done():
            self._worker = self._spawn(self._work_off(), "message_handler")
        return True

    def _emit_all(self, result: Any) -> None:
        if isinstance(result, ProviderTick):
            self._emit(result)
            return
        for tick in result:
            self._emit(tick)

    async def _work_off(self) -> None:
        while True:
            while self._pending:
                received_ms, result = self._pending.popleft()
                _async_received_ms.set(received_ms)
                try:
                    if inspect.isawaitable(result):
                        result = await result
                    if isinstance(result, AsyncIterable):
                        async for tick in result:
                            self._emit(tick)
                    elif result is not None:
                        self._emit_all(result)
                except WireFormatError as error:
                    self._count_damage(error.reason, error, error.frame)
                except DECODE_ERRORS as error:
                    self._count_damage(f"handler_{type(error).__name__}", error, b"")
                except ProviderError:
                    self._counters.decoded += 1
                    raise
                except BaseException:
                    self._count("handler_cancelled")
                    raise
                else:
                    self._counters.decoded += 1
                finally:
                    self._counters.waiting -= 1
            self._pending_added.clear()
            await self._pending_added.wait()

    def _count(self, reason: str) -> None:
        errors = self._counters.wire_errors
        errors[reason] = errors.get(reason, 0) + 1

    def _count_damage(self, reason: str, error: Exception, raw: str | bytes) -> None:
        self._count(reason)
        now_s = self._clock.monotonic_s()
        logged_s, unlogged = self._logged.get(reason, (-_LOG_EVERY_S, 0))
        if now_s - logged_s < _LOG_EVERY_S:
            self._logged[reason] = (logged_s, unlogged + 1)
        else:
            self._logged[reason] = (now_s, 0)
            frame = raw.encode("utf-8", "replace") if isinstance(raw, str) else bytes(raw)
            _log.warning(
                "frame_damaged",
                provider=self._code,
                reason=reason,
                detail=redact(str(error), self._secrets())[:200],
                frame=frame[:64].hex(),
                size_bytes=len(frame),
                unlogged=unlogged,
            )
        self._damaged()


def _is_async(result: Any) -> bool:
    return inspect.isawaitable(result) or isinstance(result, AsyncIterable)


def _discard(result: Any) -> None:
    if inspect.iscoroutine(result):
        result.close()
