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
    """Patterns that a capsule may publish to and subscribe to; an empty tuple denies all.

    `retain` grants nothing: it says of which published topics the last message is kept.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()

    @cached_property
    def _publish(self) -> tuple[Segments, ...]:
        return _parse(self.publish)

    @cached_property
    def _subscribe(self) -> tuple[Segments, ...]:
        return _parse(self.subscribe)

    @cached_property
    def _retain(self) -> tuple[Segments, ...]:
        return _parse(self.retain)

    def check(self) -> None:
        """Raise `topics.TopicError` for the first malformed grant."""
        _ = self._publish, self._subscribe, self._retain

    def publisher(self, topic: Segments) -> str | None:
        """The grant that lets `topic` be published, or None."""
        for text, grant in zip(self.publish, self._publish, strict=True):
            if topics.matches(grant, topic):
                return text
        return None

    def retained(self, topic: Segments) -> bool:
        """Whether the last message on `topic` is kept for later subscribers."""
        return any(topics.matches(pattern, topic) for pattern in self._retain)

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
