"""Secrets that stand in files: which are read, which are refused, and that none is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config import secret_files
from config.secret_files import SecretFileUnusable, exposure, read_secret
from config.settings import load_settings, read_environment, secret_names, setting_names
from services.errors import ConfigurationError


@pytest.fixture(autouse=True)
def only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def secret(folder: Path, content: str | bytes, mode: int = 0o600, name: str = "secret") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def test_every_secret_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "DATABASE_URL": "postgresql://u:pw@h/db",
        "REDIS_URL": "redis://:pw@h/0",
        "DHAN_CLIENT_ID": "1000000001",
        "DHAN_ACCESS_TOKEN": "the-token",
        "API_TOKENS": "desk:correct-horse\nops:battery-staple",
        "NOTICE_WEBHOOK_URL": "https://chat.example.org/hook/abc",
    }
    assert set(values) == set(secret_names())
    for name, value in values.items():
        monkeypatch.setenv(f"{name}_FILE", str(secret(tmp_path, value + "\n", name=name)))
    settings = load_settings()
    assert settings.dhan_access_token.get_secret_value() == "the-token"
    assert settings.dhan_client_id == "1000000001"
    assert settings.tokens() == {"desk": "correct-horse", "ops": "battery-staple"}
    assert read_environment()["DATABASE_URL"] == values["DATABASE_URL"]


def test_the_name_of_the_file_may_stand_in_the_settings_file(tmp_path: Path) -> None:
    path = secret(tmp_path, "the-token")
    (tmp_path / ".env").write_text(f"DHAN_ACCESS_TOKEN_FILE={path}\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o644)
    assert load_settings().dhan_access_token.get_secret_value() == "the-token"


def test_secrets_of_installed_providers_may_stand_in_files_and_other_settings_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_TOKEN_FILE", str(secret(tmp_path, "acme-token")))
    monkeypatch.setenv("ACME_SYMBOLS_FILE", str(secret(tmp_path, "public", 0o644, "symbols")))
    found = read_environment(provider_prefixes=("ACME_",))
    assert found["ACME_TOKEN"] == "acme-token"
    assert "ACME_SYMBOLS" not in found


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o622])
def test_a_file_that_others_can_read_or_change_is_refused_with_the_remedy(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = secret(tmp_path, "the-token", mode)
    monkeypatch.setenv("DHAN_ACCESS_TOKEN_FILE", str(path))
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}" in message
    assert "the-token" not in message


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("DHAN_ACCESS_TOKEN=abcdef", True),
        ("DATABASE_URL=postgresql://u:pw@h/db", True),
        ("DATABASE_URL=postgresql://h/db", False),
        ("API_PORT=9000", False),
        ("DHAN_ACCESS_TOKEN=", False),
    ],
)
def test_a_settings_file_with_secrets_that_others_can_read_is_refused(
    line: str, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"{line}\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o640)
    if not refused:
        load_settings()
        return
    with pytest.raises(ConfigurationError, match=r"\.env can be read by others \(mode 0640\): chmod 600"):
        load_settings()
    (tmp_path / ".env").chmod(0o600)
    load_settings()


def test_credentials_of_systemd_are_taken_where_root_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    inside, outside = tmp_path / "credentials" / "token", tmp_path / "token"

    def status(mode: int, uid: int = 0) -> os.stat_result:
        return os.stat_result((0o100000 | mode, 1, 1, 1, uid, 0, 5, 0, 0, 0))

    assert exposure(inside, status(0o440)) is None
    assert exposure(inside, status(0o400)) is None
    for problem in (
        exposure(inside, status(0o444)),
        exposure(inside, status(0o440, uid=1000)),
        exposure(outside, status(0o440)),
    ):
        assert problem is not None


def test_secrets_of_a_container_are_taken_only_where_they_are_mounted_and_not_writable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path("/run/secrets/dhan_access_token")

    def status(mode: int) -> os.stat_result:
        return os.stat_result((0o100000 | mode, 1, 1, 1, 0, 0, 5, 0, 0, 0))

    assert exposure(path, status(0o444)) is not None, "a folder of that name alone proves nothing"
    monkeypatch.setattr(Path, "is_mount", lambda self: self == path)
    assert exposure(path, status(0o444)) is None
    assert exposure(path, status(0o446)) is not None
    assert exposure(Path("/run/other/token"), status(0o444)) is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "UTF-8"), (b"x" * 70_000, "larger than 64 KiB")],
)
def test_what_is_no_secret_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(SecretFileUnusable, match=words):
        read_secret(secret(tmp_path, content))


def test_a_file_that_is_not_there_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SecretFileUnusable, match="cannot be read"):
        read_secret(tmp_path / "none")
    with pytest.raises(SecretFileUnusable, match="no file"):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretFileUnusable, match="no file"):
        read_secret(tmp_path / "pipe")


def test_a_value_and_a_file_for_the_same_secret_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHAN_ACCESS_TOKEN", "direct-token")
    monkeypatch.setenv("DHAN_ACCESS_TOKEN_FILE", str(secret(tmp_path, "filed-token")))
    with pytest.raises(ConfigurationError, match="are both set: leave one of them out") as caught:
        load_settings()
    assert "direct-token" not in str(caught.value)
    assert "filed-token" not in str(caught.value)


def test_the_places_that_are_exempt_are_the_documented_ones() -> None:
    assert (str(secret_files._CONTAINER_SECRETS), str(secret_files._CREDENTIALS)) == (
        "/run/secrets",
        "/run/credentials",
    )
