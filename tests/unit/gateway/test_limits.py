"""Budgets are spent and earned back by the clock."""

from __future__ import annotations

import pytest

from services.gateway.limits import AddressCensus, ErrorBudget, TokenBucket, is_loopback


def test_the_bucket_allows_a_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(20.0, 100, 0.0)
    assert sum(bucket.take(0.0) for _ in range(150)) == 100
    assert sum(bucket.take(1.0) for _ in range(50)) == 20
    assert sum(bucket.take(1_000.0) for _ in range(150)) == 100


def test_the_fifth_error_in_a_minute_is_one_too_many() -> None:
    budget = ErrorBudget(5)
    assert [budget.spend(float(second)) for second in range(5)] == [True, True, True, True, False]


def test_errors_older_than_a_minute_are_forgiven() -> None:
    budget = ErrorBudget(5)
    assert all(budget.spend(15.0 * step) for step in range(100))


def test_an_address_has_so_many_places_and_this_machine_has_all() -> None:
    census = AddressCensus(2)
    assert census.enter("10.0.0.1")
    assert census.enter("10.0.0.1")
    assert not census.enter("10.0.0.1")
    assert census.enter("10.0.0.2")
    census.leave("10.0.0.1")
    assert census.enter("10.0.0.1")
    assert all(census.enter("127.0.0.1") for _ in range(10))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("localhost.evil.test", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_told_from_others(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
