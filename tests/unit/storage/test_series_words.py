"""The quick words of a series' definition are those that the words of any command would be."""

from __future__ import annotations

import pytest

from services.storage.bar_series import BarSeries
from services.storage.keys import LIVE, KeySpace, TickField
from services.storage.resp import command
from services.storage.series import CHUNK_BYTES, InstrumentSeries


@pytest.mark.parametrize("keys", [LIVE, KeySpace("monday")])
@pytest.mark.parametrize(
    ("instrument", "exchange", "kind"),
    [("NSE:M&M", "NSE", "tick"), ("CRYPTO:ÐOGE", "CRYPTO", "tick"), ("_PROBE:PROBE", "_PROBE", "probe")],
)
@pytest.mark.parametrize("field", ["price", "oi"])
def test_a_series_of_ticks(
    keys: KeySpace, instrument: str, exchange: str, kind: str, field: TickField
) -> None:
    series = InstrumentSeries(instrument, exchange, keys)
    labels = keys.tick_labels(instrument, exchange, field, kind)
    words = (
        keys.tick_series(instrument, field),
        *("RETENTION", "5000", "CHUNK_SIZE", str(CHUNK_BYTES), "DUPLICATE_POLICY", "LAST", "LABELS"),
        *(text for label in labels.items() for text in label),
    )
    assert series.create(field, 5_000) == command("TS.CREATE", *words)
    assert series.correct(field, 5_000) == command("TS.ALTER", *words)


@pytest.mark.parametrize("interval", ["1m", "1d"])
def test_a_series_of_bars(interval: str) -> None:
    series = BarSeries("NSE:BAJAJ-AUTO", "NSE", interval)
    words = series.definition("close", 86_400_000)
    assert words[0] == f"md:ts:{{NSE:BAJAJ-AUTO}}:{interval}:close"
    assert words[-4:] == ("kind", "bar", "interval", interval)
    assert series.create("close", 86_400_000) == command("TS.CREATE", *words)
    assert series.correct("close", 86_400_000) == command("TS.ALTER", *words)
