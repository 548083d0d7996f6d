"""Items: what the walker says of bytes that are not an item, and what it takes to say so."""

from __future__ import annotations

import re
import tracemalloc
from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import envelopes, items, payloads
from capsuled.proto.items import MAX_DEPTH, NotCbor

ITEM: st.SearchStrategy[object] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64 - 1),
        st.floats(),
        st.text(max_size=30),
        st.binary(max_size=30),
        st.integers(32, 255).map(cbor2.CBORSimpleValue),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4),
    max_leaves=12,
)
ENCODED = ITEM.map(cbor2.dumps)

MANY = 256 * 1024
"""Items in a hostile payload."""


def array(count: int, each: bytes) -> bytes:
    return envelopes.head(4, count) + each * count


@given(ENCODED)
def test_what_an_encoder_writes_is_accepted(item: bytes) -> None:
    """Invariant: every item without tags that a general encoder writes is accepted."""
    items.check(item)


@given(ENCODED, st.data())
def test_a_part_of_an_item_is_refused(item: bytes, data: st.DataObject) -> None:
    """Invariant: no item is the beginning of another, so that an item cut anywhere is refused."""
    with pytest.raises(NotCbor):
        items.check(item[: data.draw(st.integers(0, len(item) - 1))])


@given(ENCODED, st.binary(min_size=1, max_size=9))
def test_nothing_may_stand_behind_an_item(item: bytes, more: bytes) -> None:
    """Invariant: an item with anything behind it is refused, and the sentence says how much that is."""
    with pytest.raises(NotCbor, match=f": {len(more)} bytes stand behind it"):
        items.check(item + more)


@given(st.binary(max_size=64))
def test_any_bytes_are_an_item_or_refused(data: bytes) -> None:
    """Invariant: whatever the bytes are, the only exception is NotCbor."""
    with suppress(NotCbor):
        items.check(data)


def nested(depth: int, innermost: bytes, around: bytes = b"\x81") -> bytes:
    return around * depth + innermost


@pytest.mark.parametrize("around", [b"\x81", b"\xa1\x60"], ids=["arrays", "maps"])
def test_depth_is_bounded(around: bytes) -> None:
    """64 arrays or maps within each other are accepted; one more is refused, with the number."""
    items.check(nested(MAX_DEPTH, b"\x00", around))
    items.check(nested(MAX_DEPTH, b"\x80", around))
    with pytest.raises(NotCbor, match="nested deeper than 64 levels"):
        items.check(nested(MAX_DEPTH + 1, b"\x00", around))


def test_depth_is_not_length() -> None:
    """Levels that have ended count no more: any number may stand beside each other."""
    items.check(array(1000, nested(MAX_DEPTH - 1, b"\x00")))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("", "it ends too early, after 0 bytes"),
        ("6261", "it ends too early, after 2 bytes"),
        ("62c3", "it ends too early, after 2 bytes"),
        ("7818c3", "it ends too early, after 3 bytes"),
        ("a162c3", "it ends too early, after 3 bytes"),
        ("a17818c3", "it ends too early, after 4 bytes"),
        ("0000", "1 bytes stand behind it"),
        ("820000f6", "1 bytes stand behind it"),
        ("830000", "3 items are announced where 2 bytes are left"),
        ("9bffffffffffffffff00", "18446744073709551615 items are announced where 1 bytes are left"),
        ("bb00000001000000006161", "4294967296 items are announced where 2 bytes are left"),
        ("81c100", "the tag 1 at byte 1: tags are not accepted"),
        ("d8344401020304", "the tag 52 at byte 0: tags are not accepted"),
        ("dbffffffffffffffff00", "the tag 18446744073709551615 at byte 0"),
        ("a1c0616100", "the tag 0 at byte 1"),
        ("a10000", "the map key at byte 1 is an integer: write a text or a byte string"),
        ("a12000", "the map key at byte 1 is an integer"),
        ("a18000", "the map key at byte 1 is an array"),
        ("a1a000", "the map key at byte 1 is a map"),
        ("a1f600", "the map key at byte 1 is a simple value"),
        ("a1f97e0000", "the map key at byte 1 is a simple value or a float"),
        ("a2616100616101", "the key b'a' occurs twice in one map"),
        ("a2410000410001", "the key b'\\x00' occurs twice in one map"),
        ("a261610078016101", "the key b'a' occurs twice in one map"),
        ("a241610058016101", "the key b'a' occurs twice in one map"),
        (
            "a2" + "77" + "61" * 23 + "00" + "7817" + "61" * 23 + "00",
            "the key b'aaaaaaaaaaaaaaaaaaaaaaa' occurs",
        ),
        ("a260007b000000000000000000", "the key b'' occurs twice in one map"),
        (
            "a2" + "7818" + "61" * 24 + "00" + "790018" + "61" * 24 + "00",
            "the key b'aaaaaaaaaaaaaaaaaaaaaaaa' occurs",
        ),
        ("8161ff", "the text b'\\xff' is not UTF-8 at its byte 0"),
        ("63eda080", "the text b'\\xed\\xa0\\x80' is not UTF-8 at its byte 0"),
        ("a161ff00", "the text b'\\xff' is not UTF-8 at its byte 0"),
        ("7818" + "61" * 23 + "ff", "is not UTF-8 at its byte 23"),
        ("a17818" + "61" * 23 + "ff00", "is not UTF-8 at its byte 23"),
        ("7830" + "61" * 47 + "ff", "the text b'" + "a" * 32 + "'… is not UTF-8"),
        ("9fff", "an array of indefinite length at byte 0: write its length before it"),
        ("a16161bfff", "a map of indefinite length at byte 3"),
        ("7fff", "a text of indefinite length at byte 0"),
        ("5fff", "a byte string of indefinite length at byte 0"),
        ("81ff", "a break stands at byte 1, where an item was expected"),
        ("1f", "the byte 0x1f at byte 0 begins no item"),
        ("df00", "the byte 0xdf at byte 0 begins no item"),
        ("811c", "the byte 0x1c at byte 1 begins no item"),
        ("fe", "the byte 0xfe at byte 0 begins no item"),
        ("f81f", "the simple value 31 at byte 0 has two bytes: 32 is the least that may"),
    ],
)
def test_sentence(data: str, sentence: str) -> None:
    """A refusal names what is wrong, where it stands, and what to write instead."""
    with pytest.raises(NotCbor, match=re.escape(sentence)):
        items.check(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    [
        "1800",
        "1b0000000000000000",
        "7800",
        "980100",
        "b80178016100",
        "f820",
        "f7",
        "e0",
        "f97e00",
        "a2616100416100",
        "a141ff00",
        "a2616100614100",
        "82a1616100a1616100",
        "a16161a1616100",
        "a2" + "7818" + "61" * 24 + "00" + "7818" + "61" * 23 + "6200",
    ],
)
def test_well_formed_and_unusual(data: str) -> None:
    """Longer heads than needed, any simple value and NaN are accepted; a key may occur once in each map.

    A text and a byte string of the same bytes are two keys.
    """
    items.check(bytes.fromhex(data))


@pytest.mark.parametrize(
    "hostile",
    [
        array(MANY, b"\x80"),
        array(MANY, b"\xa0"),
        array(MANY // 2, b"\x81\x80"),
        array(MANY // 3, b"\xa1\x60\x00"),
        array(MANY, b"\xe0"),
        envelopes.head(4, 2**62) * 2,
        b"\x81" * MANY,
        b"\xc0" * MANY,
        b"\x80" * MANY,
    ],
    ids=["arrays", "maps", "pairs", "keys", "simple values", "counts", "depth", "tags", "tail"],
)
def test_little_memory_is_taken(hostile: bytes) -> None:
    """However many items, levels or counts a payload has, judging it takes a thirtieth of its size."""
    tracemalloc.start()
    try:
        with suppress(NotCbor):
            items.check(hostile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MANY // 32


@pytest.mark.parametrize("major", [2, 3])
def test_the_largest_string_is_accepted(major: int) -> None:
    """A text or byte string that fills the largest payload is an item."""
    size = payloads.MAX_BYTES - 5
    items.check(envelopes.head(major, size) + b"a" * size)
