"""The tables of PostgreSQL: providers, exchanges, instruments, and the mappings between them.

Stands beside `services.errors` at the bottom of everything; imports nothing of ours. Read by
`services.catalogue`, written by `data_migration`. Importing this package registers every table on
`Base.metadata`.
"""

from __future__ import annotations

from models.base import Base
from models.coverage import Coverage
from models.exchange import Exchange
from models.exchange_provider_mapping import ExchangeProviderMapping
from models.instrument import Instrument
from models.provider import Provider
from models.provider_instrument_mapping import ProviderInstrumentMapping
from models.revisions import SCHEMA_REVISION, SCHEMA_REVISIONS

__all__ = [
    "SCHEMA_REVISION",
    "SCHEMA_REVISIONS",
    "Base",
    "Coverage",
    "Exchange",
    "ExchangeProviderMapping",
    "Instrument",
    "Provider",
    "ProviderInstrumentMapping",
]
