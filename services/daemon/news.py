"""The daemon's news: what is fetched of whom, and the stream in Redis they are told in.

Stands beside the live flow. Runs while this daemon leads, and only where `news_every_s` is not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.daemon.config import IngestionConfig
from services.data_broadcast import DataBroadcast
from services.gateway.news_api import NewsSource
from services.market_data.clock import Clock
from services.market_data.instruments import MappingSnapshot
from services.news import yahoo_news
from services.news.desk import NewsDesk
from services.rest.quota import Quota
from services.storage.news_stream import NewsBoard
from services.subscriptions import DynamicSubscriptions


class News:
    """`desk` fetches and tells; `source` answers the gateway, for instruments that `is_known`."""

    def __init__(
        self,
        config: IngestionConfig,
        clock: Clock,
        *,
        settings: Callable[[], Mapping[str, str]],
        quotas: Mapping[str, Quota],
        broadcast: DataBroadcast,
        subscriptions: DynamicSubscriptions | None,
        is_known: Callable[[str], bool],
    ) -> None:
        self.wanted_at_all = config.news_every_s > 0
        self._pinned = config.pinned_instruments
        self._broadcast = broadcast
        self._subscriptions = subscriptions
        self.board = NewsBoard(config.redis_url)
        self._yahoo = yahoo_news.YahooNews(settings, clock, quotas[yahoo_news.CODE])
        self.desk = NewsDesk(
            self.board,
            clock,
            code=yahoo_news.CODE,
            fetch=self._yahoo.fetch,
            wanted=self._wanted,
            topics=config.news_topics,
            every_s=config.news_every_s,
        )
        self.source = NewsSource(self.board, is_known, self.desk.ask)

    def load(self, snapshot: MappingSnapshot) -> None:
        """Take over who is called what at the source."""
        self.desk.load(
            {
                mapping.instrument: mapping.search_code
                for mapping in snapshot.mappings
                if mapping.provider_code == yahoo_news.CODE
            }
        )

    def _wanted(self) -> set[str]:
        """Return single instruments that are watched, leased or pinned; whole exchanges are too much."""
        wanted = {*self._broadcast.watched(), *self._pinned}
        if self._subscriptions is not None:
            wanted |= self._subscriptions.leased
        return {key for key in wanted if not key.endswith(":*")}

    async def close(self) -> None:
        """Close the connections to the source and to Redis."""
        await self._yahoo.close()
        await self.board.close()
