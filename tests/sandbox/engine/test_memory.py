"""A guest's memory through a view that becomes too short as it grows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from capsuled.sandbox.engine.memory import ViewedMemory
from capsuled.sandbox.engine.seam import OutOfBounds


class Growing:
    """A memory that grows: each view is of all its bytes at that time."""

    def __init__(self, size: int) -> None:
        self.room = bytearray(1024)
        self.size = size
        self.views = 0

    def view(self) -> memoryview:
        self.views += 1
        return memoryview(self.room)[: self.size]


USES: dict[str, Callable[[ViewedMemory], object]] = {
    "read": lambda memory: memory.read(0, 1),
    "write": lambda memory: memory.write(0, b"a"),
    "check": lambda memory: memory.check(0, 1),
}


@pytest.mark.parametrize("use", USES)
def test_unbound_memory_has_nothing(use: str) -> None:
    """Until the instance is there, which is when a start section runs, every range is out of bounds."""
    memory = ViewedMemory()
    assert memory.size() == 0
    with pytest.raises(OutOfBounds, match="1 bytes at 0 leave the memory, which has 0"):
        USES[use](memory)


def test_grown_memory_is_viewed_again() -> None:
    """A range past the old end is looked for once more, and found where the memory has grown that far."""
    growing, memory = Growing(10), ViewedMemory()
    memory.bind(growing.view)
    with pytest.raises(OutOfBounds, match="2 bytes at 9 leave the memory, which has 10"):
        memory.write(9, b"ab")
    growing.size = 11
    memory.write(9, b"ab")
    assert memory.read(9, 2) == b"ab"
    memory.check(11, 0)
    with pytest.raises(OutOfBounds, match="0 bytes at 12 leave the memory, which has 11"):
        memory.check(12, 0)


def test_size_is_the_memory_as_it_is() -> None:
    """`size` tells growth that no access has met yet."""
    growing, memory = Growing(10), ViewedMemory()
    memory.bind(growing.view)
    growing.size = 20
    assert memory.size() == 20


def test_view_is_kept_while_ranges_are_in_it() -> None:
    """Accesses within the size that is known make no new view: they are what a host call costs."""
    growing, memory = Growing(10), ViewedMemory()
    memory.bind(growing.view)
    for _ in range(3):
        memory.write(0, b"0123456789")
        memory.check(5, 5)
        assert memory.read(2, 3) == b"234"
    assert growing.views == 1
