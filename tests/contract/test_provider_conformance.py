"""Every provider against every card of the conformance kit; Dhan and Yahoo talk to the simulators."""

from __future__ import annotations

import pytest
from provider_conformance import CARDS, NEED_CREDENTIALS, Card, ProviderRig, card_name, run_card
from rigs import DhanRig, ExampleRig, YahooRig

_PAIRS = [
    pytest.param(rig, card, id=f"{rig.__name__}-{card_name(card)}")
    for rig in (DhanRig, YahooRig, ExampleRig)
    for card in CARDS
    if rig.credentials or card not in NEED_CREDENTIALS
]


@pytest.mark.parametrize(("rig", "card"), _PAIRS)
async def test_card(rig: type[ProviderRig], card: Card) -> None:
    await run_card(card, rig())
