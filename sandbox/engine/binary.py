"""A WebAssembly module as far as we read and rewrite it, before an engine sees it.

Read: its imports, exports and their signatures. Rewritten: the maxima of memories and tables, so that
`memory.grow` and `table.grow` answer -1 at the manifest's limit; wasmer has no limits of its own, and both
engines are to hold a guest to the same. Source: WebAssembly Core Specification 2.0, chapter 5 (Binary Format).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto.abi import MEMORY_EXPORT, ValueType
from capsuled.sandbox.engine.reader import (
    CODE,
    DATA,
    DATA_COUNT,
    EXPORT,
    FUNCTION,
    IMPORT,
    MAGIC,
    MEMORY,
    TABLE,
    TYPE,
    Reader,
    leb128,
    sections,
    shown,
)
from capsuled.sandbox.engine.seam import (
    GuestLimits,
    HostFunction,
    Imports,
    ModuleRejected,
    Offered,
    Signature,
    signatures,
)

PAGE = 64 * 1024
MAX_PAGES = 65_536
"""What 32 bits address: a maximum above it is malformed."""
MAX_ELEMENTS = 0xFFFF_FFFF

_FUNCTION_KIND, _TABLE_KIND, _MEMORY_KIND, _GLOBAL_KIND = range(4)
KIND_NAMES = ("function", "table", "memory", "global")

_VALUE_TYPES: dict[int, str] = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
}
_REFERENCE_TYPES = (0x70, 0x6F)
_FUNCTION_TYPE = 0x60
_HAS_MAXIMUM = 0x01

AnySignature = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Import:
    """One import; `signature` is set for functions."""

    module: str
    name: str
    kind: str
    signature: AnySignature | None


@dataclass
class ModuleInfo:
    """What a module asks for and offers."""

    imports: list[Import] = field(default_factory=list[Import])
    exports: dict[str, tuple[str, AnySignature | None]] = field(
        default_factory=dict[str, tuple[str, "AnySignature | None"]]
    )
    """Name to kind and, for functions, signature."""


class _Limits(NamedTuple):
    """Minimum and maximum of a memory in pages, or of a table in elements."""

    minimum: int
    maximum: int


class Prepared(NamedTuple):
    """What a compiler gets of a module, whichever engine it is for."""

    info: ModuleInfo
    functions: dict[tuple[str, str], Signature]
    """Of the host functions that it imports, each once."""
    capped: bytes
    """The module with the limits in it: this is compiled, nothing else."""


def prepare(wasm: bytes, offered: Offered, limits: GuestLimits) -> Prepared:
    """Read a module, and write the limits into it. Raises `ModuleRejected`.

    All that can be told without an engine is told here, so that both engines refuse the same modules with the
    same words; what is left to an engine are the function bodies.
    """
    info = inspect(wasm)
    functions = wanted(info, offered)
    if info.exports.get(MEMORY_EXPORT, ("", None))[0] != "memory":
        raise ModuleRejected(f"it exports no memory as '{MEMORY_EXPORT}'")
    return Prepared(info, functions, cap(wasm, limits.memory_bytes, limits.table_elements))


def bound(info: ModuleInfo, imports: Imports) -> dict[tuple[str, str], HostFunction]:
    """The host functions that a module imports, in the order that its shim has them. Raises `ModuleRejected`."""
    return {key: imports[key] for key in wanted(info, signatures(imports))}


def entry(info: ModuleInfo, export: str) -> AnySignature:
    """The signature of an exported function without parameters. Raises `ModuleRejected` where there is none."""
    kind, signature = info.exports.get(export, ("", None))
    if kind != "function" or signature is None or signature[0]:
        raise ModuleRejected(f"it exports no function {shown(export)} without parameters")
    return signature


def signature_text(signature: AnySignature | Signature) -> str:
    """`(i32, i32) -> i32`"""
    params, results = signature
    return f"({', '.join(params)}) -> {', '.join(results) or '()'}"


def value_code(name: ValueType) -> int:
    """The byte of a value type."""
    return {"i32": 0x7F, "i64": 0x7E}[name]


def inspect(wasm: bytes) -> ModuleInfo:
    """Imports and exports of a module. Raises `ModuleRejected`.

    Not a validation: function bodies are the engine's to judge.
    """
    info = ModuleInfo()
    types: list[AnySignature] = []
    functions: list[int] = []  # type index of each function, imported ones first
    counts: dict[int, int] = {}  # entries of each section that another must agree with
    for identity, start, end in sections(wasm):
        reader = Reader(wasm, start, end)
        if identity == TYPE:
            types = [_function_type(reader) for _ in range(reader.u32())]
        elif identity == IMPORT:
            for _ in range(reader.u32()):
                info.imports.append(_import(reader, types, functions))
        elif identity == FUNCTION:
            defined = [reader.u32() for _ in range(reader.u32())]
            counts[FUNCTION] = len(defined)
            functions += defined
        elif identity == EXPORT:
            for _ in range(reader.u32()):
                name, kind, index = reader.name(), _kind(reader), reader.u32()
                if name in info.exports:
                    raise ModuleRejected(f"it exports {shown(name)} twice")
                signature = _signature(types, functions, index) if kind == _FUNCTION_KIND else None
                info.exports[name] = (KIND_NAMES[kind], signature)
        elif identity in (CODE, DATA, DATA_COUNT):
            counts[identity] = reader.u32()
            if identity != DATA_COUNT:
                continue  # what the entries hold is the engine's to judge
        else:
            continue
        reader.finish()
    if counts.get(FUNCTION, 0) != counts.get(CODE, 0):
        raise ModuleRejected(f"{counts.get(FUNCTION, 0)} functions with {counts.get(CODE, 0)} bodies")
    if counts.get(DATA_COUNT, counts.get(DATA, 0)) != counts.get(DATA, 0):
        raise ModuleRejected(f"{counts.get(DATA, 0)} data segments; announced are {counts[DATA_COUNT]}")
    return info


def wanted(info: ModuleInfo, offered: Offered) -> dict[tuple[str, str], Signature]:
    """What a module imports of what is offered. Raises `ModuleRejected` and names the import that is none."""
    found: dict[tuple[str, str], Signature] = {}
    for each in info.imports:
        name = f"{shown(each.name)} from {shown(each.module)}"
        if each.signature is None:
            raise ModuleRejected(f"it imports the {each.kind} {name}: only functions may be imported")
        signature = offered.get((each.module, each.name))
        if signature is None:
            raise ModuleRejected(f"it imports the function {name}, which is not there")
        if signature != each.signature:
            raise ModuleRejected(
                f"it imports the function {name} as {signature_text(each.signature)}; "
                f"it is {signature_text(signature)}"
            )
        found[each.module, each.name] = signature
    return found


def cap(wasm: bytes, memory_bytes: int, table_elements: int) -> bytes:
    """The module with the maxima of its memory and its tables lowered to the limits.

    `table_elements` is for all tables together: what the minima leave of it is shared out evenly. Custom
    sections, names among them, are left out. Raises `ModuleRejected` where a minimum is above its limit.
    """
    # Names: wasmer copies a function's name into a backtrace once for each frame, 261 000 times when 8 MiB of
    # stack overflow, so that a long one would need more memory than there is, and the process would abort.
    pages = min(MAX_PAGES, memory_bytes // PAGE)
    parts = [MAGIC]
    for identity, start, end in sections(wasm):
        content = wasm[start:end]
        if identity == MEMORY:
            content = _capped_memory(Reader(wasm, start, end), pages, memory_bytes)
        elif identity == TABLE:
            content = _capped_tables(Reader(wasm, start, end), table_elements)
        parts += [bytes((identity,)), leb128(len(content)), content]
    return b"".join(parts)


def _capped_memory(reader: Reader, pages: int, memory_bytes: int) -> bytes:
    count = reader.u32()
    if count > 1:
        raise ModuleRejected(f"it has {count} memories: one is supported")
    memories = [_limits(reader, MAX_PAGES) for _ in range(count)]
    reader.finish()
    for minimum, _ in memories:
        if minimum > pages:
            limit = f"the limit is {pages} ({memory_bytes} bytes)"
            raise ModuleRejected(f"it asks for a memory of {minimum} pages of 64 KiB; {limit}")
    return _vector([_encoded(minimum, min(maximum, pages)) for minimum, maximum in memories])


def _capped_tables(reader: Reader, limit: int) -> bytes:
    tables = [(_reference_type(reader), _limits(reader, MAX_ELEMENTS)) for _ in range(reader.u32())]
    reader.finish()
    needed = sum(limits.minimum for _, limits in tables)
    if needed > limit:
        raise ModuleRejected(f"it asks for {needed} elements in its tables; the limit is {limit}")
    share = (limit - needed) // len(tables) if tables else 0
    return _vector(
        [
            bytes((kind,)) + _encoded(minimum, min(maximum, minimum + share))
            for kind, (minimum, maximum) in tables
        ]
    )


def _vector(entries: Sequence[bytes]) -> bytes:
    return leb128(len(entries)) + b"".join(entries)


def _encoded(minimum: int, maximum: int) -> bytes:
    return bytes((_HAS_MAXIMUM,)) + leb128(minimum) + leb128(maximum)


def _limits(reader: Reader, most: int) -> _Limits:
    """`most` stands for a maximum that is not there."""
    flags = reader.byte()
    if flags > _HAS_MAXIMUM:
        raise ModuleRejected(f"limits with flags {flags:#x}: shared and 64-bit ones are not supported")
    minimum = reader.u32()
    maximum = reader.u32() if flags else most
    if not minimum <= maximum <= most:
        raise ModuleRejected(f"limits from {minimum} to {maximum}: they must rise, to {most} at most")
    return _Limits(minimum, maximum)


def _reference_type(reader: Reader) -> int:
    kind = reader.byte()
    if kind not in _REFERENCE_TYPES:
        raise ModuleRejected(f"a table of type {kind:#x} is not supported")
    return kind


def _function_type(reader: Reader) -> AnySignature:
    form = reader.byte()
    if form != _FUNCTION_TYPE:
        raise ModuleRejected(f"a type of form {form:#x}: only function types are supported")
    return _value_types(reader), _value_types(reader)


def _value_types(reader: Reader) -> tuple[str, ...]:
    types: list[str] = []
    for code in reader.take(reader.u32()):
        if code not in _VALUE_TYPES:
            raise ModuleRejected(f"a value type {code:#x} is not supported")
        types.append(_VALUE_TYPES[code])
    return tuple(types)


def _import(reader: Reader, types: list[AnySignature], functions: list[int]) -> Import:
    module, name, kind = reader.name(), reader.name(), _kind(reader)
    signature = None
    if kind == _FUNCTION_KIND:
        functions.append(reader.u32())
        signature = _signature(types, functions, len(functions) - 1)
    elif kind == _GLOBAL_KIND:
        reader.take(2)  # its type, and whether it may change
    elif kind == _TABLE_KIND:
        _reference_type(reader)
        _limits(reader, MAX_ELEMENTS)
    else:
        _limits(reader, MAX_PAGES)
    return Import(module, name, KIND_NAMES[kind], signature)


def _kind(reader: Reader) -> int:
    kind = reader.byte()
    if kind >= len(KIND_NAMES):
        raise ModuleRejected(f"an import or export of kind {kind:#x} is not supported")
    return kind


def _signature(types: list[AnySignature], functions: list[int], index: int) -> AnySignature:
    if index >= len(functions) or functions[index] >= len(types):
        raise ModuleRejected(f"the function {index} is named and not there")
    return types[functions[index]]
