"""What ends a client: nothing in this tree is worth trying again unchanged.

ClientError
├── ConnectionRefused       a close code 4500-4999, or a handshake answered with a 4xx status
├── SubscriptionRefused     the daemon answered a subscription with an error
├── HistoryRefused          the daemon answered a question about the past with an error
└── NewsRefused             the daemon answers no news, for instance for lack of a scope
"""

from __future__ import annotations


class ClientError(Exception):
    """The client has ended and will not come back by itself."""


class ConnectionRefused(ClientError):
    """The daemon does not want this client again; `code` is the close code or the HTTP status."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the daemon refuses the connection ({code}): {reason or 'no reason given'}")
        self.code = code
        self.reason = reason


class SubscriptionRefused(ClientError):
    """The daemon refuses what was subscribed, for instance `too_many`; see `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class HistoryRefused(ClientError):
    """The daemon does not answer a question about the past; `status` is HTTP's, `code` the daemon's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code


class NewsRefused(ClientError):
    """The daemon does not answer news; `status` is HTTP's, `code` the daemon's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
