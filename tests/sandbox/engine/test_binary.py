"""Imports, exports and limits of a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.sandbox.engine.binary import (
    Import,
    ModuleInfo,
    bound,
    cap,
    inspect,
    signature_text,
    wanted,
)
from capsuled.sandbox.engine.reader import MAGIC, Reader, leb128, sections
from capsuled.sandbox.engine.seam import HostFunction, ModuleRejected, Signature

PAGE = 64 * 1024
EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*/*.wasm"))

Wat = Callable[[str], bytes]


def section(identity: int, *entries: bytes) -> bytes:
    content = leb128(len(entries)) + b"".join(entries)
    return bytes((identity,)) + leb128(len(content)) + content


def name(text: str) -> bytes:
    return leb128(len(text)) + text.encode()


def limits_of(wasm: bytes, identity: int) -> list[tuple[int, int]]:
    """Minimum and maximum of each memory (5) or table (4)."""
    for found, start, end in sections(wasm):
        if found == identity:
            reader = Reader(wasm, start, end)
            found_limits: list[tuple[int, int]] = []
            for _ in range(reader.u32()):
                if identity == 4:
                    reader.byte()
                assert reader.byte() == 1
                found_limits.append((reader.u32(), reader.u32()))
            reader.finish()
            return found_limits
    return []


def test_imports_and_exports_are_told(wat: Wat) -> None:
    """Each import and export comes with its kind, and functions with their signature, imported ones too."""
    info = inspect(
        wat("""(module
          (import "a" "f" (func $f (param i32 i64) (result i32)))
          (import "a" "m" (memory 1 2))
          (import "a" "t" (table 1 funcref))
          (import "b" "g" (global (mut f64)))
          (func $own (param f32))
          (export "f" (func $f)) (export "own" (func $own)) (export "m" (memory 0)))""")
    )
    assert info.imports == [
        Import("a", "f", "function", (("i32", "i64"), ("i32",))),
        Import("a", "m", "memory", None),
        Import("a", "t", "table", None),
        Import("b", "g", "global", None),
    ]
    assert info.exports == {
        "f": ("function", (("i32", "i64"), ("i32",))),
        "own": ("function", (("f32",), ())),
        "m": ("memory", None),
    }


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ((("i32", "i64"), ("i32",)), "(i32, i64) -> i32"),
        (((), ()), "() -> ()"),
        (((), ("i32", "f32")), "() -> i32, f32"),
    ],
)
def test_signature_as_text(signature: tuple[tuple[str, ...], tuple[str, ...]], text: str) -> None:
    """A signature is written as the messages have it."""
    assert signature_text(signature) == text


TYPE = section(1, b"\x60\0\0")
EXPORT_F = name("f") + b"\0\0"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (section(1, b"\x5f\0"), "a type of form 0x5f"),
        (section(1, b"\x60\x01\x7a\0"), "a value type 0x7a is not supported"),
        (b"\x01\x05\x01\x60\0\0\0", "should end at byte 14, and 1 more follow"),
        (section(2, name("a") + name("b") + b"\x04\0\0"), "kind 0x4 is not supported"),
        (TYPE + section(2, name("a") + name("b") + b"\0\x01"), "function 0 is named and not there"),
        (section(2, name("a") + name("b") + b"\x02\x05\0\0"), "limits with flags 0x5"),
        (section(2, name("a") + name("b") + b"\x01\x7f\0\0"), "a table of type 0x7f"),
        (TYPE + section(3, b"\0"), "1 functions with 0 bodies"),
        (TYPE + section(10, b"\x02\0\x0b"), "0 functions with 1 bodies"),
        (TYPE + section(3, b"\0") + section(7, EXPORT_F, EXPORT_F), "it exports 'f' twice"),
        (TYPE + section(7, EXPORT_F), "function 0 is named and not there"),
        (section(7, name("f") + b"\x05\0"), "kind 0x5 is not supported"),
        (b"\x0c\x01\x01", "0 data segments; announced are 1"),
        (b"\x0c\x01\x00" + section(11, b"\x01\0"), "1 data segments; announced are 0"),
        (b"\x01\x05\xff\xff\xff\xff\x0f", "cut off"),
    ],
)
def test_malformed_module_is_rejected(content: bytes, told: str) -> None:
    """What the sections say of themselves and of each other must agree; the message tells what does not."""
    with pytest.raises(ModuleRejected, match=told):
        inspect(MAGIC + content)


F: Signature = (("i32",), ("i32",))


def test_wanted_are_the_imported_ones_only() -> None:
    """Of all that is offered those are named that the module imports, each once; and so they are bound."""
    each = Import("h", "f", "function", F)
    assert wanted(ModuleInfo([each, each]), {("h", "f"): F, ("h", "g"): ((), ())}) == {("h", "f"): F}
    f, other = HostFunction(F, lambda *_: 0), HostFunction(((), ()), lambda: 0)
    assert bound(ModuleInfo([each, each]), {("h", "f"): f, ("h", "g"): other}) == {("h", "f"): f}


@pytest.mark.parametrize(
    ("each", "told"),
    [
        (Import("h", "g", "function", F), "the function 'g' from 'h', which is not there"),
        (Import("i", "f", "function", F), "the function 'f' from 'i', which is not there"),
        (Import("h", "f", "function", ((), ())), r"'f' from 'h' as \(\) -> \(\); it is \(i32\) -> i32"),
        (Import("h", "m", "memory", None), "the memory 'm' from 'h': only functions"),
        (Import("h", "t", "table", None), "the table 't' from 'h': only functions"),
        (Import("h", "f", "global", None), "the global 'f' from 'h': only functions"),
    ],
)
def test_import_that_is_not_there_is_rejected(each: Import, told: str) -> None:
    """An import of another name, module, signature or kind is rejected by its name."""
    with pytest.raises(ModuleRejected, match=told):
        wanted(ModuleInfo([each]), {("h", "f"): F})


@pytest.mark.parametrize(
    ("declared", "capped"),
    [("1", (1, 4)), ("1 2", (1, 2)), ("1 4", (1, 4)), ("1 5", (1, 4)), ("4", (4, 4)), ("0 65536", (0, 4))],
)
def test_memory_is_capped(wat: Wat, declared: str, capped: tuple[int, int]) -> None:
    """A memory's maximum is the smaller of its own and the limit; part of a page does not count."""
    assert limits_of(cap(wat(f"(module (memory {declared}))"), 5 * PAGE - 1, 10), 5) == [capped]


def test_memory_minimum_above_the_limit_is_rejected(wat: Wat) -> None:
    """A module that needs one page more than the limit is rejected, and the message has both numbers."""
    with pytest.raises(ModuleRejected, match=r"of 5 pages of 64 KiB; the limit is 4 \(262144 bytes\)"):
        cap(wat("(module (memory 5))"), 4 * PAGE, 10)


def test_limit_above_what_32_bits_address_is_that(wat: Wat) -> None:
    """However high the limit is, a maximum stays well-formed: 65 536 pages."""
    assert limits_of(cap(wat("(module (memory 1))"), 2**40, 10), 5) == [(1, 65536)]


@pytest.mark.parametrize(
    ("declared", "capped"),
    [
        (["1 funcref"], [(1, 10)]),
        (["1 3 funcref"], [(1, 3)]),
        (["10 funcref"], [(10, 10)]),
        (["1 11 funcref"], [(1, 10)]),
        (["2 funcref", "3 externref"], [(2, 4), (3, 5)]),
        (["6 funcref", "4 funcref"], [(6, 6), (4, 4)]),
    ],
)
def test_tables_are_capped_together(wat: Wat, declared: list[str], capped: list[tuple[int, int]]) -> None:
    """All tables together cannot grow over the limit: what their minima leave is shared out evenly."""
    wasm = wat(f"(module {' '.join(f'(table {each})' for each in declared)})")
    assert limits_of(cap(wasm, PAGE, 10), 4) == capped


@pytest.mark.parametrize("declared", [["11 funcref"], ["6 funcref", "5 funcref"]])
def test_table_minima_above_the_limit_are_rejected(wat: Wat, declared: list[str]) -> None:
    """Tables whose minima are one element more than the limit, in one or in sum, are rejected."""
    wasm = wat(f"(module {' '.join(f'(table {each})' for each in declared)})")
    with pytest.raises(ModuleRejected, match="it asks for 11 elements in its tables; the limit is 10"):
        cap(wasm, PAGE, 10)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (section(5, b"\0\1", b"\0\1"), "it has 2 memories"),
        (section(5, b"\2\1"), "flags 0x2: shared and 64-bit"),
        (section(5, b"\3\1\1"), "flags 0x3: shared and 64-bit"),
        (section(5, b"\4\1"), "flags 0x4: shared and 64-bit"),
        (section(5, b"\1\3\2"), "limits from 3 to 2: they must rise, to 65536 at most"),
        (section(5, b"\1\1" + leb128(65537)), "limits from 1 to 65537"),
        (section(5, b"\0" + leb128(65537)), "limits from 65537 to 65536"),
        (b"\x05\x04\x01\0\1\0", "and 1 more follow"),
        (section(4, b"\x70\4\1"), "flags 0x4: shared and 64-bit"),
        (section(4, b"\x70\1\3\2"), "limits from 3 to 2"),
        (section(4, b"\x6e\0\1"), "a table of type 0x6e"),
        (section(4, b"\x40\0\x70\0\1\xd0\x70\x0b"), "a table of type 0x40"),
    ],
)
def test_limits_that_are_malformed_or_unsupported_are_rejected(content: bytes, told: str) -> None:
    """Second memories, shared and 64-bit ones, and limits that fall are rejected, not repaired."""
    with pytest.raises(ModuleRejected, match=told):
        cap(MAGIC + content, PAGE, 10)


def test_custom_sections_are_left_out(wat: Wat) -> None:
    """The names of a guest's functions, and all else that no engine needs, do not reach the engine."""
    wasm = wat('(module (func $chosen_by_the_guest (export "f")))') + b"\0\x03\x01xy"
    assert b"chosen" in wasm
    capped = cap(wasm, PAGE, 10)
    assert b"chosen" not in capped
    assert not capped.endswith(b"xy")
    assert inspect(capped) == inspect(wasm)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_capping_changes_limits_only(path: Path) -> None:
    """Capped by limits that are far above its own, an example keeps its code, imports and exports."""
    wasm = path.read_bytes()
    capped = cap(wasm, 2**32, 1_000_000)
    unchanged = [
        [w[s.start : s.end] for s in sections(w) if s.identity not in (4, 5)] for w in (wasm, capped)
    ]
    assert unchanged[0] == unchanged[1]
    assert inspect(capped) == inspect(wasm)


def test_examples_are_there() -> None:
    """The test above, and the mutations below, have modules to work on."""
    assert EXAMPLES


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real module with some bytes changed, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(EXAMPLES)).read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data) - 1, 300)))
        length = draw(st.integers(0, 3))
        data[at : at + length] = draw(st.binary(max_size=3))
    return bytes(data)


@given(mutated() | st.binary(max_size=60).map(MAGIC.__add__))
def test_reading_ends_in_a_result_or_a_rejection(wasm: bytes) -> None:
    """Whatever bytes come, they are rejected, or capping leaves their imports and exports as they were."""
    try:
        info = inspect(cap(wasm, 16 * PAGE, 1000))
    except ModuleRejected:
        return
    assert inspect(wasm) == info
