"""Several workers run the tests at once; a test marked `alone` runs while no other one does.

A pytest plugin. What measures time closely, or fills the machine on purpose, is marked; such tests come
last, and each waits until the tests of all workers have ended. The waiting counts against no time limit.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


class Turns:
    """Holds the floor while a test runs: shared with others, or alone.

    `folder` is where the workers of this checkout meet. Who waits for the floor holds the gate, so that one
    that wants it alone gets it as soon as the tests that run have ended.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._gate = os.open(folder / "gate", os.O_CREAT | os.O_RDWR, 0o600)
        self._floor = os.open(folder / "floor", os.O_CREAT | os.O_RDWR, 0o600)
        self._have_alone = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, Any, Any]:
        self.take(alone=wants_alone(item))
        try:
            return (yield)
        finally:
            if nextitem is None or not (self._have_alone and wants_alone(nextitem)):
                self.leave()

    def take(self, *, alone: bool) -> None:
        """Wait for the floor."""
        if self._have_alone and alone:
            return
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        self._have_alone = alone

    def leave(self) -> None:
        """Give the floor back."""
        self._have_alone = False
        fcntl.flock(self._floor, fcntl.LOCK_UN)


class AloneLast:
    """Puts the tests that run alone behind all others, so that the workers are busy until then."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=wants_alone)


def wants_alone(item: pytest.Item) -> bool:
    """Tell whether a test is marked `alone`."""
    return item.get_closest_marker("alone") is not None


def register_turns(config: pytest.Config) -> None:
    """Let the workers of a run with several take turns; a run with one needs none."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        where = zlib.crc32(os.fsencode(config.rootpath))
        folder = Path(tempfile.gettempdir()) / f"marketd-tests-{os.getuid()}-{where:08x}"
        config.pluginmanager.register(Turns(folder), "turns")
        config.pluginmanager.register(AloneLast(), "alone_last")
