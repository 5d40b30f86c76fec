"""Records beside ticks and bars: what happens to an instrument and is no trade. Event times in microseconds.

Each knows how it looks as an entry of its Redis stream (flat text fields) and reads itself back from one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class NewsUpdate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One article that a provider tells of.

    `id` is `CODE:the vendor's id`, the same at every mention. `timestamp` is when it was published, UTC epoch
    **microseconds**; `received_ms` when we heard of it, UTC epoch ms. `instruments` are the instrument keys
    it is about, `symbols` the vendor's symbols that are mapped to none. `url` is empty where there is none.
    """

    id: str
    timestamp: int
    received_ms: int
    provider_code: str
    headline: str
    publisher: str = ""
    url: str = ""
    instruments: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()

    def entry(self) -> dict[str, str]:
        """Return the fields of its stream entry; times there are ms, as in every stream."""
        fields = {
            "type": "news",
            "id": self.id,
            "t": str(self.timestamp // 1000),
            "r": str(self.received_ms),
            "src": self.provider_code,
            "h": self.headline,
            "pub": self.publisher,
            "url": self.url,
            "k": " ".join(self.instruments),
            "sym": " ".join(self.symbols),
        }
        return {name: value for name, value in fields.items() if value}


def news_of_entry(fields: Mapping[str, str]) -> NewsUpdate | None:
    """Return the article of a stream entry; None for an entry that is none."""
    try:
        return NewsUpdate(
            id=fields["id"],
            timestamp=int(fields["t"]) * 1000,
            received_ms=int(fields["r"]),
            provider_code=fields["src"],
            headline=fields["h"],
            publisher=fields.get("pub", ""),
            url=fields.get("url", ""),
            instruments=tuple(fields.get("k", "").split()),
            symbols=tuple(fields.get("sym", "").split()),
        )
    except (KeyError, ValueError):
        return None
