"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
FACTOR = float(os.environ.get("TIMEOUT_FACTOR", "1"))


async def eventually(
    predicate: Callable[[], T | Awaitable[T]], within_s: float = 5.0, every_s: float = 0.02
) -> T:
    """Return the first truthy answer of `predicate` (plain or async); AssertionError after `within_s`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s * FACTOR
    while True:
        answer: Any = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if loop.time() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {inspect.getsource(predicate).strip()}")
        await asyncio.sleep(every_s)
