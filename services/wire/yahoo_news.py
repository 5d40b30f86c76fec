"""Yahoo Finance's news, as its search answers them (`/v1/finance/search`). Pure.

An article has an id, a title, a publisher, a link, the second of its publication and the symbols it is about.
Source: yfinance 1.7.0, `Search.news`, and the answers it reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from services.errors import WireFormatError

SEARCH_PATH = "/v1/finance/search"
_LONGEST_HEADLINE = 500
_LONGEST_URL = 2_000
_MOST_SYMBOLS = 40


class Article(NamedTuple):
    """One article; `published_s` is UTC epoch s, `symbols` are Yahoo's."""

    id: str
    published_s: int
    title: str
    publisher: str
    url: str
    symbols: tuple[str, ...]


def news_query(words: str, count: int) -> dict[str, str]:
    """Return the parameters that ask for at most `count` articles about a symbol, or about words."""
    return {
        "q": words,
        "quotesCount": "0",
        "newsCount": str(count),
        "listsCount": "0",
        "enableFuzzyQuery": "false",
        "newsQueryId": "news_cie_vespa",
    }


def parse_news(body: bytes) -> list[Article]:
    """Return the articles of an answer, as ordered by Yahoo; what lacks an id, a title or a time is left out.

    Raises `WireFormatError` when the answer is no list of news.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise WireFormatError("not_json", str(error), body) from error
    news = found.get("news") if isinstance(found, dict) else None
    if not isinstance(news, list):
        raise WireFormatError("no_news", frame=body)
    return [article for item in news if (article := _article(item)) is not None]


def _article(item: Any) -> Article | None:
    if not isinstance(item, dict):
        return None
    name, published_s = item.get("uuid"), item.get("providerPublishTime")
    title = _line(item.get("title"), _LONGEST_HEADLINE)
    if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable() or " " in name:
        return None
    if isinstance(published_s, bool) or not isinstance(published_s, int) or published_s <= 0 or not title:
        return None
    related = item.get("relatedTickers")
    symbols = [
        symbol
        for symbol in (related if isinstance(related, list) else [])
        if isinstance(symbol, str) and 0 < len(symbol) <= 40 and symbol.isprintable() and " " not in symbol
    ]
    return Article(
        id=name,
        published_s=published_s,
        title=title,
        publisher=_line(item.get("publisher"), 100),
        url=_link(item.get("link")),
        symbols=tuple(dict.fromkeys(symbols[:_MOST_SYMBOLS])),
    )


def _line(text: Any, longest: int) -> str:
    """Return text as one line without control characters."""
    if not isinstance(text, str):
        return ""
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(clean.split())[:longest]


def _link(text: Any) -> str:
    """Return a link that a browser may be given; empty for anything else, such as `javascript:`."""
    if not isinstance(text, str) or len(text) > _LONGEST_URL or not text.isprintable() or " " in text:
        return ""
    return text if text.startswith(("https://", "http://")) else ""
