"""Retained messages: the last one of each topic that a manifest declares, kept for those who subscribe later.

They belong to the capsule's name and outlive its instances, but not the backbone, so that a value which was said once
is there although its sayer has ended. They are bounded for each capsule, the topic that was silent for longest goes
first, and that is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto import topics
from capsuled.proto.topics import Segments

MAX_TOPICS = 256
"""Topics that are retained for one capsule."""


class Retained(NamedTuple):
    """The last message of a topic."""

    origin: int
    time_ms: int
    topic: bytes
    segments: Segments
    payload: bytes
    seq: int = 0
    """The global sequence number that it was published with."""


@dataclass
class _Shelf:
    """Of one capsule."""

    kept: OrderedDict[bytes, Retained] = field(default_factory=OrderedDict[bytes, Retained])
    bytes: int = 0
    evicted: int = 0


@dataclass
class Shelves:
    """Of all capsules, by name."""

    _shelves: dict[str, _Shelf] = field(default_factory=dict[str, _Shelf])

    def keep(self, capsule: str, message: Retained, max_bytes: int) -> None:
        """Keep the last message of its topic. One always fits, however large."""
        shelf = self._shelves.setdefault(capsule, _Shelf())
        before = shelf.kept.pop(message.topic, None)
        if before is not None:
            shelf.bytes -= len(before.payload)
        shelf.kept[message.topic] = message
        shelf.bytes += len(message.payload)
        while len(shelf.kept) > 1 and (len(shelf.kept) > MAX_TOPICS or shelf.bytes > max_bytes):
            _, gone = shelf.kept.popitem(last=False)
            shelf.bytes -= len(gone.payload)
            shelf.evicted += 1

    def matching(self, pattern: Segments) -> list[Retained]:
        """What a new subscription to `pattern` gets, by capsule, the topic that was silent for longest first."""
        shelves = self._shelves.values()
        if pattern[-1] != topics.WILDCARD:
            topic = topics.SEPARATOR.join(pattern).encode()
            return [shelf.kept[topic] for shelf in shelves if topic in shelf.kept]
        return [
            message
            for shelf in shelves
            for message in shelf.kept.values()
            if topics.matches(pattern, message.segments)
        ]

    def looked_through(self, pattern: Segments) -> int:
        """How many entries `matching` looks at for this pattern: what a subscription costs."""
        if pattern[-1] != topics.WILDCARD:
            return len(self._shelves)
        return sum(len(shelf.kept) for shelf in self._shelves.values())

    def origins(self) -> set[int]:
        """Those of all that is kept."""
        return {message.origin for shelf in self._shelves.values() for message in shelf.kept.values()}

    def figures(self) -> dict[str, dict[str, int]]:
        """By capsule, how many are kept, their bytes, and how many had to go."""
        return {
            name: {
                "retained": len(shelf.kept),
                "retained_bytes": shelf.bytes,
                "retained_evicted": shelf.evicted,
            }
            for name, shelf in self._shelves.items()
        }
