"""Logging: structlog events to stderr, for people or for machines, with every secret redacted.

Writing happens on a thread behind a bounded queue, so a blocked pipe or journal never blocks the
event loop, nor the end of the process. When the queue fills up, what is less than a warning goes first;
records that do not fit are counted and reported once there is room again.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from services.redaction import HIDDEN, redact

_QUEUE_LIMIT = 10_000
_STOP_WITHIN_S = 2.0
"""How long the end waits for lines that nobody reads."""
_SECRET_KEYS = frozenset({"token", "access_token", "password", "secret", "authorization", "api_key"})


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact every value of a log event; the structlog processor in front of the renderer."""
    for key, value in event.items():
        if key.lower() in _SECRET_KEYS:
            event[key] = HIDDEN
        elif not key.startswith("_"):
            event[key] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    """Return a value of a log event without secrets, however deep they lie in it."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if str(name).lower() in _SECRET_KEYS else _redacted(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(inner) for inner in value]
    # An exception, a path, a struct: what a renderer would make of it.
    return redact(str(value))


class BoundedQueueHandler(logging.handlers.QueueHandler):
    """Puts records on a bounded queue without ever waiting; counts what did not fit."""

    queue: queue.Queue[Any]
    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue one record, or count it as dropped: below a warning already when nine tenths are full."""
        limit = self.queue.maxsize
        if record.levelno < logging.WARNING and self.queue.qsize() >= limit - limit // 10:
            self.dropped += 1
            return
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _ReportingHandler(logging.Handler):
    """Writes to stderr, and says so once when records had been dropped before.

    To the descriptor, not to `sys.stderr`: a write that never returns must not hold a lock which the
    interpreter needs at its end.
    """

    def __init__(self, source: BoundedQueueHandler) -> None:
        super().__init__()
        self._source = source
        self._reported = 0

    def createLock(self) -> None:  # noqa: N802 - the library's name
        """Take no lock: one thread writes, and the end of the process must not wait for it."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        dropped = self._source.dropped
        text = self.format(record) + "\n"
        if dropped != self._reported:
            missing, self._reported = dropped - self._reported, dropped
            text = f"log_records_dropped count={missing}\n{text}"
        try:
            data = text.encode("utf-8", "replace")
            while data:
                data = data[os.write(2, data) :]
        except OSError:
            # Nobody reads any more; the daemon has better things to do than to mind.
            return


class LogWriter(logging.handlers.QueueListener):
    """The thread that writes; `stop` gives it two seconds for what is left."""

    queue: queue.Queue[Any]

    def __init__(self, source: BoundedQueueHandler) -> None:
        super().__init__(source.queue, _ReportingHandler(source))
        self._bounded = source

    @property
    def dropped(self) -> int:
        """How many lines were not written for want of room."""
        return self._bounded.dropped

    def stop(self) -> None:
        """Write what is queued and end; what cannot be written in time is left."""
        thread: threading.Thread | None = self._thread
        self._thread = None
        if thread is None:
            return
        try:
            self.queue.put(None, timeout=_STOP_WITHIN_S / 2)
        except queue.Full:
            return
        thread.join(_STOP_WITHIN_S)


def configure_logging(level: str, log_format: str) -> LogWriter:
    """Set up logging for the process; returns the started listener, whose `stop()` flushes it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact_event,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    # The queue handler formats on the caller's side, so that nothing mutable crosses the thread.
    source = BoundedQueueHandler(queue.Queue(_QUEUE_LIMIT))
    source.setFormatter(formatter)
    listener = LogWriter(source)
    root = logging.getLogger()
    root.handlers[:] = [source]
    root.setLevel(level)
    for noisy in ("asyncio", "aiohttp.access", "sqlalchemy", "alembic", "picows"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A connection to a database that is gone cannot be closed politely; that it is gone we say ourselves.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    listener.start()
    return listener
