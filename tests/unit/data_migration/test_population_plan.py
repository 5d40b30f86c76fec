"""From sources to a plan: who is mapped to whom, what changes, what is kept, what is in conflict."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from data_migration.changes import Kind
from data_migration.population_plan import Plan, StoredInstrument, StoredMapping, make_plan
from data_migration.resolution import WantedInstrument, WantedMapping, listed_contracts, resolve
from data_migration.sources.contract_symbols import Contract, contract_symbol, parse_contract_symbol
from data_migration.sources.dhan_scrip_master import ScripMaster
from data_migration.sources.instrument_list import ListedInstrument, read_instrument_list
from services.market_data.instruments import EXCHANGE_CODES

TODAY = date(2026, 11, 21)
HEADER = (
    "SEM_EXM_EXCH_ID,SEM_SEGMENT,SEM_SMST_SECURITY_ID,SEM_INSTRUMENT_NAME,SEM_EXPIRY_CODE,SEM_TRADING_SYMBOL,"
    "SEM_LOT_UNITS,SEM_CUSTOM_SYMBOL,SEM_EXPIRY_DATE,SEM_STRIKE_PRICE,SEM_OPTION_TYPE,SEM_TICK_SIZE,"
    "SEM_EXPIRY_FLAG,SEM_EXCH_INSTRUMENT_TYPE,SEM_SERIES,SM_SYMBOL_NAME"
)
MASTER = ScripMaster.read(
    f"{row}\n"
    for row in (
        HEADER,
        "NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance,,,,10.0000,NA,ES,EQ,RELIANCE",
        "NSE,E,16669,EQUITY,0,BAJAJ-AUTO,1.0,Bajaj Auto,,,,50.0000,NA,ES,EQ,BAJAJ AUTO",
        "NSE,I,13,INDEX,0,NIFTY,1.0,Nifty 50,,,XX,0.0500,,INDEX,X,NIFTY",
        "NSE,D,7,FUTIDX,0,NIFTY-Dec2026-FUT,65.0,NIFTY DEC FUT,2026-12-29,-0.01,XX,10.0,M,FUT,,",
    )
)


def listed(*rows: str) -> list[ListedInstrument]:
    header = "exchange,symbol,name,asset_class,currency,tick_size,yahoo_symbol,dhan_search_code"
    instruments, problems = read_instrument_list([f"{row}\n" for row in (header, *rows)], EXCHANGE_CODES)
    assert problems == []
    return instruments


RELIANCE = "NSE,RELIANCE,Reliance Industries,equity,INR,,,"


def test_an_indian_share_is_mapped_to_both_and_takes_its_tick_from_the_master() -> None:
    resolution = resolve(listed(RELIANCE), MASTER)
    (instrument,) = resolution.instruments
    assert instrument.mappings == (
        WantedMapping("DHAN", "RELIANCE-EQ", "NSE_EQ", "2885"),
        WantedMapping("YF", "RELIANCE.NS"),
    )
    assert (instrument.tick_size, instrument.lot_size) == (Decimal("0.1"), 1)


def test_what_the_list_says_wins_over_what_is_made() -> None:
    (instrument,) = resolve(
        listed("NSE,BAJA,Bajaj,equity,INR,0.01,BJAUT.NS,BAJAJ-AUTO-EQ"), MASTER
    ).instruments
    assert instrument.tick_size == Decimal("0.01")
    assert instrument.mappings == (
        WantedMapping("DHAN", "BAJAJ-AUTO-EQ", "NSE_EQ", "16669"),
        WantedMapping("YF", "BJAUT.NS"),
    )


def test_an_instrument_dhan_does_not_have_is_told_and_still_mapped_to_yahoo() -> None:
    resolution = resolve(listed("NSE,NOPE,Nope,equity,INR,,,", "NASDAQ,AAPL,Apple,equity,USD,0.01,,"), MASTER)
    assert resolution.not_at_dhan == ["NSE:NOPE"]
    assert [row.mappings for row in resolution.instruments] == [
        (WantedMapping("YF", "NOPE.NS"),),
        (WantedMapping("YF", "AAPL"),),
    ]


def test_without_a_master_nothing_is_mapped_to_dhan_and_nothing_is_missing_there() -> None:
    resolution = resolve(listed(RELIANCE), None)
    assert resolution.not_at_dhan == []
    assert [mapping.provider for mapping in resolution.instruments[0].mappings] == ["YF"]


def test_an_instrument_nobody_serves_is_told() -> None:
    rows = listed("NFO,NIFTY-2026-12-31-25000-CE,Call,option,INR,,,")
    resolution = resolve(rows, MASTER)
    assert resolution.without_provider == ["NFO:NIFTY-2026-12-31-25000-CE"]


def test_two_rows_that_mean_one_thing_to_a_provider_are_a_problem_of_the_second() -> None:
    rows = listed(
        RELIANCE,
        "NSE,RIL,Reliance,equity,INR,,RIL.NS,RELIANCE-EQ",
        "INDEX,NSEI,Nifty,index,INR,,,",
        "NSE,NIFTY,Nifty,index,INR,,,",
    )
    problems = resolve(rows, MASTER).problems
    assert [(problem.line, problem.text.partition(":")[0]) for problem in problems] == [
        (3, "NSE"),
        (5, "NSE"),
    ]
    assert "RELIANCE-EQ of DHAN is that of NSE:RELIANCE in line 2" in problems[0].text
    assert "^NSEI of YF is that of INDEX:NSEI in line 4" in problems[1].text


def test_asked_for_contracts_are_added_once_and_unknown_underlyings_are_named() -> None:
    rows, missing = listed_contracts(MASTER, ["NIFTY", "FOO"], 2, TODAY, set())
    assert [row.key for row in rows] == ["NFO:NIFTY-2026-12-29-FUT"]
    assert missing == ["FOO"]
    assert listed_contracts(MASTER, ["NIFTY"], 2, TODAY, {"NFO:NIFTY-2026-12-29-FUT"}) == ([], [])


def wanted(key: str, *mappings: WantedMapping, **more: object) -> WantedInstrument:
    exchange, _, symbol = key.partition(":")
    fields: dict[str, object] = {"name": symbol, "asset_class": "equity", "currency": "INR", **more}
    return WantedInstrument(exchange=exchange, symbol=symbol, mappings=mappings, **fields)  # type: ignore[arg-type]


def stored(number: int, key: str, **more: object) -> StoredInstrument:
    fields: dict[str, object] = {
        "name": key.partition(":")[2],
        "asset_class": "equity",
        "currency": "INR",
        **dict.fromkeys(("tick_size", "lot_size", "underlying", "expiry", "strike", "option_type", "isin")),
        **more,
    }
    return StoredInstrument(id=number, key=key, **fields)  # type: ignore[arg-type]


def mapped(
    number: int, key: str, provider: str, code: str, security_id: str | None = None, **more: object
) -> StoredMapping:
    fields: dict[str, object] = {"is_active": True, "expiry": None, **more}
    segment = "NSE_EQ" if security_id else None
    return StoredMapping(
        id=number,
        key=key,
        provider=provider,
        search_code=code,
        segment=segment,
        security_id=security_id,
        **fields,  # type: ignore[arg-type]
    )


def dhan(code: str, security_id: str) -> WantedMapping:
    return WantedMapping("DHAN", code, "NSE_EQ", security_id)


def kinds(plan: Plan) -> list[tuple[str, str]]:
    return [(change.kind.value, change.key) for change in plan.changes if change.kind is not Kind.UNCHANGED]


def test_what_is_stored_already_needs_nothing() -> None:
    plan = make_plan(
        [wanted("NSE:A", dhan("A-EQ", "1"))],
        [stored(1, "NSE:A")],
        [mapped(5, "NSE:A", "DHAN", "A-EQ", "1")],
        TODAY,
    )
    assert kinds(plan) == []
    assert (plan.new_instruments, plan.instrument_updates, plan.mapping_updates) == ([], [], [])


def test_a_blank_leaves_what_is_stored_and_a_value_replaces_it() -> None:
    plan = make_plan(
        [wanted("NSE:A", name="New name", lot_size=5)],
        [stored(1, "NSE:A", tick_size=Decimal("0.05"), lot_size=1)],
        [],
        TODAY,
    )
    (update,) = plan.instrument_updates
    assert (update.values["tick_size"], update.values["lot_size"]) == (Decimal("0.05"), 5)
    assert [change.note for change in plan.changes] == ["name A → New name, lot_size 1 → 5"]


def test_another_asset_class_takes_its_own_terms_and_no_old_ones() -> None:
    plan = make_plan(
        [wanted("NSE:A")],
        [stored(1, "NSE:A", asset_class="future", expiry=date(2026, 12, 31), underlying="NSE:X")],
        [],
        TODAY,
    )
    assert plan.instrument_updates[0].values["expiry"] is None


def test_a_changed_id_is_updated_in_place_and_shown_old_to_new() -> None:
    plan = make_plan(
        [wanted("NSE:A", dhan("A-EQ", "2"))],
        [stored(1, "NSE:A")],
        [mapped(5, "NSE:A", "DHAN", "A-EQ", "1")],
        TODAY,
    )
    assert [(update.id, update.is_active) for update in plan.mapping_updates] == [(5, True)]
    assert plan.changes[-1].note == "security id 1 → 2"


def test_ids_that_change_places_are_no_conflict() -> None:
    plan = make_plan(
        [wanted("NSE:A", dhan("A-EQ", "2")), wanted("NSE:B", dhan("B-EQ", "1"))],
        [stored(1, "NSE:A"), stored(2, "NSE:B")],
        [mapped(5, "NSE:A", "DHAN", "A-EQ", "1"), mapped(6, "NSE:B", "DHAN", "B-EQ", "2")],
        TODAY,
    )
    assert (plan.retired, plan.conflicts, len(plan.mapping_updates)) == ([], [], 2)


def test_an_id_that_dhan_gave_to_another_instrument_is_taken_from_the_old_one() -> None:
    plan = make_plan(
        [wanted("NSE:ETERNAL", dhan("ETERNAL-EQ", "5097"))],
        [stored(1, "NSE:ZOMATO")],
        [mapped(5, "NSE:ZOMATO", "DHAN", "ZOMATO-EQ", "5097")],
        TODAY,
    )
    assert plan.retired == [5]
    assert ("-", "NSE:ZOMATO at DHAN") in kinds(plan)
    assert plan.conflicts == []


def test_an_instrument_that_is_still_listed_and_lost_its_id_to_another_is_retired_too() -> None:
    plan = make_plan(
        [wanted("NSE:A"), wanted("NSE:B", dhan("B-EQ", "1"))],
        [stored(1, "NSE:A"), stored(2, "NSE:B")],
        [mapped(5, "NSE:A", "DHAN", "A-EQ", "1")],
        TODAY,
    )
    assert plan.retired == [5]


def test_what_an_operator_dated_or_whose_instrument_is_off_is_left_alone() -> None:
    plan = make_plan(
        [
            wanted("NSE:A", dhan("A-EQ", "2")),
            wanted("NSE:B", dhan("B-EQ", "3")),
            wanted("NSE:C", dhan("C-EQ", "4")),
        ],
        [stored(1, "NSE:A"), stored(2, "NSE:B", is_active=False), stored(3, "NSE:C", is_active=False)],
        [
            mapped(1, "NSE:A", "DHAN", "A-EQ", "1", is_dated=True),
            mapped(2, "NSE:B", "DHAN", "B-EQ", "9"),
        ],
        TODAY,
    )
    assert (plan.mapping_updates, plan.new_mappings, plan.retired) == ([], [], [])
    assert [change.note for change in plan.changes if change.kind is Kind.KEPT] == [
        "it has dates",
        "the instrument is not active",
        "the instrument is not active",
    ]


def test_a_yahoo_symbol_somebody_else_has_is_a_conflict() -> None:
    plan = make_plan(
        [wanted("NSE:NIFTY", WantedMapping("YF", "^NSEI"))],
        [stored(1, "NSE:MYNIFTY")],
        [mapped(5, "NSE:MYNIFTY", "YF", "^NSEI")],
        TODAY,
    )
    assert len(plan.conflicts) == 1
    assert "^NSEI of YF is mapped to NSE:MYNIFTY" in plan.conflicts[0]
    assert plan.retired == []


def test_a_name_held_by_an_expired_contract_is_free() -> None:
    plan = make_plan(
        [wanted("NSE:B", WantedMapping("YF", "B"))],
        [],
        [mapped(5, "NFO:A-2026-11-20-FUT", "YF", "B", expiry=date(2026, 11, 20))],
        TODAY,
    )
    assert (plan.retired, plan.conflicts) == ([5], [])


def test_what_an_operator_switched_off_is_kept_up_to_date_and_stays_off() -> None:
    plan = make_plan(
        [wanted("NSE:A", dhan("A-EQ", "2"))],
        [stored(1, "NSE:A")],
        [mapped(5, "NSE:A", "DHAN", "A-EQ", "1", is_active=False)],
        TODAY,
    )
    assert [(update.id, update.is_active) for update in plan.mapping_updates] == [(5, False)]
    assert ("!", "NSE:A at DHAN") in kinds(plan)
    assert plan.new_mappings == []


def test_of_several_rows_of_one_instrument_the_active_one_counts() -> None:
    plan = make_plan(
        [wanted("NSE:A", dhan("A-EQ", "1"))],
        [stored(1, "NSE:A")],
        [
            mapped(5, "NSE:A", "DHAN", "A-EQ", "1"),
            mapped(6, "NSE:A", "DHAN", "A-EQ", "9", is_active=False),
        ],
        TODAY,
    )
    assert plan.mapping_updates == []


def test_contract_symbols_are_written_and_read_alike() -> None:
    for contract, symbol in (
        (Contract("NIFTY", date(2026, 12, 31)), "NIFTY-2026-12-31-FUT"),
        (Contract("M&M", date(2026, 12, 31), Decimal("84.50"), "PE"), "M&M-2026-12-31-84.5-PE"),
        (
            Contract("BAJAJ-AUTO", date(2026, 12, 31), Decimal("2.5E+4"), "CE"),
            "BAJAJ-AUTO-2026-12-31-25000-CE",
        ),
    ):
        assert contract_symbol(contract) == symbol
        assert parse_contract_symbol(symbol) == contract
    for other in ("NIFTY", "NIFTY-2026-12-31", "NIFTY-2026-13-31-FUT", "BTC-USD", "BAJAJ-AUTO"):
        assert parse_contract_symbol(other) is None
