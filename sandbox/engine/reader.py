"""Reading WebAssembly's binary format: numbers, names, and the sections in their order.

Source: WebAssembly Core Specification 2.0, chapter 5 (Binary Format). Nothing here trusts what it reads: the
end of the data, of a section and of a number is checked at each step, and all that can go wrong is a
`ModuleRejected` that tells the byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from capsuled.sandbox.engine.seam import ModuleRejected

MAGIC = b"\0asm\x01\0\0\0"

CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA, DATA_COUNT = range(
    13
)

_ORDER = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, DATA_COUNT, CODE, DATA)
"""Each at most once, in this order; custom ones anywhere. The data count, added late, precedes the code."""
_PLACE = {identity: place for place, identity in enumerate(_ORDER)}

_SHOWN = 100
"""Characters of a guest's name that a message repeats: names may be as long as the module."""


class Section(NamedTuple):
    """One section: its id, and where its content starts and ends."""

    identity: int
    start: int
    end: int


class Reader:
    """A cursor over a part of the module. Every read past the end is a `ModuleRejected`."""

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

    def finish(self) -> None:
        """The section must end here."""
        if self.position != self.end:
            raise ModuleRejected(
                f"a section should end at byte {self.position}, and {self.end - self.position} more follow"
            )


def sections(wasm: bytes) -> Iterator[Section]:
    """The sections, in their order and each only once; custom ones are passed over."""
    if (
        wasm[: len(MAGIC)] != MAGIC
    ):  # WAT too ends here, whether it comes as bytes or, against the types, as str
        raise ModuleRejected("not a WebAssembly module of version 1: it begins otherwise")
    reader = Reader(wasm, len(MAGIC))
    place = -1
    while reader.position < reader.end:
        at = reader.position
        identity = reader.byte()
        size = reader.u32()
        start = reader.position
        reader.take(size)
        if identity == CUSTOM:
            continue
        if identity not in _PLACE:
            raise ModuleRejected(f"the section at byte {at} is of the unknown kind {identity}")
        if _PLACE[identity] <= place:
            raise ModuleRejected(
                f"the section of kind {identity} at byte {at} is out of order, or there twice"
            )
        place = _PLACE[identity]
        yield Section(identity, start, start + size)


def leb128(value: int) -> bytes:
    """An unsigned number."""
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            encoded.append(low)
            return bytes(encoded)
        encoded.append(low | 0x80)


def shown(name: str) -> str:
    """A guest's name for a message: quoted, escaped and cut."""
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")
