"""What routing needs: how fresh a provider's data of an exchange is, what may stand in, and what was decided.

Revision: 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.add_column(
        "exchange_provider_mappings", sa.Column("delivery", sa.String(length=16), nullable=True)
    )
    op.add_column(
        "exchange_provider_mappings",
        sa.Column("allow_delayed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.create_check_constraint(
        op.f("ck_exchange_provider_mappings_delivery_is_known"),
        "exchange_provider_mappings",
        "delivery IN ('real_time', 'delayed', 'end_of_day')",
    )
    # Until now Yahoo stood in wherever it was mapped. It goes on doing so, and its Indian data is marked.
    op.execute(
        "UPDATE exchange_provider_mappings AS m SET "
        "delivery = CASE WHEN e.code IN ('NSE', 'BSE') THEN 'delayed' ELSE 'real_time' END, "
        "allow_delayed = e.code IN ('NSE', 'BSE') "
        "FROM providers AS p, exchanges AS e "
        "WHERE p.id = m.provider_id AND e.id = m.exchange_id AND p.code = 'YF'"
    )
    op.create_table(
        "route_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("instrument", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("from_provider", sa.Text(), nullable=True),
        sa.Column("to_provider", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "details",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_route_events")),
        sa.UniqueConstraint("run", "seq", name=op.f("uq_route_events_run_seq")),
    )
    op.create_index(
        op.f("ix_route_events_instrument_at_ms"), "route_events", ["instrument", "at_ms"], unique=False
    )
    op.create_index(op.f("ix_route_events_at_ms"), "route_events", ["at_ms"], unique=False)
    # The daemon keeps this table, where it logs in with a role of its own.
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketd_daemon') THEN "
        "GRANT SELECT, INSERT, DELETE ON route_events TO marketd_daemon; END IF; END $$"
    )


def downgrade() -> None:
    """Bring the schema back to the revision before: the decisions of the past are lost."""
    op.drop_table("route_events")
    op.drop_constraint(
        op.f("ck_exchange_provider_mappings_delivery_is_known"), "exchange_provider_mappings", type_="check"
    )
    op.drop_column("exchange_provider_mappings", "allow_delayed")
    op.drop_column("exchange_provider_mappings", "delivery")
