"""YahooFinanceConnection against the Yahoo simulator: slots, ids, sessions, and its silence about errors."""

from __future__ import annotations

import msgspec
import pytest

from services.base_provider import ProviderState
from services.connection.rules import ConnectionRules
from services.market_data.records import FLAG_SNAPSHOT
from services.yahoo_finance_connection import YahooFinanceConnection
from simulators import YahooSimulator
from simulators import faults as f
from tests.support.eventually import eventually
from tests.support.providers import Recorder, running

QUICK = msgspec.structs.replace(
    YahooFinanceConnection.default_rules, stagger_s=0.0, settle_s=0.02, close_within_s=0.4
)


def provider_on(
    sim: YahooSimulator, rules: ConnectionRules = QUICK, url: str = ""
) -> tuple[YahooFinanceConnection, Recorder]:
    recorder = Recorder({"YAHOO_STREAM_URL": url or sim.url})
    return YahooFinanceConnection(recorder.context, rules=rules), recorder


async def streaming(provider: YahooFinanceConnection, sim: YahooSimulator, symbols: int) -> None:
    await eventually(lambda: len({symbol for symbol, _ in sim.watched()}) == symbols, within_s=20)
    await eventually(lambda: provider.state is ProviderState.STREAMING, within_s=20)


async def test_two_hundred_and_fifty_symbols_share_three_connections_without_losing_one() -> None:
    async with YahooSimulator(rate=0, any_symbol=True) as sim:
        provider, _ = provider_on(sim)
        await provider.want([f"S{number}" for number in range(250)])
        async with running(provider):
            await streaming(provider, sim, 250)
            assert sorted(len(sim.slots_used(it)) for it in sim.connections.values()) == [83, 83, 84]
            assert provider.connections == 3


async def test_a_symbol_given_up_frees_its_place_for_another() -> None:
    async with YahooSimulator(rate=0, any_symbol=True) as sim:
        provider, _ = provider_on(sim, msgspec.structs.replace(QUICK, max_connections=1))
        await provider.want([f"S{number}" for number in range(100)])
        async with running(provider):
            await streaming(provider, sim, 100)
            await provider.want(["LATE"])
            assert "1 symbols beyond the 100" in provider.reason
            await provider.unwant(["S7"])
            await eventually(lambda: ("LATE", "2") in sim.watched())
            assert sim.connections_opened == 1


@pytest.mark.parametrize("version", [1, 2])
async def test_quotes_arrive_as_sent_in_both_versions_of_the_stream(version: int) -> None:
    async with YahooSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim, url=sim.url if version == 2 else sim.v1_url)
        await provider.want(["AAPL", "BTC-USD", "^NSEI"])
        async with running(provider):
            await streaming(provider, sim, 3)
            prices = {"AAPL": "311.25", "BTC-USD": "91000.50", "^NSEI": "24567.75"}
            sent = {symbol: sim.emit(symbol, price=text, quantity=5)[0] for symbol, text in prices.items()}
            await eventually(
                lambda: all(entry.float32 in recorder.prices(symbol) for symbol, entry in sent.items())
            )
            newest = {tick.provider_symbol: tick for tick, _ in recorder.ticks}
            assert newest["AAPL"].event_ms == sent["AAPL"].event_ms
            assert newest["AAPL"].cumulative_volume == sent["AAPL"].volume is not None
            assert newest["BTC-USD"].cumulative_volume is None
            assert newest["^NSEI"].cumulative_volume is None
            assert newest["AAPL"].price_decimals == 2


async def test_a_dollar_pair_that_answers_under_its_short_name_keeps_ours() -> None:
    async with YahooSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim)
        await provider.want(["USDINR=X"])
        async with running(provider):
            await streaming(provider, sim, 1)
            sim.emit("USDINR=X", price="88.1250")
            await eventually(lambda: len(recorder.ticks) >= 2)
            assert {tick.provider_symbol for tick, _ in recorder.ticks} == {"USDINR=X"}
            assert provider.status().unanswered == 0


@pytest.mark.parametrize("session", [0, 2, 4])
async def test_outside_the_regular_session_prices_flow_and_volumes_do_not(session: int) -> None:
    async with YahooSimulator(rate=0, market_hours=session) as sim:
        provider, recorder = provider_on(sim)
        await provider.want(["AAPL"])
        async with running(provider):
            await streaming(provider, sim, 1)
            sim.emit("AAPL", price="301.25", quantity=4)
            await eventually(lambda: 301.25 in recorder.prices("AAPL"))
            assert {tick.cumulative_volume for tick, _ in recorder.ticks} == {None}


async def test_an_unknown_symbol_harms_nobody_and_is_seen() -> None:
    async with YahooSimulator(rate=20) as sim:
        provider, recorder = provider_on(sim)
        await provider.want(["AAPL", "NO-SUCH-THING.XX"])
        async with running(provider):
            await eventually(lambda: len(recorder.prices("AAPL")) > 3)
            assert provider.status().unanswered == 1
            assert provider.state is ProviderState.STREAMING


async def test_the_whole_list_is_repeated_so_that_forgotten_symbols_come_back() -> None:
    async with YahooSimulator(rate=0, any_symbol=True) as sim:
        await sim.inject(f.DropSubscriptions(probability=0.5))
        provider, _ = provider_on(sim, msgspec.structs.replace(QUICK, resubscribe_every_s=0.3))
        await provider.want([f"S{number}" for number in range(50)])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.STREAMING)
            assert len(sim.watched()) < 50
            await streaming(provider, sim, 50)
            assert len(sim.connections) == 1
            assert sim.connections_opened == 1


async def test_odd_messages_are_counted_and_the_stream_goes_on() -> None:
    async with YahooSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim)
        await provider.want(["AAPL"])
        async with running(provider):
            await streaming(provider, sim, 1)
            for fault in (
                f.OtherEnvelope(),
                f.BadBase64(),
                f.Heartbeat(),
                f.Garbage(text="not json, not base64"),
                f.Truncated(symbol="AAPL"),
            ):
                await sim.inject(fault)
            sim.emit("AAPL")
            sim.emit("AAPL", price="300.50")
            await eventually(lambda: 300.5 in recorder.prices("AAPL"))
            counters = provider.counters
            assert counters.ignored == {"envelope": 1, "heartbeat": 1}
            assert sum(counters.wire_errors.values()) == 3
            assert counters.frames == counters.decoded + 3
            assert sim.connections_opened == 1


async def test_a_blocked_address_is_waited_out_because_there_is_no_key_to_correct() -> None:
    async with YahooSimulator(rate=0) as sim:
        await sim.inject(f.HandshakeStatus(status=403, retry_after_s=1))
        provider, _ = provider_on(sim)
        await provider.want(["AAPL"])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.BACKING_OFF)
            assert "HTTP 403" in provider.reason
            await sim.inject(f.Clear())
            await streaming(provider, sim, 1)


async def test_the_snapshot_of_a_symbol_added_later_is_flagged_too() -> None:
    async with YahooSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim)
        await provider.want(["AAPL"])
        async with running(provider):
            await streaming(provider, sim, 1)
            await provider.want(["MSFT"])
            await eventually(lambda: recorder.prices("MSFT"))
            sim.emit("MSFT")
            await eventually(lambda: len(recorder.prices("MSFT")) == 2)
        flags = [tick.flags for tick, _ in recorder.ticks if tick.provider_symbol == "MSFT"]
        assert flags == [FLAG_SNAPSHOT, 0]


async def test_a_close_without_a_status_is_survived() -> None:
    async with YahooSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim)
        await provider.want(["AAPL", "MSFT"])
        async with running(provider):
            await streaming(provider, sim, 2)
            await sim.inject(f.Close(code=None))
            await eventually(lambda: sim.connections_opened == 2)
            await streaming(provider, sim, 2)
            assert recorder.lost[0][2] == "closed_1005"
