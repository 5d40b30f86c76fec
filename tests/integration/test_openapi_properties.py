"""Schemathesis asks a running daemon everything its own description allows, and much that it does not.

No answer may be an error of the server, and each must be as the document says: status, content type, schema.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema_rs import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.control import SkipTest
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    status_code_conformance,
)

from tests.support.eventually import FACTOR, eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(300)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
]
ENDLESS = "/api/stream"
"""An answer without end: tests/integration/test_gateway_event_stream.py reads it."""
EXAMPLES = 25
KNOWN = {"instrument": "NSE:TCS", "underlying": "NSE:NIFTY"}
MUST_ANSWER = (
    "/",
    "/docs",
    "/api/instruments",
    "/api/why/{instrument}",
    "/api/history/{instrument}",
    "/api/coverage/{instrument}",
    "/api/routes/{instrument}",
    "/api/options/{underlying}/expiries",
)


def document_of(base_url: str, mode: GenerationMode) -> Any:
    """Return the daemon's description as schemathesis reads it."""
    config = schemathesis.Config.from_dict({"generation": {"mode": mode.value}})
    return schemathesis.openapi.from_url(f"{base_url}/openapi.json", config=config)


def check_body(document: Any, operation: Any, response: Any) -> None:
    """Hold a JSON body against the document's own words (schemathesis rewrites `prefixItems` on the way)."""
    kind = str(dict(response.headers).get("content-type", [""])[0]).partition(";")[0]
    responses = document["paths"][operation.path][operation.method]["responses"]
    answer = responses.get(str(response.status_code), responses["default"])
    schema = answer["content"][kind]["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if kind == "application/json":
        Draft202012Validator(schema).validate(json.loads(response.content))


def try_all(base_url: str, mode: GenerationMode) -> dict[str, int]:
    """Ask every operation many times; returns how many answers there were of each operation and status."""
    statuses: dict[str, int] = {}
    described = document_of(base_url, mode)
    for found in described.get_all_operations():
        operation = found.ok()
        if operation.path != ENDLESS:
            # What takes nothing has nothing that could be wrong.
            with contextlib.suppress(SkipTest):
                try_one(operation, mode, described.raw_schema, statuses)
    return statuses


def try_one(operation: Any, mode: GenerationMode, document: Any, statuses: dict[str, int]) -> None:
    """Ask one operation many times; every second time of an instrument that exists."""
    asked = itertools.count()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if next(asked) % 2:
            case.path_parameters.update({k: v for k, v in KNOWN.items() if k in case.path_parameters})
        response = case.call(timeout=20 * FACTOR)
        name = f"{operation.method.upper()} {operation.path} {response.status_code}"
        statuses[name] = statuses.get(name, 0) + 1
        case.validate_response(response, checks=CHECKS)
        check_body(document, operation, response)

    ask()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_every_answer_is_as_described_and_none_is_an_error_of_the_server(
    stack: Stack, tmp_path: Path, mode: GenerationMode
) -> None:
    async with stack.daemon(tmp_path / "state", YAHOO_REST_URL=stack.yahoo.rest_url) as daemon:

        async def flows() -> bool:
            return (await daemon.get("/api/quotes?instruments=NSE:TCS"))[1].get("quotes", {}) != {}

        await eventually(flows, within_s=20)
        statuses = await asyncio.to_thread(try_all, daemon.runtime["api_url"], mode)
        assert sum(statuses.values()) > 200
        if mode is GenerationMode.POSITIVE:
            answered = {name.split()[1] for name in statuses if name.endswith((" 200", " 202"))}
            assert {*MUST_ANSWER} <= answered, statuses
        status, body = await daemon.get("/readyz")
        assert (status, body["ready"]) == (200, True), "it goes on as before"
        assert "Traceback" not in daemon.log()
