"""The parts of the benchmarks that need no server: the path between two fakes, the ticks, the plots."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from benchmarks import guard, report
from benchmarks.__main__ import discover
from benchmarks.bystander import Bystander
from benchmarks.compare import compared, show
from benchmarks.drift import drift
from benchmarks.path import path
from benchmarks.plot import Plot
from benchmarks.soak import Window, judged
from benchmarks.ticks import STAMPS_PER_S, Mode, TickSource
from benchmarks.turns import Slice, Take, in_turn, rate
from services.wire.dhan import Full, Quote, decode_frame


def test_every_benchmark_is_found_and_says_what_it_measures() -> None:
    found = discover()
    assert {"ingest", "latency", "memory", "growth", "start", "idle"} <= found.keys()
    assert {"flood", "delivery", "together", "history", "chain"} <= found.keys()
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


def test_the_table_leaves_out_what_has_a_page_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"benchmark": "other", "machine": {"cpu": "x"}}', encoding="utf-8")
    report.write_table(tmp_path)
    assert "other" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_drift_is_the_slope_after_the_warm_up_whatever_a_single_moment_shows() -> None:
    flat = [(float(at), 100.0) for at in range(100)]
    assert drift(flat).grown == 0.0
    # Caches that fill at the beginning, and two moments at which the machine was busy, are no drift.
    filling = [(at, value - max(0.0, 50.0 - 5 * at)) for at, value in flat]
    filling[40] = (40.0, 900.0)
    filling[70] = (70.0, 1_500.0)
    assert drift(filling).grown == 0.0
    leaking = [(at, value + 0.5 * at) for at, value in filling]
    assert drift(leaking).grown == pytest.approx(0.5 * 79, rel=0.05)
    assert drift(leaking).share == pytest.approx(40 / 130, rel=0.1)
    with pytest.raises(ValueError, match="four points"):
        drift(flat[:3])


def test_the_guard_compares_each_way_of_the_path_with_its_own_record() -> None:
    recorded = json.loads(guard.RECORDED.read_text(encoding="utf-8"))
    assert recorded
    for version, ways in recorded.items():
        assert version.startswith("3.")
        assert ways.keys() <= guard.WAYS.keys()
        assert all(counts.keys() <= set(guard.MODES) for counts in ways.values())
    assert guard.judge(109.0, 100, "") == ("recorded 100, +9.0%", False)
    assert guard.judge(111.0, 100, "") == ("recorded 100, +11.0%: slower by more than 10%", True)
    said, worse = guard.judge(80.0, 100, "")
    assert "record it" in said
    assert not worse
    assert guard.judge(80.0, None, "Python 3.11, compiled")[0].startswith(
        "nothing recorded for Python 3.11, compiled"
    )


_CPU = "daemon CPU a tick grows, beside the bystander's work, by"


def windows(**grown: float) -> list[Window]:
    usual = {
        "rate": 20_000.0, "stream_p50": 0.3, "stream_p99": 2.0, "client_p50": 130.0, "client_p99": 255.0,
        "daemon_rss": 180.0, "redis_rss": 300.0, "files": 70, "daemon_us": 20.0, "redis_us": 5.0, "queued": 0,
        "lag_ms": 1.0, "bystander_us": 90.0, "bystander_p99": 4.0, "rewriting": False,
    }  # fmt: skip
    return [
        Window(
            at_s=10.0 * at,
            **{name: type(value)(value + grown.get(name, 0.0) * at) for name, value in usual.items()},
        )
        for at in range(1, 181)
    ]


@pytest.mark.parametrize(
    ("grown", "lost", "missed"),
    [
        ({}, 0, set()),
        ({"redis_rss": 5.0}, 0, set()),
        ({"daemon_rss": 0.2}, 0, {"daemon RSS grows by"}),
        ({"files": 0.05}, 0, {"open descriptors grow by"}),
        ({"stream_p99": 0.02}, 0, {"socket to XREAD, p99 grows by"}),
        ({"stream_p99": 0.02, "bystander_p99": 0.04}, 0, set()),
        (
            {"stream_p99": 0.02, "stream_p50": 0.01, "bystander_p99": 0.04},
            0,
            {"socket to XREAD, p50 grows by"},
        ),
        ({"daemon_us": 0.05}, 0, {_CPU}),
        ({"daemon_us": 0.05, "bystander_us": 0.225}, 0, set()),
        ({"bystander_us": -0.1}, 0, {_CPU}),
        ({"rate": -50.0}, 0, {"rate"}),
        ({}, 3, {"records lost"}),
    ],
)
def test_a_long_run_says_what_drifted(grown: dict[str, float], lost: int, missed: set[str]) -> None:
    counts = {"sent": 36_000_000, "lost": lost, "unaccounted": 0, "cut": 0}
    rows = judged(windows(**grown), 20_000, counts)["rows"]
    assert {row["what"] for row in rows if row["met"] is False} == missed


def test_a_bystander_says_what_its_work_took_and_how_long_it_waited() -> None:
    bystander = Bystander()
    assert bystander.end()["pieces"] == 0
    bystander.begin()
    for late_s in (0.2, 0.0, 0.0):
        bystander.work(time.monotonic() - late_s)
    told = bystander.end()
    assert told["pieces"] == 3
    assert 0 < told["work_us"] < 200_000
    assert told["p99"] >= 200 > told["p50"] > 0
    bystander.begin()
    assert bystander.end() == {"pieces": 0, "work_us": 0.0, "p50": 0.0, "p99": 0.0}


async def test_slices_are_taken_in_turn_and_each_round_begins_with_another() -> None:
    order: list[str] = []

    def take(name: str, count: float) -> Take:
        async def taken() -> Slice:
            order.append(name)
            return Slice(count * len(order), 2.0)

        return taken

    found = await in_turn(3, {"a": take("a", 1.0), "b": take("b", 10.0)})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {
        "a": [Slice(1.0, 2.0), Slice(4.0, 2.0), Slice(5.0, 2.0)],
        "b": [Slice(20.0, 2.0), Slice(30.0, 2.0), Slice(60.0, 2.0)],
    }
    # Of all together, not the mean of their rates.
    assert rate([Slice(10, 1.0), Slice(10, 4.0)]) == 4.0


def test_the_wait_while_redis_writes_its_file_anew_stands_beside_what_is_judged() -> None:
    counts = {"sent": 36_000_000, "lost": 0, "unaccounted": 0, "cut": 0}

    def seen(calm_growth: float) -> dict[str, Any]:
        found = windows(stream_p99=calm_growth)
        slow = {"stream_p99": 10.0, "rewriting": True}
        found[1::2] = [
            structs.replace(each, **slow | {"stream_p99": 10.0 + 0.1 * at})
            for at, each in enumerate(found[1::2])
        ]
        return {each["what"]: each for each in judged(found, 20_000, counts)["rows"]}

    rows = seen(0.0)
    assert rows["socket to XREAD, p99 grows by"]["met"]
    beside = rows["the same in 90 windows in which Redis wrote its file anew"]
    assert beside["value"] > 10.0
    assert beside["met"] is None
    assert "grows by 7" in beside["note"]
    assert seen(0.02)["socket to XREAD, p99 grows by"]["met"] is False


def test_two_runs_are_compared_by_their_ratios_alone(tmp_path: Path) -> None:
    for folder, value, ratio in (("one", 100.0, 2.0), ("other", 250.0, 2.5)):
        rows = [
            report.row("ingest", value, "ticks/s", ratios={"the ceiling": value / 200}),
            report.row("… × the peer", ratio, "×"),
            report.row("steady", value, "ms", ratios={"nothing": 1.0}),
        ]
        report.write("sample", report.result(rows), {}, tmp_path / folder)
    found = {each.what: round(each.apart, 3) for each in compared(tmp_path / "one", tmp_path / "other")}
    assert found == {"ingest: × the ceiling": 1.5, "… × the peer": 0.25, "steady: × nothing": 0.0}
    assert not show(Console(quiet=True), compared(tmp_path / "one", tmp_path / "other"))
    assert show(Console(quiet=True), compared(tmp_path / "one", tmp_path / "one"))
