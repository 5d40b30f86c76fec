"""A process that uses the embedded servers of a state directory until its standard input closes.

Run as `python -m tests.support.server_user STATE_DIR postgres|redis`; prints the URL and the pid of
the server. Killed, it leaves what a killed daemon leaves.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from services.operations.embedded import EmbeddedPostgres, EmbeddedRedis


async def main() -> None:
    kind = {"postgres": EmbeddedPostgres, "redis": EmbeddedRedis}[sys.argv[2]]
    async with kind(Path(sys.argv[1])) as server:
        print(json.dumps({"url": await server.start(), "pid": server.live_pid()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
