"""The parts of the benchmarks that need no server: the path between two fakes, the ticks, the plots."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import discover
from benchmarks.path import path
from benchmarks.plot import Plot
from benchmarks.ticks import STAMPS_PER_S, Mode, TickSource
from services.wire.dhan import Full, Quote, decode_frame


def test_every_benchmark_is_found_and_says_what_it_measures() -> None:
    found = discover()
    assert {"ingest", "latency", "memory", "growth", "start", "idle"} <= found.keys()
    assert all(title.endswith(".") or title for _, title in found.values())


@pytest.mark.parametrize(("mode", "made"), [("quote", Quote), ("full", Full)])
def test_made_up_ticks_are_packets_that_our_codec_reads_and_each_is_news(mode: Mode, made: type) -> None:
    source = TickSource([7, 9], mode=mode)
    seen: dict[int, int] = {}
    for payload in source.payloads(10, now_s=1_790_000_000.0):
        records, error = decode_frame(payload)
        assert error is None
        (tick,) = records
        assert isinstance(tick, made)
        assert tick.security_id in (7, 9)  # type: ignore[union-attr]
        assert tick.volume > seen.get(tick.security_id, 0)  # type: ignore[union-attr]
        seen[tick.security_id] = tick.volume  # type: ignore[union-attr]


def test_a_stamped_tick_carries_the_moment_it_was_made() -> None:
    base_s = time.monotonic()
    source = TickSource([1], stamp="volume", stamp_base_s=base_s)
    before = (time.monotonic() - base_s) * STAMPS_PER_S
    (record,) = decode_frame(source.payloads(1, now_s=1_790_000_000.0)[0])[0]
    after = (time.monotonic() - base_s) * STAMPS_PER_S
    assert isinstance(record, Quote)
    assert int(before) <= record.volume <= after + 1


@pytest.mark.parametrize("mode", ["quote", "full"])
def test_every_tick_goes_the_whole_path_between_the_fakes(mode: Mode) -> None:
    with path(20, mode) as the_path:
        the_path.run(640)
        the_path.check()
        stream = next(sink for sink in the_path.daemon.sinks if sink.name == "stream")
        # Beside the ticks only the records of the connection's beginning.
        assert 640 <= stream.counters.written <= 640 + 40


def test_a_result_is_written_as_json_table_and_plot(tmp_path: Path) -> None:
    plot = Plot(name="p", title="a < b", x="x", y="y", lines={"one": [(1, 10), (100, 20)]}, log_x=True)
    measured = report.result([report.row("speed", 1234.5, "ticks/s", at_least=2000)], plots=[plot], raw=[1])
    machine = {
        "when": "now", "commit": "abc", "quick": True, "cpu": "c", "cores": 2, "kernel": "k", "python": "3",
        "redis": "7", "load": "0",
    }  # fmt: skip
    report.write("sample", measured, machine, tmp_path)
    report.write_table(tmp_path)
    body = json.loads((tmp_path / "sample.json").read_text(encoding="utf-8"))
    assert body["rows"][0]["met"] is False
    assert body["raw"] == [1]
    assert ET.fromstring((tmp_path / "sample-p.svg").read_text(encoding="utf-8")).tag.endswith("svg")
    assert "| speed |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "**no**" in (tmp_path / "README.md").read_text(encoding="utf-8")
