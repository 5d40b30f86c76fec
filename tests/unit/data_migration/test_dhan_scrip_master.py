"""Dhan's instrument master in both forms: rows as published, odd ones, and any text at all."""
# ruff: noqa: E501 - rows stand here as they are published

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_migration.sources.dhan_scrip_master import ScripMaster, has_known_header, split_search_code
from data_migration.sources.dhan_scrip_rows import ScripRow
from services.errors import ConfigurationError
from tests.support.daemon import ROOT

COMPACT = (
    "SEM_EXM_EXCH_ID,SEM_SEGMENT,SEM_SMST_SECURITY_ID,SEM_INSTRUMENT_NAME,SEM_EXPIRY_CODE,SEM_TRADING_SYMBOL,"
    "SEM_LOT_UNITS,SEM_CUSTOM_SYMBOL,SEM_EXPIRY_DATE,SEM_STRIKE_PRICE,SEM_OPTION_TYPE,SEM_TICK_SIZE,"
    "SEM_EXPIRY_FLAG,SEM_EXCH_INSTRUMENT_TYPE,SEM_SERIES,SM_SYMBOL_NAME"
)
DETAILED = (
    "EXCH_ID,SEGMENT,SECURITY_ID,ISIN,INSTRUMENT,UNDERLYING_SECURITY_ID,UNDERLYING_SYMBOL,SYMBOL_NAME,"
    "DISPLAY_NAME,INSTRUMENT_TYPE,SERIES,LOT_SIZE,SM_EXPIRY_DATE,STRIKE_PRICE,OPTION_TYPE,TICK_SIZE,EXPIRY_FLAG"
)
RELIANCE = "NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance Industries,,,,10.0000,NA,ES,EQ,RELIANCE INDUSTRIES LTD"


def compact(*rows: str) -> ScripMaster:
    return ScripMaster.read(f"{row}\n" for row in (COMPACT, *rows))


def detailed(*rows: str, header: str = DETAILED) -> ScripMaster:
    return ScripMaster.read(f"{row}\n" for row in (header, *rows))


def found(master: ScripMaster, key: str, asset_class: str = "equity") -> ScripRow:
    exchange, _, symbol = key.partition(":")
    row = master.find(exchange, symbol, asset_class)
    assert row is not None, master.report
    return row


def test_a_share_of_the_compact_form_has_its_segment_id_code_and_tick_in_rupees() -> None:
    row = found(compact(RELIANCE), "NSE:RELIANCE")
    assert (row.segment, row.security_id, row.search_code) == ("NSE_EQ", "2885", "RELIANCE-EQ")
    assert (row.tick_size, row.lot_size, row.name) == (Decimal("0.1"), 1, "Reliance Industries")


def test_a_share_of_the_detailed_form_takes_its_symbol_from_the_underlying_and_has_an_isin() -> None:
    master = detailed(
        "NSE,E,2885,INE002A01018,EQUITY,,RELIANCE,RELIANCE INDUSTRIES LTD,Reliance Industries,ES,EQ,1.0,,,,10.0000,NA",
        'NSE,E,11483,INE018A01030,EQUITY,,LT,"LARSEN & TOUBRO, ""L&T""",Larsen & Toubro,ES,EQ,1.0,,,,10.0000,NA',
    )
    assert found(master, "NSE:RELIANCE").isin == "INE002A01018"
    assert found(master, "NSE:RELIANCE").search_code == "RELIANCE-EQ"
    assert found(master, "NSE:LT").security_id == "11483"


def test_a_trailing_comma_and_newer_columns_in_the_header_do_no_harm() -> None:
    row = "NSE,D,68407,NA,FUTIDX,26000,NIFTY,NIFTY-Sep2026-FUT,NIFTY SEP FUT,FUT,NA,65.0,2026-09-29,-0.01000,XX,10.0000,M,1756,"
    master = detailed(row, header=f"\ufeff{DETAILED},SM_FREEZE_QTY,")
    assert found(master, "NFO:NIFTY-2026-09-29-FUT", "future").lot_size == 65
    assert not master.report.odd


@pytest.mark.parametrize(
    ("row", "key", "asset_class", "expected"),
    [
        (
            "NSE,D,44430,OPTIDX,0,NIFTY-Oct2024-25800-CE,25.0,NIFTY 24 OCT 25800 CALL,2024-10-24 14:30:00,25800.00000,CE,5.0000,W,OP,,",
            "NFO:NIFTY-2024-10-24-25800-CE",
            "option",
            ("NSE_FNO", "NSE:NIFTY", date(2024, 10, 24), Decimal(25800), "CE", Decimal("0.05")),
        ),
        (
            "NSE,D,52101,FUTIDX,0,NIFTY-Dec2026-FUT,65.0,NIFTY DEC FUT,2026-12-29 14:30:00,-0.01000,XX,10.0000,M,FUT,,",
            "NFO:NIFTY-2026-12-29-FUT",
            "future",
            ("NSE_FNO", "NSE:NIFTY", date(2026, 12, 29), None, None, Decimal("0.1")),
        ),
        (
            "NSE,D,52230,OPTSTK,0,BAJAJ-AUTO-Dec2026-9000-PE,75.0,BAJAJ-AUTO 29 DEC 9000 PUT,2026-12-29 14:30:00,9000.00000,PE,5.0000,M,OP,,",
            "NFO:BAJAJ-AUTO-2026-12-29-9000-PE",
            "option",
            ("NSE_FNO", "NSE:BAJAJ-AUTO", date(2026, 12, 29), Decimal(9000), "PE", Decimal("0.05")),
        ),
        (
            "BSE,D,842360,OPTIDX,0,SENSEX-Dec2026-84000-CE,20.0,SENSEX 31 DEC 84000 CALL,2026-12-31 14:30:00,84000.00000,CE,5.0000,M,IO,,",
            "BFO:SENSEX-2026-12-31-84000-CE",
            "option",
            ("BSE_FNO", "BSE:SENSEX", date(2026, 12, 31), Decimal(84000), "CE", Decimal("0.05")),
        ),
        (
            "MCX,M,569900,FUTCOM,0,CRUDEOIL-19Oct2026-FUT,1.0,CRUDEOIL OCT FUT,2026-10-19 23:30:00,0.00000,XX,100.0000,M,FUTCOM,2,CRUDEOIL",
            "MCX:CRUDEOIL-2026-10-19-FUT",
            "future",
            ("MCX_COMM", "MCX:CRUDEOIL", date(2026, 10, 19), None, None, Decimal(1)),
        ),
        (
            "MCX,M,458410,FUTCOM,0,NATURALGAS-Dec2026-FUT,1.0,NATURALGAS DEC FUT,2026-12-28,-0.01000,XX,10.0000,M,FUTCOM,,",
            "MCX:NATURALGAS-2026-12-28-FUT",
            "future",
            ("MCX_COMM", "MCX:NATURALGAS", date(2026, 12, 28), None, None, Decimal("0.1")),
        ),
        (
            "NSE,C,2885,OPTCUR,0,USDINR-Dec2026-84.25-CE,1.0,USDINR 29 DEC 84.25 CALL,2026-12-29 12:30:00,84.25000,CE,0.2500,M,OPTCUR,,",
            "CDS:USDINR-2026-12-29-84.25-CE",
            "option",
            ("NSE_CURRENCY", "FX:USDINR", date(2026, 12, 29), Decimal("84.25"), "CE", Decimal("0.0025")),
        ),
    ],
)
def test_a_contract_has_our_key_and_its_terms(
    row: str, key: str, asset_class: str, expected: tuple[object, ...]
) -> None:
    contract = found(compact(row), key, asset_class)
    assert expected == (
        contract.segment,
        contract.underlying,
        contract.expiry,
        contract.strike,
        contract.option_type,
        contract.tick_size,
    )
    assert contract.search_code == key.partition(":")[2]


def test_the_underlying_of_an_index_option_goes_by_symbol_not_by_the_id_in_the_file() -> None:
    master = detailed(
        "NSE,I,13,NA,INDEX,,NIFTY,NIFTY,Nifty 50,INDEX,X,1.0,0001-01-01,,XX,0.0500,NA",
        "NSE,D,42501,NA,OPTIDX,26000,NIFTY,NIFTY-Dec2026-25000-CE,NIFTY 29 DEC 25000 CALL,OP,,65.0,"
        "2026-12-29 14:30:00,25000.00000,CE,5.0000,M",
    )
    option = found(master, "NFO:NIFTY-2026-12-29-25000-CE", "option")
    assert option.underlying == "NSE:NIFTY"
    assert found(master, option.underlying, "index").security_id == "13"


@pytest.mark.parametrize(
    "row",
    [
        "NSE,I,13,INDEX,0,NIFTY,1.0,Nifty 50,0001-01-01,,XX,0.0500,,INDEX,X,NIFTY",
        "NSE,I,13,INDEX,0,NIFTY,1.0,Nifty 50,,7.00000,,1.0000,NA,INDEX,X,NIFTY",
    ],
)
def test_tick_lot_strike_and_date_of_an_index_are_not_believed(row: str) -> None:
    index = found(compact(row), "NSE:NIFTY", "index")
    assert (index.segment, index.search_code) == ("IDX_I", "NIFTY")
    assert (index.tick_size, index.lot_size, index.strike, index.expiry) == (None, None, None, None)


def test_an_index_with_a_blank_in_its_name_is_found_without_it() -> None:
    row = found(
        compact("NSE,I,21,INDEX,0,INDIA VIX,1.0,India VIX,,,XX,0.05,,INDEX,X,"), "NSE:INDIAVIX", "index"
    )
    assert row.search_code == "INDIA VIX"


def test_one_id_in_two_segments_is_two_instruments() -> None:
    master = compact(
        RELIANCE,
        "NSE,C,2885,FUTCUR,0,USDINR-Dec2026-FUT,1.0,USDINR DEC FUT,2026-12-29 12:30:00,-0.01000,XX,0.2500,M,FUTCUR,,",
    )
    assert found(master, "NSE:RELIANCE").security_id == "2885"
    assert found(master, "CDS:USDINR-2026-12-29-FUT", "future").security_id == "2885"
    assert not master.report.odd


def test_bonds_under_a_shares_symbol_are_left_out() -> None:
    master = compact(
        "NSE,E,9,EQUITY,0,CHOLAFIN,1.0,Chola 7.5% NCD,,,,5.0000,NA,ES,D1,CIFCL-7.5%-30092026-NCD",
        "NSE,E,685,EQUITY,0,CHOLAFIN,1.0,Cholamandalam,,,,5.0000,NA,ES,EQ,CHOLAMANDALAM",
        "NSE,E,8,EQUITY,0,GS2030,1.0,GOI 2030,,,,5.0000,NA,DBT,GS,GOI",
    )
    assert found(master, "NSE:CHOLAFIN").security_id == "685"
    assert master.report.left_out == {"NSE series other than shares and ETFs": 2}


def test_a_share_in_two_series_is_found_under_the_main_one_wherever_it_stands() -> None:
    rows = [
        "NSE,E,500,EQUITY,0,DUPL,1.0,Duplicate BE,,,,5.0000,NA,ES,BE,DUPLICATE",
        "NSE,E,499,EQUITY,0,DUPL,1.0,Duplicate EQ,,,,5.0000,NA,ES,EQ,DUPLICATE",
    ]
    for order in (rows, rows[::-1]):
        master = compact(*order)
        assert found(master, "NSE:DUPL").security_id == "499"
        other = master.find_by_search_code("NSE", "DUPL-BE")
        assert other is not None
        assert other.security_id == "500"


def test_etfs_sme_shares_and_bse_groups_are_taken() -> None:
    master = compact(
        "NSE,E,10576,EQUITY,0,NIFTYBEES,1.0,NiftyBeES,,,,1.0000,NA,ETF,EQ,NIFTYBEES",
        "NSE,E,31181,EQUITY,0,SMEDEMO,1600.0,SME Demo,,,,5.0000,NA,ES,SM,SME DEMO",
        "BSE,E,500325,EQUITY,0,RELIANCE,1.0,Reliance,,,,5.0000,NA,ES,A,RELIANCE",
    )
    assert found(master, "NSE:NIFTYBEES", "etf").asset_class == "etf"
    assert found(master, "NSE:SMEDEMO").lot_size == 1600
    assert found(master, "BSE:RELIANCE").search_code == "RELIANCE-A"


def test_segments_without_a_feed_or_a_code_of_ours_are_left_out_and_counted() -> None:
    master = compact(
        "NSE,M,2044,FUTCOM,0,GOLD1G-Dec2026-FUT,1.0,GOLD1G DEC FUT,2026-12-31 23:30:00,-0.01,XX,100.0,M,FUTCOM,,",
        "BSE,C,1150,FUTCUR,0,USDINR-Dec2026-FUT,1.0,USDINR DEC FUT,2026-12-29 12:30:00,-0.01,XX,0.25,M,FUTCUR,,",
    )
    assert len(master) == 0
    assert sum(master.report.left_out.values()) == 2
    assert not master.report.odd


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("XXX,Z,1,EQUITY,0,BOGUS,1.0,x,,0,,5,NA,ES,EQ,x", "unknown exchange and segment"),
        ("NSE,E,,EQUITY,0,NOID,1.0,x,,,,5,NA,ES,EQ,x", "security id is not a number"),
        ("NSE,E,12a,EQUITY,0,BADID,1.0,x,,,,5,NA,ES,EQ,x", "security id is not a number"),
        ("NSE,E,1,EQUITY,0,,1.0,x,,,,5,NA,ES,EQ,x", "symbol does not fit an instrument key"),
        ("NSE,E,1,EQUITY,0,A B,1.0,x,,,,5,NA,ES,EQ,x", "symbol does not fit an instrument key"),
        ("NSE,E,1,EQUITY,0,A:B,1.0,x,,,,5,NA,ES,EQ,x", "symbol does not fit an instrument key"),
        ("NSE,E,1,EQUITY,0,X,1.5,x,,,,5,NA,ES,EQ,x", "lot size is not a whole number"),
        ("NSE,E,1,EQUITY,0,X,many,x,,,,5,NA,ES,EQ,x", "lot size is not a number"),
        ("NSE,E,1,EQUITY,0,X,1.0,x,,,,nan,NA,ES,EQ,x", "tick size is not a number"),
        ("NSE,E,1,EQUITY,0,X,1.0,x,,,,Infinity,NA,ES,EQ,x", "tick size is not a number"),
        ("NSE,D,1,FUTIDX,0,NIFTY-Dec2026-FUT,65.0,x,,-0.01,XX,10,M,FUT,,", "contract without an expiry"),
        (
            "NSE,D,1,FUTIDX,0,NIFTY-Dec2026-FUT,65.0,x,0001-01-01,-0.01,XX,10,M,FUT,,",
            "contract without an expiry",
        ),
        ("NSE,D,1,FUTIDX,0,NIFTY-Dec2026-FUT,65.0,x,31/12/2026,-0.01,XX,10,M,FUT,,", "expiry is not a date"),
        ("NSE,D,1,FUTIDX,0,NIFTY-Dec2026-FUT,65.0,x,2026-02-30,-0.01,XX,10,M,FUT,,", "expiry is not a date"),
        (
            "NSE,D,1,FUTIDX,0,NIFTY26DECFUT,65.0,x,2026-12-29,-0.01,XX,10,M,FUT,,",
            "contract without an underlying",
        ),
        (
            "NSE,D,1,OPTIDX,0,NIFTY-Dec2026-0-CE,65.0,x,2026-12-29,-0.01,CE,10,M,OP,,",
            "option without a strike",
        ),
        (
            "NSE,D,1,OPTIDX,0,NIFTY-Dec2026-5-CE,65.0,x,2026-12-29,5.0,XX,10,M,OP,,",
            "option that is neither CE nor PE",
        ),
        ("NSE,E,1,EQUITY", "wrong number of fields"),
        (f"{RELIANCE}, AND ANOTHER", "wrong number of fields"),
    ],
)
def test_an_odd_row_is_counted_with_its_line_and_does_not_stop_the_rest(row: str, reason: str) -> None:
    master = compact(row, RELIANCE)
    assert master.report.odd == {reason: 1}
    assert [(odd.line, odd.reason) for odd in master.report.odd_rows] == [(2, reason)]
    assert found(master, "NSE:RELIANCE").line == 3


def test_the_second_row_of_an_id_or_an_instrument_is_odd_and_the_first_stays() -> None:
    master = compact(RELIANCE, RELIANCE.replace("RELIANCE", "OTHER"), RELIANCE.replace("2885", "99"))
    assert found(master, "NSE:RELIANCE").security_id == "2885"
    assert master.report.odd == {"security id twice": 1, "instrument twice": 1}
    assert [odd.line for odd in master.report.odd_rows] == [3, 4]


def test_many_odd_rows_are_all_counted_and_few_are_kept() -> None:
    master = compact(*["NSE,E,,EQUITY,0,X,1.0,x,,,,5,NA,ES,EQ,x"] * 500)
    assert master.report.odd == {"security id is not a number": 500}
    assert len(master.report.odd_rows) == 50


@pytest.mark.parametrize("header", ["", "<html><body>Sign in</body></html>", "exchange,symbol,name", "\x00"])
def test_another_file_is_refused_in_one_sentence(header: str) -> None:
    with pytest.raises(ConfigurationError, match="not Dhan's scrip master"):
        ScripMaster.read([f"{header}\n"] if header else [])
    assert not has_known_header(header)


def test_a_search_code_splits_at_its_last_dash() -> None:
    assert split_search_code("BAJAJ-AUTO-EQ") == ("BAJAJ-AUTO", "EQ")
    assert split_search_code("M&M-EQ") == ("M&M", "EQ")
    assert split_search_code("NIFTY") == ("NIFTY", "")


def test_a_row_is_found_by_dhans_own_names() -> None:
    week = "NSE,D,{},OPTIDX,0,NIFTY-Dec2026-25000-CE,65.0,NIFTY 25000 CALL,2026-12-{},25000.0,CE,5.0,W,OP,,"
    master = compact(
        RELIANCE,
        "NSE,E,16669,EQUITY,0,BAJAJ-AUTO,1.0,Bajaj Auto,,,,100.0,NA,ES,EQ,BAJAJ AUTO",
        week.format(1, "22"),
        week.format(2, "29"),
    )

    def security_id(exchange: str, code: str, expiry: date | None = None) -> str | None:
        row = master.find_by_search_code(exchange, code, expiry)
        return None if row is None else row.security_id

    assert security_id("NSE", "BAJAJ-AUTO-EQ") == "16669"
    assert security_id("NSE", "BAJAJ-AUTO") == "16669"
    assert security_id("NSE", "reliance-eq") == "2885"
    assert security_id("NSE", "RELIANCE-BE") is None
    assert security_id("BSE", "RELIANCE-EQ") is None
    assert security_id("NFO", "NIFTY-2026-12-29-25000-CE") == "2"
    assert security_id("NFO", "NIFTY-Dec2026-25000-CE") is None
    assert security_id("NFO", "NIFTY-Dec2026-25000-CE", date(2026, 12, 22)) == "1"


def test_the_nearest_expiries_are_counted_apart_for_futures_and_options() -> None:
    option = "NSE,D,{0},OPTIDX,0,NIFTY-Dec2026-{0}-CE,65.0,x,2026-12-{1},{0}.0,CE,5.0,W,OP,,"
    future = "NSE,D,{0},FUTIDX,0,NIFTY-Dec2026-FUT,65.0,x,{1},-0.01,XX,5.0,M,FUT,,"
    master = compact(
        *(option.format(100 + day, f"{day:02d}") for day in (1, 8, 15, 22, 29)),
        future.format(1, "2026-12-29"),
        future.format(2, "2027-01-26"),
        future.format(3, "2027-02-23"),
    )
    chosen = master.contracts(["NIFTY"], 2, date(2026, 12, 8))
    assert sorted(str(row.expiry) for row in chosen) == [
        "2026-12-08",
        "2026-12-15",
        "2026-12-29",
        "2027-01-26",
    ]
    assert master.contracts(["BANKNIFTY"], 2, date(2026, 12, 8)) == []


def test_both_forms_of_one_master_say_the_same() -> None:
    folder = ROOT / "simulators" / "data"

    def read(name: str) -> dict[str, tuple[object, ...]]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = ScripMaster.read(file)._rows
        return {
            key: (row.segment, row.security_id, row.search_code, row.tick_size, row.lot_size, row.underlying)
            for (_, key), row in rows.items()
        }

    one, other = read("dhan-scrip-master.csv"), read("dhan-scrip-master-detailed.csv")
    assert len(one) > 150
    assert one == other


def _lines(texts: Iterable[str]) -> list[str]:
    return [f"{text}\n" for text in texts]


@given(st.lists(st.text(max_size=120), max_size=20), st.sampled_from([COMPACT, DETAILED]))
def test_any_lines_behind_a_header_are_accounted_for(texts: list[str], header: str) -> None:
    master = ScripMaster.read(_lines([header, *texts]))
    assert (
        len(master) + sum(master.report.left_out.values()) + sum(master.report.odd.values())
        <= master.report.lines
    )


_FIELD = st.one_of(
    st.sampled_from(
        ["NSE", "BSE", "MCX", "E", "D", "I", "C", "M", "EQUITY", "INDEX", "OPTIDX", "FUTCOM", "EQ", "A"]
    ),
    st.sampled_from(
        ["1", "1.0", "-0.01", "2026-12-31", "0001-01-01", "CE", "PE", "XX", "", "NA", "NIFTY-Dec2026-FUT"]
    ),
    st.text(st.characters(blacklist_characters='\r\n",\x00'), max_size=12),
)


@given(st.lists(st.lists(_FIELD, min_size=16, max_size=16), max_size=12))
def test_any_fields_give_rows_that_fit_the_tables_or_a_reason(rows: list[list[str]]) -> None:
    master = compact(*(",".join(fields) for fields in rows))
    for row in master._rows.values():
        assert row.tick_size is None or row.tick_size > 0
        assert row.lot_size is None or row.lot_size > 0
        assert (row.asset_class == "option") == (row.strike is not None) == (row.option_type is not None)
        assert row.asset_class not in ("future", "option") or row.expiry is not None
