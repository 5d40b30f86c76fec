"""Host names looked up in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from services.connection.resolver import Resolver
from tests.support.eventually import eventually


async def test_a_numeric_address_needs_no_thread() -> None:
    before = threading.active_count()
    addresses = await Resolver().resolve("127.0.0.1", 8080)
    assert [address[4] for address in addresses] == [("127.0.0.1", 8080)]
    assert threading.active_count() == before


async def test_a_name_is_looked_up_once_for_all_who_ask_and_nobody_has_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    calls: list[str] = []

    def slow(host: str, port: int, **options: Any) -> Any:
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        calls.append(host)
        release.wait(5)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolver = Resolver()
    first = asyncio.create_task(resolver.resolve("feed.example", 443))
    second = asyncio.create_task(resolver.resolve("feed.example", 443))
    await eventually(lambda: calls)
    (worker,) = [thread for thread in threading.enumerate() if thread.name == "resolve-feed.example"]
    assert worker.daemon
    second.cancel()
    release.set()
    assert (await first)[0][4] == ("10.0.0.1", 443)
    assert calls == ["feed.example"]
    await resolver.resolve("feed.example", 443)
    assert len(calls) == 2


async def test_an_unknown_name_is_an_error_also_when_nobody_listens_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(host: str, port: int, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    resolver = Resolver()
    with pytest.raises(socket.gaierror):
        await resolver.resolve("no.example", 1)
    abandoned = asyncio.create_task(resolver.resolve("no.example", 1))
    await asyncio.sleep(0)
    abandoned.cancel()
    await eventually(lambda: not resolver._pending)
