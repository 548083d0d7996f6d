"""Numbers, names and sections of the binary format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.sandbox.engine.reader import MAGIC, Reader, Section, leb128, sections, shown
from capsuled.sandbox.engine.seam import ModuleRejected


def section(identity: int, content: bytes = b"") -> bytes:
    return bytes((identity,)) + leb128(len(content)) + content


@given(st.integers(0, 2**32 - 1))
def test_number_is_read_as_it_was_written(value: int) -> None:
    """Every unsigned 32-bit number comes back from its LEB128, which is read to its end."""
    reader = Reader(leb128(value))
    assert reader.u32() == value
    reader.finish()


@pytest.mark.parametrize(
    "data",
    [
        leb128(2**32),
        b"\xff\xff\xff\xff\x1f",
        b"\x80\x80\x80\x80\x80\x00",  # zero, in a byte more than 32 bits need
    ],
)
def test_number_over_32_bits_is_rejected(data: bytes) -> None:
    """A number ends within five bytes and fits 32 bits."""
    with pytest.raises(ModuleRejected, match="does not fit 32 bits"):
        Reader(data).u32()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x03ab"])
def test_reading_past_the_end_is_rejected(data: bytes) -> None:
    """What is cut off within a number or a name is rejected, with the byte."""
    with pytest.raises(ModuleRejected, match=r"cut off at byte \d"):
        Reader(data).name()


def test_name_is_utf8() -> None:
    """A name that is not UTF-8 is rejected."""
    with pytest.raises(ModuleRejected, match="not UTF-8"):
        Reader(b"\x02\xc3\x28").name()


def test_rest_of_a_section_is_rejected() -> None:
    """Bytes after the last entry are not passed over."""
    with pytest.raises(ModuleRejected, match="should end at byte 0, and 2 more follow"):
        Reader(b"ab").finish()


def test_sections_are_found_and_custom_ones_left_out() -> None:
    """Each section is told with its id and its content's place; custom ones may stand anywhere."""
    wasm = MAGIC + section(0, b"\x01x") + section(1, b"\0") + section(0, b"\x01x") + section(10, b"\0")
    assert list(sections(wasm)) == [Section(1, 14, 15), Section(10, 21, 22)]


def test_data_count_stands_before_the_code() -> None:
    """The order is the specification's, not that of the ids."""
    assert [each.identity for each in sections(MAGIC + section(12) + section(10) + section(11))] == [
        12,
        10,
        11,
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (section(3) + section(3), "kind 3 at byte 10 is out of order, or there twice"),
        (section(3) + section(1), "kind 1 at byte 10 is out of order"),
        (section(10) + section(12), "kind 12 at byte 10 is out of order"),
        (section(13), "byte 8 is of the unknown kind 13"),
        (b"\x01\x05abc", "5 bytes were to follow"),
        (b"\x01", "cut off at byte 9"),
    ],
)
def test_sections_out_of_order_or_cut_off_are_rejected(content: bytes, told: str) -> None:
    """Sections come once, in their order, whole and of a known kind."""
    with pytest.raises(ModuleRejected, match=told):
        list(sections(MAGIC + content))


@pytest.mark.parametrize("wasm", [b"", MAGIC[:-1], b"\0asm\x02\0\0\0", b"\0asm\x0d\0\1\0", b"(module)"])
def test_what_begins_otherwise_is_no_module(wasm: bytes) -> None:
    """Another version, a component, text and nothing at all are no modules."""
    with pytest.raises(ModuleRejected, match="begins otherwise"):
        list(sections(wasm))


def test_long_name_is_cut_for_a_message() -> None:
    """A message repeats 100 characters of a name and no control character."""
    assert shown("a" * 100) == f"'{'a' * 100}'"
    assert shown("a" * 101) == f"'{'a' * 100}…'"
    assert shown("a\nb") == r"'a\nb'"
