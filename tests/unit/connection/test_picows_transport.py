"""The transport over TLS, against a real server with a certificate of the test's own."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import traceback
from pathlib import Path
from typing import Any

import picows
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.connection.picows_transport import _AT_A_STRETCH, PicowsConnector
from services.connection.transport import Endpoint, TransportLimits
from services.errors import ProviderUnavailable, SettingsUnusable
from tests.support.eventually import eventually

TOKEN = "s3cr3t-t0ken"
LIMITS = TransportLimits(open_timeout_s=2.0)


class Ears:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.frames: list[str | bytes] = []
        self.pongs = 0
        self.closed = False

    def on_frame(self, raw: str | bytes) -> None:
        self.frames.append(raw)

    def on_sign_of_life(self) -> None:
        return

    def on_pong(self) -> None:
        self.pongs += 1

    def on_closed(self) -> None:
        self.closed = True


class Echo(picows.WSListener):
    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1; return its file and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "marketd test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return certificate_file, context


async def open_to(port: int, ears: Ears) -> Any:
    endpoint = Endpoint(f"wss://127.0.0.1:{port}/?token={TOKEN}")
    return await PicowsConnector().open(endpoint, ears, LIMITS, has_credentials=True)


async def test_a_trusted_certificate_carries_frames_and_an_unknown_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate_file, context = certificate(tmp_path)
    server = await picows.ws_create_server(lambda request: Echo(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(ProviderUnavailable) as caught:
            await open_to(port, Ears())
        assert caught.value.reason == "tls"
        assert TOKEN not in "".join(traceback.format_exception(caught.value))

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate_file))
        ears = Ears()
        transport = await open_to(port, ears)
        transport.send("text")
        transport.send(b"\x00binary")
        transport.ping()
        await eventually(lambda: ears.frames == ["text", b"\x00binary"])
        await eventually(lambda: ears.pongs == 1)
        await transport.close(1.0)
        assert ears.closed
        info = await transport.wait_closed()
        assert (info.close_frame, info.code, info.failure) == (True, 1000, None)
        transport.send("into the void")
        transport.abort()
    finally:
        server.close()


async def test_a_server_that_speaks_no_tls_is_an_error_and_not_a_hang() -> None:
    server = await picows.ws_create_server(lambda request: Echo(), "127.0.0.1", 0)
    try:
        with pytest.raises(ProviderUnavailable) as caught:
            await open_to(server.sockets[0].getsockname()[1], Ears())
        assert caught.value.reason in ("tls", "reset", "open_timeout", "network")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
    finally:
        server.close()


@pytest.mark.parametrize(
    "url", ["http://host/", "host", "", "ws://", "wss://host:99999/", "ws://[::1/", "ws://host/#x"]
)
async def test_what_is_no_websocket_address_is_a_setting_to_correct(url: str) -> None:
    with pytest.raises(SettingsUnusable):
        await PicowsConnector().open(Endpoint(url), Ears(), LIMITS, has_credentials=True)


async def test_an_unknown_name_is_told_apart() -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        await PicowsConnector().open(
            Endpoint(f"ws://no-such-host.invalid/?token={TOKEN}"), Ears(), LIMITS, has_credentials=True
        )
    assert caught.value.reason in ("name_resolution", "open_timeout")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


class Burst(picows.WSListener):
    """A vendor that answers a message with thousands, a pong behind them, and then a close where asked."""

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type is picows.WSMsgType.TEXT:
            for number in range(BURST):
                transport.send(picows.WSMsgType.BINARY, str(number).encode())
            transport.send_pong(b"")
            if frame.get_payload_as_ascii_text() == "then close":
                transport.send_close(picows.WSCloseCode.GOING_AWAY)


class CountingEars(Ears):
    """Remembers how many messages came between two turns of the loop, and how many before pong and close."""

    def __init__(self) -> None:
        super().__init__()
        self.at_a_stretch = [0]
        self.before_pong = self.before_close = -1
        self._turned = True

    def on_frame(self, raw: str | bytes) -> None:
        if self._turned:
            self._turned = False
            self.at_a_stretch.append(0)
            asyncio.get_running_loop().call_soon(self._turn)
        super().on_frame(raw)
        self.at_a_stretch[-1] += 1

    def on_pong(self) -> None:
        super().on_pong()
        self.before_pong = len(self.frames)

    def on_closed(self) -> None:
        super().on_closed()
        self.before_close = len(self.frames)

    def _turn(self) -> None:
        self._turned = True


BURST = 5_000
IN_ORDER = [str(number).encode() for number in range(BURST)]


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_burst_is_handled_in_order_and_the_loop_turns_meanwhile(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate_file, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_file))
    server = await picows.ws_create_server(
        lambda request: Burst(), "127.0.0.1", 0, ssl=context if scheme == "wss" else None
    )
    port = server.sockets[0].getsockname()[1]
    ears = CountingEars()
    try:
        endpoint = Endpoint(f"{scheme}://127.0.0.1:{port}/")
        transport = await PicowsConnector().open(endpoint, ears, LIMITS, has_credentials=False)
        for times in (1, 2):
            transport.send("go")
            # A second burst is read as the first: nothing of it lies in the library until more comes.
            await eventually(lambda times=times: ears.pongs == times)
            assert ears.frames == IN_ORDER * times
            assert ears.before_pong == BURST * times
        assert max(ears.at_a_stretch) <= 2 * _AT_A_STRETCH
        await transport.close(1.0)
    finally:
        server.close()
        await server.wait_closed()


async def test_what_came_before_a_close_is_handled_before_it() -> None:
    server = await picows.ws_create_server(lambda request: Burst(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ears = CountingEars()
    try:
        endpoint = Endpoint(f"ws://127.0.0.1:{port}/")
        transport = await PicowsConnector().open(endpoint, ears, LIMITS, has_credentials=False)
        transport.send("then close")
        await eventually(lambda: ears.closed)
        assert ears.frames == IN_ORDER
        assert (ears.before_pong, ears.before_close) == (BURST, BURST)
        assert (await transport.wait_closed()).code == 1001
    finally:
        server.close()
        await server.wait_closed()
