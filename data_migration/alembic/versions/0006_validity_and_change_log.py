"""Give mappings dates from which and until which they hold, and log every change of the catalogue.

Revision: 0006, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = (
    "providers",
    "exchanges",
    "instruments",
    "exchange_provider_mappings",
    "provider_instrument_mappings",
)
MAPPINGS = "provider_instrument_mappings"
UNIQUE = {
    f"uq_{MAPPINGS}_active_instrument": (["provider_id", "instrument_id"], "is_active"),
    f"uq_{MAPPINGS}_active_search_code": (
        ["provider_id", "provider_segment", "provider_instrument_search_code"],
        "is_active",
    ),
    f"uq_{MAPPINGS}_active_security_id": (
        ["provider_id", "provider_segment", "provider_security_id"],
        "is_active AND provider_security_id IS NOT NULL",
    ),
}

# A row that is made, made active or given to another instrument must be of an active one; to deactivate
# an instrument lets its rows rest. The unique indexes refuse rows that are valid from the same moment; this
# refuses the overlaps of rows with dates. Rows without dates cost one look into an index.
CHECK_ROWS = """
CREATE FUNCTION check_mapping_rows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    clash record;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT n.id, i.id AS instrument INTO clash FROM new_rows n JOIN instruments i ON i.id = n.instrument_id
        WHERE n.is_active AND NOT i.is_active LIMIT 1;
    ELSE
        SELECT n.id, i.id AS instrument INTO clash
        FROM new_rows n JOIN instruments i ON i.id = n.instrument_id JOIN old_rows o ON o.id = n.id
        WHERE n.is_active AND NOT i.is_active AND NOT (o.is_active AND o.instrument_id = n.instrument_id)
        LIMIT 1;
    END IF;
    IF FOUND THEN
        RAISE EXCEPTION 'row % of provider_instrument_mappings is active, its instrument (row %) is not',
            clash.id, clash.instrument
            USING ERRCODE = 'foreign_key_violation', TABLE = 'provider_instrument_mappings',
                  CONSTRAINT = 'active_mappings_have_active_instruments',
                  HINT = 'activate the instrument first';
    END IF;
    IF NOT EXISTS (SELECT FROM provider_instrument_mappings
                   WHERE is_active AND (valid_from IS NOT NULL OR valid_to IS NOT NULL)) THEN
        RETURN NULL;
    END IF;
    SELECT pair.* INTO clash FROM (
        SELECT a.id AS one, b.id AS other, 'instrument' AS what, a.instrument_id::text AS name
        FROM new_rows a JOIN provider_instrument_mappings b
          ON b.provider_id = a.provider_id AND b.instrument_id = a.instrument_id AND b.id <> a.id
        WHERE a.is_active AND b.is_active
          AND tstzrange(a.valid_from, a.valid_to) && tstzrange(b.valid_from, b.valid_to)
        UNION ALL
        SELECT a.id, b.id, 'search code', a.provider_instrument_search_code
        FROM new_rows a JOIN provider_instrument_mappings b
          ON b.provider_id = a.provider_id
         AND b.provider_instrument_search_code = a.provider_instrument_search_code
         AND b.provider_segment IS NOT DISTINCT FROM a.provider_segment AND b.id <> a.id
        WHERE a.is_active AND b.is_active
          AND tstzrange(a.valid_from, a.valid_to) && tstzrange(b.valid_from, b.valid_to)
        UNION ALL
        SELECT a.id, b.id, 'security id', a.provider_security_id
        FROM new_rows a JOIN provider_instrument_mappings b
          ON b.provider_id = a.provider_id AND b.provider_security_id = a.provider_security_id
         AND b.provider_segment IS NOT DISTINCT FROM a.provider_segment AND b.id <> a.id
        WHERE a.is_active AND b.is_active
          AND tstzrange(a.valid_from, a.valid_to) && tstzrange(b.valid_from, b.valid_to)
    ) AS pair LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'rows % and % of provider_instrument_mappings have the same % (%) at the same time',
            least(clash.one, clash.other), greatest(clash.one, clash.other), clash.what, clash.name
            USING ERRCODE = 'exclusion_violation', TABLE = 'provider_instrument_mappings',
                  CONSTRAINT = 'validity_does_not_overlap',
                  HINT = 'let valid_to of the old row be the valid_from of the new one';
    END IF;
    RETURN NULL;
END $$
"""

# Whoever may change a row need not be allowed to write the log: it is written with the rights of its owner.
CURRENT_CHANGE = """
CREATE FUNCTION current_mapping_change() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
DECLARE
    number bigint;
BEGIN
    SELECT id INTO number FROM mapping_changes
    WHERE transaction_id = pg_current_xact_id()::text::bigint AND changed_at = now();
    IF number IS NULL THEN
        INSERT INTO mapping_changes (transaction_id, actor, note)
        VALUES (pg_current_xact_id()::text::bigint,
                coalesce(nullif(current_setting('marketd.actor', true), ''), session_user),
                coalesce(current_setting('marketd.note', true), ''))
        RETURNING id INTO number;
    END IF;
    RETURN number;
END $$
"""

LOG_CHANGES = """
CREATE FUNCTION log_mapping_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
DECLARE
    number bigint;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM new_rows) THEN
            number := current_mapping_change();
            INSERT INTO mapping_change_rows (change_id, table_name, row_id, after)
            SELECT number, TG_TABLE_NAME, n.id, jsonb_strip_nulls(to_jsonb(n) - 'updated_at') FROM new_rows n;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        IF EXISTS (SELECT FROM old_rows) THEN
            number := current_mapping_change();
            INSERT INTO mapping_change_rows (change_id, table_name, row_id, before)
            SELECT number, TG_TABLE_NAME, o.id, jsonb_strip_nulls(to_jsonb(o) - 'updated_at') FROM old_rows o;
        END IF;
    ELSIF EXISTS (SELECT FROM old_rows o JOIN new_rows n USING (id)
                  WHERE to_jsonb(o) - 'updated_at' <> to_jsonb(n) - 'updated_at') THEN
        number := current_mapping_change();
        INSERT INTO mapping_change_rows (change_id, table_name, row_id, before, after)
        SELECT number, TG_TABLE_NAME, n.id, changed.before, changed.after
        FROM old_rows o JOIN new_rows n USING (id),
             LATERAL (SELECT jsonb_object_agg(b.key, b.value) AS before, jsonb_object_agg(b.key, a.value) AS after
                      FROM jsonb_each(to_jsonb(o)) b JOIN jsonb_each(to_jsonb(n)) a USING (key)
                      WHERE b.value <> a.value AND b.key <> 'updated_at') AS changed
        WHERE changed.before IS NOT NULL;
    END IF;
    RETURN NULL;
END $$
"""

# What TRUNCATE takes is gone when it is done: it is noted before, so that it can be undone.
LOG_TRUNCATE = """
CREATE FUNCTION log_mapping_truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('INSERT INTO mapping_change_rows (change_id, table_name, row_id, before) '
                   'SELECT current_mapping_change(), %L, o.id, jsonb_strip_nulls(to_jsonb(o) - ''updated_at'') '
                   'FROM %I o', TG_TABLE_NAME, TG_TABLE_NAME);
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Bring the schema to this revision."""
    for name in ("valid_from", "valid_to"):
        op.add_column(MAPPINGS, sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f(f"ck_{MAPPINGS}_validity_begins_before_it_ends"), MAPPINGS, "valid_from < valid_to"
    )
    for name, (columns, where) in UNIQUE.items():
        op.drop_index(name, MAPPINGS)
        op.create_index(
            name,
            MAPPINGS,
            [*columns, "valid_from"],
            unique=True,
            postgresql_where=sa.text(where),
            postgresql_nulls_not_distinct=True,
        )
    op.create_index(
        f"ix_{MAPPINGS}_dated",
        MAPPINGS,
        ["valid_from", "valid_to"],
        postgresql_where=sa.text("is_active AND (valid_from IS NOT NULL OR valid_to IS NOT NULL)"),
    )
    _create_log()
    for function in (CHECK_ROWS, CURRENT_CHANGE, LOG_CHANGES, LOG_TRUNCATE):
        op.execute(function)
    for event, old in (("INSERT", ""), ("UPDATE", "OLD TABLE AS old_rows ")):
        op.execute(
            f"CREATE TRIGGER check_{event.lower()} AFTER {event} ON {MAPPINGS} "
            f"REFERENCING {old}NEW TABLE AS new_rows "
            "FOR EACH STATEMENT EXECUTE FUNCTION check_mapping_rows()"
        )
    for table in TABLES:
        for event, rows in (
            ("INSERT", "NEW TABLE AS new_rows"),
            ("UPDATE", "OLD TABLE AS old_rows NEW TABLE AS new_rows"),
            ("DELETE", "OLD TABLE AS old_rows"),
        ):
            op.execute(
                f"CREATE TRIGGER log_{event.lower()} AFTER {event} ON {table} REFERENCING {rows} "
                "FOR EACH STATEMENT EXECUTE FUNCTION log_mapping_change()"
            )
        op.execute(
            f"CREATE TRIGGER log_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION log_mapping_truncate()"
        )
    # A running daemon hears of a permission as of any change.
    op.execute(
        "CREATE TRIGGER announce_permission AFTER INSERT OR UPDATE OF allows_removal ON mapping_changes "
        "FOR EACH ROW WHEN (NEW.allows_removal) EXECUTE FUNCTION announce_mapping_change()"
    )


def _create_log() -> None:
    op.create_table(
        "mapping_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("note", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("reverts", sa.BigInteger(), nullable=True),
        sa.Column("allows_removal", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(
            ["reverts"],
            ["mapping_changes.id"],
            name=op.f("fk_mapping_changes_reverts_mapping_changes"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mapping_changes")),
        sa.UniqueConstraint(
            "transaction_id", "changed_at", name=op.f("uq_mapping_changes_transaction_id_changed_at")
        ),
    )
    op.create_index(op.f("ix_mapping_changes_reverts"), "mapping_changes", ["reverts"])
    op.create_table(
        "mapping_change_rows",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("change_id", sa.BigInteger(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.Column("before", postgresql.JSONB(), nullable=True),
        sa.Column("after", postgresql.JSONB(), nullable=True),
        sa.ForeignKeyConstraint(
            ["change_id"],
            ["mapping_changes.id"],
            name=op.f("fk_mapping_change_rows_change_id_mapping_changes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mapping_change_rows")),
    )
    op.create_index(op.f("ix_mapping_change_rows_change_id"), "mapping_change_rows", ["change_id"])
    op.create_index(
        op.f("ix_mapping_change_rows_table_name_row_id"), "mapping_change_rows", ["table_name", "row_id"]
    )


def downgrade() -> None:
    """Go back to the revision before: dates and log are lost; rows with dates are no longer active."""
    for table in TABLES:
        for event in ("insert", "update", "delete", "truncate"):
            op.execute(f"DROP TRIGGER log_{event} ON {table}")
    for event in ("insert", "update"):
        op.execute(f"DROP TRIGGER check_{event} ON {MAPPINGS}")
    op.drop_table("mapping_change_rows")
    op.drop_table("mapping_changes")
    for function in (
        "log_mapping_truncate",
        "log_mapping_change",
        "current_mapping_change",
        "check_mapping_rows",
    ):
        op.execute(f"DROP FUNCTION {function}()")
    op.execute(
        f"UPDATE {MAPPINGS} SET is_active = false WHERE is_active AND "
        "NOT coalesce(tstzrange(valid_from, valid_to) @> now(), true)"
    )
    op.drop_index(f"ix_{MAPPINGS}_dated", MAPPINGS)
    for name, (columns, where) in UNIQUE.items():
        op.drop_index(name, MAPPINGS)
        op.create_index(
            name,
            MAPPINGS,
            columns,
            unique=True,
            postgresql_where=sa.text(where),
            postgresql_nulls_not_distinct=not name.endswith("_active_instrument"),
        )
    op.drop_constraint(op.f(f"ck_{MAPPINGS}_validity_begins_before_it_ends"), MAPPINGS)
    for name in ("valid_from", "valid_to"):
        op.drop_column(MAPPINGS, name)
