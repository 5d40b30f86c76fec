"""PostgreSQL started by root: in a user namespace, or under an account of its own where that is refused."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.errors import ConfigurationError
from services.operations import postgres_account
from services.operations.embedded import EmbeddedPostgres
from services.operations.embedded_postgres import program_folder
from services.operations.postgres_account import choose_account

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every account can reach, where user namespaces are refused."""
    folder = Path(tempfile.mkdtemp(prefix="marketd test "))
    folder.chmod(0o755)
    monkeypatch.setattr(postgres_account, "ELSEWHERE", folder)
    monkeypatch.setattr(postgres_account, "_NAMESPACE", ("false",))
    yield folder
    shutil.rmtree(folder)


async def query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_the_cluster_lies_in_the_state_directory_and_belongs_to_whoever_started_it(
    tmp_path: Path,
) -> None:
    async with EmbeddedPostgres(tmp_path) as server:
        await server.start()
    assert (tmp_path / "postgres" / "data" / "PG_VERSION").stat().st_uid == os.geteuid()


@only_root
async def test_where_namespaces_are_refused_it_runs_under_an_account_and_keeps_its_data(
    tmp_path: Path, elsewhere: Path
) -> None:
    tmp_path.chmod(0o700)
    for attempt in range(2):
        async with EmbeddedPostgres(tmp_path) as server:
            url = await server.start()
            if attempt == 0:
                await query(url, "CREATE TABLE kept (n int)")
            assert await query(url, "SELECT count(*) FROM kept") == 0
            pid = server.live_pid()
            assert pid is not None
            owner = pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name
            assert owner in postgres_account.ACCOUNTS
        assert server.live_pid() is None
    home = Path((tmp_path / "postgres" / "elsewhere").read_text(encoding="utf-8").strip())
    assert home.parent == elsewhere
    assert not (tmp_path / "postgres" / "data").exists()


@only_root
async def test_programs_that_the_account_cannot_reach_are_copied_once(
    tmp_path: Path, elsewhere: Path
) -> None:
    closed = tmp_path / "closed"
    shutil.copytree(program_folder().parent, closed / "pginstall")
    closed.chmod(0o700)
    (tmp_path / "state").mkdir()
    first = await choose_account(tmp_path / "state", closed / "pginstall" / "bin")
    again = await choose_account(tmp_path / "state", closed / "pginstall" / "bin")
    assert first == again
    assert first.programs.is_relative_to(elsewhere)
    assert len(list(elsewhere.glob("programs-*"))) == 1


@only_root
async def test_where_no_account_will_do_the_sentence_says_what_will(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_account, "ACCOUNTS", ("no-such-account",))
    with pytest.raises(ConfigurationError, match="ordinary user.*DATABASE_URL"):
        await choose_account(tmp_path, program_folder())
