"""The HTTP interface over a real socket: answers, errors, tokens, pages."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.errors import ConfigurationError
from services.gateway.backend import Readiness
from services.gateway.news_api import NewsSource
from services.gateway.server import Gateway, GatewayConfig
from services.storage.news_stream import NewsBoard
from tests.support.gateway import GatewayRig, running_gateway
from tests.support.options import option_desk

TOKENS = {"desk": "correct-horse"}


async def get(rig: GatewayRig, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, Any]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with rig.http.request(method, rig.url + path, headers=names) as response:
        if response.content_type == "application/json":
            return response.status, await response.json(), response.headers
        return response.status, await response.text(), response.headers


async def test_health_says_alive_and_readiness_says_why_not() -> None:
    async with running_gateway() as rig:
        assert (await get(rig, "/healthz"))[:2] == (200, {"status": "ok", "demo": True})
        assert (await get(rig, "/readyz"))[:2] == (200, {"ready": True, "reasons": [], "demo": True})
        rig.backend.ready = Readiness(ready=False, reasons=["stream: nothing delivered for 9 s"])
        status, body, _ = await get(rig, "/readyz")
        assert status == 503
        assert body == {"ready": False, "reasons": ["stream: nothing delivered for 9 s"], "demo": True}


async def test_the_status_keeps_every_field_of_the_interface() -> None:
    async with running_gateway() as rig:
        await rig.subscriber("NSE:TCS")
        _, body, _ = await get(rig, "/api/providers/status")
        assert body["demo"] is True
        assert body["providers"] == rig.backend.providers
        assert body["pipeline"]["sinks"][0]["name"] == "stream"
        assert body["clients"]["connected"] == 1
        assert body["clients"]["watched"] == 1


async def test_instruments_are_found_by_exchange_and_words() -> None:
    keys = [f"NSE:S{number}" for number in range(150)] + ["NASDAQ:AAPL", "NASDAQ:SHAPE"]
    async with running_gateway(keys) as rig:
        _, body, _ = await get(rig, "/api/instruments")
        assert (len(body["instruments"]), body["total"]) == (100, 152)
        _, body, _ = await get(rig, "/api/instruments?exchange=nasdaq")
        assert [item["key"] for item in body["instruments"]] == ["NASDAQ:AAPL", "NASDAQ:SHAPE"]
        assert body["instruments"][0] == {
            "key": "NASDAQ:AAPL",
            "exchange": "NASDAQ",
            "symbol": "AAPL",
            "name": "Aapl Limited",
            "asset_class": "equity",
            "currency": "INR",
            "tick_size": 0.05,
            "provider": "DHAN",
        }
        _, body, _ = await get(rig, "/api/instruments?q=s14+limited&limit=3")
        assert [item["key"] for item in body["instruments"]] == ["NSE:S14", "NSE:S140", "NSE:S141"]
        assert body["total"] == 11
        assert (await get(rig, "/api/instruments?q=nothing"))[1] == {"instruments": [], "total": 0}


async def test_quotes_are_the_newest_values_and_name_what_is_missing() -> None:
    async with running_gateway() as rig:
        rig.market.tick("NSE:TCS", 3.5)
        status, body, _ = await get(rig, "/api/quotes?instruments=NSE:TCS,NSE:RELIANCE,%20NSE:NOPE,NSE:TCS")
        assert status == 200
        assert body["quotes"]["NSE:TCS"]["last_price"] == 3.5
        assert body["no_data"] == ["NSE:RELIANCE"]
        assert body["unknown"] == ["NSE:NOPE"]
        status, body, _ = await get(rig, "/api/quotes?instruments=NSE:NOPE,_PROBE:PROBE")
        assert (status, body["error"]["code"]) == (404, "unknown_instrument")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/api/", 404, "not_found"),
        ("GET", "/static/", 404, "not_found"),
        ("GET", "/static/../services/errors.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/pyproject.toml", 404, "not_found"),
        ("GET", "/static/nope.js", 404, "not_found"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("DELETE", "/api/quotes", 405, "method_not_allowed"),
        ("GET", "/api/quotes", 400, "bad_parameter"),
        ("GET", "/api/quotes?instruments=,,", 400, "bad_parameter"),
        ("GET", "/api/quotes?instruments=" + ",".join(f"N:{n}" for n in range(1_001)), 400, "bad_parameter"),
        ("GET", "/api/quotes?instrument=NSE:TCS", 400, "unknown_parameter"),
        ("GET", "/api/instruments?limit=0", 400, "bad_parameter"),
        ("GET", "/api/instruments?limit=10001", 400, "bad_parameter"),
        ("GET", "/api/instruments?limit=ten", 400, "bad_parameter"),
        ("GET", "/api/instruments?limit=%D9%A3", 400, "bad_parameter"),
        ("GET", "/api/instruments?token=x", 400, "token_in_url"),
        ("GET", "/ws", 426, "upgrade_required"),
        ("GET", "/ws?token=correct-horse", 400, "token_in_url"),
        ("GET", "/healthz?" + "x" * 9_000, 400, "bad_request"),
    ],
)
async def test_every_refusal_is_json_with_the_right_status(
    method: str, path: str, status: int, code: str
) -> None:
    async with running_gateway() as rig:
        got, body, headers = await get(rig, path, method)
        assert (got, body["error"]["code"]) == (status, code)
        assert body["error"]["message"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        if status == 405:
            assert "GET" in headers["Allow"]


async def test_bytes_that_are_no_http_are_refused_without_a_trace() -> None:
    async with running_gateway() as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.0 400") or answer.startswith(b"HTTP/1.1 400")
        assert b'{"error":{"code":"bad_request"' in answer
        assert b"Traceback" not in answer
        writer.close()
        await writer.wait_closed()


async def test_a_failing_handler_answers_500_without_a_trace() -> None:
    async with running_gateway() as rig:
        rig.backend.providers = [{"code": "BROKEN"}]
        status, body, _ = await get(rig, "/metrics")
        assert (status, body["error"]["code"]) == (500, "internal")
        assert "KeyError" not in str(body)
        assert (await get(rig, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/providers/status", 401),
        ("/api/instruments", 401),
        ("/api/quotes?instruments=NSE:TCS", 401),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/openapi.json", 200),
        ("/", 200),
        ("/docs", 200),
        ("/static/app.js", 200),
        ("/nope", 401),
    ],
)
async def test_with_tokens_data_needs_one_and_health_on_this_machine_does_not(path: str, status: int) -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        got, _, headers = await get(rig, path)
        assert got == status
        if status == 401:
            assert headers["WWW-Authenticate"].startswith("Bearer")
            assert (await get(rig, path, Authorization="Bearer wrong"))[0] == 401
            assert (await get(rig, path, Authorization="Basic Y29ycmVjdC1ob3JzZQ=="))[0] == 401
            assert (await get(rig, path, Authorization="Bearer correct-horse"))[0] != 401


async def test_health_that_comes_through_a_proxy_needs_a_token() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        assert (await get(rig, "/metrics", X_Forwarded_For="203.0.113.9"))[0] == 401
        assert (await get(rig, "/healthz", Forwarded="for=203.0.113.9"))[0] == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.test"}, 403),
        ({"Origin": "http://evil.test", "Host": "evil.test"}, 403),
        ({"Origin": "https://charts.example.com"}, 200),
        ({}, 200),
    ],
)
async def test_foreign_pages_and_names_are_refused(headers: dict[str, str], status: int) -> None:
    async with running_gateway(allowed_origins=("https://charts.example.com",)) as rig:
        for path in ("/healthz", "/api/providers/status"):
            got, _, answered = await get(rig, path, **headers)
            assert got == status
            listed = headers.get("Origin") == "https://charts.example.com"
            assert answered.get("Access-Control-Allow-Origin") == (headers["Origin"] if listed else None)


async def test_an_allowed_page_may_ask_before_it_sends_a_token() -> None:
    async with running_gateway(tokens=TOKENS, allowed_origins=("https://charts.example.com",)) as rig:
        status, _, headers = await get(rig, "/api/quotes", "OPTIONS", Origin="https://charts.example.com")
        assert status == 204
        assert headers["Access-Control-Allow-Headers"] == "Authorization"
        assert headers["Access-Control-Allow-Origin"] == "https://charts.example.com"
        assert (await get(rig, "/api/quotes", "OPTIONS", Origin="https://evil.test"))[0] == 403


async def test_the_metrics_page_shows_what_the_status_shows() -> None:
    async with running_gateway() as rig:
        await rig.subscriber("NSE:TCS")
        status, text, headers = await get(rig, "/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        for line in (
            'marketd_provider_state{provider="DHAN",state="streaming"} 1.0',
            'marketd_provider_state{provider="YF",state="streaming"} 0.0',
            'marketd_provider_latency_seconds{provider="DHAN",quantile="0.99"} 0.012',
            'marketd_provider_remarks_total{provider="DHAN",reason="truncated",step="wire_errors"} 1.0',
            'marketd_sink_lost_total{outcome="dropped",reason="queue_full",sink="stream"} 1.0',
            'marketd_sink_records_total{outcome="resent",sink="stream"} 2.0',
            'marketd_task_restarts_total{task="sink:stream"} 1.0',
            'marketd_hop_seconds_bucket{hop="accepted_to_stream",le="0.001"} 3.0',
            'marketd_hop_seconds_bucket{hop="accepted_to_stream",le="+Inf"} 4.0',
            'marketd_hop_seconds_count{hop="accepted_to_client"} 0.0',
            "marketd_clients 1.0",
            "marketd_ready 1.0",
        ):
            assert line in text.splitlines()
        assert "correct" not in text


async def test_the_description_names_exactly_the_addresses_that_exist(redis_url: str) -> None:
    board = NewsBoard(redis_url)
    news = NewsSource(board, lambda _: True, lambda _: None)
    async with option_desk() as options, running_gateway(options=options.desk, news=news) as rig:
        _, document, _ = await get(rig, "/openapi.json")
        assert document["openapi"] == "3.1.0"
        for path, item in document["paths"].items():
            if path.endswith("/switch"):
                assert list(item) == ["post"]
                continue
            assert list(item) == (["get", "post"] if path == "/api/backfill" else ["get"])
            query = "?instruments=NSE:TCS" if path in ("/api/quotes", "/api/stream") else ""
            address = path.replace("{instrument}", "NSE:TCS").replace("{underlying}", "NSE:NIFTY")
            async with rig.http.get(rig.url + address + query) as response:
                assert response.status == 200, path
                assert response.content_type in item["get"]["responses"]["200"]["content"]
                if response.content_type == "application/json":
                    schema = item["get"]["responses"]["200"]["content"]["application/json"]["schema"]
                    check(await response.json(), schema)
        described = set(document["paths"]) | {"/ws", "/static/{name}"}
        runner = rig.gateway._runner
        assert runner is not None
        routed = {resource.canonical for resource in runner.app.router.resources()}
        assert routed == described
    await board.close()


async def test_an_operators_choice_is_asked_for_in_json_and_refused_with_the_reason() -> None:
    async with running_gateway(tokens={"ops": "battery-staple", "screen": "rain-coat:ticks"}) as rig:
        url, mine = rig.url + "/api/routes/NSE:TCS/switch", {"Authorization": "Bearer battery-staple"}

        async def post(body: Any, **headers: str) -> tuple[int, Any]:
            async with rig.http.post(url, json=body, headers=headers or mine) as response:
                return response.status, await response.json()

        status, body = await post({"to": "YF", "for_s": 60, "why": "a test"})
        assert status == 200
        assert rig.backend.switches == [{"to": "YF", "for_s": 60.0, "by": "ops", "why": "a test"}]
        assert body["instrument"] == "NSE:TCS"
        assert (await post({"to": None}))[0] == 200
        status, body = await post({"to": "POLYGON"})
        assert (status, body["error"]["message"]) == (400, "NSE:TCS is mapped to DHAN, YF, not to POLYGON")
        for wrong in ({}, {"to": "YF", "for": 5}, ["YF"], {"to": 7}):
            assert (await post(wrong))[0] == 400, wrong
        async with rig.http.post(url, data="to=YF", headers=mine) as response:
            assert response.status == 415
        assert (await post({"to": "YF"}, Authorization="Bearer rain-coat"))[0] == 403
        async with rig.http.post(url.replace("TCS", "NOPE"), json={"to": "YF"}, headers=mine) as response:
            assert response.status == 404
        assert len(rig.backend.switches) == 2, "what is refused changes nothing"


def check(value: Any, schema: dict[str, Any]) -> None:
    """Check a value against the part of JSON Schema that the document uses."""
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    wanted = schema.get("type")
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else wanted
        types = tuple(
            kind for name in names for kind in ((int, float) if name == "number" else (kinds[name],))
        )
        assert isinstance(value, types), (value, schema)
    assert value in schema.get("enum", [value])
    assert value == schema.get("const", value)
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), (value, schema)
        for name, item in value.items():
            if name in schema.get("properties", {}):
                check(item, schema["properties"][name])
            elif isinstance(schema.get("additionalProperties"), dict):
                check(item, schema["additionalProperties"])
    if isinstance(value, list):
        kinds_by_place = schema.get("prefixItems", [])
        for item, kind in zip(value, kinds_by_place, strict=False):
            check(item, kind)
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        for item in value[len(kinds_by_place) :]:
            check(item, schema.get("items", {}))


async def test_the_dashboard_loads_nothing_from_elsewhere_and_runs_no_inline_script() -> None:
    async with running_gateway() as rig:
        status, page, headers = await get(rig, "/")
        assert status == 200
        assert headers["Content-Type"].startswith("text/html")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Frame-Options"] == "DENY"
        # A link that is followed by hand may go elsewhere; nothing that is loaded may.
        sources = re.findall(r'(?:src|href)="([^"]+)"', re.sub(r"<a [^>]*>", "", page))
        assert sources
        for source in sources:
            if source.startswith("#"):
                continue
            assert source.startswith(("/static/", "data:")), source
            if source.startswith("/static/"):
                assert (await get(rig, source))[0] == 200
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        assert not re.search(r"\son[a-z]+=|style=\"", page)
        script = Path(__file__).parents[2] / "web" / "dist" / "app.js"
        elsewhere = r"https?://(?!www\.w3\.org|www\.tradingview\.com)"
        assert not re.search(elsewhere, script.read_text(encoding="utf-8"))


async def test_a_taken_port_is_a_configuration_error_that_names_the_setting() -> None:
    async with running_gateway() as rig:
        other = Gateway(rig.backend, rig.broadcast, GatewayConfig(port=rig.port))
        with pytest.raises(ConfigurationError, match=f"API_PORT={rig.port} is taken"):
            await other.start()
        await other.stop()


async def test_a_taken_port_can_give_way_to_any_free_one() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        async with running_gateway(port=taken, port_fallback=True) as rig:
            assert rig.port != taken
            assert (await get(rig, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"host": "0.0.0.0", "port": 0}, "API_TOKENS"),
        ({"host": "203.0.113.7", "port": 0, "tokens": TOKENS}, "API_HOST=203.0.113.7"),
        ({"host": "no.such.host.invalid", "port": 0, "tokens": TOKENS}, "API_HOST=no.such.host.invalid"),
    ],
)
async def test_an_address_we_cannot_or_must_not_use_is_a_configuration_error(
    config: dict[str, Any], message: str
) -> None:
    async with running_gateway() as rig:
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            await Gateway(rig.backend, rig.broadcast, GatewayConfig(**config)).start()


async def test_a_large_body_is_refused() -> None:
    async with running_gateway() as rig, rig.http.post(rig.url + "/healthz", data=b"x" * 100_000) as response:
        assert response.status == 405


async def test_stopping_twice_is_harmless() -> None:
    async with running_gateway() as rig:
        await rig.gateway.stop()
        await rig.gateway.stop()
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(rig, "/healthz")


async def test_why_answers_for_known_instruments_and_hints_at_likes_of_unknown_ones() -> None:
    async with running_gateway() as rig:
        status, answer, _ = await get(rig, "/api/why/NSE:TCS")
        assert (status, answer["instrument"]) == (200, "NSE:TCS")
        for unknown in ("NSE:TSC", "nonsense", "NSE:%20"):
            status, answer, _ = await get(rig, f"/api/why/{unknown}")
            assert (status, answer["error"]["code"]) == (404, "unknown_instrument")
            assert "did you mean NSE:TCS?" in answer["error"]["message"]
