"""Dhan packets to ticks, requests, addresses and verdicts; no sockets."""

from __future__ import annotations

import base64
import json
import math
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from services.connection.rules import ConnectionEnd
from services.connection.transport import CloseInfo
from services.dhan_provider import DhanProvider, disconnect_error
from services.errors import (
    ConnectionLimitReached,
    CredentialsRejected,
    ProviderError,
    ProviderUnavailable,
    SettingsUnusable,
    SubscriptionRefused,
    Verdict,
)
from services.market_data.records import FLAG_SNAPSHOT, ProviderTick
from services.wire import dhan
from tests.support.providers import Recorder

NSE_EQ, NSE_FNO, IDX_I = dhan.Segment.NSE_EQ, dhan.Segment.NSE_FNO, dhan.Segment.IDX_I
UTC_S = 1_781_065_197
LTT = UTC_S + 19_800
EMPTY = dhan.DepthLevel(0, 0, 0, 0, 0.0, 0.0)


def provider_with(**settings: str) -> tuple[DhanProvider, Recorder]:
    recorder = Recorder({"DHAN_CLIENT_ID": "1100", "DHAN_ACCESS_TOKEN": "tok+en/=1", **settings})
    return DhanProvider(recorder.context), recorder


def quote(segment: int = NSE_EQ, security_id: int = 2885, **changes: object) -> dhan.Quote:
    fields: dict[str, object] = {
        "ltp": 2456.75,
        "ltq": 10,
        "ltt": LTT,
        "atp": 2450.0,
        "volume": 1_000,
        "total_sell_qty": 5,
        "total_buy_qty": 6,
        "day_open": 2440.0,
        "day_close": 2430.5,
        "day_high": 2460.0,
        "day_low": 2435.0,
        **changes,
    }
    return dhan.Quote(segment, security_id, **fields)  # type: ignore[arg-type]


def full(segment: int, security_id: int, best: dhan.DepthLevel = EMPTY, **changes: object) -> dhan.Full:
    fields: dict[str, object] = {
        "ltp": 101.5,
        "ltq": 1,
        "ltt": LTT,
        "atp": 100.0,
        "volume": 77,
        "total_sell_qty": 5,
        "total_buy_qty": 6,
        "oi": 4_321,
        "oi_day_high": 5_000,
        "oi_day_low": 4_000,
        "day_open": 99.0,
        "day_close": 98.0,
        "day_high": 102.0,
        "day_low": 97.5,
        "depth": (best, EMPTY, EMPTY, EMPTY, EMPTY),
        **changes,
    }
    return dhan.Full(segment, security_id, **fields)  # type: ignore[arg-type]


def ticks_of(*records: dhan.DhanRecord) -> list[ProviderTick]:
    provider, recorder = provider_with()
    for record in records:
        assert provider.handle(dhan.encode(record))
    return [tick for tick, _ in recorder.ticks]


def test_a_quote_becomes_a_tick_with_its_time_in_utc() -> None:
    (tick,) = ticks_of(quote())
    assert tick.provider_symbol == "NSE_EQ:2885"
    assert (tick.price, tick.cumulative_volume) == (2456.75, 1_000)
    assert (tick.event_ms, tick.event_resolution_ms) == (UTC_S * 1000, 1000)
    assert (tick.day_open, tick.day_high, tick.day_low) == (2440.0, 2460.0, 2435.0)
    assert tick.previous_close == 2430.5
    assert (tick.bid, tick.ask, tick.oi) == (None, None, None)


def test_a_full_packet_brings_the_best_level_and_open_interest_of_derivatives_only() -> None:
    best = dhan.DepthLevel(10, 20, 1, 2, 101.25, 101.75)
    future, equity = ticks_of(full(NSE_FNO, 55796, best), full(NSE_EQ, 2885, best, oi=0))
    assert (future.bid, future.ask, future.bid_size, future.ask_size) == (101.25, 101.75, 10, 20)
    assert future.oi == 4_321
    assert equity.oi is None


def test_an_empty_side_of_the_book_is_absent_and_not_zero() -> None:
    (tick,) = ticks_of(full(NSE_FNO, 1, dhan.DepthLevel(0, 20, 0, 2, 0.0, 101.75)))
    assert (tick.bid, tick.bid_size, tick.ask, tick.ask_size) == (None, None, 101.75, 20)


def test_zero_day_prices_are_absent() -> None:
    (tick,) = ticks_of(quote(day_open=0.0, day_close=0.0, day_high=0.0, day_low=0.0))
    assert (tick.day_open, tick.day_high, tick.day_low, tick.previous_close) == (None, None, None, None)


def test_an_index_has_no_volume() -> None:
    (tick,) = ticks_of(quote(IDX_I, 13, volume=0))
    assert tick.provider_symbol == "IDX_I:13"
    assert tick.cumulative_volume is None


def test_a_ticker_packet_knows_price_and_time_only() -> None:
    (tick,) = ticks_of(dhan.Ticker(NSE_EQ, 1333, 1650.5, LTT))
    assert (tick.price, tick.event_ms, tick.cumulative_volume) == (1650.5, UTC_S * 1000, None)


def test_open_interest_travels_alone_and_with_the_quotes_that_follow() -> None:
    update, tick = ticks_of(dhan.OpenInterest(NSE_FNO, 55796, 900), quote(NSE_FNO, 55796))
    assert (update.price, update.oi) == (None, 900)
    assert tick.oi == 900


def test_open_interest_of_an_equity_is_nothing() -> None:
    assert ticks_of(dhan.OpenInterest(NSE_EQ, 2885, 0)) == []


def test_a_previous_close_is_a_reference_update() -> None:
    (tick,) = ticks_of(dhan.PreviousClose(IDX_I, 13, 24_500.5, 0))
    assert (tick.price, tick.previous_close, tick.oi) == (None, 24_500.5, None)


@pytest.mark.parametrize("ltt", [0, 315_532_800])
def test_an_instrument_that_never_traded_has_no_price(ltt: int) -> None:
    provider, recorder = provider_with()
    for record in (
        quote(ltp=0.0, ltt=ltt),
        full(NSE_FNO, 1, dhan.DepthLevel(5, 0, 1, 0, 9.5, 0.0), ltp=0.0, ltt=ltt),
        dhan.Ticker(NSE_EQ, 2, 0.0, ltt),
    ):
        provider.handle(dhan.encode(record))
    assert [(tick.price, tick.event_ms) for tick, _ in recorder.ticks] == [(None, None)] * 3
    assert recorder.ticks[1][0].bid == 9.5
    assert provider.counters.ignored == {"never_traded": 3}


def test_a_price_that_is_no_number_is_left_to_the_quality_rules() -> None:
    (tick,) = ticks_of(quote(ltp=math.nan))
    assert tick.price is not None
    assert math.isnan(tick.price)


def test_every_packet_of_a_message_counts_and_damage_at_its_end_loses_nothing_before_it() -> None:
    provider, recorder = provider_with()
    torn = dhan.encode(quote()) + dhan.encode(dhan.Ticker(NSE_EQ, 1333, 5.0, LTT)) + dhan.encode(quote())[:20]
    assert provider.handle(torn) is False
    assert [tick.provider_symbol for tick, _ in recorder.ticks] == ["NSE_EQ:2885", "NSE_EQ:1333"]
    assert provider.counters.wire_errors == {"truncated": 1}
    assert provider.counters.records == 2


def test_packets_without_market_data_are_counted_by_kind() -> None:
    provider, recorder = provider_with()
    for record in (
        dhan.MarketStatus(NSE_EQ, 0),
        dhan.Heartbeat(0, 0),
        dhan.Unknown(NSE_EQ, 5, 1, 12, b"four"),
        dhan.Unknown(NSE_EQ, 6, 1, 12, b"more"),
    ):
        assert provider.handle(dhan.encode(record))
    assert recorder.ticks == []
    assert provider.counters.ignored == {"market_status": 1, "heartbeat": 1, "code_1": 2}


def test_an_instrument_that_nobody_asked_for_is_handed_on_all_the_same() -> None:
    known, unknown_segment = ticks_of(quote(NSE_EQ, 999_999), quote(6, 3))
    assert known.provider_symbol == "NSE_EQ:999999"
    assert unknown_segment.provider_symbol == "SEGMENT_6:3"


async def test_the_first_price_after_subscribing_is_flagged_as_a_snapshot() -> None:
    provider, recorder = provider_with()
    await provider.want(["NSE_EQ:2885"])
    provider.connection_asking(["NSE_EQ:2885"])
    for record in (dhan.PreviousClose(NSE_EQ, 2885, 2430.5, 0), quote(), quote()):
        provider.handle(dhan.encode(record))
    assert [tick.flags for tick, _ in recorder.ticks] == [0, FLAG_SNAPSHOT, 0]


def test_the_address_carries_the_credentials_url_encoded_and_its_text_form_hides_them() -> None:
    provider, _ = provider_with()
    endpoint = provider.endpoint()
    query = parse_qs(urlsplit(endpoint.url).query)
    assert endpoint.url.startswith("wss://api-feed.dhan.co")
    assert query == {"version": ["2"], "token": ["tok+en/=1"], "clientId": ["1100"], "authType": ["2"]}
    assert "tok" not in repr(endpoint)
    assert "1100" not in repr(endpoint)


def test_another_feed_address_is_used_as_it_is_set() -> None:
    provider, _ = provider_with(DHAN_FEED_URL="ws://127.0.0.1:9001/feed?via=proxy")
    url = urlsplit(provider.endpoint().url)
    assert (url.scheme, url.netloc, url.path) == ("ws", "127.0.0.1:9001", "/feed")
    assert parse_qs(url.query)["via"] == ["proxy"]


def jwt(expires_s: float) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"exp": int(expires_s)}).encode()).decode().rstrip("=")
    return f"eyJ0eXAiOiJKV1QifQ.{body}.c2ln"


def test_a_token_that_has_expired_is_not_tried() -> None:
    provider, _ = provider_with(DHAN_ACCESS_TOKEN=jwt(time.time() - 10))
    with pytest.raises(CredentialsRejected) as caught:
        provider.endpoint()
    assert caught.value.reason == "token_expired"


def test_the_expiry_of_the_token_in_use_is_known() -> None:
    expires_s = int(time.time()) + 3_600
    provider, _ = provider_with(DHAN_ACCESS_TOKEN=jwt(expires_s))
    provider.endpoint()
    assert provider.status().credential_expires_ms == expires_s * 1000


def test_requests_hold_at_most_a_hundred_instruments_of_one_mode() -> None:
    provider, _ = provider_with()
    symbols = [f"NSE_EQ:{n}" for n in range(150)] + ["IDX_I:13", "NSE_FNO:9"]
    requests = provider.subscribe_requests(symbols)
    parsed = [dhan.parse_request(str(request.payload)) for request in requests]
    assert [(request.code, len(request.instruments)) for request in parsed] == [(21, 100), (21, 51), (17, 1)]
    assert [symbol for request in requests for symbol in request.symbols] == [
        *symbols[:150],
        "NSE_FNO:9",
        "IDX_I:13",
    ]
    leaving = [dhan.parse_request(str(message)) for message in provider.unsubscribe_requests(symbols)]
    assert [request.code for request in leaving] == [22, 22, 18]


@pytest.mark.parametrize(("mode", "codes"), [("full", [21, 17]), ("quote", [17]), ("TICKER", [15])])
async def test_the_feed_mode_decides_the_request_and_an_index_never_asks_for_depth(
    mode: str, codes: list[int]
) -> None:
    provider, _ = provider_with(DHAN_FEED_MODE=mode)
    provider._mode = provider._feed_mode()
    requests = provider.subscribe_requests(["NSE_EQ:1", "IDX_I:13"])
    assert [dhan.parse_request(str(request.payload)).code for request in requests] == codes


async def test_an_unknown_feed_mode_is_refused_with_the_choices() -> None:
    provider, _ = provider_with(DHAN_FEED_MODE="everything")
    with pytest.raises(SettingsUnusable, match="full, quote or ticker"):
        await provider.connect_websocket()


@pytest.mark.parametrize("symbol", ["RELIANCE", "NSE_EQ:", "NSE_EQ:2885A", "NYSE:1", "NSE_EQ:\u0663", ":5"])
def test_a_symbol_that_is_none_of_dhan_is_not_sent(symbol: str) -> None:
    provider, _ = provider_with()
    assert provider.check_symbol(symbol) is not None
    assert provider.check_symbol("NSE_EQ:2885") is None


@pytest.mark.parametrize(
    ("reason", "error_type", "verdict"),
    [
        (800, ProviderUnavailable, Verdict.RETRY),
        (804, SubscriptionRefused, Verdict.FATAL),
        (805, ConnectionLimitReached, Verdict.PARK),
        (806, CredentialsRejected, Verdict.PARK),
        (807, CredentialsRejected, Verdict.PARK),
        (808, CredentialsRejected, Verdict.PARK),
        (809, CredentialsRejected, Verdict.PARK),
        (810, CredentialsRejected, Verdict.PARK),
        (813, SubscriptionRefused, Verdict.FATAL),
        (814, SubscriptionRefused, Verdict.FATAL),
        (899, ProviderUnavailable, Verdict.RETRY),
    ],
)
def test_a_disconnect_packet_ends_the_connection_with_the_verdict_of_its_reason(
    reason: int, error_type: type[ProviderError], verdict: Verdict
) -> None:
    provider, recorder = provider_with()
    with pytest.raises(error_type) as caught:
        provider.handle(dhan.encode(quote()) + dhan.encode(dhan.Disconnect(reason=reason)))
    assert caught.value.verdict is verdict
    assert caught.value.reason == f"disconnect_{reason}"
    assert len(recorder.ticks) == 1
    assert provider.counters.frames == provider.counters.decoded == 1
    assert str(reason) in str(disconnect_error(reason))


def test_bare_drops_right_after_the_handshake_make_the_token_suspect() -> None:
    provider, _ = provider_with()
    bare = ConnectionEnd(CloseInfo(), 0, 0.2)
    reasons = [provider.explain_end(bare).reason for _ in range(4)]
    assert reasons == ["closed_1006", "closed_1006", "suspect_token", "suspect_token"]
    suspect = provider.explain_end(bare)
    assert (suspect.retry_after_s, suspect.verdict) == (60.0, Verdict.RETRY)
    assert "DHAN_ACCESS_TOKEN" in str(suspect)
    assert provider.explain_end(ConnectionEnd(CloseInfo(), 12, 0.2)).reason == "closed_1006"
    assert provider.explain_end(bare).reason == "closed_1006"
