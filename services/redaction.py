"""Takes secrets out of text before it is logged, raised or shown.

Stands beneath everything that writes text about a connection: providers put their token into the
address, so an address, a library's exception or a header dump is a secret until it went through here.
Patterns find what looks like a secret; whoever reads the settings also makes their secrets known, and
those are then found wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

HIDDEN = "***"

_NAMED = re.compile(
    r"(?i)(\b(?:[\w-]*(?:token|secret|password|passwd|api[_-]?key|client[_-]?id)|pin|totp|authorization)"
    r"[\"']?\s*[=:]\s*[\"']?(?:bearer\s+|basic\s+)?)([^\s&\"',;}\])]+)"
)
_BEARER = re.compile(r"(?i)(\bbearer\s+)([^\s\"',;]+)")
_USER_INFO = re.compile(r"(?i)([a-z][a-z0-9+.-]*://[^:/@\s]*:)([^@/\s]+)@")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?")
_SHORTEST_SECRET = 4
_SHORTEST_KNOWN = 8
_MOST_KNOWN = 200
_known: dict[str, None] = {}


def make_known(secrets: Iterable[str]) -> None:
    """Have these values replaced wherever they stand, from now on, in the whole process.

    Shorter ones than eight characters are left to the patterns. Old ones stay known, as long as they are
    not many: a secret that was replaced may still turn up.
    """
    for secret in secrets:
        if len(secret) >= _SHORTEST_KNOWN:
            _known.pop(secret, None)
            _known[secret] = None
    while len(_known) > _MOST_KNOWN:
        del _known[next(iter(_known))]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with tokens, passwords, bearer values and JWTs replaced by `***`.

    `secrets` are values that must not appear wherever they stand, plain or URL-encoded; shorter
    ones than four characters are left to the patterns, because they would blank out ordinary words.
    """
    for secret in (*_known, *secrets):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
            encoded = quote(secret, safe="")
            if encoded != secret:
                text = text.replace(encoded, HIDDEN)
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _NAMED.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    return _JWT.sub(HIDDEN, text)
