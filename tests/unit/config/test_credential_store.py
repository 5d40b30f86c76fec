"""Renewed credentials on disk: where they go, when they count, who can read them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from config.credential_store import FILE, CredentialStore

NAME = "DHAN_ACCESS_TOKEN"


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given = {NAME: "first-token", "DHAN_CLIENT_ID": "1"}
        self.file: Path | None = None

    def store(self) -> CredentialStore:
        return CredentialStore(
            self.folder, lambda: self.given, lambda name: self.file if name == NAME else None
        )


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_is_renewed_counts_until_an_operator_puts_in_another(rig: Rig) -> None:
    store = rig.store()
    assert store.settings() == rig.given
    store.save({NAME: "second-token"})
    store.save({NAME: "third-token"})
    for reader in (store, rig.store()):
        assert reader.settings() == {NAME: "third-token", "DHAN_CLIENT_ID": "1"}
    rig.given = {**rig.given, NAME: "by-the-operator"}
    assert rig.store().settings()[NAME] == "by-the-operator"
    assert store.settings()[NAME] == "by-the-operator"


def test_only_its_owner_can_read_it(rig: Rig) -> None:
    rig.store().save({NAME: "second-token"})
    path = rig.folder / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "first-token" not in path.read_text()
    path.chmod(0o644)
    assert rig.store().settings()[NAME] == "first-token", "a file that others can read is not believed"


def test_a_damaged_file_changes_nothing(rig: Rig) -> None:
    path = rig.folder / FILE
    path.write_text("{", encoding="utf-8")
    path.chmod(0o600)
    assert rig.store().settings() == rig.given


def test_a_secret_file_of_ours_is_written_anew_and_nothing_else(rig: Rig, tmp_path: Path) -> None:
    rig.file = tmp_path / "token"
    rig.file.write_text("first-token\n", encoding="utf-8")
    rig.file.chmod(0o600)
    rig.store().save({NAME: "second-token"})
    assert rig.file.read_text() == "second-token\n"
    assert stat.S_IMODE(rig.file.stat().st_mode) == 0o600
    assert not (rig.folder / FILE).exists()


@pytest.mark.parametrize("kind", ["link", "read only", "gone"])
def test_a_secret_file_that_is_not_ours_to_write_stays_and_the_state_directory_keeps_it(
    rig: Rig, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "target"
    if kind != "gone":
        target.write_text("first-token\n", encoding="utf-8")
        target.chmod(0o400 if kind == "read only" else 0o600)
    rig.file = target
    if kind == "link":
        rig.file = tmp_path / "link"
        rig.file.symlink_to(target)
    rig.store().save({NAME: "second-token"})
    if kind != "gone":
        assert target.read_text() == "first-token\n"
    assert rig.store().settings()[NAME] == "second-token"
