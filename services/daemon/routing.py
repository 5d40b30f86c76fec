"""The daemon's providers and what judges them: silence, quality, credentials, the record of every decision.

    providers -> router (ProviderManager) -> decisions -> PostgreSQL
        ^-- judge of silence, quality scores, credentials

It starts no task: `live_data_ingestion` runs the parts while this daemon leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from services.credential_keeper import CredentialKeeper, market_hours
from services.credential_state import MarketHours
from services.daemon.config import IngestionConfig
from services.data_broadcast import DataBroadcast
from services.learned_silence import FILE as SILENCE_FILE
from services.learned_silence import LearnedSilence
from services.market_data.bars import MINUTE_MS
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.market_data.records import Record
from services.operations.first_connects import FILE as FIRST_CONNECTS
from services.operations.first_connects import FirstConnects
from services.operations.troubles import ProviderCondition
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from services.provider_registry import ProviderFactory
from services.quality.collector import QualityCollector
from services.quality.figures import score
from services.quality.writer import QualityWriter
from services.routing.event_writer import RouteEventWriter
from services.silence.judge import SilenceJudge

ROUTE_EVENTS_WITHIN_S = 1.0


class Routing:
    """`providers` and everything that decides and remembers which of them serves what.

    Without `save_credentials` there is no place to keep renewed credentials, and none are renewed.
    """

    def __init__(
        self,
        config: IngestionConfig,
        clock: Clock,
        calendar: MarketCalendar,
        supervisor: Supervisor,
        broadcast: DataBroadcast,
        *,
        settings: Callable[[], Mapping[str, str]],
        publish: Callable[[Record], None],
        factories: Mapping[str, ProviderFactory] | None,
        save_credentials: Callable[[Mapping[str, str]], None] | None,
    ) -> None:
        self._clock = clock
        self._calendar = calendar
        self._hours: dict[str, tuple[tuple[frozenset[str], int], MarketHours]] = {}
        self.first_connects = FirstConnects(config.state_dir / FIRST_CONNECTS, clock)
        self.judge = SilenceJudge(calendar)
        self.learned = LearnedSilence(self.judge, config.state_dir / SILENCE_FILE)
        self.providers = ProviderManager(
            clock=clock,
            settings=settings,
            publish=publish,
            supervisor=supervisor,
            show_reference=lambda record: broadcast.seed([record]),
            factories=factories,
            calendar=calendar,
            pacing=self.first_connects,
            judge=self.judge,
        )
        self.events = RouteEventWriter(self.providers.router.journal, config.database_url, clock)
        self.quality = QualityCollector(
            self.providers.runtimes, clock=clock, calendar=calendar, faulty=self.judge.faulty
        )
        self.scores = QualityWriter(self.quality, config.database_url, clock)
        # Without a place to keep them nothing is renewed: the old credentials end when new ones are made.
        self.credentials = (
            CredentialKeeper(
                clock=clock,
                redis_url=config.redis_url,
                providers=self.providers.running,
                hours=self.hours,
                save=save_credentials,
            )
            if save_credentials is not None
            else None
        )

    async def end(self, *, led: bool) -> None:
        """Keep what was decided and learned, as far as that is possible within a moment."""
        if led:
            await asyncio.gather(
                *(writer.flush(ROUTE_EVENTS_WITHIN_S) for writer in (self.events, self.scores))
            )
            await self.learned.save()
        await self.events.close()
        await self.scores.close()

    # ---- what others ask ------------------------------------------------------------------------

    def hours(self, code: str) -> MarketHours:
        """Return when the markets of a provider are open."""
        exchanges, now_ms = self.providers.exchanges_of(code), self._clock.now_ms()
        # Sessions begin and end with whole minutes.
        key = (exchanges, now_ms // MINUTE_MS)
        known = self._hours.get(code)
        if known is None or known[0] != key:
            known = self._hours[code] = (key, market_hours(self._calendar, exchanges, now_ms))
        return known[1]

    def dispute(self, instrument: str) -> str | None:
        """Return in words what sources disagree about, None when they do not."""
        found = self.quality.disputes().get(instrument)
        return found.text() if found is not None else None

    def disputes(self) -> dict[str, str]:
        """Return all disputes in words, by instrument."""
        return {key: found.text() for key, found in self.quality.disputes().items()}

    def conditions(self) -> list[ProviderCondition]:
        """Return how every provider is, as an administrator needs to know it."""
        now_ms = self._clock.now_ms()
        found = {provider.code: provider for provider in self.providers.running()}
        return [
            ProviderCondition(
                code=code,
                state=state,
                reason=reason,
                credential_expires_ms=expires_ms,
                credential_state=found[code].credential_state,
                renews=self.credentials is not None and found[code].renews_credentials,
                hours=(hours := self.hours(code)),
                quiet=hours.is_quiet(now_ms),
            )
            for code, state, reason, expires_ms in self.providers.conditions()
        ]

    def summary(self) -> dict[str, Any]:
        """Return how routing is, and why decisions are not written where they are not."""
        return self.providers.router.summary() | {"problem": self.events.problem}

    def quality_status(self) -> dict[str, Any]:
        """Return the scores of all sources and what is disputed."""
        return {
            "scores": [
                {"provider": found.provider, "exchange": found.exchange, "score": found.score}
                for found in map(score, self.quality.figures())
            ],
            "disputed": sorted(self.quality.disputes()),
            "problem": self.scores.problem,
        }
