"""Origins: who a message comes from, as its subscribers are told. Each has an index in this epoch.

A message carries the index only. A subscriber is told once what it stands for, before the first message.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from capsuled.proto import records
from capsuled.proto.records import DownKind


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
    """All origins of an epoch. None is ever taken out: a message that waits, or a cause, may name it still."""

    _origins: list[Origin] = field(default_factory=list[Origin])
    _index: dict[Origin, int] = field(default_factory=dict[Origin, int])

    def index(self, origin: Origin) -> int:
        """The index of `origin`, which it has from now on if it had none."""
        index = self._index.get(origin)
        if index is None:
            index = self._index[origin] = len(self._origins)
            self._origins.append(origin)
        return index

    def __getitem__(self, index: int) -> Origin:
        return self._origins[index]
