"""Origins are compared whole; tricks with prefixes, suffixes, ports and user parts do not pass."""

from __future__ import annotations

import pytest

from services.gateway.origin import OriginPolicy

LOOPBACK = OriginPolicy("127.0.0.1", 8080, ["https://charts.example.com"], open_to_all=True)
PUBLIC = OriginPolicy(
    "0.0.0.0", 8080, ["https://charts.example.com", "http://lab.local:3000"], open_to_all=False
)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "md.example.com", True),
        ("https://charts.example.com", "md.example.com", True),
        ("HTTPS://Charts.Example.COM", "md.example.com", True),
        ("https://charts.example.com:443", "md.example.com", True),
        ("http://lab.local:3000", "md.example.com", True),
        ("https://md.example.com", "md.example.com", True),
        ("http://md.example.com:8080", "md.example.com:8080", True),
        ("http://md.example.com", "md.example.com:80", True),
        ("http://charts.example.com", "md.example.com", False),
        ("https://charts.example.com.evil.test", "md.example.com", False),
        ("https://evilcharts.example.com", "md.example.com", False),
        ("https://charts.example.com:8443", "md.example.com", False),
        ("https://charts.example.com@evil.test", "md.example.com", False),
        ("https://charts.example.com/", "md.example.com", False),
        ("https://md.example.com.evil.test", "md.example.com", False),
        ("http://md.example.com:8081", "md.example.com:8080", False),
        ("http://lab.local", "md.example.com", False),
        ("null", "md.example.com", False),
        ("", "md.example.com", False),
        ("file://", "md.example.com", False),
        ("chrome-extension://abc", "md.example.com", False),
        ("https://charts.example.com, https://evil.test", "md.example.com", False),
        ("https://evil.test", None, False),
        ("http://localhost:8080", "md.example.com", False),
    ],
)
def test_an_origin_is_allowed_only_as_a_whole(origin: str | None, host: str | None, allowed: bool) -> None:
    assert PUBLIC.allows(origin, host) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8080", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("https://charts.example.com", True),
        ("http://localhost:8081", False),
        ("http://127.0.0.1:8080.evil.test", False),
        ("http://127.0.0.1", False),
    ],
)
def test_on_loopback_the_own_dashboard_is_allowed(origin: str, allowed: bool) -> None:
    assert LOOPBACK.allows(origin, "127.0.0.1:9999") is allowed


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("[::1]:8080", True),
        ("127.1.2.3", True),
        ("evil.test:8080", False),
        ("localhost.evil.test", False),
        ("127.0.0.1.evil.test", False),
        ("192.168.1.5:8080", False),
        ("[::2]", False),
        ("", False),
        (None, False),
    ],
)
def test_without_tokens_only_this_machines_names_are_answered(host: str | None, answered: bool) -> None:
    assert LOOPBACK.answers(host) is answered


def test_with_tokens_every_name_is_answered() -> None:
    assert PUBLIC.answers("md.example.com")
    assert PUBLIC.answers(None)


def test_only_listed_origins_may_read_across_sites() -> None:
    assert PUBLIC.lists("https://charts.example.com")
    assert not PUBLIC.lists("https://md.example.com")
