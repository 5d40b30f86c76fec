"""Only a configured secret opens the door, and only from where secrets belong."""

from __future__ import annotations

import pytest

from services.gateway.authentication import Authenticator, Principal, bearer_secret, names_a_token

TOKENS = {"desk": "correct-horse", "robot": "battery-staple", "ünı": "pässwört-€"}


@pytest.mark.parametrize(
    ("secret", "name"),
    [
        ("correct-horse", "desk"),
        ("battery-staple", "robot"),
        ("pässwört-€", "ünı"),
        ("correct-horse ", None),
        ("Correct-horse", None),
        ("correct-hors", None),
        ("correct-horsee", None),
        ("desk:correct-horse", None),
        ("desk", None),
        ("", None),
        ("\x00", None),
        ("correct-horse\x00", None),
        ("\udcff", None),
    ],
)
def test_a_secret_is_compared_whole(secret: str, name: str | None) -> None:
    assert Authenticator(TOKENS).check(secret) == (Principal(name) if name else None)


def test_without_tokens_everybody_is_anonymous() -> None:
    open_door = Authenticator({})
    assert not open_door.required
    assert open_door.check("") == Principal("anonymous")


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("Bearer   abc ", "abc"),
        ("Basic YWJj", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("abc", None),
        ("", None),
        (None, None),
    ],
)
def test_the_header_must_be_a_bearer_header(header: str | None, secret: str | None) -> None:
    assert bearer_secret(header) == secret


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["token"], True),
        (["a", "Access_Token"], True),
        (["API_KEY"], True),
        (["q", "limit"], False),
        ([], False),
    ],
)
def test_secrets_in_a_url_are_recognised_by_name(names: list[str], found: bool) -> None:
    assert names_a_token(names) is found
