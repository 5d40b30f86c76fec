"""The description of the HTTP interface as an OpenAPI 3.1 document, served at `/openapi.json`."""

from __future__ import annotations

from typing import Any

from services.base_provider import ProviderState
from services.market_data.candles import MAX_COUNT
from services.market_data.instruments import AssetClass

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_MS = {"type": "integer", "description": "UTC epoch milliseconds"}
_MS_OR_NULL = {"type": ["integer", "null"], "description": "UTC epoch milliseconds"}
_KEY = {"type": "string", "examples": ["NSE:RELIANCE"]}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer"}
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _map(values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


_QUOTE = _object(
    ["last_price", "ts_ms"],
    last_price=_NUMBER,
    ltq={"type": "integer", "description": "quantity traded since the previous tick"},
    ts_ms=_MS,
    bid=_NUMBER,
    ask=_NUMBER,
    cumulative_volume=_COUNT,
    oi={"type": "integer", "description": "open interest"},
    open=_NUMBER,
    high=_NUMBER,
    low=_NUMBER,
    previous_close=_NUMBER,
    src={"type": "string", "description": "provider code"},
    flags=_list({"enum": ["snapshot", "suspect", "late", "delayed", "skewed"]}),
)
_INSTRUMENT = _object(
    ["key", "exchange", "symbol", "name", "asset_class", "currency", "tick_size", "provider"],
    key=_KEY,
    exchange=_TEXT,
    symbol=_TEXT,
    name=_TEXT,
    asset_class={"enum": [kind.value for kind in AssetClass]},
    currency=_TEXT,
    tick_size={"type": ["number", "null"]},
    provider={"type": ["string", "null"], "description": "code of the provider that serves it now"},
)
_STATES = [state.value for state in ProviderState]
_PROVIDER = _object(
    ["code", "name", "state", "reason", "since_ms"],
    code=_TEXT,
    name=_TEXT,
    state={"enum": _STATES},
    reason={"type": ["string", "null"]},
    since_ms=_MS_OR_NULL,
    connections=_COUNT,
    subscribed=_COUNT,
    instruments_live=_COUNT,
    ticks_per_s=_NUMBER,
    last_tick_ms=_MS_OR_NULL,
    latency_ms=_object(["p50", "p99"], p50={"type": ["number", "null"]}, p99={"type": ["number", "null"]}),
    reconnects=_COUNT,
    last_error={"type": ["string", "null"]},
    credential_expires_ms=_MS_OR_NULL,
)
_STATUS = _object(
    ["demo", "time_ms", "providers", "pipeline", "clients"],
    demo={"type": "boolean", "description": "whether all data is made by the simulators"},
    time_ms=_MS,
    providers=_list(_PROVIDER),
    pipeline={"type": "object", "description": "sinks, ledger, tasks and mappings"},
    clients={"type": "object", "description": "WebSocket clients of this gateway"},
)
_QUOTES = _object(
    ["demo", "time_ms", "quotes", "no_data", "unknown"],
    demo=_FLAG,
    time_ms=_MS,
    quotes=_map(_QUOTE),
    no_data={**_list(_KEY), "description": "known, but without a tick so far"},
    unknown={**_list(_KEY), "description": "asked for and not known"},
)
_WHY = _object(
    ["instrument", "name", "time_ms", "verdict", "next_action", "candidates", "hops", "events"],
    instrument=_KEY,
    name=_TEXT,
    time_ms=_MS,
    verdict={**_TEXT, "description": "the first thing that stands in the way, or that all is well"},
    next_action=_TEXT,
    session={"type": "object"},
    interest={"type": ["string", "null"]},
    route={"type": "object"},
    candidates={"type": "array", "items": {"type": "object"}},
    hops={"type": "array", "items": {"type": "object"}},
    storage={"type": "array", "items": {"type": "object"}},
    events={"type": "array", "items": {"type": "object"}},
)
_CANDLE = {
    "type": "array",
    "description": "start in UTC epoch seconds, open, high, low, close, volume (null where unknown)",
    "prefixItems": [_COUNT, _NUMBER, _NUMBER, _NUMBER, _NUMBER, {"type": ["integer", "null"]}],
    "minItems": 6,
    "maxItems": 6,
}
_HISTORY = _object(
    ["instrument", "interval", "candles", "complete"],
    instrument=_KEY,
    interval=_TEXT,
    candles={**_list(_CANDLE), "description": "oldest first"},
    complete={**_FLAG, "description": "nothing is missing from what was asked for"},
    forming={**_FLAG, "description": "the last candle is not finished"},
    missing={
        "type": "array",
        "description": "spans without data: from and to in UTC epoch seconds, and why",
        "items": {"type": "array", "prefixItems": [_COUNT, _COUNT, _TEXT], "minItems": 3, "maxItems": 3},
    },
    sources={**_list(_TEXT), "description": "codes of the providers that were asked for this answer"},
)
_COVERAGE = _object(
    ["instrument", "spans"],
    instrument=_KEY,
    spans=_list(
        _object(
            ["type", "state", "source", "from_ms", "to_ms", "reason"],
            type={"enum": ["ticks", "1m", "1d"]},
            state={"enum": ["have", "missing", "unavailable"]},
            source={**_TEXT, "description": "provider code, LIVE for the streams, CALENDAR for closed"},
            from_ms=_MS,
            to_ms=_MS,
            reason=_TEXT,
        )
    ),
)
_BACKFILL = _object(
    ["jobs", "counters", "sources"],
    jobs={"type": "array", "items": {"type": "object"}, "description": "what was asked for, newest last"},
    counters={"type": "object"},
    sources={
        "type": "object",
        "description": "by provider code: requests, pause, what each may still use today",
    },
)
_JOB = _object(
    ["id", "windows", "finished_ms"],
    id=_COUNT,
    windows={**_COUNT, "description": "requests to be made"},
    finished_ms=_MS_OR_NULL,
)
_ROUTE = _object(
    ["instrument", "active", "candidates", "events"],
    instrument=_KEY,
    active={"type": ["string", "null"], "description": "the code of the provider that serves it"},
    candidates={"type": "array", "items": {"type": "object"}},
    events={"type": "array", "items": {"type": "object"}, "description": "oldest first"},
)
_REFUSALS = {
    **_list(_object(["provider", "reason", "message"], provider=_TEXT, reason=_TEXT, message=_TEXT)),
    "description": "who was asked before and did not answer, in the order they were asked",
}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_COUNT_OR_NULL = {"type": ["integer", "null"]}
_EXPIRY = {**_COUNT, "description": "when the contracts end, UTC epoch seconds"}
_EXPIRIES = _object(
    ["underlying", "source", "expiries", "dates", "refusals"],
    underlying=_KEY,
    source={**_TEXT, "description": "code of the provider that answered"},
    expiries={**_list(_EXPIRY), "description": "ascending"},
    dates=_list({**_TEXT, "format": "date"}),
    refusals=_REFUSALS,
)
_LEG = _object(
    ["f", "bid", "ask", "bid_size", "ask_size", "age_ms", "greeks_by"],
    f={
        "type": "array",
        "description": "symbol, strike, call or put, spot, last price, volume, open interest, its change, "
        "expiry (UTC epoch seconds), delta, gamma, theta (a day), vega (a percentage point), implied "
        "volatility (percent); null where unknown",
        "prefixItems": [
            *(_TEXT, _TEXT, {"enum": ["call", "put"]}, _NUMBER_OR_NULL, _NUMBER_OR_NULL),
            *(_COUNT_OR_NULL, _COUNT_OR_NULL, _COUNT_OR_NULL, _EXPIRY, *[_NUMBER_OR_NULL] * 5),
        ],
        "minItems": 14,
        "maxItems": 14,
    },
    bid=_NUMBER_OR_NULL,
    ask=_NUMBER_OR_NULL,
    bid_size=_COUNT_OR_NULL,
    ask_size=_COUNT_OR_NULL,
    age_ms=_COUNT,
    greeks_by={"enum": ["vendor", "computed", None]},
)
_CHAIN = _object(
    ["timestamp", "underlying_price", "symbols", "underlying", "source", "expiry", "age_ms", "refusals"],
    timestamp=_MS,
    underlying_price=_NUMBER_OR_NULL,
    symbols={**_list(_LEG), "description": "by strike, calls before puts"},
    underlying=_KEY,
    source=_TEXT,
    expiry=_EXPIRY,
    age_ms=_COUNT,
    forward={**_NUMBER_OR_NULL, "description": "what the greeks rest on"},
    forward_by={"enum": ["parity", "carry", None]},
    atm_strike={"type": ["string", "null"]},
    style={"enum": ["european", "american"]},
    completeness={**_NUMBER, "description": "share of the legs that are there, 0 to 1"},
    missing={"type": "array", "items": {"type": "array", "prefixItems": [_TEXT, _TEXT]}},
    pcr={**_NUMBER_OR_NULL, "description": "open puts per open call"},
    pcr_volume=_NUMBER_OR_NULL,
    max_pain={"type": ["string", "null"]},
    refusals=_REFUSALS,
)
_OI = _object(
    ["underlying", "expiry", "timestamp", "strikes", "total_call_oi", "total_put_oi", "pcr"],
    underlying=_KEY,
    expiry=_EXPIRY,
    timestamp=_MS_OR_NULL,
    strikes=_list(
        _object(["strike", "call_oi", "put_oi"], strike=_TEXT, call_oi=_COUNT_OR_NULL, put_oi=_COUNT_OR_NULL)
    ),
    total_call_oi=_COUNT,
    total_put_oi=_COUNT,
    pcr=_NUMBER_OR_NULL,
    max_pain={"type": ["string", "null"]},
    source=_TEXT,
)
_NEWS = _object(
    ["instrument", "news"],
    instrument={"type": ["string", "null"]},
    fetched_ms={
        **_MS_OR_NULL,
        "description": "when its news were last fetched; null: not yet, or not here",
    },
    news=_list(
        _object(
            ["id", "ts_ms", "received_ms", "headline", "publisher", "url", "instruments", "symbols", "src"],
            id=_TEXT,
            ts_ms={**_MS, "description": "when it was published, UTC epoch milliseconds"},
            received_ms=_MS,
            headline=_TEXT,
            publisher=_TEXT,
            url={"type": ["string", "null"]},
            instruments=_list(_KEY),
            symbols={**_list(_TEXT), "description": "the provider's symbols that are mapped to nothing"},
            src=_TEXT,
        )
    ),
)
_READINESS = _object(["ready", "reasons", "demo"], ready=_FLAG, reasons=_list(_TEXT), demo=_FLAG)


def _answer(
    description: str, schema: dict[str, Any] | None, kind: str = "application/json"
) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema or {"type": "string"}}}}


def _operation(
    operation_id: str,
    summary: str,
    answer: dict[str, Any],
    *,
    parameters: list[dict[str, Any]] | None = None,
    free: bool = False,
    **others: dict[str, Any],
) -> dict[str, Any]:
    responses = {"200": answer, **{status.lstrip("_"): value for status, value in others.items()}}
    responses["default"] = _answer("refused", {"$ref": "#/components/schemas/Error"})
    operation: dict[str, Any] = {"operationId": operation_id, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    operation["security"] = [{}] if free else [{}, {"bearer": []}]
    return {"get": operation}


def _switch_operation() -> dict[str, Any]:
    operation = _operation(
        "switchRoute",
        "Prefer a provider for an instrument for a while",
        _answer("the route as it is now; it changes when the provider has proved itself", _ROUTE),
        parameters=[_path("instrument", "an instrument key", {**_TEXT, "examples": ["NSE:RELIANCE"]})],
    )["get"]
    body = _object(
        ["to"],
        to={"type": ["string", "null"], "description": "a provider code; null: the order of the mappings"},
        for_s={"type": "number", "minimum": 1, "maximum": 604_800, "default": 3_600},
        why=_TEXT,
    )
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"post": operation}


def _query(name: str, description: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, "required": required}


def _path(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "description": description, "schema": schema, "required": True}


_UNDERLYING = _path(
    "underlying", "an instrument key or its symbol", {**_TEXT, "examples": ["NIFTY", "NASDAQ:AAPL"]}
)
_EXPIRY_WORDS = "UTC epoch seconds, or a date such as 2026-12-29"


def openapi_document() -> dict[str, Any]:
    """Return the document. A test holds it against the server's routes and answers."""
    json_of = _answer
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "marketd",
            "version": "1",
            "description": "Live market data. Ticks come over the WebSocket `/ws`; see the consumers' guide. "
            "A token goes into `Authorization: Bearer SECRET` where tokens are set, never into the URL.",
        },
        "paths": {
            "/healthz": _operation(
                "healthz",
                "The process is alive",
                json_of("alive", _object(["status", "demo"], status={"const": "ok"}, demo=_FLAG)),
            ),
            "/readyz": _operation(
                "readyz",
                "Data can flow",
                json_of("data can flow", _READINESS),
                _503=json_of("it cannot; the reasons say why", _READINESS),
            ),
            "/metrics": _operation(
                "metrics", "Prometheus metrics", _answer("text format", None, "text/plain")
            ),
            "/openapi.json": _operation(
                "openapi", "This document", json_of("OpenAPI 3.1", {"type": "object"}), free=True
            ),
            "/api/providers/status": _operation(
                "providersStatus", "Providers, pipeline and clients", json_of("status", _STATUS)
            ),
            "/api/instruments": _operation(
                "instruments",
                "Known instruments",
                json_of(
                    "those found, ordered by key, and how many there are in all",
                    _object(["instruments", "total"], instruments=_list(_INSTRUMENT), total=_COUNT),
                ),
                parameters=[
                    _query("exchange", "only of this exchange", {**_TEXT, "examples": ["NSE"]}),
                    _query("q", "words that stand in the key or the name", _TEXT),
                    _query(
                        "limit",
                        "at most so many",
                        {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 100},
                    ),
                ],
            ),
            "/api/quotes": _operation(
                "quotes",
                "Newest values",
                json_of("by instrument; 404 when none of them is known", _QUOTES),
                parameters=[
                    _query(
                        "instruments",
                        "instrument keys, separated by commas, at most 1000",
                        {**_TEXT, "minLength": 1, "examples": ["NSE:RELIANCE,NASDAQ:AAPL"]},
                        required=True,
                    )
                ],
            ),
            "/api/why/{instrument}": _operation(
                "why",
                "Where one instrument's ticks are, and what to do",
                json_of("verdict, next action and what they rest on; 404 when it is not known", _WHY),
                parameters=[
                    _path("instrument", "an instrument key", {**_TEXT, "examples": ["NSE:RELIANCE"]})
                ],
            ),
            "/api/history/{instrument}": _operation(
                "history",
                "Candles of the past",
                json_of("candles, and whether any are missing", _HISTORY),
                parameters=[
                    _path("instrument", "an instrument key", {**_TEXT, "examples": ["NSE:RELIANCE"]}),
                    _query(
                        "interval",
                        "minutes or hours up to 12h (1m, 3m, 45m, 2h), or 1d, 1w, 1mo",
                        {**_TEXT, "default": "1m"},
                    ),
                    _query(
                        "count",
                        "the newest so many; 500 where neither count nor from is given",
                        {"type": "integer", "minimum": 1, "maximum": MAX_COUNT},
                    ),
                    _query("from", "UTC epoch seconds", {"type": "integer", "minimum": 0}),
                    _query("to", "UTC epoch seconds, excluded; now if absent", {"type": "integer"}),
                    _query("forming", "with the candle that is not finished", _FLAG),
                    _query("adjusted", "daily and longer: adjusted for dividends", _FLAG),
                ],
            ),
            "/api/coverage/{instrument}": _operation(
                "coverage",
                "What is had, missing and not to be had of the past",
                json_of("spans of time by type", _COVERAGE),
                parameters=[
                    _path("instrument", "an instrument key", {**_TEXT, "examples": ["NSE:RELIANCE"]}),
                    _query("type", "only this type", {"enum": ["ticks", "1m", "1d"]}),
                ],
            ),
            "/api/backfill": _operation(
                "backfill", "How the backfill is", json_of("jobs, counters, quotas", _BACKFILL)
            )
            | {
                "post": {
                    "operationId": "orderBackfill",
                    "summary": "Fetch a span of the past now",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": _object(
                                    ["instruments", "interval", "from", "to"],
                                    instruments=_list(_KEY),
                                    interval={"enum": ["1m", "1d"]},
                                    **{"from": _COUNT, "to": _COUNT},
                                )
                            }
                        },
                    },
                    "responses": {
                        "202": json_of("the job, which goes on by itself", _JOB),
                        "default": _answer("refused", {"$ref": "#/components/schemas/Error"}),
                    },
                    "security": [{}, {"bearer": []}],
                }
            },
            "/api/options/{underlying}/expiries": _operation(
                "optionExpiries",
                "When the options on an underlying end",
                json_of("expiries; 404 when there are none, 503 with every source's reason", _EXPIRIES),
                parameters=[_UNDERLYING],
            ),
            "/api/options/{underlying}/chain": _operation(
                "optionChain",
                "All options of one expiry, with greeks",
                json_of("a chain; 404 for no such expiry, 503 with every source's reason", _CHAIN),
                parameters=[_UNDERLYING, _query("expiry", f"{_EXPIRY_WORDS}; the next one if absent", _TEXT)],
            ),
            "/api/options/{underlying}/oi": _operation(
                "optionInterest",
                "Open interest by strike, now or as it was",
                json_of("by strike; 404 when nothing was stored by then", _OI),
                parameters=[
                    _UNDERLYING,
                    _query("expiry", f"{_EXPIRY_WORDS}; the next one if absent, needed with time", _TEXT),
                    _query("time", "UTC epoch seconds; now if absent", {"type": "integer"}),
                ],
            ),
            "/api/news": _operation(
                "news",
                "News, the last published first",
                json_of("articles; asking counts as interest in the instrument", _NEWS),
                parameters=[
                    _query("instrument", "only about this one", {**_TEXT, "examples": ["NASDAQ:AAPL"]}),
                    _query(
                        "limit",
                        "at most so many",
                        {"type": "integer", "minimum": 1, "maximum": 500, "default": 50},
                    ),
                ],
            ),
            "/api/routes": _operation(
                "routes",
                "Every provider, what it can do and serves, and the state of routing",
                json_of(
                    "providers and routing",
                    _object(
                        ["providers", "routing"],
                        providers={"type": "array", "items": {"type": "object"}},
                        routing={"type": "object"},
                    ),
                ),
            ),
            "/api/routes/{instrument}": _operation(
                "route",
                "Who serves an instrument, who could, and what was decided",
                json_of("the route; 404 when the instrument is not known", _ROUTE),
                parameters=[
                    _path("instrument", "an instrument key", {**_TEXT, "examples": ["NSE:RELIANCE"]}),
                    _query(
                        "events",
                        "so many events at most",
                        {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 50},
                    ),
                ],
            ),
            "/api/routes/{instrument}/switch": _switch_operation(),
            "/api/stream": _operation(
                "stream",
                "Live data as server-sent events, one message of the WebSocket protocol each",
                _answer(
                    "events without end; 403 or 404 when none of the instruments can be had",
                    None,
                    "text/event-stream",
                ),
                parameters=[
                    _query(
                        "instruments",
                        "instrument keys or EXCHANGE:*, separated by commas; * of news",
                        {**_TEXT, "minLength": 1, "examples": ["NSE:RELIANCE,NASDAQ:*"]},
                        required=True,
                    ),
                    _query(
                        "channels",
                        "of tick, chart, quote, trade, depth, options, news, by commas; tick when not given",
                        {**_TEXT, "examples": ["tick,chart"]},
                    ),
                    _query("levels", "of depth", {"enum": [5, 20, 200]}),
                    _query(
                        "expiry", "of options: a date, or UTC epoch s; the next one when not given", _TEXT
                    ),
                    _query("interval", "of the chart, in minutes", {"enum": ["1", "5", "15", "60", "1D"]}),
                    _query("delivery", "every tick or the newest", {"enum": ["all", "latest"]}),
                    _query("every_ms", "the pace of latest", {"type": "integer", "minimum": 0}),
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "description": "the id of the last event that was read: go on behind it",
                        "schema": _TEXT,
                    },
                ],
            ),
            "/": _operation("dashboard", "The dashboard", _answer("a page", None, "text/html"), free=True),
            "/docs": _operation(
                "reference", "A page to try this interface", _answer("a page", None, "text/html"), free=True
            ),
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
