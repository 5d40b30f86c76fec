"""What a token allows is read exactly, or refused; a slip never makes a token that allows everything."""

from __future__ import annotations

import pytest

from services.gateway.authentication import Authenticator
from services.gateway.grants import EVERYTHING, parse_secret


def test_a_secret_alone_allows_everything() -> None:
    secret, grant = parse_secret("correct-horse")
    assert (secret, grant) == ("correct-horse", EVERYTHING)
    assert all(grant.allows(scope) for scope in ("ticks", "history", "admin"))
    assert grant.covers("NSE:TCS")
    assert grant.touches("BSE")


def test_scopes_and_instruments_are_read() -> None:
    secret, grant = parse_secret("correct-horse:ticks+history@NSE:*|NASDAQ:AAPL")
    assert secret == "correct-horse"
    assert [scope for scope in ("ticks", "history", "admin") if grant.allows(scope)] == ["ticks", "history"]
    covered = {
        key: grant.covers(key) for key in ("NSE:TCS", "NSE:*", "NASDAQ:AAPL", "NASDAQ:MSFT", "BSE:TCS")
    }
    assert [key for key, yes in covered.items() if yes] == ["NSE:TCS", "NSE:*", "NASDAQ:AAPL"]
    assert [name for name in ("NSE", "NASDAQ", "BSE") if grant.touches(name)] == ["NSE", "NASDAQ"]


@pytest.mark.parametrize(
    "text",
    [
        "correct-horse:",
        "correct-horse:tick",
        "correct-horse:ticks,history",
        "correct-horse:ticks+",
        "correct-horse:ticks@",
        "correct-horse:ticks@NSE",
        "correct-horse:ticks@NSE:*|",
        "correct-horse:more-of-the-secret",
        "correct-horse:@NSE:*",
    ],
)
def test_a_slip_is_refused_and_the_message_holds_no_secret(text: str) -> None:
    with pytest.raises(ValueError, match="scopes|instruments") as caught:
        parse_secret(text)
    assert "correct-horse" not in str(caught.value)


def test_replacing_tokens_tells_who_was_revoked_and_whose_rights_changed() -> None:
    authenticator = Authenticator(
        {"a": "secret-of-a", "b": "secret-of-b", "c": "secret-of-c", "d": "secret-d"}
    )
    revoked, changed = authenticator.replace(
        {"a": "secret-of-a", "b": "another-of-b", "c": "secret-of-c:ticks", "e": "secret-of-e"}
    )
    assert (revoked, changed) == ({"b", "d"}, {"c"})
    assert authenticator.check("secret-of-b") is None
    with pytest.raises(ValueError, match="scopes"):
        authenticator.replace({"a": "secret-of-a:nothing"})
    assert authenticator.check("another-of-b") is not None
    assert Authenticator({}).replace({"a": "secret-of-a"}) == ({"anonymous"}, set())
