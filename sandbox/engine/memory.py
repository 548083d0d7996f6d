"""The guest's memory through a cached view, the same for both engines: every range is checked here."""

from __future__ import annotations

from collections.abc import Callable

from capsuled.sandbox.engine.seam import OutOfBounds


class ViewedMemory:
    """A `GuestMemory`. A memory grows and never shrinks or moves, so that an old view is valid, but too short."""

    def __init__(self) -> None:
        self._open: Callable[[], memoryview] | None = None
        self._view = memoryview(b"")
        self._size = 0

    def bind(self, view: Callable[[], memoryview]) -> None:
        """From now on, what `view` gives: all bytes of the memory as it is. Before, every range is out of bounds."""
        self._open = view
        self._refresh()

    def read(self, pointer: int, length: int) -> bytes:
        end = pointer + length
        if end > self._size:
            self.check(pointer, length)
        return self._view[pointer:end].tobytes()

    def write(self, pointer: int, data: bytes) -> None:
        end = pointer + len(data)
        if end > self._size:
            self.check(pointer, len(data))
        self._view[pointer:end] = data

    def check(self, pointer: int, length: int) -> None:
        if pointer + length <= self._size:
            return
        self._refresh()
        if pointer + length > self._size:
            raise OutOfBounds(f"{length} bytes at {pointer} leave the memory, which has {self._size}")

    def size(self) -> int:
        self._refresh()
        return self._size

    def _refresh(self) -> None:
        if self._open is not None:
            self._view = self._open()
            self._size = len(self._view)
