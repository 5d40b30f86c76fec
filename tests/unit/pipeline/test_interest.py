"""Interest: claims, linger, and what fits into the providers' limits."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.pipeline.interest import Claim, Interest, allot, expand, strongest


def watched(*instruments: str) -> dict[str, Claim]:
    return dict.fromkeys(instruments, Claim.WATCHED)


def test_what_is_wanted_is_kept_and_lingers_after_the_last_interest() -> None:
    interest = Interest(linger_s=30)
    assert set(interest.update(watched("NSE:A", "NSE:B"), 0)) == {"NSE:A", "NSE:B"}
    assert interest.update(watched("NSE:A"), 30) == {"NSE:A": Claim.WATCHED, "NSE:B": Claim.LINGERING}
    assert set(interest.update(watched("NSE:A"), 30.1)) == {"NSE:A"}
    assert interest.update({}, 61) == {}


def test_a_client_that_comes_back_within_the_linger_changes_nothing() -> None:
    interest = Interest(linger_s=30)
    for now_s in range(0, 200, 20):
        assert set(interest.update(watched("NSE:A") if now_s % 40 == 0 else {}, now_s)) == {"NSE:A"}


def test_stronger_claims_come_first_and_older_ones_among_equals() -> None:
    interest = Interest(linger_s=30)
    interest.update(watched("NSE:OLD"), 0)
    interest.update(watched("NSE:GONE") | watched("NSE:OLD"), 1)
    claims = strongest(
        (Claim.LEASED, ["NSE:LEASED", "NSE:NEW"]),
        (Claim.WATCHED, ["NSE:NEW", "NSE:OLD"]),
        (Claim.PINNED, ["NSE:P"]),
    )
    assert list(interest.update(claims, 2).items()) == [
        ("NSE:P", Claim.PINNED),
        ("NSE:OLD", Claim.WATCHED),
        ("NSE:NEW", Claim.WATCHED),
        ("NSE:LEASED", Claim.LEASED),
        ("NSE:GONE", Claim.LINGERING),
    ]


def test_what_finds_no_room_is_named_with_the_provider_that_is_full() -> None:
    homes = {"NSE:A": ["DHAN"], "NSE:B": ["DHAN", "YF"], "NSE:C": ["DHAN"], "NASDAQ:D": ["YF"], "X:E": []}
    allotment = allot(homes, places=homes.__getitem__, room={"DHAN": 2})
    assert allotment.admitted == {"NSE:A", "NSE:B", "NASDAQ:D", "X:E"}
    assert allotment.shed == {"NSE:C": "DHAN"}


def test_what_is_shed_takes_no_room_elsewhere() -> None:
    homes = {"NSE:A": ["DHAN"], "NSE:B": ["DHAN", "YF"], "NASDAQ:C": ["YF"]}
    allotment = allot(homes, places=homes.__getitem__, room={"DHAN": 1, "YF": 1})
    assert allotment.admitted == {"NSE:A", "NASDAQ:C"}


@settings(deadline=None)
@given(
    homes=st.dictionaries(st.integers(0, 60), st.sets(st.sampled_from("PQR")), max_size=50),
    room=st.dictionaries(st.sampled_from("PQR"), st.integers(0, 20)),
)
def test_no_provider_is_given_more_than_it_holds_and_nothing_is_forgotten(
    homes: dict[int, set[str]], room: dict[str, int]
) -> None:
    by_key = {f"X:{number}": sorted(codes) for number, codes in homes.items()}
    allotment = allot(by_key, places=by_key.__getitem__, room=room)
    assert allotment.admitted.isdisjoint(allotment.shed)
    assert allotment.admitted | allotment.shed.keys() == by_key.keys()
    for code, limit in room.items():
        assert sum(code in by_key[key] for key in allotment.admitted) <= limit
    for key, code in allotment.shed.items():
        assert code in by_key[key]


def test_ten_thousand_changes_leave_nothing_behind() -> None:
    chance = random.Random(7)
    interest = Interest(linger_s=30)
    leased: dict[str, Claim] = {}
    for step in range(10_000):
        leased[f"NSE:S{chance.randrange(500)}"] = Claim.LEASED
        if len(leased) > 50:
            leased.pop(chance.choice(list(leased)))
        kept = interest.update(leased, step * 0.001)
        assert leased.keys() <= kept.keys()
    assert interest.update(leased, 10.0 + 30.1).keys() == leased.keys()
    assert interest.update({}, 10.0 + 60.3) == {}


def test_wildcards_name_the_known_instruments_of_an_exchange_and_strangers_nothing() -> None:
    known = {"NSE:A", "NSE:B", "NSEX:C", "BSE:A"}
    assert expand(["NSE:*"], known) == {"NSE:A", "NSE:B"}
    assert expand(["BSE:A", "BSE:NOPE", "*"], known) == {"BSE:A"}
