"""How good a provider's data of an exchange was on a day."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class QualityScore(Base):
    """What one run of the daemon saw of one provider's exchange on one day (the exchange's own).

    `score` is 0 to 100, NULL while too little was seen. `expected` counts subscribed instruments times open
    `minutes`, `missing` those without a connection, `faulty` those that did not bring what they should.
    `latency` (ms) and `disagreement` (basis points) are counts in buckets, each a fifth wider than the one
    before. Days of several runs are added up by whoever reads them.
    """

    __tablename__ = "quality_scores"
    __table_args__ = (
        UniqueConstraint("day", "provider", "exchange", "run"),
        CheckConstraint("score BETWEEN 0 AND 100", name="score_is_a_percentage"),
        Index(None, "exchange", "day"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    day: Mapped[date] = mapped_column(Date)
    provider: Mapped[str] = mapped_column(Text)
    exchange: Mapped[str] = mapped_column(Text)
    run: Mapped[str] = mapped_column(Text)
    score: Mapped[float | None] = mapped_column(Double)
    minutes: Mapped[int] = mapped_column(Integer)
    expected: Mapped[int] = mapped_column(BigInteger)
    missing: Mapped[int] = mapped_column(BigInteger)
    faulty: Mapped[int] = mapped_column(BigInteger)
    ticks: Mapped[int] = mapped_column(BigInteger)
    duplicates: Mapped[int] = mapped_column(BigInteger)
    late: Mapped[int] = mapped_column(BigInteger)
    latency: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    disagreement: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
