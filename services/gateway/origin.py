"""Which web pages may talk to the gateway, and under which host names it answers.

Pure: no I/O. A browser sends `Origin` with every WebSocket handshake and cross-site request; programs
send none and are judged by their token alone. Origins are compared whole, never by prefix or suffix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.gateway.limits import is_loopback

_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class OriginPolicy:
    """The allow-list of one gateway.

    `bind_host` and `port` say where it listens; on loopback the own dashboard's addresses are allowed.
    `open_to_all` means that no token is needed: then only this machine's host names are answered, or a
    foreign page could reach us by making its own name resolve to 127.0.0.1.
    """

    def __init__(self, bind_host: str, port: int, allowed: Iterable[str], *, open_to_all: bool) -> None:
        self._allowed = {_normal(origin) for origin in allowed}
        self.open_to_all = open_to_all
        self._bind_host = bind_host.lower()
        if is_loopback(bind_host):
            for host in ("localhost", "127.0.0.1", "[::1]"):
                self._allowed.add(_normal(f"http://{host}:{port}"))

    def allows(self, origin: str | None, host: str | None) -> bool:
        """Tell whether a request with these `Origin` and `Host` headers may be served."""
        if origin is None:
            return True
        normal = _normal(origin)
        if _ORIGIN.fullmatch(normal) is None:
            return False
        if normal in self._allowed:
            return True
        # The dashboard served under this very name, behind a proxy or not.
        scheme, _, netloc = normal.partition("://")
        return host is not None and _without_default_port(scheme, host.lower()) == netloc

    def answers(self, host: str | None) -> bool:
        """Tell whether requests for this `Host` are meant for us."""
        if not self.open_to_all:
            return True
        if host is None:
            return False
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        return is_loopback(name) or name == self._bind_host

    def lists(self, origin: str) -> bool:
        """Tell whether an origin stands in the list (so that it may read HTTP answers across sites)."""
        return _normal(origin) in self._allowed


def _normal(origin: str) -> str:
    lowered = origin.strip().lower()
    scheme, _, netloc = lowered.partition("://")
    return f"{scheme}://{_without_default_port(scheme, netloc)}" if netloc else lowered


def _without_default_port(scheme: str, netloc: str) -> str:
    return netloc.removesuffix(_DEFAULT_PORTS.get(scheme, "\0"))
