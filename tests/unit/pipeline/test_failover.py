"""Failover of a single request. No I/O."""

from __future__ import annotations

import pytest

from services.errors import CredentialsMissing, ProviderRateLimited, WireFormatError
from services.pipeline.failover import NobodyAnswered, first_that_answers


async def test_the_first_that_answers_wins_and_the_others_are_not_asked() -> None:
    asked: list[str] = []

    async def call(name: str) -> str:
        asked.append(name)
        return name.upper()

    assert await first_that_answers([("A", "a"), ("B", "b")], call) == ("A", "A", ())
    assert asked == ["a"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProviderRateLimited("slow down", reason="http_429"), "http_429"),
        (CredentialsMissing("no key", reason="credentials_missing"), "credentials_missing"),
        (WireFormatError("truncated"), "truncated"),
        (ValueError("no such interval"), "not_offered"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError("reset"), "unreachable"),
    ],
)
async def test_a_refusal_passes_the_request_on_and_is_reported(error: Exception, reason: str) -> None:
    async def call(works: bool) -> int:
        if not works:
            raise error
        return 7

    result, code, refusals = await first_that_answers([("A", False), ("B", True)], call)
    assert (result, code) == (7, "B")
    assert [(refusal.provider_code, refusal.reason) for refusal in refusals] == [("A", reason)]


async def test_when_nobody_answers_the_error_says_why_of_each() -> None:
    async def call(name: str) -> int:
        raise ProviderRateLimited(f"{name} is busy", reason="http_429")

    with pytest.raises(NobodyAnswered, match="A: a is busy; B: b is busy") as caught:
        await first_that_answers([("A", "a"), ("B", "b")], call)
    assert [refusal.provider_code for refusal in caught.value.refusals] == ["A", "B"]
    with pytest.raises(NobodyAnswered, match="no provider can answer"):
        await first_that_answers([], call)


async def test_a_defect_is_not_taken_for_a_refusal() -> None:
    async def call(name: str) -> int:
        raise KeyError(name)

    with pytest.raises(KeyError):
        await first_that_answers([("A", "a"), ("B", "b")], call)
