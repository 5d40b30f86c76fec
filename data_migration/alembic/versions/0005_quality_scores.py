"""How good each provider's data of an exchange was, day by day.

Revision: 0005, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "quality_scores",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("exchange", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("expected", sa.BigInteger(), nullable=False),
        sa.Column("missing", sa.BigInteger(), nullable=False),
        sa.Column("faulty", sa.BigInteger(), nullable=False),
        sa.Column("ticks", sa.BigInteger(), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.BigInteger(), nullable=False),
        sa.Column("latency", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("disagreement", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("score BETWEEN 0 AND 100", name=op.f("ck_quality_scores_score_is_a_percentage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_scores")),
        sa.UniqueConstraint(
            "day", "provider", "exchange", "run", name=op.f("uq_quality_scores_day_provider_exchange_run")
        ),
    )
    op.create_index(op.f("ix_quality_scores_exchange_day"), "quality_scores", ["exchange", "day"], unique=False)
    # The daemon keeps this table, where it logs in with a role of its own.
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketd_daemon') THEN "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON quality_scores TO marketd_daemon; END IF; END $$"
    )


def downgrade() -> None:
    """Bring the schema back to the revision before: the scores of the past are lost."""
    op.drop_table("quality_scores")
