"""The one tree of errors, each carrying the verdict that says what happens next.

Stands beneath every other module of `services`; imports nothing of ours.

    MarketdError
    |- ConfigurationError            wrong setting, schema or installation         exit 78
    |- TemporaryError                a condition that passes by itself              exit 75
    |- WireFormatError               bytes that are not what the vendor documents   DROP
    |- ClientProtocolError           a client's message that we cannot accept
    |- ProviderError
    |  |- ProviderUnavailable        refused, reset, closed, timed out              RETRY
    |  |  `- UnexpectedAnswer        what no documentation explains; said loudly    RETRY
    |  |- ProviderRateLimited        too many attempts; wait `retry_after_s`        RETRY
    |  |  `- ConnectionLimitReached  too many connections; parked for a while       PARK
    |  |- CredentialsMissing         no key configured                              PARK
    |  |- CredentialsRejected        the vendor refused the key                     PARK
    |  |- SettingsUnusable           a setting cannot be used                       PARK
    |  |- RequestRefused             this one request gets no answer, however often DROP
    |  `- SubscriptionRefused        the plan of this connection is wrong           FATAL
    |     `- TooManySymbols          fewer fit on a connection than documented      FATAL
    `- StorageError
       |- StorageUnavailable         Redis cannot take writes just now              RETRY
       |- StorageRejected            one item will never be accepted                DROP
       `- StorageMisconfigured       no TimeSeries, wrong password                  FATAL
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What the supervisor does about an error.

    `RETRY` try again after a back-off; `PARK` stop until an operator (or a changed secret)
    acts; `DROP` count it and go on with the next item; `FATAL` give up this plan of work.
    """

    RETRY = "retry"
    PARK = "park"
    DROP = "drop"
    FATAL = "fatal"


class MarketdError(Exception):
    """Base of everything this project raises on purpose. Messages say what was wrong and what to do."""

    verdict: Verdict = Verdict.FATAL


class ConfigurationError(MarketdError):
    """A setting, the schema or the installation is wrong; restarting does not help (exit code 78)."""


class TemporaryError(MarketdError):
    """A condition that passes by itself, or another daemon holds the lease (exit code 75)."""

    verdict = Verdict.RETRY


class WireFormatError(MarketdError):
    """Bytes that do not follow the vendor's layout.

    `reason` is a short stable word for counters (`truncated`, `bad_length`, `not_base64`, ...);
    `frame` is what was read, at most 64 bytes of it.
    """

    verdict = Verdict.DROP

    def __init__(self, reason: str, detail: str = "", frame: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.frame = bytes(frame[:64])


class ClientProtocolError(MarketdError):
    """A client's message that cannot be accepted; `code` is what the client is told."""

    verdict = Verdict.DROP

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProviderError(MarketdError):
    """Something went wrong between us and a provider.

    `reason` is a short stable text for status and counters (`disconnect_807`, `http_429`, `mute`);
    `retry_after_s` is the wait the provider asked for, in seconds, or None.
    """

    verdict = Verdict.RETRY

    def __init__(self, message: str, *, reason: str = "error", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ProviderUnavailable(ProviderError):
    """The connection was refused, reset, closed or timed out."""


class UnexpectedAnswer(ProviderUnavailable):
    """The server did something that no documentation explains; tried again, and said loudly."""


class ProviderRateLimited(ProviderError):
    """The provider says we ask too often."""


class ConnectionLimitReached(ProviderRateLimited):
    """The vendor says there are too many connections: parked for a while, then one attempt."""

    verdict = Verdict.PARK


class CredentialsMissing(ProviderError):
    """No credentials are configured for this provider."""

    verdict = Verdict.PARK


class CredentialsRejected(ProviderError):
    """The provider refused our credentials; the same ones are not tried again."""

    verdict = Verdict.PARK


class SettingsUnusable(ProviderError):
    """A setting of this provider cannot be used; it waits parked until the setting changes."""

    verdict = Verdict.PARK


class RequestRefused(ProviderError):
    """The provider refuses this one request (no such symbol, no data so far back); others go on."""

    verdict = Verdict.DROP


class SubscriptionRefused(ProviderError):
    """The provider refused what this connection asked for."""

    verdict = Verdict.FATAL


class TooManySymbols(SubscriptionRefused):
    """The server takes fewer symbols on one connection than the rules say."""


class StorageError(MarketdError):
    """Something went wrong between us and Redis or PostgreSQL."""


class StorageUnavailable(StorageError):
    """The store cannot take writes just now; nothing is thrown away."""

    verdict = Verdict.RETRY


class StorageRejected(StorageError):
    """The store will never accept this one item."""

    verdict = Verdict.DROP


class StorageMisconfigured(StorageError):
    """The store is reachable and unusable: no TimeSeries, wrong password, read-only by design."""
