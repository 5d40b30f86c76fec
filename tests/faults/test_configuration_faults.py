"""H14: whatever is wrong with the settings is said at once, in one message, without a secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.settings import load_settings, setting_names
from services.errors import ConfigurationError
from tests.support.daemon import clean_environment, run_script
from tests.support.row_report import report_row

CANARY = "canary-5up3r-s3cret"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_out(folder: Path, settings_file: str, mode: int) -> None:
    if settings_file:
        (folder / ".env").write_text(settings_file + "\n", encoding="utf-8")
        (folder / ".env").chmod(mode)


TABLE = {
    "unknown_name": ("DHAN_ACESS_TOKEN=" + CANARY, 0o600, {}, ["did you mean DHAN_ACCESS_TOKEN?"]),
    "bad_unit": ("TICK_RETENTION_HOURS=2d", 0o600, {}, ["TICK_RETENTION_HOURS", "integer", "Hours that"]),
    "out_of_range": ("", 0o600, {"API_PORT": "70000"}, ["API_PORT", "65535"]),
    "not_a_choice": (
        "",
        0o600,
        {"SUBSCRIPTION_MODE": "some"},
        ["SUBSCRIPTION_MODE", "'dynamic'"],
    ),
    "bad_database_url": (
        "",
        0o600,
        {"DATABASE_URL": f"mysql://u:{CANARY}@h/d"},
        ["DATABASE_URL", "postgresql://"],
    ),
    "bad_redis_url": ("", 0o600, {"REDIS_URL": f"http://:{CANARY}@h"}, ["REDIS_URL", "redis://"]),
    "bad_feed_url": ("", 0o600, {"DHAN_FEED_URL": "http://x"}, ["DHAN_FEED_URL", "wss://"]),
    "bad_tokens": ("", 0o600, {"API_TOKENS": f"desk {CANARY}"}, ["API_TOKENS", "name:secret"]),
    "token_twice": ("", 0o600, {"API_TOKENS": f"a:{CANARY},a:{CANARY}2"}, ["API_TOKENS", "appears twice"]),
    "open_bind": ("", 0o600, {"API_HOST": "0.0.0.0"}, ["API_HOST=0.0.0.0", "API_TOKENS"]),
    "missing_secret_file": (
        "",
        0o600,
        {"API_TOKENS_FILE": "/nowhere/tokens"},
        ["API_TOKENS_FILE", "/nowhere/tokens cannot be read"],
    ),
    "both_value_and_file": (
        "",
        0o600,
        {"DHAN_ACCESS_TOKEN": CANARY, "DHAN_ACCESS_TOKEN_FILE": "/nowhere/token"},
        ["DHAN_ACCESS_TOKEN and DHAN_ACCESS_TOKEN_FILE are both set"],
    ),
    "world_readable_settings_file": (
        "DHAN_ACCESS_TOKEN=" + CANARY,
        0o644,
        {},
        [".env can be read by others (mode 0644): chmod 600"],
    ),
    "group_readable_settings_file": ("API_TOKENS=desk:" + CANARY, 0o640, {}, ["(mode 0640): chmod 600"]),
}


@pytest.mark.parametrize("case", TABLE)
def test_h14_every_wrong_setting_is_named_with_what_is_right_and_without_its_secret(
    case: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_file, mode, environment, words = TABLE[case]
    lay_out(here, settings_file, mode)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert CANARY not in message
    assert message.count(";") == message.count("; "), "one line"
    report_row("H14", lost="0; the daemon does not start", allowed="0; exit 78")


@pytest.mark.timeout(120)
async def test_h14_the_daemon_and_the_scripts_say_all_of_it_at_once_and_exit_78(tmp_path: Path) -> None:
    exposed = tmp_path / "token"
    exposed.write_text(CANARY, encoding="utf-8")
    exposed.chmod(0o644)
    environment = clean_environment(
        STATE_DIR=tmp_path / "state",
        API_PORT="many",
        API_HOST="0.0.0.0",
        LOG_LEVEL="LOUD",
        TICK_RETENTION_HOURS="2d",
        REDIS_URL=f"http://:{CANARY}@h",
        DATABASE_URL_FILE="/nowhere/url",
        DHAN_ACCESS_TOKEN_FILE=exposed,
    )
    names = (
        *("API_PORT", "API_HOST=0.0.0.0", "LOG_LEVEL", "TICK_RETENTION_HOURS", "REDIS_URL"),
        *("DATABASE_URL_FILE", "DHAN_ACCESS_TOKEN_FILE", f"chmod 600 {exposed}"),
    )
    for command in (["main.py", "run"], ["main.py", "doctor"], ["data_migration/setup_providers.py"]):
        code, output, errors = await run_script(*command, environment=environment)
        assert code == 78, (command, errors)
        assert all(name in errors for name in names), (command, errors)
        assert errors.count("\n") == 1, errors
        assert CANARY not in output + errors
        assert "Traceback" not in errors
    assert not (tmp_path / "state").exists(), "nothing is touched before the settings are right"
    report_row("H14", lost="0; the daemon does not start", allowed="0; exit 78")
