"""The coverage ledger: what is had, missing and not to be had of every instrument's past.

Revision: 0004, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "coverage",
        sa.Column("instrument", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("from_ms < to_ms", name=op.f("ck_coverage_span_is_not_empty")),
        sa.CheckConstraint("type IN ('ticks', '1m', '1d')", name=op.f("ck_coverage_type_is_known")),
        sa.CheckConstraint(
            "state IN ('have', 'missing', 'unavailable')", name=op.f("ck_coverage_state_is_known")
        ),
        sa.PrimaryKeyConstraint(
            "instrument", "type", "state", "source", "reason", "from_ms", name=op.f("pk_coverage")
        ),
    )
    op.create_index(
        "ix_coverage_missing",
        "coverage",
        ["to_ms"],
        unique=False,
        postgresql_where=sa.text("state = 'missing'"),
    )
    # The daemon keeps this table, where it logs in with a role of its own.
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketd_daemon') THEN "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON coverage TO marketd_daemon; END IF; END $$"
    )


def downgrade() -> None:
    """Bring the schema back to the revision before: what is known of the past is lost."""
    op.drop_table("coverage")
