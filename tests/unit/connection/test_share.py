"""The pace of the requests of one connection, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import pytest

from services.base_provider import ProviderCounters
from services.connection import share as module
from services.connection.link import Link
from services.connection.rules import ConnectionRules, Request
from services.connection.share import Share
from services.market_data.clock import ManualClock

RULES = ConnectionRules(symbols_per_connection=5_000, max_connections=1, pace_s=0.01, settle_s=0.0)
REQUESTS = 50


class Host:
    """A provider whose messages carry one symbol each."""

    counters = ProviderCounters()

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        return [Request(symbol, (symbol,)) for symbol in symbols]

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        return list(symbols)

    def missing(self, symbols: Iterable[str]) -> list[str]:
        return list(symbols)

    silent_since_asked = missing

    def symbols_forgotten(self, symbols: Iterable[str], since_ms: int) -> None:
        return

    def connection_asking(self, symbols: Iterable[str]) -> None:
        return

    connection_asked = connection_asking

    def symbol_refused(self, symbol: str, reason: str) -> None:
        return


class Heard(Link):
    """An open link that notes when each request went."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(lambda _: 0, ProviderCounters(), clock)
        self.sent_s: list[float] = []
        self._manual = clock

    def send(self, payload: str | bytes) -> None:
        self.sent_s.append(self._manual.monotonic_s())

    async def hear(self, within_s: float, settle_s: float) -> None:
        return


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def asked(clock: ManualClock, late_s: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ask for `REQUESTS` symbols on a loop that wakes everybody `late_s` too late; return when each went."""

    async def sleep(seconds: float) -> None:
        clock.advance(seconds + late_s)

    monkeypatch.setattr(module, "asyncio", _Asyncio(sleep))
    share, link = Share(Host(), RULES, clock), Heard(clock)
    share.change([f"S{number}" for number in range(REQUESTS)], ())
    await share.bring_in_line(link)
    return [at_s - link.sent_s[0] for at_s in link.sent_s]


class _Asyncio(msgspec.Struct):
    sleep: object


async def test_requests_keep_their_distance(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    sent_s = await asked(clock, 0.0, monkeypatch)
    assert sent_s == pytest.approx([number * RULES.pace_s for number in range(REQUESTS)])


async def test_a_busy_loop_does_not_make_a_start_longer_and_no_more_than_a_few_go_at_once(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent_s = await asked(clock, 0.08, monkeypatch)
    assert len(sent_s) == REQUESTS
    # Each wait takes nine times as long as meant, and all of it little longer than without.
    assert sent_s[-1] <= REQUESTS * RULES.pace_s + 0.09
    for first in range(REQUESTS):
        at_once = sum(at_s == sent_s[first] for at_s in sent_s)
        assert at_once <= module._MOST_LATE + 1
    # And never ahead of their time.
    assert all(at_s >= number * RULES.pace_s - 1e-9 for number, at_s in enumerate(sent_s))


async def test_after_a_pause_requests_do_not_make_up_for_it(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    monkeypatch.setattr(module, "asyncio", _Asyncio(sleep))
    share, link = Share(Host(), RULES, clock), Heard(clock)
    share.change(["A", "B"], ())
    await share.bring_in_line(link)
    clock.advance(60.0)
    share.change([f"S{number}" for number in range(REQUESTS)], ())
    await share.bring_in_line(link)
    later_s = [at_s - link.sent_s[2] for at_s in link.sent_s[2:]]
    assert later_s == pytest.approx([number * RULES.pace_s for number in range(REQUESTS)])
