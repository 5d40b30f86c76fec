"""The log of the catalogue: every committed change of a row, whoever made it, in what it was and became.

Written by triggers of the database, read by the commands that show and undo changes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    String,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class MappingChange(Base):
    """One transaction that changed the catalogue.

    `actor` is who: the role that was logged in, or what `marketd.actor` was set to in the transaction;
    `note` is why, from `marketd.note`. `reverts` is the change that this one undid. `allows_removal`
    is the word to a running daemon that it may give up many instruments at once.
    """

    __tablename__ = "mapping_changes"
    __table_args__ = (UniqueConstraint("transaction_id", "changed_at"), Index(None, "reverts"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    transaction_id: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    actor: Mapped[str] = mapped_column(String(200))
    note: Mapped[str] = mapped_column(Text, server_default=text("''"))
    reverts: Mapped[int | None] = mapped_column(
        BigInteger, ForeignKey("mapping_changes.id", ondelete="SET NULL")
    )
    allows_removal: Mapped[bool] = mapped_column(Boolean, server_default=false())


class MappingChangeRow(Base):
    """One row that a change touched.

    An added row has no `before`, a deleted one no `after`, of a changed row both hold the columns that
    changed and nothing else.
    """

    __tablename__ = "mapping_change_rows"
    __table_args__ = (Index(None, "change_id"), Index(None, "table_name", "row_id"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    change_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("mapping_changes.id", ondelete="CASCADE"))
    table_name: Mapped[str] = mapped_column(String(63))
    row_id: Mapped[int] = mapped_column(BigInteger)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
