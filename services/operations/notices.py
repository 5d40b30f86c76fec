"""Notices to administrators: one when a trouble begins, one when it is over, never in the way of data.

A look once a second compares the troubles that are with those that were. A trouble is told after it has
lasted a few seconds, and its end after it has stayed away for longer, so that what flaps is told once.
Notices go out by a webhook (JSON, with the `text` that Slack and its likes show) and by a command that
gets the same JSON on its standard input. They wait in a bounded queue; a receiver that is away is tried
again for some minutes, then the notice is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import aiohttp
import msgspec
import structlog

from services.market_data.clock import Clock
from services.pipeline.backoff import Backoff
from services.pipeline.supervisor import end_together
from services.redaction import redact

_log = structlog.get_logger(__name__)

TOLD_AFTER_S = 5.0
OVER_AFTER_S = 30.0
_LOOK_EVERY_S = 1.0
_QUEUE = 200
_PER_MINUTE = 20
_TRIES = 6
_ANSWER_WITHIN_S = 10.0


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One notice. `event` is `raised`, `resolved` or `happened`; times are UTC epoch ms.

    `key` is the same for the beginning and the end of one trouble. `text` says everything in one line.
    """

    event: str
    key: str
    text: str
    since_ms: int
    time_ms: int
    host: str
    demo: bool = False
    source: str = "marketd"


class Delivery(Protocol):
    """One way out. `send` raises `DeliveryFailed` when it is worth another try."""

    name: str

    async def send(self, notice: Notice) -> None:
        """Hand over one notice."""
        ...


class DeliveryFailed(Exception):
    """The receiver did not take the notice; the text says why, without the address."""


class Webhook:
    """Posts the notice as JSON. The address is a secret: whoever has it can write to the channel."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = url

    async def send(self, notice: Notice) -> None:
        """Post once. Raises `DeliveryFailed` for a refused connection or any answer but 2xx."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    self._url, data=_json(notice), headers={"Content-Type": "application/json"}
                ) as response,
            ):
                if response.status >= 300:
                    raise DeliveryFailed(f"the webhook answers {response.status}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise DeliveryFailed(f"the webhook cannot be reached ({type(error).__name__})") from error


class CommandHook:
    """Runs a command, without a shell, with the notice as JSON on its standard input."""

    name = "command"

    def __init__(self, command: str) -> None:
        """Take a command line. Raises ValueError when its quotes do not match."""
        self._arguments = shlex.split(command)

    async def send(self, notice: Notice) -> None:
        """Run it once. Raises `DeliveryFailed` when it does not start, takes too long or fails."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise DeliveryFailed(f"the command does not start ({error.strerror})") from error
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await process.communicate(_json(notice))
        except TimeoutError as error:
            raise DeliveryFailed("the command does not end") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise DeliveryFailed(f"the command ends with {process.returncode}")


class _Trouble(msgspec.Struct):
    text: str
    since_ms: int
    since_s: float
    gone_s: float | None = None
    told: bool = False


class Notifier:
    """Tells what `troubles()` shows: a text by key, as things are now. `run` for ever."""

    def __init__(
        self,
        clock: Clock,
        troubles: Callable[[], Mapping[str, str]],
        deliveries: Sequence[Delivery],
        *,
        demo: bool = False,
        backoff: Callable[[], Backoff] = lambda: Backoff(base_s=2.0, cap_s=120.0, floor_s=1.0),
    ) -> None:
        self._clock = clock
        self._troubles = troubles
        self._deliveries = tuple(deliveries)
        self._demo = demo
        self._backoff = backoff
        self._known: dict[str, _Trouble] = {}
        self._queue: deque[Notice] = deque()
        self._filled = asyncio.Event()
        self._sent_s: deque[float] = deque(maxlen=_PER_MINUTE)
        self._held_back = 0
        self._happened: dict[str, int] = {}
        self.counts = {"sent": 0, "dropped": 0, "failed_tries": 0}

    async def run(self) -> None:
        """Look and tell until cancelled."""
        await end_together(("notices:look", self._look_always()), ("notices:send", self._send_all()))

    def happened(self, what: str) -> None:
        """Take note of an event that has no end, as a change of the provider; the same ones are counted."""
        self._happened[what] = self._happened.get(what, 0) + 1

    def look(self) -> None:
        """Compare what is with what was, and queue what is to be told."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        present = self._troubles()
        for key, text in present.items():
            trouble = self._known.setdefault(key, _Trouble(text, now_ms, now_s))
            trouble.text, trouble.gone_s = text, None
            if not trouble.told and now_s - trouble.since_s >= TOLD_AFTER_S:
                trouble.told = True
                self._tell("raised", key, text, trouble.since_ms)
        for key in [key for key in self._known if key not in present]:
            trouble = self._known[key]
            if not trouble.told:
                del self._known[key]
            elif trouble.gone_s is None:
                trouble.gone_s = now_s
            elif now_s - trouble.gone_s >= OVER_AFTER_S:
                del self._known[key]
                self._tell("resolved", key, f"over: {trouble.text}", trouble.since_ms)
        for what, count in self._happened.items():
            self._tell("happened", what, what + (f" ({count} instruments)" if count > 1 else ""), now_ms)
        self._happened.clear()

    def status(self) -> dict[str, Any]:
        """Return what is told just now, and what became of the notices."""
        return {
            "to": [delivery.name for delivery in self._deliveries],
            "open": {key: trouble.text for key, trouble in self._known.items() if trouble.told},
            "waiting": len(self._queue),
            **self.counts,
        }

    # ---- inner ----------------------------------------------------------------------------------

    def _tell(self, event: str, key: str, text: str, since_ms: int) -> None:
        now_s = self._clock.monotonic_s()
        if len(self._sent_s) == _PER_MINUTE and now_s - self._sent_s[0] < 60.0:
            self._held_back += 1
            return
        self._sent_s.append(now_s)
        if self._held_back:
            text += f" (and {self._held_back} more notices in the last minute: see status)"
            self._held_back = 0
        mark = {"raised": "PROBLEM", "resolved": "RESOLVED"}.get(event, "NOTE")
        host = socket.gethostname()
        demo = "[demo] " if self._demo else ""
        notice = Notice(
            event=event,
            key=key,
            text=redact(f"{demo}marketd on {host}: {mark} {text}"),
            since_ms=since_ms,
            time_ms=self._clock.now_ms(),
            host=host,
            demo=self._demo,
        )
        if len(self._queue) >= _QUEUE:
            self._queue.popleft()
            self.counts["dropped"] += 1
        self._queue.append(notice)
        self._filled.set()

    async def _look_always(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _send_all(self) -> None:
        while True:
            while self._queue:
                notice = self._queue.popleft()
                await asyncio.gather(*(self._send(delivery, notice) for delivery in self._deliveries))
            self._filled.clear()
            await self._filled.wait()

    async def _send(self, delivery: Delivery, notice: Notice) -> None:
        backoff = self._backoff()
        for attempt in range(1, _TRIES + 1):
            try:
                await delivery.send(notice)
            except DeliveryFailed as error:
                self.counts["failed_tries"] += 1
                if attempt == _TRIES:
                    self.counts["dropped"] += 1
                    _log.error("notice_dropped", to=delivery.name, reason=str(error), key=notice.key)
                    return
                if attempt == 1:
                    _log.warning("notice_not_delivered", to=delivery.name, reason=str(error), key=notice.key)
                await asyncio.sleep(backoff.next_wait_s())
            else:
                self.counts["sent"] += 1
                return


def _json(notice: Notice) -> bytes:
    return msgspec.json.encode(notice)
