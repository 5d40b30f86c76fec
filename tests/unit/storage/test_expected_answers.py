"""Answers that are as expected are compared, others taken apart; however the bytes are cut."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from services.storage.answers import AS_EXPECTED, Reply, ReplyError
from services.storage.connection import RedisConnection


class _Transport:
    def write(self, payload: bytes) -> None: ...

    def abort(self) -> None: ...

    def set_write_buffer_limits(self, high: int) -> None: ...


class _Case(NamedTuple):
    """One batch: how many replies it causes, what its writer expects, what Redis answers."""

    replies: int
    expected: bytes
    answer: bytes


def entries(count: int) -> bytes:
    ids = b"".join(b"$3\r\n1-%d\r\n" % number for number in range(count))
    return b"+OK\r\n" + b"+QUEUED\r\n" * count + b"*%d\r\n%b" % (count, ids)


cases = st.sampled_from(
    [
        _Case(5, entries(3), entries(3)),
        _Case(3, entries(1), entries(1)),
        _Case(1, b"*2\r\n:7\r\n:7\r\n", b"*2\r\n:7\r\n:7\r\n"),
        _Case(1, b"*2\r\n:7\r\n:7\r\n", b"*2\r\n:7\r\n-ERR TSDB: no\r\n"),
        _Case(1, b"*2\r\n:7\r\n:7\r\n", b"*2\r\n:7\r\n:6\r\n"),
        _Case(2, b":0\r\n:0\r\n", b":0\r\n:0\r\n"),
        _Case(2, b":0\r\n:0\r\n", b":0\r\n:4\r\n"),
        _Case(2, b"", b"+OK\r\n:0\r\n"),
        _Case(1, b":0\r\n", b"-OOM no\r\n"),
    ]
)


@given(st.lists(cases, min_size=1, max_size=6), st.data())
def test_every_batch_gets_its_own_answer(batches: list[_Case], data: st.DataObject) -> None:
    stream = b"".join(case.answer for case in batches)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    edges = sorted({0, len(stream), *cuts})
    got: list[list[Reply]] = []

    async def play() -> None:
        connection = RedisConnection()
        transport: Any = _Transport()
        connection.connection_made(transport)
        for case in batches:
            connection.send(b"", case.replies, got.append, case.expected)
        for begin, end in pairwise(edges):
            connection.data_received(stream[begin:end])
        assert connection.closed_by is None
        connection.abort(RuntimeError("the end"))

    asyncio.run(play())
    assert len(got) == len(batches)
    for case, replies in zip(batches, got, strict=True):
        if replies is AS_EXPECTED:
            assert case.answer == case.expected
        else:
            assert len(replies) == case.replies
            failed = [
                part
                for reply in replies
                for part in (reply if isinstance(reply, list) else [reply])
                if isinstance(part, ReplyError)
            ]
            assert bool(failed) == (b"-ERR" in case.answer or b"-OOM" in case.answer)


def test_an_answer_in_one_piece_is_not_taken_apart() -> None:
    async def play() -> None:
        connection = RedisConnection()
        transport: Any = _Transport()
        connection.connection_made(transport)
        got: list[list[Reply]] = []
        for _ in range(2):
            connection.send(b"", 5, got.append, entries(3))
        connection.data_received(entries(3) + entries(3)[:10])
        assert len(got) == 1
        assert got[0] is AS_EXPECTED
        connection.data_received(entries(3)[10:])
        assert got[1] is AS_EXPECTED
        connection.abort(RuntimeError("the end"))

    asyncio.run(play())
