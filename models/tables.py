"""All tables at once: importing this module registers every one of them on `Base.metadata`."""

from __future__ import annotations

from models.base import Base
from models.coverage import Coverage
from models.exchange import Exchange
from models.exchange_provider_mapping import ExchangeProviderMapping
from models.instrument import Instrument
from models.mapping_change import MappingChange, MappingChangeRow
from models.provider import Provider
from models.provider_instrument_mapping import ProviderInstrumentMapping
from models.quality_score import QualityScore
from models.route_event import RouteEvent

__all__ = [
    "Base",
    "Coverage",
    "Exchange",
    "ExchangeProviderMapping",
    "Instrument",
    "MappingChange",
    "MappingChangeRow",
    "Provider",
    "ProviderInstrumentMapping",
    "QualityScore",
    "RouteEvent",
]
