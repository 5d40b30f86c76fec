"""Interest with its linger."""

from __future__ import annotations

from services.pipeline.interest import Interest, expand


def test_what_is_wanted_is_kept_and_lingers_after_the_last_interest() -> None:
    interest = Interest(linger_s=30)
    assert interest.update({"NSE:A", "NSE:B"}, 0) == {"NSE:A", "NSE:B"}
    assert interest.update({"NSE:A"}, 30) == {"NSE:A", "NSE:B"}
    assert interest.update({"NSE:A"}, 30.1) == {"NSE:A"}
    assert interest.update((), 61) == frozenset()


def test_a_client_that_comes_back_within_the_linger_changes_nothing() -> None:
    interest = Interest(linger_s=30)
    for now_s in range(0, 200, 20):
        assert interest.update({"NSE:A"} if now_s % 40 == 0 else (), now_s) == {"NSE:A"}


def test_wildcards_name_the_known_instruments_of_an_exchange_and_strangers_nothing() -> None:
    known = {"NSE:A", "NSE:B", "NSEX:C", "BSE:A"}
    assert expand(["NSE:*"], known) == {"NSE:A", "NSE:B"}
    assert expand(["BSE:A", "BSE:NOPE", "*"], known) == {"BSE:A"}
