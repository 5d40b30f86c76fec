"""Bounded waits for clean-up: they hold in a task that is being cancelled, too.

Up to Python 3.11.3 `asyncio.timeout` inside such a task ends in a cancellation instead of a time-out,
and what should have come after it never happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def finishes_within(work: Coroutine[Any, Any, object], seconds: float) -> bool:
    """Tell whether `work` ends within `seconds`; cancel it otherwise. Its failure goes through."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        return False
    task.result()
    return True
