"""From HTTP statuses and close codes to typed errors."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.connection.failures import close_error, handshake_error, retry_after_s
from services.connection.transport import CloseInfo, Endpoint
from services.errors import (
    CredentialsRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    UnexpectedAnswer,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "has_credentials", "error_type"),
    [
        (401, True, CredentialsRejected),
        (403, True, CredentialsRejected),
        (401, False, ProviderRateLimited),
        (403, False, ProviderRateLimited),
        (429, True, ProviderRateLimited),
        (429, False, ProviderRateLimited),
        (500, True, ProviderUnavailable),
        (503, True, ProviderUnavailable),
        (200, True, UnexpectedAnswer),
        (301, True, UnexpectedAnswer),
        (302, True, UnexpectedAnswer),
        (400, True, UnexpectedAnswer),
        (404, False, UnexpectedAnswer),
        (426, False, UnexpectedAnswer),
    ],
)
def test_a_status_instead_of_101_has_its_own_error(
    status: int, has_credentials: bool, error_type: type[ProviderError]
) -> None:
    error = handshake_error(status, {}, has_credentials=has_credentials)
    assert type(error) is error_type
    assert error.reason == f"http_{status}"
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("999999", 3_600.0),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("Sun, 01 Mar 2026 12:01:30 -0000", 90.0),
        ("soon", None),
        ("-5", None),
        ("\u0665", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_the_server_asks_for_is_kept(status: int) -> None:
    error = handshake_error(status, {"Retry-After": "90"}, has_credentials=True)
    assert error.retry_after_s == 90.0


@pytest.mark.parametrize(
    ("info", "reason", "retry_after"),
    [
        (CloseInfo(), "closed_1006", None),
        (CloseInfo(close_frame=True), "closed_1005", None),
        (CloseInfo(close_frame=True, code=1000), "closed_1000", None),
        (CloseInfo(close_frame=True, code=1001), "closed_1001", None),
        (CloseInfo(close_frame=True, code=1011, reason="boom"), "closed_1011", None),
        (CloseInfo(close_frame=True, code=1013), "closed_1013", 10.0),
        (CloseInfo(close_frame=True, code=4321), "closed_4321", None),
        (CloseInfo(failure=ValueError("token=abcdef")), "protocol", None),
    ],
)
def test_however_a_connection_closes_it_is_tried_again(
    info: CloseInfo, reason: str, retry_after: float | None
) -> None:
    error = close_error(info)
    assert isinstance(error, ProviderUnavailable)
    assert (error.reason, error.retry_after_s) == (reason, retry_after)
    assert "abcdef" not in str(error)


def test_what_the_server_says_is_shown_short_and_without_secrets() -> None:
    said = "token=abcdef is not good " + "x" * 500
    text = str(close_error(CloseInfo(close_frame=True, code=1008, reason=said)))
    assert "policy violation" in text
    assert "abcdef" not in text
    assert len(text) < 300


def test_an_endpoint_shows_neither_its_query_nor_its_headers() -> None:
    endpoint = Endpoint("wss://user:pw1234@host/feed?token=abcdef", (("X-Key", "ghijkl"),))
    for text in (repr(endpoint), str(endpoint), f"{[endpoint]}"):
        assert "host" in text
        assert not any(secret in text for secret in ("abcdef", "ghijkl", "pw1234"))
