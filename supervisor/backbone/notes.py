"""Notes: what is kept of a message beside its delivery.

For those who watch, for those who will subscribe later, and for those who will ask what caused it.
"""

from __future__ import annotations

from capsuled.supervisor.backbone.members import Admission, Route
from capsuled.supervisor.backbone.outbox import Stamp
from capsuled.supervisor.backbone.retained import Retained, Shelves
from capsuled.supervisor.backbone.traces import Hop, Traces
from capsuled.supervisor.backbone.watchers import Seen, Watchers


class Notes:
    """Of one epoch."""

    def __init__(self) -> None:
        self.watchers = Watchers()
        """The spine's subscribers and the operator's taps."""
        self.shelves = Shelves()
        self.traces = Traces()

    def origins(self) -> set[int]:
        """Those of all that is kept here."""
        return self.watchers.origins() | self.shelves.origins() | self.traces.origins()

    def published(self, admission: Admission, route: Route, seen: Seen) -> None:
        """A capsule has published what more than its receivers want."""
        if route.watched:
            self.watchers.see(route.segments, seen)
        if route.retained:
            kept = Retained(seen.origin, seen.time_ms, seen.topic, route.segments, seen.payload, seen.seq)
            self.shelves.keep(admission.name, kept, admission.queue_bytes)

    def caused(self, cause: Stamp, seq: int, now_ms: int, topic: bytes, origin: int) -> None:
        """The message `seq` was caused by another."""
        before = Hop(cause.seq, 0, cause.time_ms, cause.route.topic, cause.origin)
        self.traces.note(Hop(seq, cause.seq, now_ms, topic, origin), before)
