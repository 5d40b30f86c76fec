"""Which providers serve an exchange, and in which order."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    String,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Row


class ExchangeProviderMapping(Row, Base):
    """One provider of one exchange.

    The primary comes first, the others by `priority`, smallest first. An exchange has one primary
    at most, active or not. `delivery` is how fresh the provider's data of this exchange is, NULL where it is
    what the provider promises; `allow_delayed` whether it may stand in for real-time data all the same.
    """

    __tablename__ = "exchange_provider_mappings"
    __table_args__ = (
        UniqueConstraint("provider_id", "exchange_id"),
        CheckConstraint("priority >= 0", name="priority_is_not_negative"),
        CheckConstraint("delivery IN ('real_time', 'delayed', 'end_of_day')", name="delivery_is_known"),
        Index(
            "uq_exchange_provider_mappings_one_primary",
            "exchange_id",
            unique=True,
            postgresql_where=text("is_primary"),
        ),
        Index(None, "exchange_id"),
    )

    provider_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("providers.id", ondelete="RESTRICT"))
    exchange_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("exchanges.id", ondelete="RESTRICT"))
    is_active: Mapped[bool] = mapped_column(Boolean, server_default=true())
    is_primary: Mapped[bool] = mapped_column(Boolean, server_default=false())
    priority: Mapped[int] = mapped_column(Integer, server_default=text("100"))
    delivery: Mapped[str | None] = mapped_column(String(16))
    allow_delayed: Mapped[bool] = mapped_column(Boolean, server_default=false())
