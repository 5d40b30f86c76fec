"""Node and a Chromium, where this machine has them: found, or the reason why not.

Tests skip with that reason, which pytest prints at the end. With `REQUIRE_BROWSER=1` (set where a browser was
installed on purpose) a missing one fails instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests.support.eventually import FACTOR, eventually

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients" / "javascript"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_CHROMIUM_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0"),
)


def node_command() -> list[str]:
    """Return how to start Node with a WebSocket of its own; skips where there is none from 20 on."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT TESTED: the JavaScript client, as there is no `node` (20 or newer) on PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v(\d+)\.", version)
    major = int(found.group(1)) if found else 0
    if major < 20:
        pytest.skip(f"NOT TESTED: the JavaScript client, as it needs Node 20 and this is {version.strip()}")
    return [node] if major >= 22 else [node, "--experimental-websocket", "--no-warnings"]


def browser_path() -> str:
    """Return a Chromium; skips where there is none, fails with `REQUIRE_BROWSER`."""
    for name in (os.environ.get("CHROMIUM", ""), *BROWSERS):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    said = "no Chromium on PATH or in CHROMIUM (scripts/install_browser.sh installs one on Debian)"
    if os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(said)
    pytest.skip(f"NOT TESTED: the JavaScript client in a browser, as there is {said}")


class Browser:
    """A headless Chromium with one page, spoken to over its own debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, process: asyncio.subprocess.Process) -> None:
        self._socket = socket
        self._process = process
        self._number = 0
        self._session = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, profile: Path) -> AsyncIterator[Self]:
        """Start a browser with a new empty `profile` folder and open `url` in it."""
        process = await asyncio.create_subprocess_exec(
            browser_path(),
            *_CHROMIUM_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            lines = await eventually(lambda: _port_file(profile), within_s=30)
            address = f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
                browser = cls(socket, process)
                target = await browser._command("Target.createTarget", url="about:blank")
                attached = await browser._command(
                    "Target.attachToTarget", targetId=target["targetId"], flatten=True
                )
                browser._session = attached["sessionId"]
                await browser._command("Page.navigate", url=url)
                yield browser
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10 * FACTOR)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; a promise is waited for."""
        answer = await self._command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            answer = await self._socket.receive_json(timeout=20 * FACTOR)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result


def _port_file(profile: Path) -> list[str]:
    try:
        lines = (profile / "DevToolsActivePort").read_text(encoding="ascii").split()
    except OSError:
        return []
    return lines if len(lines) == 2 else []
