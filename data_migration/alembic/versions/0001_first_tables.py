"""The five tables of the catalogue: providers, exchanges, instruments and the mappings between them.

Revision: 0001, the first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
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
    op.create_table(
        "exchanges",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("code", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("calendar", sa.String(length=32), nullable=True),
        sa.Column("country", sa.String(length=2), nullable=True),
        sa.Column("currency", sa.String(length=10), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("btrim(calendar) <> ''", name=op.f("ck_exchanges_calendar_is_not_blank")),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_exchanges_name_is_not_blank")),
        sa.CheckConstraint("code ~ '^[A-Z][A-Z0-9]*$'", name=op.f("ck_exchanges_code_is_upper_case")),
        sa.CheckConstraint("country ~ '^[A-Z]{2}$'", name=op.f("ck_exchanges_country_has_two_letters")),
        sa.CheckConstraint("currency ~ '^[A-Za-z]{3,10}$'", name=op.f("ck_exchanges_currency_is_a_code")),
        sa.CheckConstraint(
            "timezone ~ '^[A-Za-z]+([/_+-][A-Za-z0-9]+)*$'", name=op.f("ck_exchanges_timezone_is_a_zone_name")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exchanges")),
        sa.UniqueConstraint("code", name=op.f("uq_exchanges_code")),
    )
    op.create_table(
        "providers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("rate_limit", sa.Numeric(precision=10, scale=3), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_providers_name_is_not_blank")),
        sa.CheckConstraint("code ~ '^[A-Z][A-Z0-9_]*$'", name=op.f("ck_providers_code_is_upper_case")),
        sa.CheckConstraint(
            "rate_limit > 0 AND rate_limit < 'Infinity'", name=op.f("ck_providers_rate_limit_is_positive")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_providers")),
        sa.UniqueConstraint("code", name=op.f("uq_providers_code")),
    )
    op.create_table(
        "exchange_provider_mappings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("provider_id", sa.BigInteger(), nullable=False),
        sa.Column("exchange_id", sa.BigInteger(), nullable=False),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("is_primary", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("100"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "priority >= 0", name=op.f("ck_exchange_provider_mappings_priority_is_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["exchange_id"],
            ["exchanges.id"],
            name=op.f("fk_exchange_provider_mappings_exchange_id_exchanges"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["providers.id"],
            name=op.f("fk_exchange_provider_mappings_provider_id_providers"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exchange_provider_mappings")),
        sa.UniqueConstraint(
            "provider_id", "exchange_id", name=op.f("uq_exchange_provider_mappings_provider_id_exchange_id")
        ),
    )
    op.create_index(
        op.f("ix_exchange_provider_mappings_exchange_id"),
        "exchange_provider_mappings",
        ["exchange_id"],
        unique=False,
    )
    op.create_index(
        "uq_exchange_provider_mappings_one_primary",
        "exchange_provider_mappings",
        ["exchange_id"],
        unique=True,
        postgresql_where=sa.text("is_primary"),
    )
    op.create_table(
        "instruments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("exchange_id", sa.BigInteger(), nullable=False),
        sa.Column("symbol", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("asset_class", sa.String(length=16), nullable=False),
        sa.Column("currency", sa.String(length=10), nullable=False),
        sa.Column("tick_size", sa.Numeric(precision=20, scale=10), nullable=True),
        sa.Column("lot_size", sa.Integer(), nullable=True),
        sa.Column("underlying", sa.String(length=81), nullable=True),
        sa.Column("expiry", sa.Date(), nullable=True),
        sa.Column("strike", sa.Numeric(precision=20, scale=6), nullable=True),
        sa.Column("option_type", sa.String(length=2), nullable=True),
        sa.Column("isin", sa.String(length=12), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(asset_class = 'option') = (strike IS NOT NULL) AND (asset_class = 'option') = (option_type IS NOT NULL) AND (asset_class <> 'option' OR (expiry IS NOT NULL AND underlying IS NOT NULL)) AND (asset_class IN ('option', 'future') OR expiry IS NULL)",
            name=op.f("ck_instruments_contract_terms_fit_the_asset_class"),
        ),
        sa.CheckConstraint(
            "asset_class IN ('equity', 'etf', 'index', 'future', 'option', 'fx', 'crypto')",
            name=op.f("ck_instruments_asset_class_is_known"),
        ),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_instruments_name_is_not_blank")),
        sa.CheckConstraint("currency ~ '^[A-Za-z]{3,10}$'", name=op.f("ck_instruments_currency_is_a_code")),
        sa.CheckConstraint(
            "isin ~ '^[A-Z]{2}[A-Z0-9]{9}[0-9]$'", name=op.f("ck_instruments_isin_has_its_form")
        ),
        sa.CheckConstraint(
            "option_type IN ('CE', 'PE')", name=op.f("ck_instruments_option_type_is_call_or_put")
        ),
        sa.CheckConstraint(
            "strike > 0 AND strike < 'Infinity'", name=op.f("ck_instruments_strike_is_positive")
        ),
        sa.CheckConstraint(
            "symbol ~ '^[A-Z0-9][A-Z0-9.&_-]*$'", name=op.f("ck_instruments_symbol_fits_an_instrument_key")
        ),
        sa.CheckConstraint(
            "tick_size > 0 AND tick_size < 'Infinity'", name=op.f("ck_instruments_tick_size_is_positive")
        ),
        sa.CheckConstraint(
            "underlying ~ '^[A-Z][A-Z0-9]*:[A-Z0-9][A-Z0-9.&_-]*$'",
            name=op.f("ck_instruments_underlying_is_an_instrument_key"),
        ),
        sa.CheckConstraint("lot_size > 0", name=op.f("ck_instruments_lot_size_is_positive")),
        sa.ForeignKeyConstraint(
            ["exchange_id"],
            ["exchanges.id"],
            name=op.f("fk_instruments_exchange_id_exchanges"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instruments")),
        sa.UniqueConstraint("exchange_id", "symbol", name=op.f("uq_instruments_exchange_id_symbol")),
    )
    op.create_index("ix_instruments_underlying_expiry", "instruments", ["underlying", "expiry"], unique=False)
    op.create_table(
        "provider_instrument_mappings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("provider_id", sa.BigInteger(), nullable=False),
        sa.Column("instrument_id", sa.BigInteger(), nullable=False),
        sa.Column("provider_instrument_search_code", sa.String(length=128), nullable=False),
        sa.Column("provider_segment", sa.String(length=32), nullable=True),
        sa.Column("provider_security_id", sa.String(length=64), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "provider_instrument_search_code = btrim(provider_instrument_search_code) AND provider_instrument_search_code <> ''",
            name=op.f("ck_provider_instrument_mappings_search_code_is_not_blank"),
        ),
        sa.CheckConstraint(
            "provider_security_id ~ '^\\S+$'",
            name=op.f("ck_provider_instrument_mappings_security_id_has_no_blanks"),
        ),
        sa.CheckConstraint(
            "provider_segment ~ '^[A-Z0-9_]+$'",
            name=op.f("ck_provider_instrument_mappings_segment_is_a_code"),
        ),
        sa.ForeignKeyConstraint(
            ["instrument_id"],
            ["instruments.id"],
            name=op.f("fk_provider_instrument_mappings_instrument_id_instruments"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["providers.id"],
            name=op.f("fk_provider_instrument_mappings_provider_id_providers"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provider_instrument_mappings")),
    )
    op.create_index(
        op.f("ix_provider_instrument_mappings_instrument_id"),
        "provider_instrument_mappings",
        ["instrument_id"],
        unique=False,
    )
    op.create_index(
        "uq_provider_instrument_mappings_active_instrument",
        "provider_instrument_mappings",
        ["provider_id", "instrument_id"],
        unique=True,
        postgresql_where=sa.text("is_active"),
    )
    op.create_index(
        "uq_provider_instrument_mappings_active_search_code",
        "provider_instrument_mappings",
        ["provider_id", "provider_segment", "provider_instrument_search_code"],
        unique=True,
        postgresql_where=sa.text("is_active"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_index(
        "uq_provider_instrument_mappings_active_security_id",
        "provider_instrument_mappings",
        ["provider_id", "provider_segment", "provider_security_id"],
        unique=True,
        postgresql_where=sa.text("is_active AND provider_security_id IS NOT NULL"),
        postgresql_nulls_not_distinct=True,
    )
    # updated_at follows every UPDATE, whether a script or an operator with psql makes it.
    op.execute(
        "CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$"
    )
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER set_updated_at BEFORE UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION set_updated_at()"
        )


def downgrade() -> None:
    """Go back to an empty database: every row of the five tables is lost."""
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute("DROP FUNCTION set_updated_at()")
