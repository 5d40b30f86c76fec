"""A provider in a package of its own, found through its entry point, serves an exchange."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
from provider_conformance import CARDS, Card, card_name, run_card
from rigs import ExampleRig

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.provider_plugins import load_plugins
from tests.support.eventually import eventually
from tests.support.stack import Stack

_PROVE = ("P01", "P03", "P04", "P11", "P12", "P16")


def install(target: Path) -> None:
    """Put a package with a provider and its entry point into a folder, as `pip install --target` does."""
    package, info = target / "example_feed", target / "example_feed-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    source = Path(__file__).with_name("example_adapter.py").read_text(encoding="utf-8")
    (package / "__init__.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-feed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[market_data.providers]\nEXAMPLE = example_feed:ExampleProvider\n"
    )


class PluggedInRig(ExampleRig):
    """The server of the example, and the provider as the entry point gives it."""

    def make(self, context: ProviderContext) -> BaseMarketDataProvider:
        found = load_plugins()["EXAMPLE"]
        assert found.__module__ == "example_feed"
        made = found(context)
        assert isinstance(made, BaseMarketDataProvider)
        return made


@pytest.mark.parametrize(
    "card", [card for card in CARDS if card_name(card).upper().startswith(_PROVE)], ids=card_name
)
async def test_a_packaged_provider_passes_the_conformance_cards(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    await run_card(card, PluggedInRig())


def test_the_cards_chosen_exist() -> None:
    chosen = [card_name(card) for card in CARDS if card_name(card).upper().startswith(_PROVE)]
    assert len(chosen) == len(_PROVE)


async def test_a_packaged_provider_serves_an_exchange_of_the_daemon(stack: Stack, tmp_path: Path) -> None:
    install(tmp_path / "site")
    database = await asyncpg.connect(stack.database_url)
    await database.execute(
        """
        WITH p AS (INSERT INTO providers (code, name) VALUES ('EXAMPLE', 'Example') RETURNING id),
             e AS (SELECT id FROM exchanges WHERE code = 'FX'),
             r AS (INSERT INTO exchange_provider_mappings (provider_id, exchange_id, priority)
                   SELECT p.id, e.id, 1 FROM p, e),
             i AS (INSERT INTO instruments (exchange_id, symbol, name, asset_class, currency)
                   SELECT e.id, 'EURUSD', 'Euro', 'fx', 'USD' FROM e RETURNING id)
        INSERT INTO provider_instrument_mappings
            (provider_id, instrument_id, provider_instrument_search_code) SELECT p.id, i.id, 'A' FROM p, i
        """
    )
    await database.close()
    rig = ExampleRig()
    await rig.start()
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH", ""))))
    try:
        async with stack.daemon(tmp_path / "state", PYTHONPATH=path, **rig.settings) as daemon:
            await eventually(lambda: "A" in rig.subscribed(), within_s=20)
            rig.emit("A", 1.0825)

            async def stored() -> list[dict[str, str]]:
                entries = await client.xrange("md:ticks:FX")
                return [entry for _, entry in entries if entry["type"] == "tick"]

            await eventually(stored, within_s=20)
            (tick, *_) = await stored()
            assert (tick["k"], tick["p"], tick["src"]) == ("FX:EURUSD", "1.0825", "EXAMPLE")
            _, answer = await daemon.get("/api/routes")
            (row,) = [row for row in answer["providers"] if row["code"] == "EXAMPLE"]
            assert (row["origin"], row["routed"], row["exchanges"]) == ("package", 1, {"FX": 1})
    finally:
        await client.aclose()
        await rig.stop()
        await asyncio.sleep(0)
