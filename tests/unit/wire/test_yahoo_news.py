"""Yahoo's news: what is read of an article, what is left out, and links that no browser should be given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.errors import WireFormatError
from services.wire.yahoo_news import Article, news_query, parse_news


def body(*articles: Any) -> bytes:
    return json.dumps({"count": 1, "quotes": [], "news": list(articles)}).encode()


def article(**more: Any) -> dict[str, Any]:
    return {
        "uuid": "d7a1",
        "title": "Apple opens a shop",
        "publisher": "Reuters",
        "link": "https://finance.yahoo.com/news/apple.html",
        "providerPublishTime": 1_796_000_000,
        "type": "STORY",
        "thumbnail": {"resolutions": []},
        "relatedTickers": ["AAPL", "MSFT", "AAPL"],
    } | more


def test_an_article_is_read_whole() -> None:
    assert parse_news(body(article())) == [
        Article(
            id="d7a1",
            published_s=1_796_000_000,
            title="Apple opens a shop",
            publisher="Reuters",
            url="https://finance.yahoo.com/news/apple.html",
            symbols=("AAPL", "MSFT"),
        )
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": None},
        {"uuid": ""},
        {"uuid": "two words"},
        {"uuid": "x" * 101},
        {"title": "\x00 \n"},
        {"title": 7},
        {"providerPublishTime": "soon"},
        {"providerPublishTime": True},
        {"providerPublishTime": 0},
    ],
)
def test_what_lacks_an_id_a_title_or_a_time_is_left_out_and_the_others_stay(change: dict[str, Any]) -> None:
    found = parse_news(body(article(**change), 7, None, article(uuid="second")))
    assert [it.id for it in found] == ["second"]


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "ftp://x", "https://a b", "http://x\n", 7, None, "https://" + "x" * 2_001]
)
def test_a_link_that_is_none_is_not_passed_on(link: Any) -> None:
    (found,) = parse_news(body(article(link=link)))
    assert found.url == ""


def test_text_is_one_line_and_bounded_and_odd_symbols_are_dropped() -> None:
    (found,) = parse_news(
        body(article(title="a\tb\x1b[31m\n c" + "d" * 900, relatedTickers=["A B", "", 3, "RELIANCE.NS"]))
    )
    assert found.title.startswith("a b [31m cddd")
    assert len(found.title) == 500
    assert found.symbols == ("RELIANCE.NS",)
    (found,) = parse_news(body(article(publisher=None, relatedTickers=None)))
    assert (found.publisher, found.symbols) == ("", ())


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b'{"news":{}}', b'{"news":null}', b"\xff"])
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(WireFormatError):
        parse_news(raw)


def test_the_query_asks_for_news_alone() -> None:
    query = news_query("RELIANCE.NS", 20)
    assert (query["q"], query["newsCount"], query["quotesCount"]) == ("RELIANCE.NS", "20", "0")
