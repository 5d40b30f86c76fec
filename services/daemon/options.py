"""The daemon's option chains: the underlyings, the sources that are asked, the open interest that is kept.

Chains are made when somebody asks for one, or watches one; each that says something new goes into the stream
of its underlying. Stands beside the live flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.daemon.config import IngestionConfig
from services.gateway.options_api import OptionDesk, interest_of
from services.market_data.clock import Clock
from services.market_data.instruments import AssetClass
from services.market_data.option_chains import OptionChainSnapshot
from services.options.chain import Chain, Conventions, Style
from services.options.manager import OptionsManager
from services.options.snapshot import snapshot_of
from services.options.source import DERIVATIVES_OF, Underlying
from services.options.sources import option_sources
from services.options.underlyings import Underlyings
from services.rest.quota import Quota
from services.storage.option_chain_stream import OptionChainWriter
from services.storage.option_interest import OptionInterestStore


class Options:
    """`underlyings` are loaded with the mappings; `interest` is kept only while `may_write()`."""

    def __init__(
        self,
        config: IngestionConfig,
        clock: Clock,
        *,
        settings: Callable[[], Mapping[str, str]],
        quotas: Mapping[str, Quota],
        may_write: Callable[[], bool],
    ) -> None:
        self._config = config
        self._may_write = may_write
        self.underlyings = Underlyings()
        self.interest = OptionInterestStore(config.redis_url, retention_ms=config.tick_retention_ms)
        self.chains = OptionChainWriter(config.redis_url)
        self._heard: Callable[[OptionChainSnapshot], None] = lambda _chain: None
        self.manager = OptionsManager(
            clock,
            option_sources(settings, clock, config.option_order, quotas),
            resolve=self.underlyings.find,
            conventions=self._conventions,
            on_chain=self._note_chain,
        )
        self.desk = OptionDesk(self.manager, self.interest, self.underlyings.find)

    def hear(self, callback: Callable[[OptionChainSnapshot], None]) -> None:
        """Call `callback` with every chain that says something new, with its position."""
        self._heard = callback

    def _conventions(self, underlying: Underlying) -> Conventions:
        rate_percent = self._config.option_rates.get(underlying.currency, 0.0)
        # Contracts on indices, and all Indian ones, can be exercised at expiry only.
        at_expiry = underlying.exchange in DERIVATIVES_OF or underlying.asset_class is AssetClass.INDEX
        style: Style = "european" if at_expiry else "american"
        return Conventions(rate_percent, self._config.option_year_days, style)

    def _note_chain(self, chain: Chain) -> None:
        underlying = self.underlyings.find(chain.underlying)
        if underlying is not None and self._may_write():
            self.interest.offer(interest_of(chain, underlying))
            is_next = chain.expiry == self.manager.next_expiry(underlying)
            snapshot = snapshot_of(chain, underlying, is_next=is_next)
            if self.chains.offer(snapshot):
                self._heard(snapshot)
