"""Instruments: what is traded. The instrument key is `EXCHANGE:SYMBOL`."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    String,
    UniqueConstraint,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Row

SYMBOL_PATTERN = "^[A-Z0-9][A-Z0-9.&_-]*$"
"""What may stand behind the colon of an instrument key, as a POSIX and Python pattern alike."""


class Instrument(Row, Base):
    """One traded thing on one exchange, whichever providers serve it.

    `tick_size` and `strike` are in the currency of the price; `lot_size` is in units; `underlying` is
    an instrument key; `expiry` is the last day of trading by the exchange's own calendar.
    """

    __tablename__ = "instruments"
    __table_args__ = (
        UniqueConstraint("exchange_id", "symbol"),
        CheckConstraint(f"symbol ~ '{SYMBOL_PATTERN}'", name="symbol_fits_an_instrument_key"),
        CheckConstraint("btrim(name) <> ''", name="name_is_not_blank"),
        CheckConstraint(
            "asset_class IN ('equity', 'etf', 'index', 'future', 'option', 'fx', 'crypto')",
            name="asset_class_is_known",
        ),
        CheckConstraint("currency ~ '^[A-Za-z]{3,10}$'", name="currency_is_a_code"),
        CheckConstraint("tick_size > 0 AND tick_size < 'Infinity'", name="tick_size_is_positive"),
        CheckConstraint("lot_size > 0", name="lot_size_is_positive"),
        CheckConstraint(
            "underlying ~ '^[A-Z][A-Z0-9]*:[A-Z0-9][A-Z0-9.&_-]*$'", name="underlying_is_an_instrument_key"
        ),
        CheckConstraint("strike > 0 AND strike < 'Infinity'", name="strike_is_positive"),
        CheckConstraint("option_type IN ('CE', 'PE')", name="option_type_is_call_or_put"),
        CheckConstraint("isin ~ '^[A-Z]{2}[A-Z0-9]{9}[0-9]$'", name="isin_has_its_form"),
        CheckConstraint(
            "(asset_class = 'option') = (strike IS NOT NULL)"
            " AND (asset_class = 'option') = (option_type IS NOT NULL)"
            " AND (asset_class <> 'option' OR (expiry IS NOT NULL AND underlying IS NOT NULL))"
            " AND (asset_class IN ('option', 'future') OR expiry IS NULL)",
            name="contract_terms_fit_the_asset_class",
        ),
        Index("ix_instruments_underlying_expiry", "underlying", "expiry"),
    )

    exchange_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("exchanges.id", ondelete="RESTRICT"))
    symbol: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    asset_class: Mapped[str] = mapped_column(String(16))
    currency: Mapped[str] = mapped_column(String(10))
    tick_size: Mapped[Decimal | None] = mapped_column(Numeric(20, 10))
    lot_size: Mapped[int | None] = mapped_column(Integer)
    underlying: Mapped[str | None] = mapped_column(String(81))
    expiry: Mapped[date | None] = mapped_column(Date)
    strike: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    option_type: Mapped[str | None] = mapped_column(String(2))
    isin: Mapped[str | None] = mapped_column(String(12))
    is_active: Mapped[bool] = mapped_column(Boolean, server_default=true())
