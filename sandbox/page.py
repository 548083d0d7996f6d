"""The ledger page, from the worker's side: see `proto.ledger` for what stands where."""

from __future__ import annotations

import mmap

from capsuled.proto import ledger
from capsuled.proto.ledger import Column, Total
from capsuled.proto.refusals import Errno


class Page:
    """Writes slots. An update of several that belong together stands between `begin` and `end`."""

    def __init__(self, slots: memoryview) -> None:
        self.slots = slots
        """Unsigned 64-bit. A single counter is written directly: its 8 bytes are stored at once."""

    @classmethod
    def map(cls, fd: int) -> Page:
        """The page behind a descriptor. mmap(2), shared: what is written here, the supervisor reads."""
        return cls(memoryview(mmap.mmap(fd, ledger.BYTES)).cast("Q"))

    def begin(self) -> None:
        """From now on the page is in the middle of an update: a reader tries again."""
        self.slots[Total.VERSION] += 1

    def end(self) -> None:
        self.slots[Total.VERSION] += 1

    def refused(self, errno: Errno) -> None:
        self.slots[ledger.ERRNO_SLOT[errno]] += 1

    def add(self, total: Total, count: int = 1) -> None:
        self.slots[total] += count

    def row(self, index: int, *columns: int) -> None:
        """Write row `index` in the order of `Column`; all zeros free it."""
        at = ledger.ROWS + index * ledger.ROW_SLOTS
        for column, value in zip(Column, columns, strict=True):
            self.slots[at + column] = value

    def free_row(self, index: int) -> None:
        self.row(index, *(0 for _ in Column))
