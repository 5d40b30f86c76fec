"""From what a server answered, or how it closed, to an error that says what happens next. Pure.

Stands between the transport and the connection runner. Messages name the status or the close code,
never the address, a header or a body: those may hold the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from services.connection.transport import CloseInfo
from services.errors import (
    CredentialsRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    UnexpectedAnswer,
)
from services.redaction import redact

LONGEST_RETRY_AFTER_S = 3_600.0
TRY_AGAIN_LATER_S = 10.0
"""The least wait after close code 1013 (try again later)."""

_CLOSE_WORDS = {
    1000: "normal closure",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1007: "invalid text",
    1008: "policy violation",
    1009: "message too big",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
}


def handshake_error(
    status: int, headers: Mapping[str, str], *, has_credentials: bool, now: datetime | None = None
) -> ProviderError:
    """Return the error for an HTTP `status` that came instead of 101.

    Without credentials there is nothing an operator could correct after 401 or 403, so those count
    as a block that passes by itself.
    """
    reason = f"http_{status}"
    wait_s = retry_after_s(headers.get("Retry-After"), now)
    if status in (401, 403) and has_credentials:
        return CredentialsRejected(f"the server refused the credentials (HTTP {status})", reason=reason)
    if status in (401, 403, 429):
        return ProviderRateLimited(
            f"the server turns us away for now (HTTP {status})", reason=reason, retry_after_s=wait_s
        )
    if status >= 500:
        return ProviderUnavailable(
            f"the server cannot serve now (HTTP {status})", reason=reason, retry_after_s=wait_s
        )
    if status < 400:
        return UnexpectedAnswer(
            f"the server answered HTTP {status} instead of a WebSocket: a proxy or a login page in between?",
            reason=reason,
        )
    return UnexpectedAnswer(f"the server answered HTTP {status} to the WebSocket request", reason=reason)


def close_error(info: CloseInfo) -> ProviderError:
    """Return the error for a connection that ended as `info` says."""
    if info.failure is not None:
        text = redact(str(info.failure))[:200]
        return ProviderUnavailable(
            f"we closed the connection: {type(info.failure).__name__}: {text}", reason="protocol"
        )
    if info.code is None:
        detail = "without a close code" if info.close_frame else "without a close frame"
        reason = "closed_1005" if info.close_frame else "closed_1006"
        return ProviderUnavailable(f"the connection was closed {detail}", reason=reason)
    word = _CLOSE_WORDS.get(info.code, "a code of its own")
    said = f", saying {redact(info.reason)[:120]!r}" if info.reason else ""
    return ProviderUnavailable(
        f"the server closed the connection with {info.code} ({word}){said}",
        reason=f"closed_{info.code}",
        retry_after_s=TRY_AGAIN_LATER_S if info.code == 1013 else None,
    )


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds a `Retry-After` header asks for (a number or an HTTP date), None for none."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    seconds = (when - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
