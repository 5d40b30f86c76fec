"""The conformance kit: what every provider has to do, as numbered cards that run against a live server.

An author of a provider writes a `ProviderRig`, which starts a server that speaks the vendor's protocol
and makes it misbehave on demand, and lets pytest run every card of `CARDS` on it:

    @pytest.mark.parametrize("card", CARDS, ids=card_name)
    async def test_acme(card: Card) -> None:
        await run_card(card, AcmeRig())

| card | the provider | left out for |
|---|---|---|
| P01 | streams: a tick arrives with its symbol, price and receive time | |
| P02 | subscribes everything wanted, within the vendor's limits | |
| P03 | follows what is wanted while it runs, without touching the rest | |
| P04 | survives a clean close with all subscriptions restored and the gap declared | |
| P05 | the same after an abnormal close | |
| P06 | the same after a reset in the middle of the stream | |
| P07 | keeps the connection over damaged messages and counts every one | |
| P08 | tries again while the server refuses, not too often, and recovers by itself | |
| P09 | gives up a handshake that hangs | |
| P10 | reads its credentials anew at every attempt | keyless vendors |
| P11 | parks without credentials, says which to set, and makes no attempt | keyless vendors |
| P12 | parks with refused credentials, makes not one attempt more, wakes when they change | keyless vendors |
| P13 | stops within two seconds and leaves no task and no socket, whatever the peer does | |
| P14 | shows no secret in logs, status or errors | keyless vendors |
| P15 | never blocks the event loop for more than 100 ms, in a burst of 5 000 messages | |
| P16 | delivers every message once, in order | |
| P17 | goes on when `run` is cancelled and started again | |
"""

from __future__ import annotations

import asyncio
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from services.base_provider import BaseMarketDataProvider, ProviderContext, ProviderState
from tests.support.eventually import eventually
from tests.support.providers import Recorder, running

ATTEMPTS_PER_MINUTE = 12
BLOCKED_S = 0.1


class ProviderRig(ABC):
    """A vendor's server under the kit's control, and how to make the provider that talks to it."""

    symbols: tuple[str, ...]
    """At least six symbols that the server knows."""
    settings: dict[str, str]
    """Good settings; filled by `start`."""
    credentials: tuple[str, ...] = ()
    """Names of those settings that are secret; empty when the vendor needs none."""

    @abstractmethod
    async def start(self) -> None:
        """Start the server."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop the server."""

    @abstractmethod
    def make(self, context: ProviderContext) -> BaseMarketDataProvider:
        """Return a provider, with times shortened as far as it allows."""

    @abstractmethod
    def emit(self, symbol: str, price: float) -> None:
        """Send one quote to everybody who subscribed `symbol`."""

    @abstractmethod
    def subscribed(self) -> set[str]:
        """Return the symbols that open connections are subscribed to."""

    @abstractmethod
    def connections(self) -> int:
        """Return how many connections are open."""

    @abstractmethod
    def attempts(self) -> int:
        """Return how often a client began to connect."""

    @abstractmethod
    def check_limits(self) -> None:
        """Assert that no client went beyond the vendor's limits."""

    @abstractmethod
    async def end(self, how: str) -> None:
        """End every connection: `clean` (a close frame), `error` (a close code) or `reset`."""

    @abstractmethod
    async def damage(self) -> int:
        """Send some damaged messages over one connection; return how many."""

    @abstractmethod
    async def refuse(self, on: bool) -> None:
        """Refuse connections (HTTP 503 or a closed port), or accept them again."""

    @abstractmethod
    async def hang(self, on: bool) -> None:
        """Accept connections and never answer the handshake, or answer again."""

    def refuse_credentials(self) -> None:
        """Make the present credentials bad."""
        raise NotImplementedError

    def new_credentials(self) -> dict[str, str]:
        """Return settings with other, good credentials."""
        raise NotImplementedError


class Bench:
    """One rig, one recording context and the probes that watch a card."""

    def __init__(self, rig: ProviderRig) -> None:
        self.rig = rig
        self.recorder = Recorder(rig.settings)
        self.provider = rig.make(self.recorder.context)

    async def streaming(self, symbols: tuple[str, ...]) -> None:
        """Wait until the provider streams and the server knows all `symbols`."""
        await eventually(lambda: self.rig.subscribed() == set(symbols), within_s=10)
        await eventually(lambda: self.provider.state is ProviderState.STREAMING, within_s=10)

    async def flows(self, symbol: str, price: float) -> None:
        """Send a quote and wait until it is delivered."""
        self.rig.emit(symbol, price)
        await eventually(lambda: price in self.recorder.prices(symbol))


Card = Callable[[Bench], Awaitable[None]]


async def p01_streams(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    await bench.provider.want([symbol])
    async with running(bench.provider):
        await bench.streaming((symbol,))
        before_ms = time.time_ns() // 1_000_000
        await bench.flows(symbol, 101.5)
        tick, received_ms = bench.recorder.ticks[-1]
        assert tick.provider_symbol == symbol
        assert before_ms <= received_ms <= time.time_ns() // 1_000_000
        assert tick.event_ms is None or abs(tick.event_ms - before_ms) < 10_000
        status = bench.provider.status()
        assert status.code == bench.provider.code
        assert status.connections == bench.rig.connections() == 1
        assert status.subscribed == 1


async def p02_subscribes_everything_within_limits(bench: Bench) -> None:
    symbols = bench.rig.symbols
    await bench.provider.want(symbols)
    async with running(bench.provider):
        await bench.streaming(symbols)
        await eventually(lambda: bench.provider.subscribed == len(symbols))
        bench.rig.check_limits()


async def p03_follows_what_is_wanted(bench: Bench) -> None:
    first, second, third = bench.rig.symbols[:3]
    await bench.provider.want([first, second])
    async with running(bench.provider):
        await bench.streaming((first, second))
        attempts = bench.rig.attempts()
        await bench.provider.want([third])
        await bench.streaming((first, second, third))
        await bench.provider.unwant([second])
        await bench.streaming((first, third))
        await bench.flows(first, 55.5)
        assert bench.rig.attempts() == attempts
        assert bench.recorder.lost == []


async def _survives(bench: Bench, how: str) -> None:
    symbols = bench.rig.symbols[:4]
    await bench.provider.want(symbols)
    async with running(bench.provider):
        await bench.streaming(symbols)
        await bench.flows(symbols[0], 20.5)
        _, last_ms = bench.recorder.ticks[-1]
        attempts = bench.rig.attempts()
        await bench.rig.end(how)
        await eventually(lambda: bench.rig.attempts() > attempts)
        await bench.streaming(symbols)
        for index, symbol in enumerate(symbols):
            await bench.flows(symbol, 30.5 + index)
        assert bench.provider.counters.reconnects >= 1
        lost = [symbol for group, _, _ in bench.recorder.lost for symbol in group]
        assert sorted(lost) == sorted(symbols)
        assert min(since_ms for _, since_ms, _ in bench.recorder.lost) <= last_ms
        for symbol in symbols:
            story = [entry for entry in bench.recorder.story if entry.endswith(f" {symbol}")]
            at = story.index(f"lost {symbol}")
            assert story[at + 1] == f"restored {symbol}", "the gap must be closed before data flows again"


async def p04_survives_a_clean_close(bench: Bench) -> None:
    await _survives(bench, "clean")


async def p05_survives_an_abnormal_close(bench: Bench) -> None:
    await _survives(bench, "error")


async def p06_survives_a_reset(bench: Bench) -> None:
    await _survives(bench, "reset")


async def p07_keeps_the_connection_over_damage(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    await bench.provider.want([symbol])
    async with running(bench.provider):
        await bench.streaming((symbol,))
        attempts = bench.rig.attempts()
        sent = await bench.rig.damage()
        await bench.flows(symbol, 77.5)
        counters = bench.provider.counters
        assert sum(counters.wire_errors.values()) == sent
        assert counters.frames == counters.decoded + sent
        assert bench.rig.attempts() == attempts


async def p08_tries_again_while_refused(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    await bench.provider.want([symbol])
    await bench.rig.refuse(True)
    async with running(bench.provider):
        await eventually(lambda: bench.provider.state is ProviderState.BACKING_OFF)
        assert bench.provider.reason
        assert bench.provider.last_error
        await bench.rig.refuse(False)
        await bench.streaming((symbol,))
        await bench.flows(symbol, 11.5)


async def p09_gives_up_a_hanging_handshake(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    await bench.provider.want([symbol])
    await bench.rig.hang(True)
    async with running(bench.provider):
        await eventually(lambda: bench.provider.last_error, within_s=10)
        await bench.rig.hang(False)
        await bench.streaming((symbol,))


async def p10_reads_credentials_at_every_attempt(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    await bench.provider.want([symbol])
    async with running(bench.provider):
        await bench.streaming((symbol,))
        bench.recorder.settings.update(bench.rig.new_credentials())
        bench.rig.refuse_credentials()
        await bench.rig.end("reset")
        await eventually(lambda: bench.provider.counters.reconnects >= 1)
        await bench.streaming((symbol,))


async def p11_parks_without_credentials(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    missing = bench.rig.credentials[-1]
    good = bench.recorder.settings.pop(missing)
    await bench.provider.want([symbol])
    async with running(bench.provider):
        await eventually(lambda: bench.provider.state is ProviderState.PARKED)
        assert missing in bench.provider.reason
        assert bench.rig.attempts() == 0
        bench.recorder.settings[missing] = good
        await bench.streaming((symbol,))


async def p12_parks_with_refused_credentials(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    bench.rig.refuse_credentials()
    await bench.provider.want([symbol])
    async with running(bench.provider):
        await eventually(lambda: bench.provider.state is ProviderState.PARKED)
        attempts = bench.rig.attempts()
        looks = 0

        def settings() -> dict[str, str]:
            nonlocal looks
            looks += 1
            return dict(bench.recorder.settings)

        bench.provider._gate._settings = settings
        bench.provider.credentials_changed()
        await eventually(lambda: looks >= 10)
        assert bench.rig.attempts() == attempts
        bench.recorder.settings.update(bench.rig.new_credentials())
        bench.provider.credentials_changed()
        await bench.streaming((symbol,))


async def p13_stops_and_leaves_nothing(bench: Bench) -> None:
    symbols = bench.rig.symbols
    tasks, sockets = _tasks(), _sockets()
    await bench.provider.want(symbols)
    for situation in ("streaming", "refused", "hanging"):
        await bench.rig.refuse(situation == "refused")
        await bench.rig.hang(situation == "hanging")
        attempts = bench.rig.attempts()
        async with running(bench.provider):
            if situation == "streaming":
                await bench.streaming(symbols)
            elif situation == "refused":
                await eventually(lambda: bench.provider.state is ProviderState.BACKING_OFF)
            else:
                await eventually(lambda attempts=attempts: bench.rig.attempts() > attempts)
        assert bench.provider.state is ProviderState.CLOSED
        assert bench.recorder.tasks == set()
        await bench.rig.hang(False)
        await bench.rig.refuse(False)
        await eventually(lambda: bench.rig.connections() == 0)
        await eventually(lambda: _sockets() <= sockets)
        await eventually(lambda: _tasks() <= tasks)
    await bench.provider.disconnect_websocket()


async def p14_shows_no_secret(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    secrets = [bench.rig.settings[name] for name in bench.rig.credentials]
    shown: list[str] = []
    with structlog.testing.capture_logs() as logs:
        await bench.provider.want([symbol])
        async with running(bench.provider):
            await bench.streaming((symbol,))
            await bench.rig.damage()
            for how in ("clean", "error", "reset"):
                attempts = bench.rig.attempts()
                await bench.rig.end(how)
                await eventually(lambda attempts=attempts: bench.rig.attempts() > attempts)
                await bench.streaming((symbol,))
            shown.append(repr(bench.provider.status()))
        await bench.rig.refuse(True)
        try:
            await bench.provider.connect_websocket()
        except Exception as error:  # noqa: BLE001 - a library's own types are what this card is about
            shown.append("".join(traceback.format_exception(error)) + repr(error))
        await bench.provider.disconnect_websocket()
        await bench.rig.refuse(False)
        bench.rig.refuse_credentials()
        async with running(bench.provider):
            await eventually(lambda: bench.provider.state is ProviderState.PARKED)
            shown.append(repr(bench.provider.status()))
    text = "\n".join([*shown, *map(repr, logs), repr(bench.recorder.lost)])
    assert len(shown) == 3
    assert logs
    assert not [secret for secret in secrets if secret in text]


async def p15_never_blocks_the_loop(bench: Bench) -> None:
    symbols = bench.rig.symbols
    worst = 0.0
    done = False

    async def probe() -> None:
        # Processor time of this thread, so that a busy machine is not taken for a blocked loop.
        nonlocal worst
        while not done:
            began = time.thread_time()
            await asyncio.sleep(0)
            worst = max(worst, time.thread_time() - began)

    await bench.provider.want(symbols)
    async with running(bench.provider):
        await bench.streaming(symbols)
        watcher = asyncio.create_task(probe())
        before = bench.provider.counters.frames
        for number in range(5_000):
            bench.rig.emit(symbols[number % len(symbols)], 100.0 + number % 100)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: bench.provider.counters.frames - before >= 5_000, within_s=20)
        await bench.rig.end("clean")
        await eventually(lambda: bench.provider.counters.reconnects >= 1)
        await bench.streaming(symbols)
        done = True
        await watcher
    assert worst < BLOCKED_S


async def p16_delivers_everything_once_and_in_order(bench: Bench) -> None:
    first, second = bench.rig.symbols[:2]
    await bench.provider.want([first, second])
    async with running(bench.provider):
        await bench.streaming((first, second))
        sent: dict[str, list[float]] = {first: [], second: []}
        for number in range(200):
            symbol = (first, second)[number % 2]
            price = 9_000.25 + number
            sent[symbol].append(price)
            bench.rig.emit(symbol, price)
        for symbol, prices in sent.items():
            await eventually(lambda symbol=symbol, last=prices[-1]: last in bench.recorder.prices(symbol))
            assert [price for price in bench.recorder.prices(symbol) if price in prices] == prices


async def p17_can_be_started_again(bench: Bench) -> None:
    symbol = bench.rig.symbols[0]
    await bench.provider.want([symbol])
    for price in (40.5, 41.5):
        async with running(bench.provider):
            await bench.streaming((symbol,))
            await bench.flows(symbol, price)
        assert bench.provider.state is ProviderState.CLOSED


CARDS: tuple[Card, ...] = (
    p01_streams,
    p02_subscribes_everything_within_limits,
    p03_follows_what_is_wanted,
    p04_survives_a_clean_close,
    p05_survives_an_abnormal_close,
    p06_survives_a_reset,
    p07_keeps_the_connection_over_damage,
    p08_tries_again_while_refused,
    p09_gives_up_a_hanging_handshake,
    p10_reads_credentials_at_every_attempt,
    p11_parks_without_credentials,
    p12_parks_with_refused_credentials,
    p13_stops_and_leaves_nothing,
    p14_shows_no_secret,
    p15_never_blocks_the_loop,
    p16_delivers_everything_once_and_in_order,
    p17_can_be_started_again,
)


NEED_CREDENTIALS: tuple[Card, ...] = (
    p10_reads_credentials_at_every_attempt,
    p11_parks_without_credentials,
    p12_parks_with_refused_credentials,
    p14_shows_no_secret,
)
"""The cards to leave out for a vendor without credentials."""


def card_name(card: Any) -> str:
    """The card's number and title, for pytest's ids."""
    return str(card.__name__)


async def run_card(card: Card, rig: ProviderRig) -> None:
    """Start the rig, run one card on it, stop the rig."""
    await rig.start()
    try:
        await card(Bench(rig))
    finally:
        await rig.stop()


def _tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if not task.done()} - {"Task-1"}


def _sockets() -> int:
    descriptors = Path("/proc/self/fd")
    count = 0
    for entry in descriptors.iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue
    return count
