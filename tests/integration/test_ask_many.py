"""Many questions at once, against a real Redis: replies in order, refusals among them, none left behind."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import RedisError, ResponseError

from services.storage.ask_many import ask_many
from services.storage.client import make_client
from services.storage.resp import command


async def test_replies_come_in_order_with_refusals_among_them(redis_url: str) -> None:
    client = make_client(redis_url)
    try:
        await client.hset("h:é", mapping={"p": "1.5", "name": "Zürich"})
        await client.set("text", "x")
        asked = [command("HGETALL", "h:é"), command("HGETALL", "text"), command("GET", "none")]
        asked += [command("ECHO", str(number)) for number in range(5_000)]
        replies = await ask_many(client, asked)
        assert replies[0] == ["p", "1.5", "name", "Zürich"]
        assert isinstance(replies[1], ResponseError)
        assert "WRONGTYPE" in str(replies[1])
        assert replies[2] is None
        assert replies[3:] == [str(number) for number in range(5_000)]
        assert await client.get("text") == "x"
    finally:
        await client.aclose()


async def test_what_was_given_up_half_way_is_no_answer_to_the_next_question(redis_url: str) -> None:
    client = make_client(redis_url)
    try:
        await client.set("text", "x")
        waiting = asyncio.ensure_future(ask_many(client, [command("BLPOP", "nothing", "1"), command("PING")]))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await client.get("text") == "x"
        assert await ask_many(client, [command("GET", "text")]) == ["x"]
    finally:
        await client.aclose()


async def test_a_server_that_does_not_answer_is_an_error(redis_url: str) -> None:
    client = make_client(redis_url, reply_timeout_s=0.2)
    try:
        with pytest.raises((RedisError, OSError)):
            await ask_many(client, [command("BLPOP", "nothing", "3")])
        assert await ask_many(client, [command("PING")]) == ["PONG"]
    finally:
        await client.aclose()
