"""What every task has that talks to Redis in the background, round by round, until it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from redis.asyncio import Redis

from services.storage.client import make_client


@contextlib.asynccontextmanager
async def attended(redis_url: str, *, name: str) -> AsyncIterator[tuple[Redis, Callable[[], bool]]]:
    """Give the task at hand a client of its own, closed at the end, and `goes_on()` to be asked each round.

    redis-py can swallow a cancellation that meets a connection just being lost: `goes_on()` is False once
    the task was cancelled, whatever became of that.
    """
    client = make_client(redis_url, name=name)
    task = asyncio.current_task()
    try:
        yield client, lambda: task is None or not task.cancelling()
    finally:
        await client.aclose()
