"""No secret reaches a log line."""

from __future__ import annotations

import queue

import pytest

from config.logging import BoundedQueueHandler, redact_event
from services.redaction import redact


@pytest.mark.parametrize(
    "text",
    [
        "wss://api-feed.dhan.co?version=2&token=HIDDENVALUE&clientId=1000000001&authType=2",
        "access_token: HIDDENVALUE",
        '{"access-token": "HIDDENVALUE"}',
        "postgresql://marketd:HIDDENVALUE@127.0.0.1:5432/marketd",
        "redis://:HIDDENVALUE@127.0.0.1:6379/0",
        "Authorization: Bearer HIDDENVALUE",
        "failed with eyJhbGciOiJIUzUxMiJ9.eyJpc3MiOiJkaGFuIn0.HIDDENVALUE-x",
    ],
)
def test_secrets_in_text_are_redacted(text: str) -> None:
    assert "HIDDENVALUE" not in redact(text)
    assert "***" in redact(text)


def test_ordinary_text_is_left_alone() -> None:
    text = "provider DHAN streaming since 1700000000000, 50 instruments"
    assert redact(text) == text


def test_secret_keys_of_an_event_are_redacted_whatever_they_hold() -> None:
    event = redact_event(None, "info", {"event": "x", "token": "abc", "url": "redis://:pw@h/0", "count": 3})
    assert event == {"event": "x", "token": "***", "url": "redis://:***@h/0", "count": 3}


def test_a_stuck_writer_drops_and_counts_instead_of_waiting() -> None:
    import logging

    handler = BoundedQueueHandler(queue.Queue(2))
    for _ in range(5):
        handler.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "message", (), None))
    assert handler.dropped == 3
