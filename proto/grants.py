"""Grants: what the manifest lets a capsule publish and subscribe to. Fail closed.

The worker asks here to give its guest a good sentence; the backbone asks here again, because a
worker may have been taken over. Both ask the same rule, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from capsuled.proto import topics
from capsuled.proto.topics import Segments


@dataclass(frozen=True)
class Grants:
    """Patterns that a capsule may publish to and subscribe to; an empty tuple denies all."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()

    @cached_property
    def _publish(self) -> tuple[Segments, ...]:
        return _parse(self.publish)

    @cached_property
    def _subscribe(self) -> tuple[Segments, ...]:
        return _parse(self.subscribe)

    def check(self) -> None:
        """Raise `topics.TopicError` for the first malformed grant."""
        _ = self._publish, self._subscribe

    def publisher(self, topic: Segments) -> str | None:
        """The grant that lets `topic` be published, or None."""
        for text, grant in zip(self.publish, self._publish, strict=True):
            if topics.matches(grant, topic):
                return text
        return None

    def subscriber(self, pattern: Segments) -> str | None:
        """The one grant that covers all of `pattern`, or None.

        One grant must cover it alone: the union of several is not looked at, so that an author
        can see from a single line why a subscription is allowed.
        """
        for text, grant in zip(self.subscribe, self._subscribe, strict=True):
            if topics.covers(grant, pattern):
                return text
        return None


def _parse(patterns: Iterable[str]) -> tuple[Segments, ...]:
    return tuple(topics.split(text) for text in patterns)
