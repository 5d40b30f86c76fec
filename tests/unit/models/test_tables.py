"""The models alone: what they import, and that the list of revisions is the list of migration files."""

from __future__ import annotations

import subprocess
import sys

from alembic.script import ScriptDirectory

from data_migration.schema import alembic_config, head_revision
from models import SCHEMA_REVISION, SCHEMA_REVISIONS, Base
from tests.support.daemon import ROOT


def test_the_revisions_the_program_knows_are_those_of_the_migration_files() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == SCHEMA_REVISIONS
    assert head_revision() == SCHEMA_REVISION


def test_there_is_one_line_of_revisions() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1


def test_the_five_tables_are_there_with_the_columns_of_the_specification() -> None:
    columns = {name: set(table.columns.keys()) for name, table in Base.metadata.tables.items()}
    assert columns["providers"] >= {"id", "name", "code", "rate_limit", "is_active"}
    assert columns["exchanges"] >= {
        "code",
        "name",
        "timezone",
        "calendar",
        "country",
        "currency",
        "is_active",
    }
    assert columns["instruments"] >= {"exchange_id", "symbol", "asset_class", "currency", "tick_size"}
    assert columns["exchange_provider_mappings"] >= {
        "provider_id",
        "exchange_id",
        "is_active",
        "is_primary",
        "priority",
    }
    assert columns["provider_instrument_mappings"] >= {
        "provider_id",
        "instrument_id",
        "provider_instrument_search_code",
        "provider_segment",
        "provider_security_id",
        "is_active",
    }


def test_every_constraint_and_index_has_a_name() -> None:
    for table in Base.metadata.tables.values():
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)


def test_importing_the_models_imports_nothing_else_of_ours() -> None:
    code = (
        "import models, sys; "
        "ours = ('services', 'config', 'data_migration'); "
        "print([name for name in sys.modules if name.split('.')[0] in ours])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
