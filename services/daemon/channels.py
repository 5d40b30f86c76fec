"""The channels beside ticks and charts in the daemon: their feeds, and who polls the chains that are watched.

Joins what the daemon has (option chains, news, order books) to the hub of its gateway.
"""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError

from services.daemon.config import IngestionConfig
from services.daemon.stages import Stages
from services.data_source import DataSource
from services.gateway.channel_feeds import DepthFeed, NewsFeed, OptionFeed
from services.gateway.server import Gateway
from services.options.poller import ChainPoller, Wanted, wanted_of_lease
from services.storage.attending import attended
from services.storage.keys import OPTIONS_INTEREST
from services.storage.leases import leased_instruments

_log = structlog.get_logger(__name__)

_LEASES_EVERY_S = 1.0


class Channels:
    """Keep `news.run` running, and while leading `poller.run` and `follow_leases`.

    `source` hands the same to callbacks in this process.
    """

    def __init__(self, config: IngestionConfig, stages: Stages, gateway: Gateway) -> None:
        self._redis_url = config.redis_url
        self._clock = stages.clock
        self._leased: frozenset[Wanted] = frozenset()
        options = stages.options
        self.options = OptionFeed(gateway.channels, lambda key: options.underlyings.find(key) is not None)
        DepthFeed(gateway.channels, stages.depth.desk)
        self.news = NewsFeed(gateway.channels, stages.news.board, stages.news.desk.ask)
        self.poller = ChainPoller(
            options.manager,
            stages.clock,
            find=options.underlyings.find,
            wanted=lambda: self.options.wanted() | self._leased,
            newest=self.options.newest,
            refused=self._refused,
        )
        self._chains = options.chains
        options.hear(self.options.put)
        self.source = DataSource(
            stages.broadcast,
            stages.supervisor.spawn,
            books=stages.depth.desk,
            articles=stages.news.board,
            ask_news=stages.news.desk.ask,
        )

    def _refused(self, wanted: Wanted, reason: str) -> None:
        self.options.refused(wanted, reason)
        self._chains.refuse(*wanted, reason, self._clock.now_ms())

    async def follow_leases(self) -> None:
        """Look once a second which chains consumers of Redis ask for, until cancelled."""
        async with attended(self._redis_url, name="marketd:option-leases") as (client, goes_on):
            while goes_on():
                try:
                    members = await leased_instruments(client, self._clock.now_ms(), OPTIONS_INTEREST)
                except (RedisError, OSError) as error:
                    # While Redis is away the leases stand as they were last seen.
                    _log.debug("option_leases_not_read", reason=str(error))
                else:
                    self._leased = frozenset(filter(None, map(wanted_of_lease, members)))
                await asyncio.sleep(_LEASES_EVERY_S)
