"""The tables of PostgreSQL: providers, exchanges, instruments, the mappings between them, and their log.

Stands beside `services.errors` at the bottom of everything; imports nothing of ours. Written by
`data_migration`; the daemon reads them in SQL of its own and needs the revisions only, so the tables are
loaded when the first one is asked for. That registers every table on `Base.metadata`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.revisions import SCHEMA_REVISION, SCHEMA_REVISIONS

if TYPE_CHECKING:
    from models.tables import (
        Base,
        Coverage,
        Exchange,
        ExchangeProviderMapping,
        Instrument,
        MappingChange,
        MappingChangeRow,
        Provider,
        ProviderInstrumentMapping,
        QualityScore,
        RouteEvent,
    )

__all__ = [
    "SCHEMA_REVISION",
    "SCHEMA_REVISIONS",
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from models import tables

    return getattr(tables, name)
