"""Watchers: what the operator's tools see of the traffic, beside its receivers.

Two kinds: ZeroMQ subscribers of the spine, by prefixes as ZeroMQ knows them, and taps of the control socket, by
patterns. A topic that nobody watches costs nothing: its route does not lead here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto import spine, topics
from capsuled.proto.topics import Segments

MAX_PREFIXES = 1024
"""Different prefixes of the spine's subscribers that are looked at: each costs a comparison for each new topic. While
there are more, everything is handed to ZeroMQ, which knows them all and drops what nobody wants."""

_LONGEST = topics.MAX_BYTES + len(spine.END)
"""Bytes of the longest topic on the wire: no longer prefix matches anything."""


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

    prefixes: set[bytes] = field(default_factory=set[bytes])
    """Of the spine's subscribers. ZeroMQ tells the first subscriber and the end of the last one of each."""
    unlisted: int = 0
    """How many more there are."""
    taps: dict[int, Segments] = field(default_factory=dict[int, Segments])
    for_spine: list[Seen] = field(default_factory=list[Seen])
    for_taps: list[tuple[int, Seen]] = field(default_factory=list[tuple[int, Seen]])

    def want(self, topic: bytes, segments: Segments) -> bool:
        """Whether anybody watches a topic."""
        return self._on_spine(topic) or any(
            topics.matches(pattern, segments) for pattern in self.taps.values()
        )

    def see(self, segments: Segments, seen: Seen) -> None:
        """Note a message for those who watch its topic."""
        if self._on_spine(seen.topic):
            self.for_spine.append(seen)
        for tap, pattern in self.taps.items():
            if topics.matches(pattern, segments):
                self.for_taps.append((tap, seen))

    def origins(self) -> set[int]:
        """Those of what is to be shown."""
        return {seen.origin for seen in (*self.for_spine, *(seen for _, seen in self.for_taps))}

    def subscribe(self, prefix: bytes) -> None:
        """A prefix that somebody on the spine wants, and nobody did before."""
        if len(prefix) > _LONGEST:
            return
        if len(self.prefixes) < MAX_PREFIXES:
            self.prefixes.add(prefix)
        elif prefix not in self.prefixes:
            self.unlisted += 1

    def unsubscribe(self, prefix: bytes) -> None:
        """One that nobody wants any more."""
        if len(prefix) > _LONGEST:
            return
        if prefix in self.prefixes:
            self.prefixes.remove(prefix)
        elif self.unlisted:
            self.unlisted -= 1

    def _on_spine(self, topic: bytes) -> bool:
        if self.unlisted:
            return True
        wire = topic + spine.END
        return any(wire.startswith(prefix) for prefix in self.prefixes)
