"""One connection to Redis: log-in, replies in pieces, silence, garbage, TLS; on sockets of this machine."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.errors import StorageMisconfigured, StorageUnavailable
from services.operations.redis_binary import find_redis
from services.pipeline.sink import SinkState
from services.storage.address import parse_address
from services.storage.answers import Reply, ReplyError
from services.storage.client import check_server, make_client
from services.storage.connection import RedisConnection, open_connection
from services.storage.resp import bulk, command, to_bytes
from services.storage.stream_writer import StreamWriter
from tests.support.eventually import eventually
from tests.support.scripted_redis import LOADING, MASTER, ScriptedRedis, willing
from tests.support.storage import Ticks, drained, offer, quick, running


async def opened(url: str, **options: Any) -> RedisConnection:
    return await open_connection(parse_address(url), "test", **options)


async def ask(connection: RedisConnection, *commands: tuple[str, ...]) -> list[Reply]:
    """Send commands as one batch; return the replies."""
    answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
    connection.send(to_bytes(command(*words) for words in commands), len(commands), answered.set_result)
    return await asyncio.wait_for(answered, 5)


async def test_user_password_database_and_name_are_used(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    admin = make_client(redis_url)
    await admin.execute_command("ACL", "SETUSER", "writer", "on", ">p%40ss word", "+@all", "~*")
    connection = await opened(f"redis://writer:p%2540ss%20word@{parts.hostname}:{parts.port}/3")
    [who, name, _] = await ask(
        connection, ("ACL", "WHOAMI"), ("CLIENT", "GETNAME"), ("SET", "in-three", "yes")
    )
    assert (who, name) == ("writer", "test")
    assert await admin.exists("in-three") == 0
    connection.abort(StorageUnavailable("done"))
    await admin.execute_command("ACL", "DELUSER", "writer")
    await admin.aclose()


async def test_errors_are_replies_and_do_not_end_the_connection(redis_url: str) -> None:
    connection = await opened(redis_url)
    replies = await ask(
        connection, ("PING",), ("NONSENSE",), ("SET", "a", "1"), ("LPUSH", "a", "1"), ("PING",)
    )
    assert [type(reply) for reply in replies] == [str, ReplyError, str, ReplyError, str]
    assert connection.closed_by is None
    connection.abort(StorageUnavailable("done"))


async def test_batches_are_answered_first_in_first_out(redis_url: str) -> None:
    connection = await opened(redis_url)
    order: list[tuple[int, list[Reply]]] = []
    for number in range(50):
        words = [command("ECHO", f"{number}-{n}") for n in range(number % 3 + 1)]
        connection.send(to_bytes(words), len(words), lambda replies, n=number: order.append((n, replies)))
    await ask(connection, ("PING",))
    assert order == [(n, [f"{n}-{i}" for i in range(n % 3 + 1)]) for n in range(50)]
    connection.abort(StorageUnavailable("done"))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda url: url.replace("://:", "://:x"), StorageMisconfigured, "user name or password"),
        (lambda url: f"redis://{url.partition('@')[2]}", StorageMisconfigured, "password"),
        (lambda url: url.removesuffix("/0") + "/9999", StorageMisconfigured, "refuses to work"),
    ],
)
async def test_a_refused_log_in_needs_an_operator(
    redis_url: str, change: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        await opened(change(redis_url))


async def test_nobody_there(unused_tcp_port: int, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        await opened(f"redis://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        await opened(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        await opened("redis://no-such-host.invalid:6379")


async def test_a_server_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    async with ScriptedRedis(lambda _: b"") as server:
        began_s = time.monotonic()
        with pytest.raises(StorageUnavailable, match="did not answer"):
            await opened(server.url, connect_timeout_s=0.2)
        assert time.monotonic() - began_s < 1.0


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (LOADING, StorageUnavailable, "loading"),
        (b"-MISCONF Errors writing to the AOF file\r\n", StorageUnavailable, "disk"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", StorageUnavailable, "lost its master"),
        (b"-NOPERM this user has no permissions\r\n", StorageMisconfigured, "lacks a right"),
        (b"-ERR unknown command 'HELLO'\r\n", StorageMisconfigured, "does not know HELLO"),
        (b"-ERR max number of clients reached\r\n", StorageUnavailable, "maxclients"),
        (b"!garbage\r\n", StorageUnavailable, "protocol"),
    ],
)
async def test_what_a_server_may_say_instead_of_welcome(reply: bytes, error: Any, words: str) -> None:
    async with ScriptedRedis(lambda _: reply) as server:
        with pytest.raises(error, match=words):
            await opened(server.url)


async def test_a_replica_is_refused_at_once() -> None:
    async with ScriptedRedis(
        lambda words: b"*2\r\n$4\r\nrole\r\n$7\r\nreplica\r\n" if words[0] == "HELLO" else b"+PONG\r\n"
    ) as server:
        with pytest.raises(StorageUnavailable, match="read-only replica"):
            await opened(server.url)


async def test_silence_after_a_batch_cuts_the_connection_after_the_time_limit() -> None:
    async with ScriptedRedis() as server:
        connection = await opened(server.url, reply_timeout_s=0.2)
        server.answer = lambda _: b""
        replies: list[list[Reply]] = []
        connection.send(to_bytes([command("XADD")]), 1, replies.append)
        await eventually(lambda: connection.closed_by is not None)
        assert "did not answer within 0.2 s" in str(connection.closed_by)
        assert replies == []


async def test_an_idle_connection_is_not_taken_for_a_silent_one() -> None:
    async with ScriptedRedis() as server:
        connection = await opened(server.url, reply_timeout_s=0.1)
        await asyncio.sleep(0.3)
        assert connection.closed_by is None
        assert await ask(connection, ("PING",)) == ["PONG"]
        connection.abort(StorageUnavailable("done"))


async def test_a_standstill_of_our_own_loop_is_not_the_servers_silence(redis_url: str) -> None:
    connection = await opened(redis_url, reply_timeout_s=0.1)
    answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
    connection.send(to_bytes([command("PING")]), 1, answered.set_result)
    time.sleep(0.6)
    assert await asyncio.wait_for(answered, 2) == ["PONG"]
    assert connection.closed_by is None
    connection.abort(StorageUnavailable("done"))


async def test_replies_that_trickle_in_count_as_progress() -> None:
    async with ScriptedRedis() as server:
        connection = await opened(server.url, reply_timeout_s=0.3)
        server.answer = lambda _: b""
        answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        connection.send(to_bytes([command("XADD")]), 3, answered.set_result)
        for piece in (b"+o", b"ne\r\n", b"$3\r\nt", b"wo\r\n:", b"3", b"\r\n"):
            await asyncio.sleep(0.1)
            server.send_all(piece)
        assert await asyncio.wait_for(answered, 2) == ["one", "two", 3]
        connection.abort(StorageUnavailable("done"))


async def test_a_reply_nobody_asked_for_ends_the_connection() -> None:
    async with ScriptedRedis() as server:
        connection = await opened(server.url)
        server.send_all(b"-ERR something happened\r\n")
        await eventually(lambda: connection.closed_by is not None)
        assert "something happened" in str(connection.closed_by)


async def test_a_mistake_of_the_owner_is_not_taken_for_a_fault_of_redis(redis_url: str) -> None:
    connection = await opened(redis_url)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)

    def mistaken(_: list[Reply]) -> None:
        raise LookupError("a bug")

    connection.send(to_bytes([command("PING")]), 1, mistaken)
    await eventually(lambda: connection.closed_by is not None)
    assert isinstance(connection.closed_by, LookupError)


async def test_a_writer_waits_while_redis_loads_its_data() -> None:
    stored: list[str] = []

    def answer(words: list[str]) -> bytes:
        if loading:
            return MASTER if words[0] == "HELLO" else LOADING
        if words[0] == "XADD":
            stored.append(words[5] if words[2] == "MAXLEN" else words[2])
        if words[0] == "EXEC":
            return f"*{len(stored)}\r\n{''.join(map(bulk, stored))}".encode()
        return willing(words)

    loading = True
    ticks = Ticks()
    async with ScriptedRedis(answer) as server:
        sink = StreamWriter(server.url, **quick())
        async with running(sink):
            offer([ticks.tick() for _ in range(10)], sink)
            await eventually(lambda: server.connections >= 3)
            assert sink.state is SinkState.UNAVAILABLE
            assert sink.reason == "Redis is loading its data"
            assert sink.queued == 10
            loading = False
            await drained(sink)
    assert stored == [record.position for record in ticks.made]


async def test_a_batch_that_is_refused_for_no_known_reason_does_not_stop_the_writer_for_ever() -> None:
    ticks = Ticks()

    def answer(words: list[str]) -> bytes:
        if words[0] == "EXEC":
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        return b"-ERR strange things\r\n" if words[0] == "XADD" else willing(words)

    async with ScriptedRedis(answer) as server:
        sink = StreamWriter(server.url, **quick())
        async with running(sink):
            offer([ticks.tick() for _ in range(10)], sink)
            await drained(sink)
        assert sink.counters.rejected == {"refused": 10}
        assert server.connections >= 5


@pytest.fixture
async def tls_redis(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[int]:
    """Port of a real Redis behind TLS; its certificate is for 127.0.0.1 and signed by itself."""
    make_certificate(tmp_path, "good", days=1)
    program = await find_redis()
    arguments = {
        "port": "0",
        "tls-port": str(unused_tcp_port),
        "tls-cert-file": str(tmp_path / "good.crt"),
        "tls-key-file": str(tmp_path / "good.key"),
        "tls-ca-cert-file": str(tmp_path / "good.crt"),
        "tls-auth-clients": "no",
        "bind": "127.0.0.1",
        "save": "",
        "dir": str(tmp_path),
    } | ({"loadmodule": str(program.module)} if program.module else {})
    process = await asyncio.create_subprocess_exec(
        str(program.server),
        *(text for name, value in arguments.items() for text in (f"--{name}", value)),
        env=program.environment(),
        stdout=asyncio.subprocess.DEVNULL,
    )

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(listens)
    yield unused_tcp_port
    process.terminate()
    await process.wait()


def make_certificate(folder: Path, name: str, *, days: int) -> None:
    """Write a self-signed certificate for 127.0.0.1 and its key; expired with negative `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "marketd test")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=10)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=10 + days))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


async def test_records_travel_over_tls(tls_redis: int, tmp_path: Path) -> None:
    url = f"rediss://127.0.0.1:{tls_redis}/0?ssl_ca_certs={tmp_path / 'good.crt'}"
    ticks = Ticks()
    sink = StreamWriter(url, **quick())
    async with running(sink):
        offer([ticks.tick() for _ in range(1_000)], sink)
        await drained(sink)
    client = make_client(url)
    assert (await check_server(client)).role == "master"
    assert await client.xlen("md:ticks:NSE") == 1_000
    await client.aclose()


@pytest.mark.parametrize(
    ("query", "words"),
    [("", "certificate verify failed|CERTIFICATE_VERIFY_FAILED"), ("?ssl_ca_certs=other", "verify|VERIFY")],
)
async def test_a_certificate_nobody_vouches_for_parks(
    tls_redis: int, tmp_path: Path, query: str, words: str
) -> None:
    make_certificate(tmp_path, "other", days=1)
    url = f"rediss://127.0.0.1:{tls_redis}/0{query.replace('other', str(tmp_path / 'other.crt'))}"
    with pytest.raises(StorageMisconfigured, match=words):
        await opened(url)
    sink = StreamWriter(url, **quick())
    async with running(sink):
        await eventually(lambda: sink.state is SinkState.PARKED)
        assert "TLS" in sink.reason
    client = make_client(url)
    with pytest.raises(StorageMisconfigured, match="TLS"):
        await check_server(client)
    await client.aclose()


async def test_an_expired_certificate_needs_an_operator(tmp_path: Path) -> None:
    make_certificate(tmp_path, "old", days=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "old.crt", tmp_path / "old.key")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StorageMisconfigured, match="(?i)certificate"):
        await opened(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'old.crt'}")
    server.close()


async def test_plain_text_to_a_tls_port_and_tls_to_a_plain_one(tls_redis: int, redis_url: str) -> None:
    with pytest.raises((StorageUnavailable, StorageMisconfigured)):
        await opened(f"redis://127.0.0.1:{tls_redis}/0")
    with pytest.raises((StorageUnavailable, StorageMisconfigured)):
        await opened(redis_url.replace("redis://", "rediss://"))


async def test_a_unix_socket_works_like_a_port(tmp_path: Path) -> None:
    program = await find_redis()
    socket = tmp_path / "r.sock"
    process = await asyncio.create_subprocess_exec(
        str(program.server),
        *("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)),
        *("--requirepass", "secret"),
        env=program.environment(),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(socket.exists)
        connection = await opened(f"unix://:secret@{socket}?db=2")
        [name, _] = await ask(connection, ("CLIENT", "GETNAME"), ("PING",))
        assert name == "test"
        connection.abort(StorageUnavailable("done"))
    finally:
        process.terminate()
        await process.wait()
