"""What was compiled, kept for the next start of the same module. A rule: it sees no process and no clock."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Compiled(NamedTuple):
    """Native code of one module, for a worker."""

    engine: str
    """`wasmer` or `wasmtime`: the one that can load it."""
    blob: bytes


class Shelf(Generic[Key]):
    """Blobs by key, within a bound of bytes; what was used longest ago goes first."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[Key, Compiled] = OrderedDict()
        self.bytes = 0

    def get(self, key: Key) -> Compiled | None:
        """What is kept under `key`, which counts as a use of it."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Key, compiled: Compiled) -> None:
        """Keep it, in place of what was there. What is larger than the bound is not kept, and pushes nothing out."""
        self.forget(key)
        if len(compiled.blob) > self._most:
            return
        self._kept[key] = compiled
        self.bytes += len(compiled.blob)
        while self.bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= len(oldest.blob)

    def forget(self, key: Key) -> None:
        """Keep it no longer, if it is there."""
        found = self._kept.pop(key, None)
        if found is not None:
            self.bytes -= len(found.blob)

    def __len__(self) -> int:
        return len(self._kept)
