"""Announce every committed change of the catalogue, so that a running daemon takes it over at once.

Revision: 0002, after 0001.
"""

from __future__ import annotations

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = (
    "providers",
    "exchanges",
    "instruments",
    "exchange_provider_mappings",
    "provider_instrument_mappings",
)


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.execute(
        "CREATE FUNCTION announce_mapping_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('marketd_mappings', TG_TABLE_NAME); RETURN NULL; END $$"
    )
    for table in TABLES:
        # Once a statement: PostgreSQL folds equal notices of one transaction into one.
        op.execute(
            f"CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION announce_mapping_change()"
        )


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    for table in TABLES:
        op.execute(f"DROP TRIGGER announce_change ON {table}")
    op.execute("DROP FUNCTION announce_mapping_change()")
