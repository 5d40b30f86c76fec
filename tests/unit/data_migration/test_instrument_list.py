"""The list people write: what is read, and every problem at its line."""

from __future__ import annotations

import csv
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_migration.populate_instrument_mappings import SHIPPED_LIST
from data_migration.sources.instrument_list import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    ListedInstrument,
    read_instrument_list,
)
from data_migration.sources.yahoo_symbols import yahoo_symbol
from services.market_data.instruments import EXCHANGE_CODES

HEADER = ",".join(REQUIRED_COLUMNS)
FULL = ",".join((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))


def read(*rows: str, header: str = HEADER) -> tuple[list[ListedInstrument], list[tuple[int, str]]]:
    instruments, problems = read_instrument_list([f"{row}\n" for row in (header, *rows)], EXCHANGE_CODES)
    return instruments, [(problem.line, problem.text) for problem in problems]


def only(row: str, header: str = FULL) -> ListedInstrument:
    instruments, problems = read(row, header=header)
    assert problems == []
    return instruments[0]


def test_the_five_columns_are_enough() -> None:
    row = only("NSE,M&M,Mahindra & Mahindra,equity,INR", HEADER)
    assert (row.key, row.asset_class, row.line, row.tick_size) == ("NSE:M&M", "equity", 2, None)


def test_optional_columns_come_in_any_order_and_number() -> None:
    row = only("NSE,NIFTY,Nifty 50,index,INR,^NSEI,0.05", f"{HEADER},yahoo_symbol,tick_size")
    assert (row.yahoo_symbol, row.tick_size) == ("^NSEI", Decimal("0.05"))


def test_an_option_needs_its_terms_once_in_the_symbol_or_in_the_columns() -> None:
    said = only("NFO,NIFTY-2026-12-31-25000-CE,Nifty call,option,INR", HEADER)
    assert (said.underlying, said.expiry, said.strike, said.option_type) == (
        "NSE:NIFTY",
        date(2026, 12, 31),
        Decimal(25000),
        "CE",
    )
    written = only("NFO,NIFTYCALL,Nifty call,option,INR,0.05,65,NSE:NIFTY,2026-12-31,25000,CE,,")
    assert (written.underlying, written.expiry, written.strike, written.option_type) == (
        "NSE:NIFTY",
        date(2026, 12, 31),
        Decimal(25000),
        "CE",
    )
    assert written.lot_size == 65


def test_a_future_of_rupees_has_its_underlying_in_fx() -> None:
    assert only("CDS,USDINR-2026-12-29-FUT,Dollar,future,INR", HEADER).underlying == "FX:USDINR"


def test_quotes_blank_lines_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    lines = [f"\ufeff{HEADER}\r\n", '"NSE","LT","Larsen, Toubro ""L&T""",equity,INR\r\n', "\r\n", ",,,,\r\n"]
    instruments, problems = read_instrument_list(lines, EXCHANGE_CODES)
    assert problems == []
    assert [row.name for row in instruments] == ['Larsen, Toubro "L&T"']


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("NSEX,A,Name,equity,INR", "exchange 'NSEX' is none of NASDAQ"),
        ("nse,A,Name,equity,INR", "exchange 'nse' is none of"),
        ("NSE,reliance,Name,equity,INR", "symbol 'reliance' is not capital letters"),
        ("NSE,A:B,Name,equity,INR", "symbol 'A:B' is not"),
        ("NSE,,Name,equity,INR", "symbol '' is not"),
        ("NSE,A,,equity,INR", "name is blank"),
        (f"NSE,A,{'n' * 201},equity,INR", "name is longer than 200"),
        ("NSE,A,Name,share,INR", "asset_class 'share' is none of equity etf index"),
        ("NSE,A,Name,equity,rupees!", "currency 'rupees!' is not a code"),
        ("NSE,A,Name,equity", "4 fields, the header has 5"),
        ("NSE,A,Name,equity,INR,1", "6 fields, the header has 5"),
        ('NSE,A,"Name,equity,INR', "not CSV"),
        ("NSE,A,Na\x07me,equity,INR", "name has a control character"),
        ("NFO,NIFTYCALL,Name,option,INR", "an option needs underlying, expiry, strike, option_type"),
        ("NFO,NIFTYFUT,Name,future,INR", "a future needs an expiry"),
        ("NFO,NIFTY-2026-12-31-25000-CE,Name,future,INR", "a future has neither strike nor option_type"),
        ("NFO,NIFTY-2026-12-31-FUT,Name,option,INR", "an option needs strike, option_type"),
    ],
)
def test_a_bad_row_is_reported_at_its_line(row: str, said: str) -> None:
    _, problems = read("NSE,RELIANCE,Reliance,equity,INR", row)
    assert [line for line, _ in problems] == [3]
    assert said in problems[0][1]


@pytest.mark.parametrize(
    ("optional", "said"),
    [
        ("-0.05,,,,,,,", "tick_size '-0.05' is not a number greater than zero"),
        ("0,,,,,,,", "tick_size '0'"),
        ("nan,,,,,,,", "tick_size 'nan'"),
        ("1e400,,,,,,,", "tick_size '1e400'"),
        ("0.00000000001,,,,,,,", "tick_size '0.00000000001' has more than 10 decimals"),
        (",1.5,,,,,,", "lot_size '1.5' has more than 0 decimals"),
        (",0,,,,,,", "lot_size '0'"),
        (",,NIFTY,,,,,", "underlying 'NIFTY' is not an instrument key"),
        (",,,31-12-2026,,,,", "expiry '31-12-2026' is not a date"),
        (",,,20261231,,,,", "expiry '20261231' is not a date"),
        (",,,2026-12-31,,,,", "expiry given for asset_class equity"),
        (",,,,100,CE,,", "strike and option_type given for asset_class equity"),
        (f",,,,,,{'y' * 129},", "yahoo_symbol is longer than 128"),
    ],
)
def test_a_bad_optional_value_is_reported(optional: str, said: str) -> None:
    _, problems = read(f"NSE,A,Name,equity,INR,{optional}", header=FULL)
    assert any(said in text for _, text in problems), problems


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (",,,2026-12-30,,,,", "expiry 2026-12-30 differs from the one in the symbol"),
        (",,,,25001,,,", "strike 25001 differs"),
        (",,,,,PE,,", "option_type PE differs"),
    ],
)
def test_columns_must_not_contradict_the_symbol(terms: str, said: str) -> None:
    _, problems = read(f"NFO,NIFTY-2026-12-31-25000-CE,Name,option,INR,{terms}", header=FULL)
    assert [said in text for _, text in problems] == [True]


def test_an_option_type_of_another_kind_is_reported_once() -> None:
    _, problems = read("NFO,CALL,Name,option,INR,,,NSE:NIFTY,2026-12-31,100,C,,", header=FULL)
    assert problems == [(2, "option_type 'C' is neither CE nor PE")]


def test_all_problems_of_a_list_come_at_once_in_order() -> None:
    _, problems = read("NSE,a,,share,INR", "NSE,B,Name,equity,INR", "XX,C,Name,equity,INR")
    assert [line for line, _ in problems] == [2, 2, 2, 4]


def test_a_key_and_a_given_yahoo_symbol_stand_once() -> None:
    _, problems = read("NSE,A,Name,equity,INR,X.NS", "NSE,A,Name,equity,INR,", "NSE,B,Name,equity,INR,X.NS",
                       header=f"{HEADER},yahoo_symbol")  # fmt: skip
    assert problems == [
        (3, "NSE:A stands in line 2 already"),
        (4, "yahoo_symbol X.NS stands in line 2 already"),
    ]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("symbol,exchange,name,asset_class,currency", "must begin with exchange,symbol,name"),
        ("exchange,symbol,name", "must begin with"),
        (f"{HEADER},tick_sise", "unknown column 'tick_sise' (did you mean tick_size?)"),
        (f"{HEADER},strike,strike", "the column strike appears twice"),
    ],
)
def test_a_wrong_header_is_the_only_problem(header: str, said: str) -> None:
    instruments, problems = read("NSE,A,Name,equity,INR", header=header)
    assert instruments == []
    assert [line for line, _ in problems] == [1]
    assert said in problems[0][1]


def test_an_empty_file_says_what_its_first_line_is() -> None:
    _, problems = read_instrument_list([], EXCHANGE_CODES)
    assert [problem.text for problem in problems] == [f"the list is empty; its first line is {HEADER}"]


def test_the_shipped_list_is_right_and_has_what_is_promised() -> None:
    with SHIPPED_LIST.open(encoding="utf-8", newline="") as file:
        rows, problems = read_instrument_list(file, EXCHANGE_CODES)
    assert problems == []
    keys = {row.key for row in rows}
    assert sum(row.exchange == "NSE" and row.asset_class == "equity" for row in rows) == 50
    assert sum(row.exchange in ("NASDAQ", "NYSE", "ARCA") for row in rows) == 50
    assert keys >= {"NSE:NIFTY", "NSE:BANKNIFTY", "BSE:SENSEX", "NSE:RELIANCE", "NASDAQ:AAPL", "INDEX:SPX"}
    assert keys >= {"FX:EURUSD", "FX:USDINR", "CRYPTO:BTC-USD", "CRYPTO:ETH-USD"}
    names = [yahoo_symbol(row.exchange, row.symbol, row.asset_class) for row in rows]
    assert None not in names
    assert len(set(names)) == len(names)
    assert all(
        row.tick_size == Decimal("0.01") for row in rows if row.currency == "USD" and row.exchange[0] in "NA"
    )


@given(st.lists(st.lists(st.text(max_size=20), min_size=13, max_size=13), max_size=6))
def test_any_fields_give_rows_or_problems_and_never_a_crash(rows: list[list[str]]) -> None:
    class Sink(list[str]):
        def write(self, text: str) -> None:
            self.append(text)

    lines = Sink()
    csv.writer(lines).writerows(rows)
    read_instrument_list([f"{FULL}\n", *lines], EXCHANGE_CODES)


_PLAUSIBLE = st.sampled_from(
    ["", "NFO", "NSE", "X", "NIFTY-2026-12-31-25000-CE", "NIFTY-2026-12-31-FUT", "option", "future", "equity",
     "INR", "1", "0.05", "NSE:NIFTY", "2026-12-31", "CE", "25000", "-1"]
)  # fmt: skip


@given(st.lists(_PLAUSIBLE, min_size=13, max_size=13))
def test_a_row_that_is_taken_satisfies_the_tables_rules(fields: list[str]) -> None:
    rows, problems = read(",".join(fields), header=FULL)
    if problems or not rows:
        return
    row = rows[0]
    is_option = row.asset_class == "option"
    assert is_option == (row.strike is not None) == (row.option_type is not None)
    assert not is_option or (row.expiry is not None and row.underlying is not None)
    assert row.asset_class in ("option", "future") or row.expiry is None
