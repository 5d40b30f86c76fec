"""Reads the parameters of a request, and refuses those that are none. Pure."""

from __future__ import annotations

from aiohttp import web

from services.gateway.errors import HttpError


def known_parameters(request: web.Request, *names: str) -> None:
    """Refuse a request with a parameter that is not among `names`: a slip must not go unnoticed."""
    for name in request.query:
        if name not in names:
            allowed = f"; there are {', '.join(names)}" if names else ""
            raise HttpError(400, "unknown_parameter", f"{name[:40]!r} is no parameter here{allowed}")


def whole_number(request: web.Request, name: str, default: int, smallest: int, largest: int) -> int:
    """Return a whole number within bounds, `default` where it is not given."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and smallest <= int(text) <= largest):
        raise HttpError(400, "bad_parameter", f"{name} must be a whole number from {smallest} to {largest}")
    return int(text)
