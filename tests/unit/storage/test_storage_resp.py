"""Commands as bytes: what we write is what a parser of the protocol reads, and numbers are exact."""

from __future__ import annotations

import math

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.resp import FLOAT_BULKS, INTEGER_BULKS, bulk, command, to_bytes


def parsed(data: bytes) -> list[str]:
    reader = hiredis.Reader(encoding="utf-8")
    reader.feed(data)
    answer = reader.gets()
    assert reader.gets() is False, "more than one command"
    assert isinstance(answer, list)
    return answer


def test_a_command_is_an_array_of_bulk_strings() -> None:
    assert to_bytes([command("SET", "k", "v")]) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_is_read_back(arguments: list[str]) -> None:
    assert parsed(to_bytes([command(*arguments)])) == arguments


def test_lengths_count_bytes_and_lone_surrogates_become_question_marks() -> None:
    assert to_bytes([bulk("é☠")]) == b"$5\r\n\xc3\xa9\xe2\x98\xa0\r\n"
    assert to_bytes([bulk("a\udc80b")]) == b"$3\r\na?b\r\n"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_written_as_the_shortest_text_of_the_same_double(number: float) -> None:
    [text] = parsed(to_bytes(["*1\r\n", FLOAT_BULKS[number]]))
    assert float(text) == number
    assert len(text) <= len(repr(number)) + 2


@given(st.integers(min_value=-(2**80), max_value=2**80))
def test_an_integer_is_written_with_all_its_digits(number: int) -> None:
    assert parsed(to_bytes(["*1\r\n", INTEGER_BULKS[number]])) == [str(number)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_again_and_again(number: float) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="not a finite number"):
            FLOAT_BULKS[number]


def test_the_memory_for_numbers_is_bounded() -> None:
    for number in range(100_000):
        assert FLOAT_BULKS[number / 7]
        assert INTEGER_BULKS[number]
    assert len(FLOAT_BULKS) <= 32_768
    assert len(INTEGER_BULKS) <= 16_384
