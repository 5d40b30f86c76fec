"""Client of the marketd market-data daemon.

`Client` is the WebSocket as an async iterator of typed records, `DataSource` hands them to callbacks, and
news too. `marketd_client.streams` reads the Redis streams, `marketd_client.frames` makes pandas data frames;
both need `redis`, the latter `pandas`.
"""

from marketd_client.backoff import Backoff
from marketd_client.client import Client
from marketd_client.data_source import DataSource
from marketd_client.errors import ClientError, ConnectionRefused, NewsRefused, SubscriptionRefused
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
from marketd_client.updates import (
    BarUpdate,
    Level2Update,
    NewsUpdate,
    OptionChainUpdate,
    OptionLeg,
    QuoteUpdate,
    TradeUpdate,
)

__all__ = [
    "Backoff",
    "Bar",
    "BarUpdate",
    "Client",
    "ClientError",
    "ConnectionRefused",
    "Control",
    "DataSource",
    "Disconnected",
    "Level2Update",
    "NewsRefused",
    "NewsUpdate",
    "OptionChainUpdate",
    "OptionLeg",
    "QuoteUpdate",
    "Record",
    "ResumePoint",
    "ServerNotice",
    "Skipped",
    "Subscribed",
    "SubscriptionRefused",
    "Tick",
    "TradeUpdate",
    "Trimmed",
]
