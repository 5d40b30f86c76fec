"""Providers: who sends market data."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import Boolean, CheckConstraint, Numeric, String, UniqueConstraint, true
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Row


class Provider(Row, Base):
    """One source of market data, such as `YF` or `DHAN`.

    `rate_limit` is in requests per second over REST, NULL where there is none.
    """

    __tablename__ = "providers"
    __table_args__ = (
        UniqueConstraint("code"),
        CheckConstraint("code ~ '^[A-Z][A-Z0-9_]*$'", name="code_is_upper_case"),
        CheckConstraint("btrim(name) <> ''", name="name_is_not_blank"),
        CheckConstraint("rate_limit > 0 AND rate_limit < 'Infinity'", name="rate_limit_is_positive"),
    )

    code: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    rate_limit: Mapped[Decimal | None] = mapped_column(Numeric(10, 3))
    is_active: Mapped[bool] = mapped_column(Boolean, server_default=true())
