"""Secrets taken out of text."""

from __future__ import annotations

import pytest

from services.redaction import redact

SECRET = "S3cr3tValue"


@pytest.mark.parametrize(
    "text",
    [
        f"wss://api-feed.dhan.co?version=2&token={SECRET}&clientId=1100&authType=2",
        f"wss://host/?clientId={SECRET}&x=1",
        f"https://host/?access_token={SECRET}",
        f"https://host/?apikey={SECRET}",
        f"https://host/?api_key={SECRET}#frag",
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f'{{"access-token": "{SECRET}", "client-id": "x"}}',
        f"redis://:{SECRET}@host:6379/0",
        f"postgresql://user:{SECRET}@host/db",
        f"password={SECRET}",
        f"client_secret: {SECRET}",
        f"DHAN_ACCESS_TOKEN={SECRET}",
        f"bearer {SECRET}",
        f"the key eyJ{SECRET}.eyJ{SECRET}.{SECRET} is bad",
    ],
)
def test_secrets_are_hidden_wherever_they_usually_stand(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "connection refused by 127.0.0.1:9001",
        "https://host/path?version=2&authType=2",
        "closed with 1011 (internal error)",
        "postgresql://host:5432/db",
        "",
    ],
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_known_values_are_hidden_anywhere_also_url_encoded() -> None:
    secret = "a+b/c=d e"
    text = f"cannot use {secret}, nor a%2Bb%2Fc%3Dd%20e here"
    assert redact(text, [secret]) == "cannot use ***, nor *** here"


def test_very_short_values_do_not_blank_out_ordinary_words() -> None:
    assert redact("an ordinary sentence", ["an", ""]) == "an ordinary sentence"
