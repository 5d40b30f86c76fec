"""The metrics of market depth, out of the figures of the status page; part of the metrics page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


def depth_metrics(depth: Mapping[str, Any]) -> Iterator[Metric]:
    """Return the metrics of a daemon's depth; none for one that has none, as a gateway."""
    if not depth.get("on"):
        return
    for name, text, value in (
        ("marketd_depth_books", "Order books kept.", depth["books"]),
        ("marketd_depth_books_stale", "Those of them that are stale.", depth["stale"]),
        ("marketd_depth_oldest_seconds", "Age of the oldest book.", depth["oldest_s"] or 0),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], value)
        yield gauge
    updates = CounterMetricFamily("marketd_depth_updates", "Books told to listeners.")
    updates.add_metric([], depth["updates"])
    flagged = CounterMetricFamily(
        "marketd_depth_flagged", "Books told as crossed, as stale or after a gap.", labels=["flag"]
    )
    for flag in ("crossed", "stale", "gap"):
        flagged.add_metric([flag], depth["flagged"].get(flag, 0))
    yield from (updates, flagged)
    yield from _sources(depth["sources"])


def _sources(sources: list[Mapping[str, Any]]) -> Iterator[Metric]:
    texts = {
        "wanted": "Instruments somebody wants so many levels of.",
        "carried": "Instruments whose books the source is let bring.",
        "connections": "Open connections of the feed; those of five levels are the provider's own.",
    }
    gauges = {
        name: GaugeMetricFamily(f"marketd_depth_{name}", text, labels=["levels"])
        for name, text in texts.items()
    }
    reconnects = CounterMetricFamily(
        "marketd_depth_reconnects", "Connections of the feed made anew.", labels=["levels"]
    )
    for source in sources:
        label = [str(source["levels"])]
        for name, gauge in gauges.items():
            if name in source:
                gauge.add_metric(label, source[name])
        if "reconnects" in source:
            reconnects.add_metric(label, source["reconnects"])
    yield from (*gauges.values(), reconnects)
