"""What a gateway concludes from reports and probes; a clock that the test moves, no I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from services.ingest_view import IngestView
from services.market_data.clock import ManualClock
from services.storage.ingest_reports import IngestReport, ReportBook
from services.storage.shard import Shard


class Streams:
    def __init__(self) -> None:
        self.probes: dict[str, float] = {}
        self.reason = ""
        self.lag = 0

    def lag_ms(self, exchange: str, probe_exchange: str) -> int:
        return self.lag


def provider(code: str, state: str = "streaming", subscribed: int = 5) -> dict[str, Any]:
    return {
        "code": code,
        "name": code,
        "state": state,
        "reason": "",
        "since_ms": 1,
        "connections": 1,
        "subscribed": subscribed,
        "instruments_live": subscribed,
        "ticks_per_s": 10.0,
        "last_tick_ms": 5,
        "latency_ms": {"p50": 1, "p99": 2},
        "reconnects": 1,
        "last_error": None,
        "credential_expires_ms": None,
        "unresolved": [],
    }


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.book = ReportBook(self.clock)
        self.streams = Streams()
        self.view = IngestView(self.clock, self.book, self.streams, lambda _: None)
        self.hash: dict[str, str] = {}

    def report(self, shard: str = "*", *providers: dict[str, Any], **fields: Any) -> None:
        said = IngestReport(
            at_ms=self.clock.now_ms(), shard=shard, pid=7, host="h", providers=list(providers), **fields
        )
        self.hash[shard] = msgspec.json.encode(said).decode()
        self.book.take(self.hash)

    def probe(self, name: str = "_PROBE") -> None:
        self.streams.probes[name] = self.clock.monotonic_s()


def test_probes_prove_delivery_and_reports_explain_its_absence() -> None:
    scene = Scene()
    assert scene.view.problem("NSE") == "no ingest daemon for NSE has reported to this Redis"
    scene.report("*", provider("DHAN"))
    assert "nothing delivered yet" in scene.view.problem("NSE")
    scene.probe()
    assert scene.view.problem("NSE") == ""
    scene.streams.lag = 60_000
    assert scene.view.problem("NSE") == "this gateway reads 60 s behind the stream of NSE"
    scene.streams.lag = 0
    scene.clock.advance(4.5)
    scene.report("*", provider("DHAN"), ready=False, reasons=["stream: nothing delivered for 5 s"])
    told = "the ingest daemon (pid 7 on h): nothing delivered for 4 s (stream: nothing delivered for 5 s)"
    assert scene.view.problem("NSE") == told
    scene.clock.advance(6)
    assert scene.view.problem("NSE").endswith("(silent for 6 s)")
    scene.streams.reason = "Redis did not answer in time"
    assert scene.view.problem("NSE") == "Redis did not answer in time"
    scene.report("*", phase="stopped")
    assert scene.view.problem("NSE") == "the ingest daemon (pid 7 on h) was stopped"


def test_a_report_is_as_old_as_it_has_not_changed_whatever_the_clocks_say() -> None:
    scene = Scene()
    scene.hash["*"] = msgspec.json.encode(
        IngestReport(at_ms=scene.clock.now_ms() + 3_600_000, shard="*", providers=[provider("YF")])
    ).decode()
    scene.book.take(scene.hash)
    assert scene.view.provider_rows()[0]["state"] == "streaming"
    for _ in range(6):
        scene.clock.advance(1)
        scene.book.take(scene.hash)
    (row,) = scene.view.provider_rows()
    assert (row["state"], row["ticks_per_s"], row["instruments_live"]) == ("stale", 0.0, 0)
    assert row["age_ms"] == 6_000
    assert "streaming" in row["reason"]
    old = Scene()
    old.hash["*"] = msgspec.json.encode(
        IngestReport(at_ms=old.clock.now_ms() - 60_000, shard="*", providers=[provider("YF")])
    ).decode()
    old.book.take(old.hash)
    assert old.view.provider_rows()[0]["age_ms"] == 60_000, "at first sight its own time is all there is"


def test_shards_are_judged_apart_and_their_shares_of_a_provider_are_added_up() -> None:
    scene = Scene()
    scene.report("NSE", provider("DHAN"), provider("YF", "idle", subscribed=0))
    scene.report("NASDAQ,NYSE", provider("YF", "backing_off", subscribed=3))
    scene.report("CRYPTO", provider("YF", subscribed=4))
    scene.probe("_PROBE:NSE")
    assert scene.view.problem("NSE") == ""
    assert "for NASDAQ,NYSE" in scene.view.problem("NASDAQ")
    assert "no ingest daemon" in scene.view.problem("BSE")
    rows = {row["code"]: row for row in scene.view.provider_rows()}
    assert (rows["YF"]["state"], rows["YF"]["subscribed"]) == ("backing_off", 7)
    assert rows["DHAN"]["state"] == "streaming"
    assert scene.view.probe_exchanges() == {"_PROBE", "_PROBE:NSE", "_PROBE:CRYPTO", "_PROBE:NASDAQ,NYSE"}


def test_of_overlapping_reports_the_newest_counts() -> None:
    scene = Scene()
    scene.report("NSE", provider("DHAN", "stale"), dynamic=True)
    scene.clock.advance(60)
    scene.report("*", provider("DHAN"))
    assert [row["state"] for row in scene.view.provider_rows()] == ["streaming"]
    assert scene.view.dynamic is False


def test_what_does_not_read_as_a_report_is_left_out() -> None:
    scene = Scene()
    scene.book.take({"*": "{", "NSE": '{"shard":5}'})
    assert scene.view.reports() == []


def test_names_of_shards_are_the_same_in_any_order() -> None:
    shard = Shard.of(["NSE", "BSE", "NSE"])
    assert shard == Shard.named("BSE,NSE") == Shard.named(shard.name)
    assert shard.lease_keys == ("md:lease:BSE,NSE", "md:fence:BSE,NSE", "md:leader:BSE,NSE")
    assert Shard().lease_keys == ("md:lease", "md:fence", "md:leader")
    assert (shard.covers("NSE"), shard.covers("NFO"), Shard().covers("NFO")) == (True, False, True)
    assert (shard.overlaps("NSE"), shard.overlaps("NFO"), shard.overlaps("*")) == (True, False, True)
