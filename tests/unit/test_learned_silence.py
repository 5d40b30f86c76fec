"""What the judge of silence learned survives a restart, and a damaged file does not stop one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from services.learned_silence import LearnedSilence
from services.market_data.calendar import MarketCalendar
from services.silence.judge import Pulse, SilenceJudge

NOW_MS = 1_790_748_968_000


def taught() -> SilenceJudge:
    judge = SilenceJudge(MarketCalendar(always_open=True))
    pulse = Pulse()
    judge.arm("DHAN", "NSE:RELIANCE", "NSE", pulse, NOW_MS)
    for second in range(400):
        pulse.ticks += 5
        pulse.received_ms = pulse.event_ms = NOW_MS + second * 1000
        judge.look(NOW_MS + second * 1000, float(second))
    return judge


async def test_what_was_learned_is_known_after_a_restart(tmp_path: Path) -> None:
    file, judge = tmp_path / "silence.json", taught()
    await LearnedSilence(judge, file).save()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    fresh = SilenceJudge(MarketCalendar(always_open=True))
    LearnedSilence(fresh, file).restore()
    kept, again = judge.state(), fresh.state()
    assert kept
    assert again.keys() == kept.keys()
    assert str(again).count("NSE:RELIANCE") == str(kept).count("NSE:RELIANCE") > 0


@pytest.mark.parametrize("content", [None, b"", b"[1, 2]", b"{torn", b'{"rates": 7}'])
def test_a_missing_or_damaged_file_means_learning_anew(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "silence.json"
    if content is not None:
        file.write_bytes(content)
    judge = SilenceJudge(MarketCalendar(always_open=True))
    LearnedSilence(judge, file).restore()
    assert "NSE:RELIANCE" not in str(judge.state())


async def test_a_folder_that_cannot_be_written_is_said_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await LearnedSilence(taught(), tmp_path / "absent" / "silence.json").save()
    assert "learned_silence_not_saved" in capsys.readouterr().out
