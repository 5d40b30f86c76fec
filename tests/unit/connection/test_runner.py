"""Connections kept open against a real WebSocket server that misbehaves as told."""

from __future__ import annotations

import asyncio
import http
import json
import random
import time
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import picows
import pytest
import structlog
from websocket_rig import (
    RULES,
    TOKEN,
    PairProvider,
    Server,
    recorder_for,
    serving,
    silent_listener,
)

from services.base_provider import ProviderState
from services.connection.muteness import MuteRules
from services.connection.rules import Request
from services.errors import (
    CredentialsRejected,
    ProviderRateLimited,
    ProviderUnavailable,
    SettingsUnusable,
    SubscriptionRefused,
    TooManySymbols,
)
from tests.support.eventually import eventually
from tests.support.providers import running


async def streaming(provider: PairProvider, server: Server, symbols: int) -> None:
    await eventually(lambda: provider.state is ProviderState.STREAMING)
    await eventually(lambda: sum(len(client.symbols) for client in server.open_clients) == symbols)


async def test_symbols_are_spread_over_connections_and_asked_for_in_chunks() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A", "B", "C", "D", "E"])
        async with running(provider):
            await streaming(provider, server, 5)
            first, second = server.open_clients
            assert first.path == f"/feed?token={TOKEN}"
            assert first.headers["X-Key"] == TOKEN
            assert sorted([len(first.symbols), len(second.symbols)]) == [2, 3]
            assert all(
                len(chunk) <= 2 for client in (first, second) for chunk in client.requests("subscribe")
            )
            await eventually(lambda: provider.subscribed == 5)
            assert provider.connections == 2
            first.tick("A", 4.5)
            await eventually(lambda: recorder.ticks)
        assert not server.open_clients
        assert [client.close_code for client in (first, second)] == [1000, 1000]
        assert all(client.received[-1] == '{"bye": true}' for client in (first, second))


async def test_changes_while_streaming_touch_only_what_changed() -> None:
    async with serving() as server:
        provider = PairProvider(recorder_for(server).context)
        await provider.want(["A", "B"])
        async with running(provider):
            await streaming(provider, server, 2)
            (client,) = server.open_clients
            await provider.want(["C"])
            await eventually(lambda: "C" in client.symbols)
            await provider.unwant(["A"])
            await eventually(lambda: "A" not in client.symbols)
            assert client.requests("subscribe") == [["A", "B"], ["C"]]
            assert client.requests("unsubscribe") == [["A"]]


async def test_a_full_connection_makes_room_before_it_asks_for_more() -> None:
    async with serving() as server:
        provider = PairProvider(
            recorder_for(server).context, rules=msgspec.structs.replace(RULES, max_connections=1)
        )
        await provider.want(["A", "B", "C"])
        async with running(provider):
            await streaming(provider, server, 3)
            (client,) = server.open_clients
            await asyncio.gather(provider.unwant(["A"]), provider.want(["D"]))
            await eventually(lambda: set(client.symbols) == {"B", "C", "D"})
            actions = [next(iter(json.loads(text))) for text in client.received]
            assert actions[-2:] == ["unsubscribe", "subscribe"]


async def test_what_does_not_fit_is_reported_and_taken_in_when_there_is_room() -> None:
    async with serving() as server:
        provider = PairProvider(recorder_for(server).context)
        await provider.want(["A", "B", "C", "D", "E", "F", "G", "!"])
        async with running(provider):
            await streaming(provider, server, 6)
            await eventually(lambda: "1 symbols beyond the 6" in provider.reason)
            assert "1 symbols cannot be subscribed" in provider.reason
            assert provider.refused == {"!": "not a symbol"}
            await provider.unwant(["B"])
            await eventually(lambda: any("G" in client.symbols for client in server.open_clients))
            assert "beyond" not in provider.reason


@pytest.mark.parametrize("ending", [1000, 1001, 1006, 1011, 1012, 4001, "reset", "no_status"])
async def test_however_a_connection_ends_everything_is_subscribed_again(ending: Any) -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A", "B", "C"])
        async with running(provider):
            await streaming(provider, server, 3)
            (client,) = server.open_clients
            client.tick("A")
            await eventually(lambda: recorder.ticks)
            if ending == "reset":
                client.reset()
            elif ending == 1006:
                client.transport.disconnect(graceful=False)
            elif ending == "no_status":
                client.transport.send(picows.WSMsgType.CLOSE, b"")
            else:
                client.close(ending, "because")
            await eventually(lambda: len(server.clients) == 2)
            await streaming(provider, server, 3)
            server.open_clients[0].tick("A", 2.0)
            await eventually(lambda: len(recorder.ticks) == 2)
            assert provider.counters.reconnects == 1
            await eventually(lambda: provider.subscribed == 3)
        (symbols, since_ms, reason), *_ = recorder.lost
        assert symbols == ["A", "B", "C"]
        assert since_ms == recorder.ticks[0][1]
        assert reason.startswith("closed_")
        story = [entry for entry in recorder.story if entry.endswith("A")]
        assert story == ["restored A", "tick A", "lost A", "restored A", "tick A", "lost A"]


async def test_one_connection_reconnecting_leaves_the_others_alone() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A", "B", "C", "D", "E", "F"])
        async with running(provider):
            await streaming(provider, server, 6)
            first, second = server.open_clients
            second.reset()
            await eventually(lambda: len(server.clients) == 3)
            await streaming(provider, server, 6)
            assert first.open
            assert len(recorder.lost) == 1
            assert set(recorder.lost[0][0]) == set(server.clients[2].symbols)


async def test_a_connection_without_symbols_is_closed_and_opened_again_when_needed() -> None:
    async with serving() as server:
        provider = PairProvider(recorder_for(server).context)
        await provider.want(["A", "B", "C", "D"])
        async with running(provider):
            await streaming(provider, server, 4)
            second = server.open_clients[1]
            await provider.unwant(list(second.symbols))
            await eventually(lambda: not second.open)
            assert provider.state is ProviderState.STREAMING
            await provider.want(["E", "F", "G"])
            await eventually(lambda: provider.connections == 2)
            assert provider.counters.wire_errors == {}


async def test_a_peer_that_accepts_and_closes_at_once_is_not_hammered() -> None:
    async with serving() as server:
        server.greet = lambda client: client.transport.disconnect(graceful=False)
        provider = PairProvider(recorder_for(server, base_s=0.1).context)
        await provider.want(["A"])
        async with running(provider):
            await eventually(lambda: len(server.attempts) >= 4)
            assert provider.state is not ProviderState.STREAMING
        assert max(later - earlier for earlier, later in pairwise(at for at, _ in server.attempts)) > 0.01


@pytest.mark.parametrize(
    ("answer", "reason", "error_type"),
    [
        (lambda: picows.WSUpgradeResponse.create_error_response(401), "http_401", CredentialsRejected),
        (lambda: picows.WSUpgradeResponse.create_error_response(403), "http_403", CredentialsRejected),
        (lambda: picows.WSUpgradeResponse.create_error_response(503), "http_503", ProviderUnavailable),
        (lambda: picows.WSUpgradeResponse.create_error_response(404), "http_404", ProviderUnavailable),
        (
            lambda: picows.WSUpgradeResponse.create_ok_response(b"<html>log in"),
            "http_200",
            ProviderUnavailable,
        ),
        (
            lambda: picows.WSUpgradeResponse.create_redirect_response(302, "ws://127.0.0.1:1/else?token=x"),
            "http_302",
            ProviderUnavailable,
        ),
        (
            lambda: picows.WSUpgradeResponse.create_error_response(429, extra_headers={"Retry-After": "7"}),
            "http_429",
            ProviderRateLimited,
        ),
    ],
)
async def test_a_refused_handshake_is_a_typed_error_without_the_token(
    answer: Any, reason: str, error_type: type[Exception]
) -> None:
    async with serving() as server:
        server.answer = lambda request: answer()
        provider = PairProvider(recorder_for(server).context)
        with pytest.raises(error_type) as caught:
            await provider.connect_websocket()
        assert caught.value.reason == reason
        if reason == "http_429":
            assert caught.value.retry_after_s == 7
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert TOKEN not in shown
        assert "token=x" not in shown
        assert len(server.attempts) == 1


async def test_refused_credentials_park_and_a_new_token_wakes() -> None:
    async with serving() as server:
        refuse = True
        server.answer = lambda request: (
            picows.WSUpgradeResponse.create_error_response(401) if refuse else None
        )
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.PARKED)
            provider.credentials_changed()
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert len(server.attempts) == 1
            refuse = False
            recorder.settings["PAIR_TOKEN"] = "another"
            provider.credentials_changed()
            await streaming(provider, server, 1)
            assert server.open_clients[0].path.endswith("token=another")


async def test_credentials_refused_while_streaming_park_every_connection_as_it_ends() -> None:
    class Revoking(PairProvider):
        def message_handler(self, raw: str | bytes) -> None:
            if raw == "expired":
                raise CredentialsRejected(f"expired {TOKEN}", reason="disconnect_807")
            super().message_handler(raw)

    async with serving() as server:
        recorder = recorder_for(server)
        provider = Revoking(recorder.context)
        await provider.want(["A", "B", "C", "D"])
        async with running(provider):
            await streaming(provider, server, 4)
            first, second = server.open_clients
            second.send("expired")
            await eventually(lambda: "connection 1 is parked: expired ***" in provider.reason)
            assert provider.state is ProviderState.STREAMING
            first.reset()
            await eventually(lambda: provider.state is ProviderState.PARKED)
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert len(server.attempts) == 2
            recorder.settings["PAIR_TOKEN"] = "another"
            await streaming(provider, server, 4)


async def test_the_endpoint_is_made_anew_at_every_attempt() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            recorder.settings["PAIR_TOKEN"] = "renewed"
            server.open_clients[0].close(1001)
            await eventually(lambda: len(server.clients) == 2)
            assert server.clients[1].path.endswith("token=renewed")


async def test_a_wrong_address_parks_until_it_is_corrected() -> None:
    async with serving() as server:
        recorder = recorder_for(server, PAIR_URL=f"http://{TOKEN}.example/feed")
        provider = PairProvider(recorder.context)
        with pytest.raises(SettingsUnusable) as caught:
            await provider.connect_websocket()
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        await provider.want(["A"])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.PARKED)
            recorder.settings["PAIR_URL"] = server.url
            await streaming(provider, server, 1)


async def test_a_refused_port_and_an_unknown_name_are_retried() -> None:
    async with serving() as server:
        port = server.port
        await server.stop()
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        with pytest.raises(ProviderUnavailable) as caught:
            await provider.connect_websocket()
        assert caught.value.reason == "refused"
        await provider.want(["A"])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.BACKING_OFF)
            server.port = port
            await server.start()
            await streaming(provider, server, 1)


async def test_a_handshake_that_hangs_is_given_up_and_leaves_no_socket() -> None:
    async with silent_listener() as (port, writers), serving() as server:
        recorder = recorder_for(server, PAIR_URL=f"ws://127.0.0.1:{port}/feed")
        provider = PairProvider(recorder.context)
        began = time.monotonic()
        with pytest.raises(ProviderUnavailable) as caught:
            await provider.connect_websocket()
        assert caught.value.reason == "open_timeout"
        assert 0.4 < time.monotonic() - began < 1.5
        await eventually(lambda: all(writer.transport.is_closing() for writer in writers))


async def test_stopping_during_a_hanging_handshake_leaves_no_task_and_no_socket() -> None:
    before = asyncio.all_tasks()
    async with silent_listener() as (port, writers), serving() as server:
        recorder = recorder_for(server, PAIR_URL=f"ws://127.0.0.1:{port}/feed")
        provider = PairProvider(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await eventually(lambda: writers)
        await eventually(lambda: all(writer.transport.is_closing() for writer in writers))
        assert not recorder.tasks
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_peer_without_any_sign_of_life_is_cut_and_replaced() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            await eventually(lambda: recorder.restored)
            server.answers_pings = server.answers_close = False
            began = time.monotonic()
            await eventually(lambda: len(server.clients) == 2)
            assert time.monotonic() - began < 2
            assert recorder.lost[0][2] == "silent"


async def test_a_quiet_peer_that_answers_pings_is_left_in_peace() -> None:
    async with serving() as server:
        provider = PairProvider(recorder_for(server).context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            await eventually(lambda: server.clients[0].pings >= 4)
            assert len(server.clients) == 1
            assert provider.state is ProviderState.STREAMING


async def test_a_mute_connection_is_stale_and_opened_anew_until_data_comes() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        provider.mute_rules = MuteRules(after_s=0.3, windows=0)
        recorder.context.open_markets = lambda: frozenset({"NSE"})
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            server.clients[0].tick("A")
            await eventually(lambda: len(server.clients) == 2)
            await eventually(lambda: provider.state is ProviderState.STALE and provider.connections == 1)
            assert "no data for 0.3 s" in provider.reason
            assert recorder.lost[0][2] == "mute"
            server.clients[-1].tick("A")
            await eventually(lambda: provider.state is ProviderState.STREAMING)


async def test_damaged_frames_are_counted_and_the_connection_kept() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            client = server.open_clients[0]
            for damaged in ("{", b"\xff\xfe", "[1]", ""):
                client.send(damaged)
            client.transport.send(picows.WSMsgType.TEXT, b"\xff not utf-8")
            client.tick("A")
            await eventually(lambda: recorder.ticks)
            assert sum(provider.counters.wire_errors.values()) == 5
            assert provider.counters.frames == 6
            assert len(server.clients) == 1


async def test_a_connection_that_brings_only_damage_is_replaced() -> None:
    async with serving() as server:
        provider = PairProvider(recorder_for(server).context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)

            async def pour() -> None:
                while len(server.clients) == 1:
                    for _ in range(20):
                        server.clients[0].send("{")
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(pour(), timeout=5)


async def test_fragmented_messages_are_put_together_and_huge_ones_end_the_connection() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(
            recorder.context,
            rules=msgspec.structs.replace(
                RULES, transport=msgspec.structs.replace(RULES.transport, max_message_bytes=1_000)
            ),
        )
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            wire = server.open_clients[0].transport
            wire.send(picows.WSMsgType.TEXT, b'["A"', fin=False)
            wire.send_ping(b"in between")
            wire.send(picows.WSMsgType.CONTINUATION, b", 7.5]", fin=True)
            await eventually(lambda: recorder.ticks)
            assert recorder.ticks[0][0].price == 7.5
            wire.send(picows.WSMsgType.TEXT, b"x" * 800, fin=False)
            wire.send(picows.WSMsgType.CONTINUATION, b"x" * 800, fin=True)
            await eventually(lambda: len(server.clients) == 2)
            await streaming(provider, server, 1)
            server.open_clients[0].send("x" * 2_000)
            await eventually(lambda: len(server.clients) == 3)
            assert {reason for _, _, reason in recorder.lost} == {"protocol"}


async def test_requests_the_server_forgot_are_repeated_once() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(
            recorder.context, rules=msgspec.structs.replace(RULES, resubscribe_missing_after_s=0.2)
        )
        await provider.want(["A", "B", "C"])
        async with running(provider):
            await streaming(provider, server, 3)
            client = server.open_clients[0]
            client.tick("B")
            await eventually(lambda: provider.counters.resubscribed == 2)
            await eventually(lambda: client.requests("subscribe")[-1] == ["A", "C"])
            await eventually(lambda: client.pings >= 4)
            assert provider.counters.resubscribed == 2
            assert provider.status().unanswered == 2


async def test_the_whole_list_is_repeated_where_the_rules_say_so() -> None:
    async with serving() as server:
        provider = PairProvider(
            recorder_for(server).context,
            rules=msgspec.structs.replace(RULES, resubscribe_every_s=0.2, resubscribe_missing_after_s=None),
        )
        await provider.want(["A", "B"])
        async with running(provider):
            await streaming(provider, server, 2)
            client = server.open_clients[0]
            await eventually(lambda: client.requests("subscribe") == [["A", "B"]] * 3)


async def test_the_one_symbol_the_server_minds_is_found_and_left_out() -> None:
    class Minding(PairProvider):
        def message_handler(self, raw: str | bytes) -> None:
            if raw == "813":
                raise SubscriptionRefused("invalid security id", reason="disconnect_813")
            super().message_handler(raw)

    async with serving() as server:
        server.asked = lambda client, request: "BAD" in request.get("subscribe", ()) and client.send("813")
        provider = Minding(
            recorder_for(server, base_s=0.001).context,
            rules=msgspec.structs.replace(RULES, symbols_per_connection=8, max_connections=1),
        )
        await provider.want(["A", "B", "C", "BAD", "D"])
        async with running(provider):
            await eventually(lambda: "BAD" in provider.refused, within_s=15)
            await streaming(provider, server, 4)
            assert set(server.open_clients[0].symbols) == {"A", "B", "C", "D"}
            assert "1 symbols cannot be subscribed" in provider.reason


async def test_a_server_that_takes_fewer_symbols_gets_fewer_per_connection() -> None:
    class Counting(PairProvider):
        def message_handler(self, raw: str | bytes) -> None:
            if raw == "804":
                raise TooManySymbols("too many instruments", reason="disconnect_804")
            super().message_handler(raw)

    def count(client: Any, request: dict[str, Any]) -> None:
        if len(client.symbols) > 60:
            client.send("804")

    async with serving() as server:
        server.asked = count
        provider = Counting(
            recorder_for(server, base_s=0.001).context,
            rules=msgspec.structs.replace(RULES, symbols_per_connection=100, max_connections=2),
        )
        await provider.want([f"S{n}" for n in range(100)])
        async with running(provider):
            await streaming(provider, server, 100)
            assert sorted(len(client.symbols) for client in server.open_clients) == [50, 50]


async def test_attempts_of_one_provider_keep_their_distance() -> None:
    async with serving() as server:
        provider = PairProvider(
            recorder_for(server).context,
            rules=msgspec.structs.replace(RULES, symbols_per_connection=1, max_connections=4, stagger_s=0.3),
        )
        await provider.want(["A", "B", "C", "D"])
        async with running(provider):
            await streaming(provider, server, 4)
        times = [at for at, _ in server.attempts]
        assert all(later - earlier > 0.15 for earlier, later in pairwise(times))


async def test_stopping_a_peer_that_answers_nothing_takes_less_than_two_seconds() -> None:
    before = asyncio.all_tasks()
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.want(["A", "B", "C", "D"])
        async with running(provider):
            await streaming(provider, server, 4)
            server.answers_close = False
        await eventually(lambda: not server.open_clients)
        assert not recorder.tasks
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_the_five_methods_work_without_run() -> None:
    async with serving() as server:
        recorder = recorder_for(server)
        provider = PairProvider(recorder.context)
        await provider.connect_websocket()
        await provider.subscribe_symbols(["A", "B"])
        await eventually(lambda: set(server.clients[0].symbols) == {"A", "B"})
        server.clients[0].tick("A", 3.0)
        await eventually(lambda: recorder.ticks)
        await provider.unsubscribe_symbols(["A", "X"])
        await eventually(lambda: set(server.clients[0].symbols) == {"B"})
        await provider.disconnect_websocket()
        await provider.disconnect_websocket()
        assert not server.open_clients


async def test_the_token_appears_in_no_log_line_and_no_status() -> None:
    answers = [401, 429, 500, 404]
    with structlog.testing.capture_logs() as logs:
        async with serving() as server:
            recorder = recorder_for(server)
            provider = PairProvider(recorder.context)
            await provider.want(["A"])
            seen = ""
            for status in answers:
                server.answer = lambda request, status=status: picows.WSUpgradeResponse.create_error_response(
                    http.HTTPStatus(status), TOKEN.encode(), {"Retry-After": "1"}
                )
                recorder.settings["PAIR_TOKEN"] = TOKEN + str(status)
                async with running(provider):
                    await eventually(lambda status=status: str(status) in provider.reason)
                    seen += repr(provider.status())
            server.answer = lambda request: None
            recorder.settings["PAIR_TOKEN"] = TOKEN
            async with running(provider):
                await streaming(provider, server, 1)
                server.open_clients[0].close(1008, f"token={TOKEN} is bad")
                await eventually(lambda: len(server.clients) == 2)
                seen += repr(provider.status())
    assert logs
    assert TOKEN not in seen + repr(logs) + repr(provider.endpoint())


async def test_a_bug_in_a_decoder_ends_the_connection_and_not_the_provider() -> None:
    class Buggy(PairProvider):
        def message_handler(self, raw: str | bytes) -> None:
            if raw == "bug":
                raise RuntimeError("not thought of")
            super().message_handler(raw)

    async with serving() as server:
        recorder = recorder_for(server)
        provider = Buggy(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            with structlog.testing.capture_logs() as logs:
                server.open_clients[0].send("bug")
                await eventually(lambda: len(server.clients) == 2)
            assert any("connection_broken_by_us" in entry["event"] for entry in logs)
            await streaming(provider, server, 1)
            server.open_clients[0].tick("A", 6.5)
            await eventually(lambda: recorder.prices("A") == [6.5])


async def test_a_bug_in_the_vendors_part_starts_the_whole_session_anew_after_a_wait() -> None:
    class Buggy(PairProvider):
        bugs = 2

        def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
            if self.bugs:
                self.bugs -= 1
                raise KeyError("not thought of")
            return super().subscribe_requests(symbols)

    async with serving() as server:
        recorder = recorder_for(server)
        provider = Buggy(recorder.context)
        await provider.want(["A"])
        async with running(provider):
            await streaming(provider, server, 1)
            assert len(server.attempts) == 3
            assert "not thought of" in provider.last_error
            assert len(server.open_clients) == 1


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 11, 19, 23, 33])
async def test_whatever_is_wanted_in_whatever_order_the_server_ends_up_with_just_that(seed: int) -> None:
    dice = random.Random(seed)
    names = [f"S{n}" for n in range(9)]
    async with serving() as server:
        provider = PairProvider(
            recorder_for(server).context,
            rules=msgspec.structs.replace(RULES, symbols_per_connection=4, pace_s=0.002),
        )
        await provider.want(names[:4])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.STREAMING)
            for _ in range(120):
                chosen = dice.sample(names, dice.randint(1, 4))
                await (provider.want if dice.random() < 0.5 else provider.unwant)(chosen)
                if dice.random() < 0.3:
                    await asyncio.sleep(dice.random() * 0.01)
                if dice.random() < 0.03 and server.open_clients:
                    dice.choice(server.open_clients).reset()
            await provider.unwant(names[6:])
            await provider.want(names[:5])
            expected = set(provider.wanted)
            await eventually(
                lambda: (
                    [set(client.symbols) for client in server.open_clients]
                    and set().union(*(client.symbols for client in server.open_clients)) == expected
                ),
                within_s=10,
            )
            await eventually(lambda: provider.subscribed == len(expected))
            assert sum(len(client.symbols) for client in server.open_clients) == len(expected)
