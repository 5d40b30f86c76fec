"""Stream entries of `md:ticks:EXCHANGE` as records."""

from __future__ import annotations

from collections.abc import Mapping

from marketd_client.records import Control, Tick

_COMMON = ("type", "k", "t", "src")


def record_of(exchange: str, position: str, fields: Mapping[str, str]) -> Tick | Control:
    """Return the tick or control record in one entry. Raises ValueError and KeyError for what is neither."""
    if fields["type"] == "tick":
        return Tick(
            fields["k"],
            float(fields["p"]),
            int(fields["t"]),
            _whole(fields, "v"),
            _number(fields, "b"),
            _number(fields, "a"),
            _whole(fields, "bs"),
            _whole(fields, "as"),
            _whole(fields, "cv"),
            _whole(fields, "oi"),
            _number(fields, "o"),
            _number(fields, "h"),
            _number(fields, "l"),
            _number(fields, "pc"),
            fields.get("src", ""),
            tuple(fields["f"].split(",")) if fields.get("f") else (),
            _whole(fields, "r"),
            position,
        )
    return Control(
        fields["type"],
        fields.get("k") or f"{exchange}:*",
        _whole(fields, "t"),
        fields.get("src", ""),
        {name: value for name, value in fields.items() if name not in _COMMON},
        position,
    )


def _whole(fields: Mapping[str, str], name: str) -> int | None:
    text = fields.get(name)
    return None if text is None else int(text)


def _number(fields: Mapping[str, str], name: str) -> float | None:
    text = fields.get(name)
    return None if text is None else float(text)
