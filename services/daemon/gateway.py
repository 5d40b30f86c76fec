"""The daemon's gateway and what explains an instrument behind it, put together from the stages."""

from __future__ import annotations

from collections.abc import Callable

from services.daemon.config import IngestionConfig
from services.daemon.routes import RoutesView
from services.daemon.stages import Stages
from services.daemon.view import DaemonView
from services.diagnosis import Diagnosis, Sources
from services.gateway.backend import Readiness
from services.gateway.limits import limits_for
from services.gateway.server import Gateway, GatewayConfig
from services.storage.lookup import stored_newest
from services.storage.stream_history import StreamHistory


def make_gateway(config: IngestionConfig, stages: Stages, view: DaemonView, routes: RoutesView) -> Gateway:
    """Return the gateway in front of `view`; it listens once it is started."""
    return Gateway(
        view,
        stages.broadcast,
        GatewayConfig(
            host=config.api_host,
            port=config.api_port,
            port_fallback=config.api_port_fallback,
            tokens=dict(config.api_tokens),
            allowed_origins=config.api_allowed_origins,
            limits=limits_for(config.api_max_clients),
            serves_clients=config.serves_clients,
        ),
        StreamHistory(config.redis_url),
        stages.bars,
        routes=routes,
        options=stages.options.desk,
        news=stages.news.source,
    )


def make_diagnosis(stages: Stages, readiness: Callable[[], Readiness]) -> Diagnosis:
    """Return what explains where an instrument's ticks are."""
    subscriptions, reader = stages.subscriptions, stages.storage.reader
    return Diagnosis(
        stages.clock,
        stages.calendar,
        Sources(
            instruments=lambda: stages.known.mappings,
            route=stages.routing.providers.route,
            claim=subscriptions.claim if subscriptions else lambda _: "static",
            newest=stages.broadcast.latest,
            stored=lambda instrument: stored_newest(reader, instrument),
            not_ready=lambda: readiness().reasons,
            sinks=stages.storage.probed,
            dispute=stages.routing.dispute,
        ),
    )
