"""Settings: where they come from, what is refused, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT, Settings, load_settings, read_environment, setting_names
from services.errors import ConfigurationError


@pytest.fixture(autouse=True)
def only_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_setting_has_a_default_and_a_description() -> None:
    settings = load_settings()
    assert settings.api_port == 8080
    assert settings.state_dir == PROJECT_ROOT / ".state"
    assert all(field.description for field in Settings.model_fields.values())


def test_the_example_file_lists_every_setting_with_its_default() -> None:
    example = {}
    for line in (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("# ") and line.strip("#"):
            name, _, value = line.removeprefix("#").partition("=")
            example[name] = value
    defaults = {}
    for name, field in Settings.model_fields.items():
        value = field.default
        secret = getattr(value, "get_secret_value", None)
        defaults[name.upper()] = str(secret() if secret else ("" if value is None else value))
    assert example == defaults


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("API_PORT=9000\nLOG_LEVEL=debug\n", encoding="utf-8")
    monkeypatch.setenv("API_PORT", "9001")
    settings = load_settings()
    assert (settings.api_port, settings.log_level) == (9001, "DEBUG")


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REDIS_ULR=redis://x\nAPI_PROT=1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "REDIS_ULR (did you mean REDIS_URL?)" in str(caught.value)
    assert "API_PROT (did you mean API_PORT?)" in str(caught.value)


def test_names_of_an_installed_provider_are_let_through(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ACME_TOKEN=abc\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o600)
    load_settings(provider_prefixes=("ACME_",))
    assert read_environment(provider_prefixes=("ACME_",))["ACME_TOKEN"] == "abc"


def test_all_problems_are_reported_at_once_and_no_value_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "70000")
    monkeypatch.setenv("API_TOKENS", "nosecrethere")
    monkeypatch.setenv("REDIS_URL", "http://user:hunter2secret@host")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert all(name in message for name in ("API_PORT", "API_TOKENS", "REDIS_URL"))
    assert "hunter2secret" not in message
    assert "nosecrethere" not in message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_address_without_tokens_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_HOST", host)
    with pytest.raises(ConfigurationError, match="API_TOKENS"):
        load_settings()
    monkeypatch.setenv("API_TOKENS", "desk:correct-horse")
    assert load_settings().tokens() == {"desk": "correct-horse"}


def test_secrets_do_not_show_in_the_printed_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHAN_ACCESS_TOKEN", "very-secret-token")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:very-secret-password@h/db")
    shown = repr(load_settings())
    assert "very-secret" not in shown


def test_a_broken_file_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00API_PORT=1")
    with pytest.raises(ConfigurationError, match=r"\.env"):
        load_settings()


def test_retention_has_exceptions_by_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICK_RETENTION_BY_EXCHANGE", "CRYPTO=12, NFO=24")
    monkeypatch.setenv("BAR_RETENTION_DAYS", "10")
    monkeypatch.setenv("BAR_RETENTION_BY_EXCHANGE", "NFO=90")
    settings = load_settings()
    assert settings.tick_retention_ms() == (48 * 3_600_000, {"CRYPTO": 12 * 3_600_000, "NFO": 24 * 3_600_000})
    assert settings.bar_retention_ms() == (10 * 86_400_000, {"NFO": 90 * 86_400_000})


@pytest.mark.parametrize("value", ["NSE", "NSE=0", "NSE=1.5", "nse=3", "NSE=3,NSE=4", "NSE:3"])
def test_a_retention_that_cannot_be_read_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICK_RETENTION_BY_EXCHANGE", value)
    with pytest.raises(ConfigurationError, match="TICK_RETENTION_BY_EXCHANGE"):
        load_settings()


def test_instruments_of_depth_are_read_with_their_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().depth_wanted() == ()
    monkeypatch.setenv("DEPTH_INSTRUMENTS", "NSE:RELIANCE@20, nse:m&m, NFO:*@5,NSE:BAJAJ-AUTO@200")
    assert load_settings().depth_wanted() == (
        ("NSE:RELIANCE", 20),
        ("NSE:M&M", 5),
        ("NFO:*", 5),
        ("NSE:BAJAJ-AUTO", 200),
    )


@pytest.mark.parametrize("value", ["RELIANCE", "NSE:RELIANCE@7", "NSE:RELIANCE@", "NSE:RELIANCE@20@5"])
def test_what_is_no_instrument_of_depth_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTH_INSTRUMENTS", value)
    with pytest.raises(ConfigurationError, match="DEPTH_INSTRUMENTS"):
        load_settings()
