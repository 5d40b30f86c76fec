"""Under which names a provider knows an instrument."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    String,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Row


class ProviderInstrumentMapping(Row, Base):
    """One instrument as one provider knows it.

    Dhan: search code `RELIANCE-EQ`, segment `NSE_EQ`, security id `2885`. Yahoo: search code
    `RELIANCE.NS` alone. Rows that are not active are kept as history and clash with nothing; among the
    active ones a provider's name means one instrument at any moment, and an instrument has one name per
    provider. An active row is valid from `valid_from` until just before `valid_to`; NULL means always.
    A trigger refuses rows that share a name or an instrument while both are valid, and
    active rows that are made for an instrument that is not active.
    """

    __tablename__ = "provider_instrument_mappings"
    __table_args__ = (
        CheckConstraint(
            "provider_instrument_search_code = btrim(provider_instrument_search_code)"
            " AND provider_instrument_search_code <> ''",
            name="search_code_is_not_blank",
        ),
        CheckConstraint("provider_segment ~ '^[A-Z0-9_]+$'", name="segment_is_a_code"),
        CheckConstraint("valid_from < valid_to", name="validity_begins_before_it_ends"),
        CheckConstraint(r"provider_security_id ~ '^\S+$'", name="security_id_has_no_blanks"),
        Index(
            "uq_provider_instrument_mappings_active_search_code",
            "provider_id",
            "provider_segment",
            "provider_instrument_search_code",
            "valid_from",
            unique=True,
            postgresql_where=text("is_active"),
            postgresql_nulls_not_distinct=True,
        ),
        Index(
            "uq_provider_instrument_mappings_active_security_id",
            "provider_id",
            "provider_segment",
            "provider_security_id",
            "valid_from",
            unique=True,
            postgresql_where=text("is_active AND provider_security_id IS NOT NULL"),
            postgresql_nulls_not_distinct=True,
        ),
        Index(
            "uq_provider_instrument_mappings_active_instrument",
            "provider_id",
            "instrument_id",
            "valid_from",
            unique=True,
            postgresql_where=text("is_active"),
            postgresql_nulls_not_distinct=True,
        ),
        Index(
            "ix_provider_instrument_mappings_dated",
            "valid_from",
            "valid_to",
            postgresql_where=text("is_active AND (valid_from IS NOT NULL OR valid_to IS NOT NULL)"),
        ),
        Index(None, "instrument_id"),
    )

    provider_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("providers.id", ondelete="RESTRICT"))
    instrument_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("instruments.id", ondelete="RESTRICT"))
    provider_instrument_search_code: Mapped[str] = mapped_column(String(128))
    provider_segment: Mapped[str | None] = mapped_column(String(32))
    provider_security_id: Mapped[str | None] = mapped_column(String(64))
    is_active: Mapped[bool] = mapped_column(Boolean, server_default=true())
    valid_from: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    valid_to: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
