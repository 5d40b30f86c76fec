"""Settings that change while the daemon runs: what is read again, who hears of it, what stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config.live_settings import LiveSettings
from config.settings import Settings, load_settings, setting_names
from tests.support.eventually import eventually


@pytest.fixture
def token_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "token"
    write(path, "first-token")
    monkeypatch.setenv("DHAN_ACCESS_TOKEN_FILE", str(path))
    return path


def write(path: Path, content: str, mode: int = 0o600) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(content, encoding="utf-8")
    fresh.chmod(mode)
    fresh.replace(path)


@pytest.fixture
async def watched(token_file: Path) -> AsyncIterator[tuple[LiveSettings, list[Settings]]]:
    live = LiveSettings(load_settings(), load_settings, look_every_s=0.02)
    heard: list[Settings] = []
    live.on_change = heard.append
    task = asyncio.create_task(live.watch())
    yield live, heard
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def token(settings: Settings) -> str:
    return settings.dhan_access_token.get_secret_value()


async def test_a_changed_file_is_read_and_passed_on(
    watched: tuple[LiveSettings, list[Settings]], token_file: Path
) -> None:
    live, heard = watched
    assert live.for_providers()["DHAN_ACCESS_TOKEN"] == "first-token"
    write(token_file, "second-token")
    assert live.for_providers()["DHAN_ACCESS_TOKEN"] == "second-token", "an attempt sees it at once"
    await eventually(lambda: [token(settings) for settings in heard] == ["second-token"])


async def test_a_new_settings_file_and_a_change_in_it_are_found(
    watched: tuple[LiveSettings, list[Settings]], tmp_path: Path
) -> None:
    live, heard = watched
    write(tmp_path / ".env", "API_TOKENS=desk:correct-horse\n")
    await eventually(lambda: [settings.tokens() for settings in heard] == [{"desk": "correct-horse"}])
    write(tmp_path / ".env", "API_TOKENS=desk:battery-staple\nLOG_LEVEL=DEBUG\n")
    await eventually(lambda: live.settings.tokens() == {"desk": "battery-staple"})
    assert live.settings.log_level == "INFO", "only secrets change while the daemon runs"


@pytest.mark.parametrize(
    ("content", "mode"), [("second-token", 0o644), ("", 0o600), ("second\0token\udcff", 0o600)]
)
async def test_what_cannot_be_used_changes_nothing_until_it_is_mended(
    watched: tuple[LiveSettings, list[Settings]], token_file: Path, content: str, mode: int
) -> None:
    live, heard = watched
    fresh = token_file.with_suffix(".bad")
    fresh.write_bytes(content.encode("utf-8", "surrogateescape"))
    fresh.chmod(mode)
    fresh.replace(token_file)
    await eventually(lambda: live._problem)
    assert live.for_providers()["DHAN_ACCESS_TOKEN"] == "first-token"
    assert heard == []
    write(token_file, "third-token")
    await eventually(lambda: [token(settings) for settings in heard] == ["third-token"])


async def test_a_file_that_goes_and_comes_back_costs_nothing(
    watched: tuple[LiveSettings, list[Settings]], token_file: Path
) -> None:
    live, heard = watched
    token_file.unlink()
    await eventually(lambda: live._problem)
    assert live.for_providers()["DHAN_ACCESS_TOKEN"] == "first-token"
    write(token_file, "second-token")
    await eventually(lambda: [token(settings) for settings in heard] == ["second-token"])


def test_told_to_it_passes_on_what_it_reads_even_when_nothing_changed(token_file: Path) -> None:
    live = LiveSettings(load_settings(), load_settings)
    heard: list[Settings] = []
    live.on_change = heard.append
    live.reload()
    assert [token(settings) for settings in heard] == ["first-token"]
    token_file.chmod(0o644)
    live.reload()
    assert len(heard) == 1
