"""Which subscribers a topic reaches: a table of exact topics and of trailing wildcards.

The backbone keeps capsules' subscriptions in one, a worker its guest's handles in another. Guests may
subscribe only to exact topics and to trailing wildcards, so two dicts serve instead of a trie: one
look-up for the topic itself and one for each of its proper prefixes, eight at most.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from capsuled.proto import topics
from capsuled.proto.topics import Segments

T = TypeVar("T", bound=Hashable)

Members = dict[T, None]  # an ordered set: order of subscription, removal in constant time


class Subscriptions(Generic[T]):
    """Patterns and their subscribers. `T` is whatever stands for one subscription."""

    __slots__ = ("_exact", "_subtrees")

    def __init__(self) -> None:
        self._exact: dict[Segments, Members[T]] = {}
        self._subtrees: dict[Segments, Members[T]] = {}

    def add(self, pattern: Segments, subscriber: T) -> None:
        """Add one; the pattern must have passed `topics.check_subscribable`."""
        topics.check_subscribable(pattern)
        table, key = self._place(pattern)
        table.setdefault(key, {})[subscriber] = None

    def remove(self, pattern: Segments, subscriber: T) -> None:
        """Remove one; KeyError when it is not there."""
        table, key = self._place(pattern)
        members = table[key]
        del members[subscriber]
        if not members:
            del table[key]

    def match(self, topic: Segments) -> list[T]:
        """The subscribers whose pattern matches `topic`; exact ones first, then the widest subtree."""
        found = list(self._exact.get(topic, ()))
        # `*` alone does not reach what is reserved, so its (empty) prefix is left out there.
        first = 1 if topic[0] == topics.RESERVED else 0
        for length in range(first, len(topic)):
            found.extend(self._subtrees.get(topic[:length], ()))
        return found

    def _place(self, pattern: Segments) -> tuple[dict[Segments, Members[T]], Segments]:
        if pattern[-1] == topics.WILDCARD:
            return self._subtrees, pattern[:-1]
        return self._exact, pattern
