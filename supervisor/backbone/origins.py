"""Origins: who a message comes from, as its subscribers are told. Each has an index in this epoch.

A message carries the index only. A subscriber is told once what it stands for, before the first message.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from capsuled.proto import records
from capsuled.proto.records import DownKind

MANY = 16_384
"""Origins that are kept without a look at whether anything names them: 5 MB, and a look at what a thousand capsules
have been sent takes some tenths of a second."""


@dataclass(frozen=True)
class Origin:
    """An instance of a capsule together with the principal that it publishes for."""

    name: str
    instance: bytes
    """16 bytes."""
    principal: str

    def introduction(self, index: int, epoch: int) -> bytes:
        """The record that tells a subscriber what `index` stands for in this epoch."""
        body = self.instance + self.principal.encode()
        return records.control(DownKind.ORIGIN, epoch, self.name.encode(), a=index, body=body)


@dataclass
class Origins:
    """All origins that something may still name: a member, a message that waits, a cause, what is kept.

    An index is used again when nothing names it any more: each instance of a capsule is an origin, and capsules are
    started for ever. Who finds out is the router, when there are so many that it is `time_to_forget`.
    """

    many: int = MANY
    _origins: dict[int, Origin] = field(default_factory=dict[int, Origin])
    _index: dict[Origin, int] = field(default_factory=dict[Origin, int])
    _free: list[int] = field(default_factory=list[int])
    _kept: int = 0
    """At the last look."""

    def index(self, origin: Origin) -> int:
        """The index of `origin`, which it has from now on if it had none."""
        index = self._index.get(origin)
        if index is None:
            index = self._free.pop() if self._free else len(self._origins)
            self._index[origin] = index
            self._origins[index] = origin
        return index

    @property
    def time_to_forget(self) -> bool:
        """Whether there are twice as many as had to be kept the last time."""
        return len(self._origins) >= max(self.many, 2 * self._kept)

    def forget(self, named: set[int]) -> set[int]:
        """Keep those that are named. Returns the others; their indices will mean something else."""
        gone = self._origins.keys() - named
        for index in gone:
            del self._index[self._origins.pop(index)]
        self._free += gone
        self._kept = len(self._origins)
        return gone

    def __len__(self) -> int:
        return len(self._origins)

    def __getitem__(self, index: int) -> Origin:
        return self._origins[index]
