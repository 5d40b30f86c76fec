"""Many questions to Redis at once, each of a few bytes: what a start reads of every instrument.

Stands beside `client`, whose connections it uses. The library's pipeline spends several times as much on
putting each command into words, on its time limit and on shaping its reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.storage.resp import to_bytes


async def ask_many(client: Redis, commands: Sequence[str]) -> list[Any]:
    """Return the replies to commands in words (`resp.command`), as they came; a refusal as `ResponseError`.

    Hashes are flat lists of names and values. Raises redis-py's other errors, and `OSError`.
    """
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(to_bytes(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as refusal:
                replies.append(refusal)
    except BaseException:
        # Replies that nobody read must not be taken for those to the next question.
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
    return replies
