"""`docs/metrics.md` has every metric of the page, with its kind, labels and meaning, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from config.settings import PROJECT_ROOT
from services.gateway.metrics import _DaemonCollector
from services.live_data_ingestion import IngestionConfig, LiveDataIngestion

DOCUMENT = PROJECT_ROOT / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(marketd_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", re.M)
_UNITS_OF_OTHERS = ("_ms", "_us", "_ns", "_minutes", "_hours", "_kb", "_mb", "_mib", "_percent")


async def families() -> list[Metric]:
    """Return what the metrics page of a daemon that has not started consists of."""
    config = IngestionConfig(
        database_url="postgresql://localhost/none",
        redis_url="redis://localhost/0",
        state_dir=Path("/nowhere"),
    )
    daemon = LiveDataIngestion(config, provider_settings=dict)
    return list(_DaemonCollector(daemon.view, daemon.gateway.client_figures).collect())


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if isinstance(family, CounterMetricFamily) else family.name


async def test_the_table_has_every_metric_as_it_is_and_no_other() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    described = {name: (kind, labels, meaning) for name, kind, labels, meaning in _ROW.findall(text)}
    real = {
        name_of(family): (
            family.type,
            ", ".join(f"`{label}`" for label in family._labelnames),
            family.documentation,
        )
        for family in await families()
    }
    assert len(real) > 40
    assert described == real
    named = {name.removesuffix("_bucket") for name in re.findall(r"\bmarketd_\w+", text)}
    assert named == set(real), "examples use only what there is"


async def test_names_follow_the_conventions_of_prometheus() -> None:
    for family in await families():
        name = name_of(family)
        assert re.fullmatch(r"marketd(_[a-z0-9]+)+", name)
        assert name.endswith("_total") == isinstance(family, CounterMetricFamily), name
        assert not name.removesuffix("_total").endswith(_UNITS_OF_OTHERS), f"{name}: base units only"
        assert family.documentation.endswith("."), name
        if isinstance(family, HistogramMetricFamily):
            assert name.endswith("_seconds"), name


@pytest.mark.parametrize("label", ["provider", "sink", "protocol", "hop"])
async def test_there_are_figures_by(label: str) -> None:
    assert any(label in family._labelnames for family in await families())
