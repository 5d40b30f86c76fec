"""Client of the marketd market-data daemon.

`Client` is the WebSocket as an async iterator of typed records. `marketd_client.streams` reads the Redis
streams, `marketd_client.frames` makes pandas data frames; both need `redis`, the latter `pandas`.
"""

from marketd_client.backoff import Backoff
from marketd_client.client import Client
from marketd_client.errors import ClientError, ConnectionRefused, SubscriptionRefused
from marketd_client.records import (
    Bar,
    Control,
    Disconnected,
    Record,
    ResumePoint,
    ServerNotice,
    Skipped,
    Subscribed,
    Tick,
    Trimmed,
)

__all__ = [
    "Backoff",
    "Bar",
    "Client",
    "ClientError",
    "ConnectionRefused",
    "Control",
    "Disconnected",
    "Record",
    "ResumePoint",
    "ServerNotice",
    "Skipped",
    "Subscribed",
    "SubscriptionRefused",
    "Tick",
    "Trimmed",
]
