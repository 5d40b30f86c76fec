"""Writes deploy/grafana/dashboards/marketd.json: run it after changing the panels below.

    .venv/bin/python scripts/make_grafana_dashboard.py

The layout stands here once, so that panels stay in step and every query can be checked by a test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards" / "marketd.json"
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS = 24

Panel = tuple[str, str, str, int, list[tuple[str, str]]]
ROWS: list[tuple[str, list[Panel]]] = [
    (
        "At a glance",
        [
            ("Ready", "stat", "bool", 4, [("min(marketd_ready)", "")]),
            ("Ticks a second", "stat", "short", 4, [("sum(marketd_provider_ticks_per_s)", "")]),
            ("Instruments live", "stat", "short", 4, [("sum(marketd_provider_instruments_live)", "")]),
            ("Clients", "stat", "short", 4, [("sum(marketd_clients)", "")]),
            ("Waiting on disk", "stat", "short", 4, [("sum(marketd_sink_spooled)", "")]),
            ("Lost in an hour", "stat", "short", 4, [("sum(increase(marketd_sink_lost_total[1h]))", "")]),
        ],
    ),
    (
        "Providers",
        [
            ("Ticks a second", "timeseries", "short", 12, [("marketd_provider_ticks_per_s", "{{provider}}")]),
            (
                "Event to receipt",
                "timeseries",
                "s",
                12,
                [("marketd_provider_latency_seconds", "{{provider}} p{{quantile}}")],
            ),
            (
                "State",
                "state-timeline",
                "short",
                12,
                [("marketd_provider_state == 1", "{{provider}} {{state}}")],
            ),
            (
                "Refused and remarked on",
                "timeseries",
                "short",
                12,
                [
                    (
                        "sum by (provider, reason) (rate(marketd_provider_remarks_total[1m]))",
                        "{{provider}} {{reason}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Storage",
        [
            (
                "Written a second",
                "timeseries",
                "short",
                8,
                [('rate(marketd_sink_records_total{outcome="written"}[1m])', "{{sink}}")],
            ),
            ("Queued", "timeseries", "short", 8, [("marketd_sink_queued", "{{sink}}")]),
            ("Waiting on disk", "timeseries", "short", 8, [("marketd_sink_spooled", "{{sink}}")]),
            ("Stream entries", "timeseries", "short", 12, [("marketd_stream_entries", "{{exchange}}")]),
            (
                "Consumer groups behind",
                "timeseries",
                "short",
                12,
                [("marketd_consumer_group_lag", "{{exchange}} {{group}}")],
            ),
        ],
    ),
    (
        "Clients",
        [
            (
                "Frames a second",
                "timeseries",
                "short",
                8,
                [("sum(rate(marketd_client_frames_out_total[1m]))", "frames")],
            ),
            ("Slowest client behind", "timeseries", "s", 8, [("marketd_client_lag_seconds", "lag")]),
            (
                "Skipped and closed a minute",
                "timeseries",
                "short",
                8,
                [
                    ("increase(marketd_client_skipped_total[1m])", "skipped"),
                    ("increase(marketd_client_closed_total[1m])", "closed {{code}}"),
                ],
            ),
        ],
    ),
    (
        "Process",
        [
            (
                "Memory",
                "timeseries",
                "bytes",
                8,
                [("marketd_process_rss_bytes", "in use"), ("marketd_process_memory_limit_bytes", "limit")],
            ),
            (
                "Open files",
                "timeseries",
                "short",
                8,
                [
                    ("marketd_process_open_descriptors", "open"),
                    ("marketd_process_descriptor_limit", "allowed"),
                ],
            ),
            (
                "Task restarts in 10 minutes",
                "timeseries",
                "short",
                8,
                [("increase(marketd_task_restarts_total[10m]) > 0", "{{task}}")],
            ),
        ],
    ),
]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        y, x = y + 1, 0
        height = 4 if all(kind == "stat" for _, kind, _, _, _ in row) else 8
        for name, kind, unit, width, queries in row:
            if x + width > _COLUMNS:
                x, y = 0, y + height
            panels.append(_panel(len(panels) + 1, name, kind, unit, queries, x, y, width, height))
            x += width
        y += height
    return {
        "uid": "marketd",
        "title": "marketd",
        "tags": ["marketd"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": panels,
    }


def _panel(
    number: int,
    name: str,
    kind: str,
    unit: str,
    queries: list[tuple[str, str]],
    x: int,
    y: int,
    width: int,
    height: int,
) -> dict[str, Any]:
    return {
        "id": number,
        "type": kind,
        "title": name,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(65 + place), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
