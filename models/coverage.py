"""What is known of every instrument's past: what we have, what is missing, what cannot be had."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Coverage(Base):
    """One span of one instrument's ticks or bars. Times are UTC epoch ms, `to_ms` the first moment after.

    Kept under the instrument's key, not its row: what is stored outlives a mapping. `source` is a provider
    code, or `LIVE` for what came over the streams, or empty where nobody was asked yet. Rows are replaced,
    never changed, and written by the daemon, so they have neither a number nor times of their own.
    """

    __tablename__ = "coverage"
    __table_args__ = (
        CheckConstraint("from_ms < to_ms", name="span_is_not_empty"),
        CheckConstraint("type IN ('ticks', '1m', '1d')", name="type_is_known"),
        CheckConstraint("state IN ('have', 'missing', 'unavailable')", name="state_is_known"),
        Index("ix_coverage_missing", "to_ms", postgresql_where=text("state = 'missing'")),
    )

    instrument: Mapped[str] = mapped_column(Text, primary_key=True)
    type: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text, primary_key=True)
    source: Mapped[str] = mapped_column(Text, primary_key=True)
    reason: Mapped[str] = mapped_column(Text, primary_key=True)
    from_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    to_ms: Mapped[int] = mapped_column(BigInteger)
