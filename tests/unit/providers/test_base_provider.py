"""The template that every provider lives in, driven through an adapter over an in-memory feed."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from provider_helpers import FeedAdapter

from services.base_provider import (
    ProviderState,
    credential_expiry_ms,
)
from services.errors import (
    ConfigurationError,
    CredentialsRejected,
    ProviderRateLimited,
    ProviderUnavailable,
    SubscriptionRefused,
    WireFormatError,
)
from services.market_data.records import FLAG_SNAPSHOT, ProviderTick
from tests.support.eventually import eventually
from tests.support.providers import Recorder, running


class KeyedAdapter(FeedAdapter):
    code = "KEYED"
    credential_names = ("KEYED_ID", "KEYED_TOKEN")


async def test_it_connects_subscribes_everything_wanted_in_order_and_streams() -> None:
    recorder = Recorder()
    provider = FeedAdapter(recorder.context)
    await provider.want(["B", "A", "B", "C"])
    assert provider.wanted == ("B", "A", "C")
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert provider.calls == [("connect", ()), ("subscribe", ("B", "A", "C"))]
        provider.feed.put_nowait('["A", 12.5]')
        await eventually(lambda: recorder.ticks)
        status = provider.status()
        assert (status.state, status.connections, status.subscribed) == (ProviderState.STREAMING, 1, 3)
        assert status.last_frame_ms is not None
    assert provider.state is ProviderState.CLOSED
    assert provider.closed == 1


async def test_symbols_wanted_or_no_longer_wanted_while_streaming_are_passed_on_at_once() -> None:
    provider = FeedAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        await provider.want(["A", "B"])
        await provider.unwant(["A", "X"])
        assert provider.calls[-2:] == [("subscribe", ("B",)), ("unsubscribe", ("A",))]
        assert provider.subscribed == 1


async def test_without_wanted_symbols_it_stays_idle_and_does_not_connect() -> None:
    provider = FeedAdapter(Recorder().context)
    async with running(provider):
        await eventually(lambda: provider.reason == "no symbols are wanted")
        assert provider.state is ProviderState.IDLE
        assert provider.calls == []
        await provider.want(["A"])
        await eventually(lambda: provider.state is ProviderState.STREAMING)


@pytest.mark.parametrize("ending", [OSError("reset"), RuntimeError("a library's own"), "bye"])
async def test_whatever_ends_the_reader_leads_to_a_new_session_with_everything_subscribed(
    ending: Any,
) -> None:
    recorder = Recorder()
    provider = FeedAdapter(recorder.context)
    await provider.want(["A", "B"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        provider.feed.put_nowait('["A", 1.0]')
        await eventually(lambda: recorder.ticks)
        provider.feed.put_nowait(ending)
        await eventually(lambda: provider.count("subscribe") == 2)
        assert provider.calls[-1] == ("subscribe", ("A", "B"))
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert provider.counters.reconnects == 1
        assert provider.last_error
    (symbols, since_ms, _reason), *_ = recorder.lost
    assert symbols == ["A", "B"]
    assert since_ms == recorder.ticks[0][1]


async def test_a_time_without_data_is_bracketed_before_the_first_tick_after_it() -> None:
    recorder = Recorder()
    provider = FeedAdapter(recorder.context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        provider.feed.put_nowait('["A", 1.0]')
        await eventually(lambda: recorder.ticks)
        provider.feed.put_nowait(OSError("reset"))
        await eventually(lambda: provider.counters.connects == 2)
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        provider.feed.put_nowait('["A", 2.0]')
        await eventually(lambda: len(recorder.ticks) == 2)
    assert recorder.story == ["restored A", "tick A", "lost A", "restored A", "tick A", "lost A"]


async def test_the_first_price_of_a_symbol_is_flagged_only_where_the_vendor_sends_a_snapshot_first() -> None:
    class SnapshotAdapter(FeedAdapter):
        snapshot_first = True

    recorder = Recorder()
    provider = SnapshotAdapter(recorder.context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert provider.status().unanswered == 1
        for message in ('["A", null]', '["A", 1.0]', '["A", 2.0]'):
            provider.feed.put_nowait(message)
        await eventually(lambda: len(recorder.ticks) == 3)
    assert [tick.flags for tick, _ in recorder.ticks] == [0, FLAG_SNAPSHOT, 0]
    assert provider.status().unanswered == 0


async def test_damaged_messages_are_counted_by_reason_and_the_session_goes_on() -> None:
    class StrictAdapter(FeedAdapter):
        def message_handler(self, raw: str | bytes) -> Any:
            if raw == "torn":
                raise WireFormatError("truncated", "3 bytes missing", b"torn")
            return super().message_handler(raw)

    recorder = Recorder()
    provider = StrictAdapter(recorder.context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        for message in ("torn", "{", '["A"]', '["A", 5.0]'):
            provider.feed.put_nowait(message)
        await eventually(lambda: recorder.ticks)
        counters = provider.counters
        assert counters.wire_errors["truncated"] == 1
        assert counters.frames == counters.decoded + sum(counters.wire_errors.values()) == 4
        assert counters.connects == 1


async def test_a_session_that_brings_nothing_but_damage_is_ended() -> None:
    provider = FeedAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)

        async def pour() -> None:
            while provider.counters.connects == 1:
                for _ in range(20):
                    provider.feed.put_nowait("{")
                await asyncio.sleep(0.05)

        await asyncio.wait_for(pour(), timeout=5)
        assert "only damaged data" in provider.last_error


@pytest.mark.parametrize("style", ["tick", "list", "generator", "coroutine", "async_generator"])
async def test_the_handler_may_return_ticks_in_any_common_form(style: str) -> None:
    class ReturningAdapter(FeedAdapter):
        def message_handler(self, raw: str | bytes) -> Any:
            ticks = [ProviderTick(provider_symbol="A", price=float(n)) for n in range(1, 3)]
            if style == "tick":
                return ticks[0]
            if style == "list":
                return ticks
            if style == "generator":
                return (tick for tick in ticks)
            return self._answer(ticks) if style == "coroutine" else self._stream(ticks)

        async def _answer(self, ticks: list[ProviderTick]) -> Iterable[ProviderTick]:
            await asyncio.sleep(0)
            return ticks

        async def _stream(self, ticks: list[ProviderTick]) -> AsyncIterator[ProviderTick]:
            for tick in ticks:
                yield tick

    recorder = Recorder()
    provider = ReturningAdapter(recorder.context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        provider.feed.put_nowait("x")
        await eventually(lambda: len(recorder.ticks) == (1 if style == "tick" else 2))
        await eventually(lambda: provider.counters.decoded == 1)


async def test_an_async_handler_keeps_the_order_and_the_receive_time_of_each_message() -> None:
    class SlowAdapter(FeedAdapter):
        async def message_handler(self, raw: str | bytes) -> None:  # type: ignore[override]
            await asyncio.sleep(0.02 if raw == b"1" else 0)
            self.emit(ProviderTick(provider_symbol=raw.decode(), price=1.0))  # type: ignore[union-attr]

    recorder = Recorder()
    provider = SlowAdapter(recorder.context)
    await provider.want(["1"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        began_ms = time.time_ns() // 1_000_000
        provider.feed.put_nowait(b"1")
        provider.feed.put_nowait(b"2")
        await eventually(lambda: len(recorder.ticks) == 2)
    assert [tick.provider_symbol for tick, _ in recorder.ticks] == ["1", "2"]
    assert all(0 <= received_ms - began_ms < 15 for _, received_ms in recorder.ticks)


async def test_methods_that_forgot_to_be_async_work_too() -> None:
    class PlainAdapter(FeedAdapter):
        def connect_websocket(self) -> None:  # type: ignore[override]
            self.calls.append(("connect", ()))

        def subscribe_symbols(self, symbols: Iterable[str]) -> None:  # type: ignore[override]
            self.calls.append(("subscribe", tuple(symbols)))

        def disconnect_websocket(self) -> None:  # type: ignore[override]
            self.closed += 1

    provider = PlainAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert provider.calls == [("connect", ()), ("subscribe", ("A",))]


async def test_missing_credentials_park_at_once_and_say_which_to_set() -> None:
    recorder = Recorder({"KEYED_ID": "me"})
    provider = KeyedAdapter(recorder.context)
    await provider.want(["A"])
    task = asyncio.create_task(provider.run())
    await asyncio.sleep(0)
    assert provider.state is ProviderState.PARKED
    assert "KEYED_TOKEN" in provider.reason
    assert "KEYED_ID" not in provider.reason
    assert provider.calls == []
    recorder.settings["KEYED_TOKEN"] = "secret-1"
    await eventually(lambda: provider.state is ProviderState.STREAMING)
    task.cancel()
    await asyncio.wait([task])


async def test_refused_credentials_are_not_tried_again_until_they_change() -> None:
    recorder = Recorder({"KEYED_ID": "me", "KEYED_TOKEN": "dead-token"})
    provider = KeyedAdapter(recorder.context)
    provider.connect_errors = [CredentialsRejected("refused dead-token", reason="disconnect_807")]
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.PARKED)
        provider.credentials_changed()
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert provider.count("connect") == 1
        assert provider.reason == "refused ***"
        recorder.settings["KEYED_TOKEN"] = "fresh-token"
        provider.credentials_changed()
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert provider.count("connect") == 2


async def test_a_credential_known_dead_stays_dead_when_run_is_started_anew() -> None:
    recorder = Recorder({"KEYED_ID": "me", "KEYED_TOKEN": "dead-token"})
    provider = KeyedAdapter(recorder.context)
    provider.connect_errors = [CredentialsRejected("refused", reason="http_401")]
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.PARKED)
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.PARKED)
        for _ in range(5):
            await asyncio.sleep(0.01)
    assert provider.count("connect") == 1


async def test_settings_that_cannot_be_read_for_a_while_are_taken_as_they_were() -> None:
    recorder = Recorder({"KEYED_ID": "me", "KEYED_TOKEN": "secret-1"})
    broken = False

    def settings() -> dict[str, str]:
        if broken:
            raise ConfigurationError(".env has unknown settings")
        return dict(recorder.settings)

    recorder.context.settings = settings
    provider = KeyedAdapter(recorder.context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        broken = True
        provider.feed.put_nowait(OSError("reset"))
        await eventually(lambda: provider.counters.connects == 2)


async def test_a_refused_plan_waits_for_other_symbols() -> None:
    provider = FeedAdapter(Recorder().context)
    provider.connect_errors = [SubscriptionRefused("too many instruments", reason="disconnect_804")]
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.PARKED)
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert provider.count("connect") == 1
        await provider.want(["B"])
        await eventually(lambda: provider.state is ProviderState.STREAMING)


async def test_a_rate_limit_is_waited_out_for_as_long_as_the_provider_asks() -> None:
    provider = FeedAdapter(Recorder().context)
    provider.connect_errors = [ProviderRateLimited("slow down", reason="http_429", retry_after_s=0.3)]
    await provider.want(["A"])
    began = time.monotonic()
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.BACKING_OFF)
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert time.monotonic() - began >= 0.3


async def test_a_failing_subscription_ends_the_session_and_not_the_caller() -> None:
    class FragileAdapter(FeedAdapter):
        async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
            await super().subscribe_symbols(symbols)
            if self.count("subscribe") == 2:
                raise ConnectionResetError("gone")

    provider = FragileAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        await provider.want(["B"])
        await eventually(lambda: provider.counters.connects == 2)
        await eventually(lambda: provider.state is ProviderState.STREAMING)
        assert provider.calls[-1] == ("subscribe", ("A", "B"))


async def test_a_connect_that_never_returns_is_given_up_with_an_explanation() -> None:
    class EndlessAdapter(FeedAdapter):
        connect_timeout_s = 0.05

        async def connect_websocket(self) -> None:
            self.calls.append(("connect", ()))
            await asyncio.Event().wait()

    provider = EndlessAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: "did not return within 0.05 s" in provider.last_error)


async def test_stopping_leaves_no_task_even_when_disconnecting_hangs() -> None:
    class StubbornAdapter(FeedAdapter):
        close_timeout_s = 0.2

        async def disconnect_websocket(self) -> None:
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    provider = StubbornAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.state is ProviderState.STREAMING)
    assert asyncio.all_tasks() == before


async def test_the_five_methods_work_without_run() -> None:
    recorder = Recorder()
    provider = FeedAdapter(recorder.context)
    await provider.connect_websocket()
    await provider.subscribe_symbols(["A"])
    provider.feed.put_nowait('["A", 3.0]')
    await eventually(lambda: recorder.ticks)
    await provider.unsubscribe_symbols(["A"])
    await provider.disconnect_websocket()
    for task in list(recorder.tasks):
        task.cancel()
        await asyncio.wait([task])


async def test_an_error_of_any_library_is_shown_without_the_secret() -> None:
    recorder = Recorder({"KEYED_ID": "client-77", "KEYED_TOKEN": "s3cr3t/+token"})
    provider = KeyedAdapter(recorder.context)
    provider.connect_errors = [
        RuntimeError("cannot reach wss://host/?token=s3cr3t%2F%2Btoken&id=client-77 with s3cr3t/+token"),
        ProviderUnavailable("refused by wss://host/?token=s3cr3t/+token"),
    ]
    await provider.want(["A"])
    seen = set()
    async with running(provider):
        while provider.state is not ProviderState.STREAMING:
            seen.add(provider.last_error + provider.reason + repr(provider.status()))
            await asyncio.sleep(0.001)
    assert any("***" in text for text in seen)
    assert not any("s3cr3t" in text or "client-77" in text for text in seen)


def _jwt(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"eyJhbGciOiJIUzUxMiJ9.{body}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("token", "expires_ms"),
    [
        (_jwt({"exp": 1_780_000_000}), 1_780_000_000_000),
        (_jwt({"exp": 1_780_000_000.5}), 1_780_000_000_500),
        (_jwt({"exp": "soon"}), None),
        (_jwt({"exp": True}), None),
        (_jwt({"exp": -5}), None),
        (_jwt(["exp"]), None),
        (_jwt({}), None),
        ("opaque-token", None),
        ("a.b.c", None),
        ("eyJ.\u00e4.c", None),
        ("", None),
    ],
)
def test_the_expiry_of_a_token_is_read_where_it_says_one(token: str, expires_ms: int | None) -> None:
    assert credential_expiry_ms(token) == expires_ms


async def test_wishes_that_change_while_a_request_is_under_way_end_in_what_is_wanted_last() -> None:
    class SlowAdapter(FeedAdapter):
        async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
            await super().subscribe_symbols(symbols)
            await asyncio.sleep(0.02)

        async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
            await super().unsubscribe_symbols(symbols)
            await asyncio.sleep(0.02)

    provider = SlowAdapter(Recorder().context)
    await provider.want(["A"])
    async with running(provider):
        await eventually(lambda: provider.calls)
        wishes = [
            asyncio.create_task(wish)
            for wish in (
                provider.want(["B", "C"]),
                provider.unwant(["B", "A"]),
                provider.want(["A", "D"]),
                provider.unwant(["D"]),
                provider.want(["B"]),
            )
        ]
        await asyncio.gather(*wishes)
        held: set[str] = set()
        for name, symbols in provider.calls:
            if name == "subscribe":
                assert not held.intersection(symbols)
                held.update(symbols)
            elif name == "unsubscribe":
                assert held.issuperset(symbols)
                held.difference_update(symbols)
        assert held == set(provider.wanted) == {"A", "B", "C"}
