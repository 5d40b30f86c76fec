"""What routing decided: every switch, what led to it, and what came of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Identity, Index, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class RouteEvent(Base):
    """One decision about one instrument; `at_ms` is UTC epoch ms.

    Kept under the instrument's key and the providers' codes, not their rows: what happened outlives a
    mapping. `run` and `seq` number the events of one process, so that a repeated write is recognised.
    """

    __tablename__ = "route_events"
    __table_args__ = (
        UniqueConstraint("run", "seq"),
        Index(None, "instrument", "at_ms"),
        Index(None, "at_ms"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    instrument: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    from_provider: Mapped[str | None] = mapped_column(Text)
    to_provider: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    at_ms: Mapped[int] = mapped_column(BigInteger)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    run: Mapped[str] = mapped_column(Text)
    seq: Mapped[int] = mapped_column(BigInteger)
