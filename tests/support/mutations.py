"""Modules that attack a compiler: real ones that were damaged, and sound ones that are out of all proportion.

Each is made from a seed, and from nothing else: `made(seed)` is the same module for ever, or as long as the examples
are. What is out of proportion stays below a megabyte: what it takes to compile is the question, not to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*/*.wasm"))

MAGIC = b"\0asm\x01\0\0\0"
TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA = range(1, 12)

Section = tuple[int, bytes]


class Mutation(NamedTuple):
    """What was made of a seed."""

    kind: str
    wasm: bytes


def made(seed: int) -> Mutation:
    """The module of a seed: three of four are damaged ones."""
    random = Random(seed)
    if random.random() < 0.75:
        return damaged(seed)
    kind = random.choice(sorted(BOMBS))
    return Mutation(kind, BOMBS[kind](random))


def damaged(seed: int) -> Mutation:
    """A damaged module: no larger than the example that it was, and compiled as fast."""
    random = Random(seed)
    kind = random.choice(sorted(DAMAGES))
    return Mutation(kind, DAMAGES[kind](random, random.choice(EXAMPLES).read_bytes()))


def bomb(kind: str) -> bytes:
    """One of each kind, the same for ever."""
    return BOMBS[kind](Random(0))


def slow(number: int = 0) -> bytes:
    """A sound module that takes a compiler seconds: 200 000 functions with a hundred instructions. Each is another."""
    body = b"\x00" + b"\x41\x07\x41\x05\x6c\x1a" * 33 + bytes((I32_CONST, number, DROP, END))
    count = 200_000
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, leb(count) + b"\0" * count),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, leb(count) + (leb(len(body)) + body) * count),
        )
    )


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def flip_bits(random: Random, wasm: bytes) -> bytes:
    data = bytearray(wasm)
    for _ in range(random.choice((1, 1, 1, 2, 8, 64))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def change_code(random: Random, wasm: bytes) -> bytes:
    """Bytes of function bodies alone, so that what is read before an engine stays sound."""
    parts = sections(wasm)
    for index, (identity, content) in enumerate(parts):
        if identity == CODE:
            data = bytearray(content)
            for _ in range(random.choice((1, 2, 4, 16))):
                data[random.randrange(1, len(data))] = random.randrange(256)
            parts[index] = (identity, bytes(data))
    return module(parts)


def cut_off(random: Random, wasm: bytes) -> bytes:
    return wasm[: random.randrange(len(wasm))]


def cut_out(random: Random, wasm: bytes) -> bytes:
    at = random.randrange(8, len(wasm))
    return wasm[:at] + wasm[at + random.randrange(1, 64) :]


def insert(random: Random, wasm: bytes) -> bytes:
    at = random.randrange(8, len(wasm))
    return wasm[:at] + random.randbytes(random.randrange(1, 64)) + wasm[at:]


def swap_sections(random: Random, wasm: bytes) -> bytes:
    parts = sections(wasm)
    random.shuffle(parts)
    return module(parts)


def drop_section(random: Random, wasm: bytes) -> bytes:
    parts = sections(wasm)
    del parts[random.randrange(len(parts))]
    return module(parts)


def double_section(random: Random, wasm: bytes) -> bytes:
    parts = sections(wasm)
    at = random.randrange(len(parts))
    return module([*parts[: at + 1], *parts[at:]])


def exchange_section(random: Random, wasm: bytes) -> bytes:
    """A section of another module in its place: indices that are right there and wrong here."""
    other = dict(sections(random.choice(EXAMPLES).read_bytes()))
    parts = sections(wasm)
    at = random.randrange(len(parts))
    parts[at] = (parts[at][0], other.get(parts[at][0], b""))
    return module(parts)


def huge_count(random: Random, wasm: bytes) -> bytes:
    """A section that announces more than it has."""
    parts = sections(wasm)
    at = random.randrange(len(parts))
    identity, content = parts[at]
    count = random.choice((2**7, 2**14, 2**20, 2**31, 2**32 - 1))
    parts[at] = (identity, leb(count) + content[1:])
    return module(parts)


def huge_size(random: Random, wasm: bytes) -> bytes:
    """A section that announces more bytes than follow."""
    parts = sections(wasm)
    at = random.randrange(len(parts))
    identity, content = parts[at]
    return module(parts[:at]) + bytes((identity,)) + leb(random.choice((2**20, 2**32 - 1))) + content


DAMAGES: dict[str, Callable[[Random, bytes], bytes]] = {
    "bits flipped": flip_bits,
    "code changed": change_code,
    "cut off": cut_off,
    "cut out": cut_out,
    "bytes inserted": insert,
    "sections swapped": swap_sections,
    "section dropped": drop_section,
    "section doubled": double_section,
    "section exchanged": exchange_section,
    "huge count": huge_count,
    "huge size": huge_size,
}


# ── bombs ────────────────────────────────────────────────────────────────────────────────────────

BLOCK, LOOP, IF, ELSE, END, BR, BR_IF, BR_TABLE = 0x02, 0x03, 0x04, 0x05, 0x0B, 0x0C, 0x0D, 0x0E
UNREACHABLE, CALL, DROP, SELECT, I32_CONST, I32_ADD, LOCAL_GET, LOCAL_SET = (
    *(0x00, 0x10, 0x1A, 0x1B, 0x41, 0x6A),
    *(0x20, 0x21),
)
EMPTY, I32, I64 = 0x40, 0x7F, 0x7E


def nesting(random: Random) -> bytes:
    """Blocks in blocks."""
    depth = random.choice((100, 5_000, 100_000))
    opening = random.choice((bytes((BLOCK, EMPTY)), bytes((LOOP, EMPTY)), bytes((I32_CONST, 1, IF, EMPTY))))
    return with_body(opening * depth + bytes((END,)) * depth)


def nested_results(random: Random) -> bytes:
    """Blocks in blocks that each hand a value out."""
    depth = random.choice((100, 5_000, 50_000))
    return with_body(
        bytes((BLOCK, I32)) * depth + bytes((I32_CONST, 1)) + bytes((END,)) * depth + bytes((DROP,))
    )


def many_locals(random: Random) -> bytes:
    """As many locals as an engine may take, and more."""
    count = random.choice((1_000, 49_999, 50_001, 2**31, 2**32 - 1))
    return with_body(b"", locals=[(count, random.choice((I32, I64)))])


def many_local_groups(random: Random) -> bytes:
    """Counts of locals whose sum leaves 32 bits."""
    return with_body(b"", locals=[(random.choice((1, 2**16, 2**31)), I32)] * random.choice((3, 1_000)))


def used_locals(random: Random) -> bytes:
    """Thousands of locals that all live at the same time, through a loop."""
    count = random.choice((100, 2_000))
    sets = b"".join(bytes((I32_CONST, 1, LOCAL_SET, *leb(i))) for i in range(count))
    gets = b"".join(bytes((LOCAL_GET, *leb(i), LOCAL_SET, *leb((i + 1) % count))) for i in range(count))
    return with_body(sets + bytes((LOOP, EMPTY)) + gets + bytes((BR, 0, END)), locals=[(count, I32)])


def many_functions(random: Random) -> bytes:
    """Thousands of functions, each as small as can be."""
    count = random.choice((1_000, 20_000, 100_000))
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, leb(count) + b"\0" * count),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, leb(count) + b"\x02\0\x0b" * count),
        )
    )


def branch_tables(random: Random) -> bytes:
    """Tables of branches, each to thousands of places."""
    targets = random.choice((1_000, 50_000, 200_000))
    depth = random.choice((1, 100))
    table = leb(targets) + bytes(i % depth for i in range(targets)) + b"\0"
    body = bytes((BLOCK, EMPTY)) * depth + bytes((I32_CONST, 0, BR_TABLE)) + table
    return with_body(body + bytes((END,)) * depth)


def many_branch_tables(random: Random) -> bytes:
    """Many tables to the same places: edges of a graph without end."""
    depth, tables = 60, random.choice((10, 500))
    table = bytes((BLOCK, EMPTY, I32_CONST, 0, BR_TABLE, *leb(depth), *range(depth), 0, END))
    return with_body(bytes((BLOCK, EMPTY)) * depth + table * tables + bytes((END,)) * depth)


def wide_types(random: Random) -> bytes:
    """Functions with a thousand parameters and results, which call each other."""
    width = random.choice((100, 999, 1_000, 1_001, 10_000))
    values = leb(width) + bytes((I32,)) * width
    body = b"\0" + b"".join(bytes((LOCAL_GET, *leb(i))) for i in range(width)) + bytes((CALL, 1, END))
    return module(
        (
            (TYPE, b"\x02\x60\0\0\x60" + values + values),
            (FUNCTION, b"\x02\0\x01"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, b"\x02\x02\0\x0b" + leb(len(body)) + body),
        )
    )


def many_types(random: Random) -> bytes:
    """Types without end that nobody uses."""
    count = random.choice((10_000, 200_000))
    return module(
        (
            (TYPE, leb(count) + b"\x60\0\0" * count),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


def deep_stack(random: Random) -> bytes:
    """A hundred thousand values on the stack at a time."""
    depth = random.choice((1_000, 100_000))
    return with_body(bytes((I32_CONST, 1)) * depth + bytes((I32_ADD,)) * (depth - 1) + bytes((DROP,)))


def selects(random: Random) -> bytes:
    """A value that depends on a value that depends on a value."""
    count = random.choice((1_000, 100_000))
    step = bytes((I32_CONST, 2, I32_CONST, 3, SELECT))
    return with_body(bytes((I32_CONST, 1)) + step * count + bytes((DROP,)))


def long_function(random: Random) -> bytes:
    """One function as long as a program."""
    count = random.choice((10_000, 150_000))
    return with_body(bytes((LOCAL_GET, 0, I32_CONST, 3, I32_ADD, LOCAL_SET, 0)) * count, locals=[(1, I32)])


def unreachable_code(random: Random) -> bytes:
    """Code behind a trap, where every stack is right."""
    count = random.choice((10_000, 200_000))
    return with_body(bytes((UNREACHABLE,)) + bytes((I32_ADD, DROP)) * count)


def many_exports(random: Random) -> bytes:
    """Names without end for one function."""
    count = random.choice((1_000, 50_000))
    names = b"".join(name(f"{i:x}") + b"\0\0" for i in range(count))
    entries = leb(count + 2) + EXPORTS[1:] + names
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, entries),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


def many_imports(random: Random) -> bytes:
    """One host function, thousands of times."""
    count = random.choice((1_000, 30_000))
    return module(
        (
            (TYPE, b"\x02\x60\0\0\x60\0\x01\x7f"),
            (IMPORT, leb(count) + (name("capsule") + name("ready") + b"\0\x01") * count),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, b"\x02" + name("memory") + b"\x02\0" + name("run") + b"\0" + leb(count)),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


def long_name(random: Random) -> bytes:
    """A name of megabytes, exported or of a custom section."""
    long = b"n" * random.choice((1_000, 900_000))
    if random.random() < 0.5:
        content = leb(len(long)) + long
        return with_body(b"") + b"\0" + leb(len(content)) + content
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, b"\x03" + EXPORTS[1:] + leb(len(long)) + long + b"\0\0"),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


def many_globals(random: Random) -> bytes:
    """Globals without end."""
    count = random.choice((1_000, 100_000, 200_000))
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (GLOBAL, leb(count) + b"\x7f\x01\x41\0\x0b" * count),
            (EXPORT, EXPORTS),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


def many_segments(random: Random) -> bytes:
    """Data segments without end, to the same place."""
    count = random.choice((1_000, 100_000))
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, b"\x01\x02\0\x0b"),
            (DATA, leb(count) + b"\0\x41\0\x0b\x01x" * count),
        )
    )


def many_elements(random: Random) -> bytes:
    """A table that is filled again and again."""
    count = random.choice((1_000, 100_000))
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (TABLE, b"\x01\x70\0\x01"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (ELEMENT, leb(count) + b"\0\x41\0\x0b\x01\0" * count),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


def many_tables(random: Random) -> bytes:
    """Tables without end, or one of four thousand million elements."""
    tables = random.choice((leb(1_000) + b"\x70\0\0" * 1_000, b"\x01\x70\0" + leb(2**32 - 1)))
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (TABLE, tables),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, b"\x01\x02\0\x0b"),
        )
    )


BOMBS: dict[str, Callable[[Random], bytes]] = {
    "nesting": nesting,
    "nested results": nested_results,
    "many locals": many_locals,
    "many groups of locals": many_local_groups,
    "used locals": used_locals,
    "many functions": many_functions,
    "branch table": branch_tables,
    "many branch tables": many_branch_tables,
    "wide types": wide_types,
    "many types": many_types,
    "deep stack": deep_stack,
    "selects": selects,
    "long function": long_function,
    "unreachable code": unreachable_code,
    "many exports": many_exports,
    "many imports": many_imports,
    "long name": long_name,
    "many globals": many_globals,
    "many segments": many_segments,
    "many elements": many_elements,
    "many tables": many_tables,
}


# ── the binary format ────────────────────────────────────────────────────────────────────────────


def leb(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def name(text: str) -> bytes:
    return leb(len(text.encode())) + text.encode()


EXPORTS = b"\x02" + name("memory") + b"\x02\0" + name("run") + b"\0\0"
"""The content of an export section: what a capsule must have, with function 0 as `run`."""


def module(parts: Sequence[Section]) -> bytes:
    return MAGIC + b"".join(bytes((identity,)) + leb(len(content)) + content for identity, content in parts)


def sections(wasm: bytes) -> list[Section]:
    """The sections of a sound module."""
    found: list[Section] = []
    at = len(MAGIC)
    while at < len(wasm):
        identity, size, shift = wasm[at], 0, 0
        at += 1
        while True:
            byte = wasm[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found.append((identity, wasm[at : at + size]))
        at += size
    return found


def with_body(code: bytes, locals: Sequence[tuple[int, int]] = ()) -> bytes:
    """A capsule whose `run` is this code; locals are counts with their type."""
    groups = leb(len(locals)) + b"".join(leb(count) + bytes((kind,)) for count, kind in locals)
    body = groups + code + bytes((END,))
    return module(
        (
            (TYPE, b"\x01\x60\0\0"),
            (FUNCTION, b"\x01\0"),
            (MEMORY, b"\x01\0\x01"),
            (EXPORT, EXPORTS),
            (CODE, b"\x01" + leb(len(body)) + body),
        )
    )
