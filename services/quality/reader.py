"""Reads the quality figures of the past from PostgreSQL, and the order of providers as it is."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from services.catalogue.connection import DATABASE_ERRORS, database_error, make_engine
from services.quality.figures import Score, by_day, score
from services.quality.suggestions import Place
from services.quality.writer import as_figures

_TIMEOUT_S = 10.0
_FIGURES = text(
    "SELECT day, provider, exchange, minutes, expected, missing, faulty, ticks, duplicates, late, latency, "
    "disagreement FROM quality_scores WHERE day > current_date - CAST(:days AS integer) "
    "AND (CAST(:exchange AS text) IS NULL OR exchange = :exchange) ORDER BY day"
)
_ORDER = text(
    "SELECT e.code AS exchange, p.code AS provider, m.is_primary, m.priority, m.delivery "
    "FROM exchange_provider_mappings m JOIN providers p ON p.id = m.provider_id "
    "JOIN exchanges e ON e.id = m.exchange_id WHERE m.is_active AND p.is_active AND e.is_active"
)


async def stored_scores(
    database_url: str, *, days: int, exchange: str | None = None
) -> tuple[list[Score], list[Place]]:
    """Return the scores of the last `days` days in order, and the order of the providers as it is now.

    Raises `TemporaryError` when PostgreSQL does not answer, `ConfigurationError` for a wrong login, a missing
    table or a missing right.
    """
    engine = make_engine(database_url, application_name="marketd-look", command_timeout_s=_TIMEOUT_S)
    try:
        async with engine.connect() as connection:
            rows: Any = (await connection.execute(_FIGURES, {"days": days, "exchange": exchange})).all()
            order = (await connection.execute(_ORDER)).all()
    except DATABASE_ERRORS as error:
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()
    places = [
        Place(row.exchange, row.provider, row.is_primary, row.priority, row.delivery or "real_time")
        for row in order
    ]
    return [score(figures) for figures in by_day(as_figures(rows))], places
