"""Watchers: what the operator's tools see of the traffic, beside its receivers.

Two kinds: ZeroMQ subscribers of the spine, by prefixes as ZeroMQ knows them, and taps of the control socket, by
patterns. A topic that nobody watches costs nothing: its route does not lead here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto import spine, topics
from capsuled.proto.topics import Segments


class Seen(NamedTuple):
    """A message as it was routed."""

    topic: bytes
    origin: int
    seq: int
    time_ms: int
    cause: int
    payload: bytes


@dataclass
class Watchers:
    """Who watches which topics, and what is to be shown to them at the end of this turn."""

    prefixes: Counter[bytes] = field(default_factory=Counter[bytes])
    """Of the spine's subscribers."""
    taps: dict[int, Segments] = field(default_factory=dict[int, Segments])
    for_spine: list[Seen] = field(default_factory=list[Seen])
    for_taps: list[tuple[int, Seen]] = field(default_factory=list[tuple[int, Seen]])

    def want(self, topic: Segments) -> bool:
        """Whether anybody watches a topic."""
        return self._on_spine(topic) or any(topics.matches(pattern, topic) for pattern in self.taps.values())

    def see(self, topic: Segments, seen: Seen) -> None:
        """Note a message for those who watch its topic."""
        if self._on_spine(topic):
            self.for_spine.append(seen)
        for tap, pattern in self.taps.items():
            if topics.matches(pattern, topic):
                self.for_taps.append((tap, seen))

    def subscribe(self, prefix: bytes) -> None:
        self.prefixes[prefix] += 1

    def unsubscribe(self, prefix: bytes) -> None:
        """One that was never there is passed over: a ZeroMQ client may send it."""
        if self.prefixes[prefix] <= 1:
            del self.prefixes[prefix]
        else:
            self.prefixes[prefix] -= 1

    def _on_spine(self, topic: Segments) -> bool:
        if not self.prefixes:
            return False
        wire = (
            spine.wire(topic)
            if topic[-1] != topics.WILDCARD
            else topics.SEPARATOR.join(topic).encode() + spine.END
        )
        return any(wire.startswith(prefix) for prefix in self.prefixes)
