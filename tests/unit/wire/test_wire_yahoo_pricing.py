"""Yahoo's protobuf message: presence, damage with its reason, and agreement with the protobuf library."""

from __future__ import annotations

import struct
from typing import Any, get_args, get_type_hints

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import assume, example
from hypothesis import strategies as st
from wire_frames import YAHOO, Vector, f32, flipped, given, name_of, payload_of, u64, wire_fields_of

from services.errors import WireFormatError
from services.wire.protobuf import read_varint, unzigzag, write_varint, zigzag
from services.wire.yahoo_pricing import PricingData, decode_pricing, encode_pricing

REASONS = {
    "truncated",
    "overlong_varint",
    "bad_tag",
    "wrong_wire_type",
    "bad_wire_type",
    "bad_group",
    "bad_utf8",
}
STRICTER_THAN_THE_LIBRARY = {"wrong_wire_type", "overlong_varint", "bad_tag"}
"""The library passes over a known field of another type, cuts varints to 64 bits and lets field number 0
stand inside a group; Yahoo sends none of these, so we call them damage."""

vectors = pytest.mark.parametrize("vector", YAHOO, ids=name_of)
int64s = st.integers(-(2**63), 2**63 - 1)
DOUBLES = ("circulating_supply", "market_cap")
INT32S = ("quote_type", "market_hours")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values_of(name: str, kind: type) -> st.SearchStrategy[Any]:
    if name == "indices":
        return st.lists(texts, min_size=1, max_size=3).map(tuple)
    if name in INT32S:
        return st.integers(-(2**31), 2**31 - 1)
    if kind is float:
        return st.floats(allow_nan=False) if name in DOUBLES else f32
    return int64s if kind is int else texts


HINTS = {name: get_args(hint)[0] for name, hint in get_type_hints(PricingData).items()}
messages = st.fixed_dictionaries(
    {}, optional={name: values_of(name, kind) for name, kind in HINTS.items()}
).map(lambda fields: PricingData(**fields))
mutated = st.one_of(
    flipped(st.sampled_from(YAHOO).map(payload_of)),
    flipped(messages.filter(lambda data: data != PricingData()).map(encode_pricing)),
    st.binary(max_size=120),
    st.lists(
        st.sampled_from([payload_of(vector) for vector in YAHOO])
        | st.sampled_from(
            [b"\xc0\x3e\x05", b"\xc3\x3e\x08\x01\xc4\x3e", b"\x8a\x00\x01A", b"\xff" * 9 + b"\x01"]
        )
        | st.binary(max_size=4),
        max_size=4,
    ).map(b"".join),
)


@pytest.fixture(scope="module")
def yfinance_message() -> Any:
    from yfinance.pricing_pb2 import PricingData as Message

    return Message


def made_up_schema() -> Any:
    """Build the message class of all 47 fields with presence, which yfinance's schema does not have."""
    schema = FileDescriptorProto(name="all_fields.proto", syntax="proto3")
    message = schema.message_type.add(name="AllFields")
    for number, (name, kind) in enumerate(HINTS.items(), start=1):
        field = message.field.add(name=name, number=number, type=library_type(name, kind))
        if name == "indices":
            field.label = FieldDescriptorProto.LABEL_REPEATED
            continue
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")
    pool = DescriptorPool()
    pool.Add(schema)
    return GetMessageClass(pool.FindMessageTypeByName("AllFields"))


def library_type(name: str, kind: type) -> Any:
    if name in INT32S:
        return FieldDescriptorProto.TYPE_INT32
    if kind is float:
        return FieldDescriptorProto.TYPE_DOUBLE if name in DOUBLES else FieldDescriptorProto.TYPE_FLOAT
    return FieldDescriptorProto.TYPE_SINT64 if kind is int else FieldDescriptorProto.TYPE_STRING


def reason_of(payload: bytes) -> str | None:
    """Return why the payload is damaged, None where it is not."""
    try:
        decode_pricing(payload)
    except WireFormatError as error:
        return error.reason
    return None


@given(messages)
def test_what_is_encoded_is_decoded_again(data: PricingData) -> None:
    assert decode_pricing(encode_pricing(data)) == data


def test_zero_and_absent_are_told_apart_for_every_field() -> None:
    zeros = {float: 0.0, int: 0, str: ""}
    for name, kind in HINTS.items():
        data = PricingData(**{name: ("",) if name == "indices" else zeros[kind]})
        payload = encode_pricing(data)
        assert payload, f"{name} must be on the wire"
        assert decode_pricing(payload) == data
    assert encode_pricing(PricingData()) == b""
    assert decode_pricing(b"") == PricingData()


def test_the_fields_have_the_numbers_and_types_of_the_public_schema(yfinance_message: Any) -> None:
    theirs = [(it.number, it.name, it.type) for it in yfinance_message.DESCRIPTOR.fields]
    ours = [(it.number, it.name, it.type) for it in ALL_FIELDS.DESCRIPTOR.fields]
    assert ours[:33] == sorted(theirs)
    assert len(PricingData.__struct_fields__) == 47
    # 46 and 47 are on the wire of a captured frame: two-byte tags 0xf5 0x02 and 0xfd 0x02.
    assert encode_pricing(PricingData(full_day_change=1.0))[:2] == b"\xf5\x02"
    assert encode_pricing(PricingData(full_day_change_percent=1.0))[:2] == b"\xfd\x02"


@vectors
def test_yfinance_reads_the_same_but_for_what_its_dictionary_loses(
    vector: Vector, yfinance_message: Any
) -> None:
    message = yfinance_message()
    message.ParseFromString(payload_of(vector))
    said = MessageToDict(message, preserving_proto_field_name=True)
    assert said == vector["yfinance_dict"]
    ours = wire_fields_of(vector)
    for name, theirs in said.items():
        value = ours.pop(name)
        if name in DOUBLES or HINTS[name] is str or value == "NaN":
            assert theirs == value
        elif HINTS[name] is float:
            assert struct.pack("<f", theirs) == struct.pack("<f", value), "they round to the shortest text"
        else:
            assert int(theirs) == value, "they hand 64-bit integers over as text"
    lost = {
        name
        for name, value in ours.items()
        if value != 0 and name not in ("full_day_change", "full_day_change_percent")
    }
    assert lost == set(), "what else they drop are zeros that were sent, and fields they do not know"


ALL_FIELDS = made_up_schema()


def in_library(message: Any) -> dict[str, Any]:
    """Return the fields that are present, as comparable text (NaN and -0.0 have one of their own)."""
    fields = {field.name: value for field, value in message.ListFields()}
    if "indices" in fields:
        fields["indices"] = tuple(fields["indices"])
    return {name: repr(value) for name, value in fields.items()}


def in_ours(data: PricingData) -> dict[str, Any]:
    values = {name: getattr(data, name) for name in HINTS}
    return {name: repr(value) for name, value in values.items() if value is not None}


@given(payload=mutated)
@example(payload=b"\xc3\x3e" * 100 + b"\xc4\x3e" * 100)
@example(payload=b"\xc3\x3e" * 101 + b"\xc4\x3e" * 101)
@example(payload=b"\x91\xa6\x8f\x9e\x8a\x00\x01")
def test_the_protobuf_library_reads_any_bytes_as_we_do_or_both_refuse_them(payload: bytes) -> None:
    message = ALL_FIELDS()
    try:
        message.ParseFromString(payload)
        accepted = True
    except DecodeError:
        accepted = False
    reason = reason_of(payload)
    if reason is None:
        assert accepted
        assert in_ours(decode_pricing(payload)) == in_library(message)
    else:
        assert reason in (STRICTER_THAN_THE_LIBRARY if accepted else REASONS)


@given(messages)
def test_the_protobuf_library_writes_the_same_bytes(data: PricingData) -> None:
    message = ALL_FIELDS()
    message.ParseFromString(encode_pricing(data))
    assert in_library(message) == in_ours(data)
    assert message.SerializeToString(deterministic=True) == encode_pricing(data)


@vectors
def test_a_message_cut_inside_a_field_is_truncated_and_between_fields_is_shorter(vector: Vector) -> None:
    payload = payload_of(vector)
    whole = wire_fields_of(vector)
    for cut in range(len(payload)):
        reason = reason_of(payload[:cut])
        assert reason in (None, "truncated")
        if reason is None:
            data = decode_pricing(payload[:cut])
            read = {name: getattr(data, name) for name in whole if getattr(data, name) is not None}
            assert encode_pricing(data) == payload[:cut]
            assert len(read) < len(whole)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_typed_error(payload: bytes) -> None:
    assert reason_of(payload) in {None, *REASONS}


KNOWN = encode_pricing(PricingData(id="AAPL", price=307.5))


@pytest.mark.parametrize(
    "unknown",
    [
        b"\xc0\x3e\x05",
        b"\xc0\x3e" + b"\xff" * 9 + b"\x01",
        b"\xc1\x3e" + bytes(8),
        b"\xc5\x3e" + bytes(4),
        b"\xc2\x3e\x03abc",
        b"\xc2\x3e\x02\xff\xfe",
        b"\xc3\x3e\xc4\x3e",
        b"\xc3\x3e\x08\x01\x15abcd\xcb\x3e\xcc\x3e\xc4\x3e",
        b"\x80\x03\x01",
    ],
)
def test_a_field_of_an_unknown_number_is_passed_over_by_its_wire_type(unknown: bytes) -> None:
    assert decode_pricing(unknown + KNOWN + unknown) == PricingData(id="AAPL", price=307.5)


def test_of_a_field_that_comes_twice_the_last_counts_and_lists_grow() -> None:
    twice = encode_pricing(PricingData(id="A", indices=("x",))) + encode_pricing(
        PricingData(id="B", indices=("y", "z"))
    )
    assert decode_pricing(twice) == PricingData(id="B", indices=("x", "y", "z"))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x0a", "truncated"),
        (b"\x0a\x05AB", "truncated"),
        (b"\x0a\xff\xff\xff\xff\x0fAB", "truncated"),
        (b"\x15\x00\x00", "truncated"),
        (b"\x18", "truncated"),
        (b"\x18\xff", "truncated"),
        (b"\xd8", "truncated"),
        (b"\x81\x02\x00", "truncated"),
        (b"\xc0\x3e", "truncated"),
        (b"\xc1\x3e\x00", "truncated"),
        (b"\xc5\x3e\x00", "truncated"),
        (b"\xc2\x3e\x05AB", "truncated"),
        (b"\xc3\x3e", "truncated"),
        (b"\x18" + b"\xff" * 10 + b"\x01", "overlong_varint"),
        (b"\x18" + b"\xff" * 9 + b"\x02", "overlong_varint"),
        (b"\x0a" + b"\x80" * 10 + b"\x00", "overlong_varint"),
        (b"\xc0\x3e" + b"\xff" * 10 + b"\x01", "overlong_varint"),
        (b"\xc0\x3e" + b"\xff" * 9 + b"\x02", "overlong_varint"),
        (b"\x80" * 10 + b"\x01", "overlong_varint"),
        (b"\x00\x01", "bad_tag"),
        (b"\x07", "bad_tag"),
        (b"\x80\x00\x01", "bad_tag"),
        (b"\xff\xff\xff\xff\x1f\x01", "bad_tag"),
        (b"\x88\x80\x80\x80\x80\x00\x01", "bad_tag"),
        (b"\x08\x01", "wrong_wire_type"),
        (b"\x10\x01", "wrong_wire_type"),
        (b"\x1d\x00\x00\x00\x00", "wrong_wire_type"),
        (b"\x1a\x01\x02", "wrong_wire_type"),
        (b"\x85\x02\x00\x00\x00\x00", "wrong_wire_type"),
        (b"\x0b\x0c", "wrong_wire_type"),
        (b"\xc6\x3e", "bad_wire_type"),
        (b"\xc7\x3e", "bad_wire_type"),
        (b"\xc4\x3e", "bad_group"),
        (b"\xc3\x3e\xcc\x3e", "bad_group"),
        (b"\xc3\x3e" * 101, "bad_group"),
        (b"\x0a\x02\xff\xfe", "bad_utf8"),
        (b"\x0a\x03\xed\xa0\x80", "bad_utf8"),
        (b"\x9a\x02\x01\xff", "bad_utf8"),
    ],
)
def test_a_damaged_message_is_a_typed_error_with_its_reason(payload: bytes, reason: str) -> None:
    assert reason_of(payload) == reason
    # What is damaged stays damaged behind good fields.
    assert reason_of(KNOWN + payload) == reason


@pytest.mark.parametrize(
    "data",
    [
        PricingData(price=1e39),
        PricingData(time=2**63),
        PricingData(time=-(2**63) - 1),
        PricingData(quote_type=2**31),
        PricingData(id="\ud800"),
        PricingData(indices=("ok", "\ud800")),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_not_encoded(data: PricingData) -> None:
    with pytest.raises(WireFormatError) as caught:
        encode_pricing(data)
    assert caught.value.reason == "not_encodable"


@given(u64)
def test_varints_are_read_back(value: int) -> None:
    encoded = write_varint(value)
    assert read_varint(encoded + b"\xff", 0) == (value, len(encoded))
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


@given(int64s)
def test_zigzag_is_undone(value: int) -> None:
    assert unzigzag(zigzag(value)) == value
    assert 0 <= zigzag(value) < 2**64


@given(int64s)
def test_small_magnitudes_come_first_in_zigzag(value: int) -> None:
    assume(value != -(2**63))
    assert zigzag(value) <= 2 * abs(value)
    assert zigzag(0) == 0
