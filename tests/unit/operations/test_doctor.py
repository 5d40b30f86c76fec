"""Single checks of the doctor that need no server."""

from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path

import pytest

from services.market_data.calendar import MarketCalendar
from services.operations import doctor
from services.operations.doctor_memory import TICK_BYTES, MemoryNeed, judge_memory, memory_need
from services.storage.retention import Retention

NOW_MS = 1_790_748_968_000


def token(expires_ms: int) -> str:
    parts = [{"alg": "HS512"}, {"exp": expires_ms // 1000}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "signature"])


@pytest.mark.parametrize(
    ("settings", "passed", "words"),
    [
        ({}, True, "parked"),
        ({"DHAN_CLIENT_ID": "1"}, False, "DHAN_ACCESS_TOKEN is empty"),
        ({"DHAN_ACCESS_TOKEN": "x"}, False, "DHAN_CLIENT_ID is empty"),
        ({"DHAN_CLIENT_ID": "1", "DHAN_ACCESS_TOKEN": "no-jwt"}, True, "does not say when"),
        ({"DHAN_CLIENT_ID": "1", "DHAN_ACCESS_TOKEN": token(NOW_MS + 7_200_000)}, True, "valid for 2.0 h"),
        ({"DHAN_CLIENT_ID": "1", "DHAN_ACCESS_TOKEN": token(NOW_MS - 3_600_000)}, False, "expired 1.0 h ago"),
    ],
)
def test_credentials_are_judged_without_showing_them(
    settings: dict[str, str], passed: bool, words: str
) -> None:
    check = doctor.check_credentials(settings, NOW_MS)
    assert check.passed is passed
    assert words in check.detail
    assert passed or check.remedy
    assert settings.get("DHAN_ACCESS_TOKEN", "?") not in check.detail + check.remedy or len(settings) == 1


def test_a_settings_file_that_others_can_read_fails_with_the_command_to_mend_it(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("", encoding="ascii")
    file.chmod(0o644)
    assert doctor.check_secret_file(file).remedy == f"chmod 600 {file}"
    file.chmod(0o600)
    assert doctor.check_secret_file(file).passed
    assert doctor.check_secret_file(None).passed


def test_the_host_is_judged_by_what_is_allowed_and_free(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.check_host(tmp_path / "not" / "there" / "yet")}
    assert checks["file descriptors"].passed
    assert str(tmp_path) in checks["disk"].detail


def test_the_end_of_the_known_market_days_is_a_warning_in_time() -> None:
    calendar = MarketCalendar()
    early = doctor.check_market_days(calendar, date(2026, 12, 1))
    late = doctor.check_market_days(calendar, date(2026, 12, 2))
    assert (early.passed, early.warning, early.remedy) == (True, False, "")
    assert (late.passed, late.warning) == (True, True)
    assert "NSE 2026-12-31" in late.detail
    assert "NSE" in late.remedy
    assert "NASDAQ" not in late.remedy


TODAY = date(2026, 11, 20)
YEAR = Retention(365 * 86_400_000)


def need(count: int, exchange: str, ticks: Retention, bars: Retention = YEAR) -> MemoryNeed:
    (found,) = memory_need({exchange: count}, ticks, bars, MarketCalendar(), TODAY)
    return found


def test_memory_grows_with_instruments_retention_and_the_length_of_the_session() -> None:
    two_days = Retention(48 * 3_600_000)
    one = need(1, "NSE", two_days)
    assert need(500, "NSE", two_days).ticks == pytest.approx(500 * one.ticks, rel=1e-4)
    # Two sessions of 6.25 h at a tick a second, 21 bytes each.
    assert one.ticks == pytest.approx(2 * 6.25 * 3_600 * TICK_BYTES, rel=1e-6)
    assert need(1, "CRYPTO", two_days).ticks == pytest.approx(48 * 3_600 * TICK_BYTES, rel=1e-6)
    # 375 minute bars and what is made of them, on the days that trade.
    assert 250 * 375 * 31 < one.bars < 260 * 375 * 31 * 2
    shorter = Retention(365 * 86_400_000, {"NSE": 30 * 86_400_000})
    assert need(1, "NSE", two_days, shorter).bars < one.bars / 5


def test_memory_is_a_warning_when_the_retention_asks_for_more_than_there_is() -> None:
    needs = [need(5_000, "NSE", Retention(48 * 3_600_000))]
    enough = judge_memory(needs, 10**12, measured=False)
    assert (enough.passed, enough.warning) == (True, False)
    assert "5000 instruments" in enough.detail
    short = judge_memory(needs, 10**9, measured=False)
    assert (short.passed, short.warning) == (True, True)
    assert "BAR_RETENTION_DAYS" in short.remedy
