"""Ports for servers of our own on the loopback address."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

_LOWEST_PORT = 15_000


def free_port() -> int:
    """Return a TCP port of the loopback address that is free just now.

    It lies outside the range from which the system takes ports for outgoing connections where there is
    room: a port of that range can be lost while its server is restarted.
    """
    try:
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        highest = int(limits[0]) - 1
    except (OSError, ValueError, IndexError):
        highest = 0
    for _ in range(50 if highest > _LOWEST_PORT + 1000 else 0):
        port = _LOWEST_PORT + secrets.randbelow(highest - _LOWEST_PORT)
        if port_is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on this port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
