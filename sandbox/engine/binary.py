"""The WebAssembly binary format, as far as we read and rewrite it.

Read, to refuse a module before an engine sees it: its imports, exports and their signatures. Rewritten, since
wasmer has no limits of its own: the maxima of memories and tables, so that `memory.grow` and `table.grow`
answer -1 at the manifest's limit. Source: WebAssembly Core Specification 2.0, chapter 5 (Binary Format).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from capsuled.proto.abi import ValueType
from capsuled.sandbox.engine.seam import ModuleRejected, Signature

MAGIC = b"\0asm\x01\0\0\0"
PAGE = 64 * 1024
MAX_PAGES = 65_536

_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _EXPORT = 1, 2, 3, 4, 5, 7
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


def signature_text(signature: AnySignature | Signature) -> str:
    """`(i32, i32) -> i32`"""
    params, results = signature
    return f"({', '.join(params)}) -> {', '.join(results) or '()'}"


class _Reader:
    """A cursor over bytes. Every read past the end is a `ModuleRejected`."""

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.position = start
        self.end = len(data) if end is None else end

    def byte(self) -> int:
        if self.position >= self.end:
            raise ModuleRejected(f"cut off at byte {self.position}")
        self.position += 1
        return self.data[self.position - 1]

    def take(self, length: int) -> bytes:
        start = self.position
        if length > self.end - start:
            raise ModuleRejected(f"cut off at byte {start}: {length} bytes were to follow")
        self.position += length
        return self.data[start : self.position]

    def u32(self) -> int:
        """LEB128, 5 bytes at most."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 32:
                    break
                return value
        raise ModuleRejected(f"a number before byte {self.position} does not fit 32 bits")

    def name(self) -> str:
        try:
            return self.take(self.u32()).decode()
        except UnicodeDecodeError as exc:
            raise ModuleRejected(f"a name before byte {self.position} is not UTF-8") from exc


def _sections(wasm: bytes) -> Iterator[tuple[int, int, int]]:
    """Id, start and end of each section's content."""
    if not wasm.startswith(MAGIC):
        raise ModuleRejected("not a WebAssembly module of version 1: it begins otherwise")
    reader = _Reader(wasm, len(MAGIC))
    while reader.position < reader.end:
        identity = reader.byte()
        size = reader.u32()
        start = reader.position
        reader.take(size)
        yield identity, start, start + size


def inspect(wasm: bytes) -> ModuleInfo:
    """Imports and exports of a module. Raises `ModuleRejected`.

    Not a validation: function bodies are the engine's to judge.
    """
    info = ModuleInfo()
    types: list[AnySignature] = []
    functions: list[int] = []  # type index of each function, imported ones first
    for identity, start, end in _sections(wasm):
        reader = _Reader(wasm, start, end)
        if identity == _TYPE:
            types = [_function_type(reader) for _ in range(reader.u32())]
        elif identity == _IMPORT:
            for _ in range(reader.u32()):
                info.imports.append(_import(reader, types, functions))
        elif identity == _FUNCTION:
            functions.extend(reader.u32() for _ in range(reader.u32()))
        elif identity == _EXPORT:
            for _ in range(reader.u32()):
                name, kind, index = reader.name(), _kind(reader), reader.u32()
                signature = _signature(types, functions, index) if kind == _FUNCTION_KIND else None
                info.exports[name] = (KIND_NAMES[kind], signature)
    return info


def cap(wasm: bytes, memory_bytes: int, table_elements: int) -> bytes:
    """The module with the maxima of its memories and tables lowered to the limits.

    Raises `ModuleRejected` where a minimum is above its limit already.
    """
    pages = min(MAX_PAGES, memory_bytes // PAGE)
    parts = [MAGIC]
    for identity, start, end in _sections(wasm):
        content = wasm[start:end]
        if identity == _MEMORY:
            reader = _Reader(wasm, start, end)
            count = reader.u32()
            capped = (
                _capped(reader, pages, f"memory {{}} pages of 64 KiB; the limit is {pages} ({memory_bytes} bytes)")
                for _ in range(count)
            )
            content = leb128(count) + b"".join(capped)
        elif identity == _TABLE:
            reader = _Reader(wasm, start, end)
            count = reader.u32()
            content = leb128(count) + b"".join(
                bytes((reader.byte(),))
                + _capped(reader, table_elements, f"table {{}} elements; the limit is {table_elements}")
                for _ in range(count)
            )
        parts += [bytes((identity,)), leb128(len(content)), content]
    return b"".join(parts)


def leb128(value: int) -> bytes:
    """An unsigned number."""
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            encoded.append(low)
            return bytes(encoded)
        encoded.append(low | 0x80)


def _capped(reader: _Reader, limit: int, what: str) -> bytes:
    flags = reader.byte()
    if flags > _HAS_MAXIMUM:
        raise ModuleRejected(f"limits with flags {flags:#x}: shared and 64-bit memories are not supported")
    minimum = reader.u32()
    maximum = min(reader.u32(), limit) if flags else limit
    if minimum > limit:
        raise ModuleRejected("it asks for a " + what.format(f"of {minimum}"))
    return bytes((_HAS_MAXIMUM,)) + leb128(minimum) + leb128(max(minimum, maximum))


def _function_type(reader: _Reader) -> AnySignature:
    form = reader.byte()
    if form != _FUNCTION_TYPE:
        raise ModuleRejected(f"a type of form {form:#x}: only function types are supported")
    return _value_types(reader), _value_types(reader)


def _value_types(reader: _Reader) -> tuple[str, ...]:
    types: list[str] = []
    for code in reader.take(reader.u32()):
        if code not in _VALUE_TYPES:
            raise ModuleRejected(f"a value type {code:#x} is not supported")
        types.append(_VALUE_TYPES[code])
    return tuple(types)


def _import(reader: _Reader, types: list[AnySignature], functions: list[int]) -> Import:
    module, name, kind = reader.name(), reader.name(), _kind(reader)
    signature = None
    if kind == _FUNCTION_KIND:
        functions.append(reader.u32())
        signature = _signature(types, functions, len(functions) - 1)
    elif kind == _GLOBAL_KIND:
        reader.take(2)
    else:
        if kind == _TABLE_KIND:
            reader.byte()
        if reader.byte() & _HAS_MAXIMUM:
            reader.u32()
        reader.u32()
    return Import(module, name, KIND_NAMES[kind], signature)


def _kind(reader: _Reader) -> int:
    kind = reader.byte()
    if kind >= len(KIND_NAMES):
        raise ModuleRejected(f"an import or export of kind {kind:#x} is not supported")
    return kind


def _signature(types: list[AnySignature], functions: list[int], index: int) -> AnySignature:
    if index >= len(functions) or functions[index] >= len(types):
        raise ModuleRejected(f"the function {index} is named and not there")
    return types[functions[index]]


def value_code(name: ValueType) -> int:
    """The byte of a value type."""
    return {"i32": 0x7F, "i64": 0x7E}[name]
