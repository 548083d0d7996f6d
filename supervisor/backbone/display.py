"""The display: what the operator's tools are shown of the traffic, and what they publish on the spine.

The shell of `watchers`: the spine's sockets, and the taps, whose messages go to the supervisor.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from capsuled.proto import spine, topics
from capsuled.proto.bucket import Bucket
from capsuled.proto.topics import Segments
from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.channel import Channel
from capsuled.supervisor.backbone.router import Router
from capsuled.supervisor.backbone.spine import Spine
from capsuled.supervisor.backbone.watchers import Seen

TAP_MESSAGES, TAP_BYTES = 2000, 4 * 1024 * 1024
"""Messages and bytes of payload per second of one tap. The supervisor makes JSON of each, on its one thread; a person
reads no more, and a program reads the spine."""


@dataclass
class _Tap:
    bucket: Bucket
    lost: int = 0
    """Messages that it has lost and has not been told of."""
    held: Seen | None = None
    """The newest of those that found no room, so that the end of a burst is told, with what is missing before it."""


class Display:
    """The spine and the taps of one backbone."""

    def __init__(self, channel: Channel, router: Router, sockets: Spine | None) -> None:
        self._channel = channel
        self._router = router
        self._watchers = router.notes.watchers
        self._sockets = sockets
        self.news = sockets is not None  # what came before there was anybody to be told
        """Whether the spine's sockets may have something to take."""
        self.due = math.inf
        """When to `show` again though nothing happens, in seconds of the monotonic clock."""
        self._taps: dict[int, _Tap] = {}
        self._published = 0
        self._refused: Counter[str] = Counter()

    # ── what comes in on the spine ───────────────────────────────────────────────────────────────

    def take(self, now_ms: int) -> None:
        """Take what is there, bounded; `news` is whether there is more."""
        if not self.news or self._sockets is None:
            return
        changed = False
        for wanted, prefix in self._sockets.subscriptions():
            changed = True
            (self._watchers.subscribe if wanted else self._watchers.unsubscribe)(prefix)
        if changed:
            self._router.forget_routes()
        for publication in self._sockets.publications():
            refusal = "malformed" if publication is None else _refusal(publication[0])
            if refusal:
                self._refused[refusal] += 1
            elif publication is not None:
                self._published += 1
                self._router.inject(spine.OPERATOR, *publication, now_ms)
        self.news = self._sockets.pending()

    def figures(self) -> dict[str, object]:
        """What the operator's programs have published here, and what of it was refused and why."""
        watchers = self._watchers
        return {
            "published": self._published,
            "refused": dict(self._refused),
            "prefixes": len(watchers.prefixes) + watchers.unlisted,
            "taps": len(self._taps),
        }

    # ── what is shown ────────────────────────────────────────────────────────────────────────────

    def tap(self, number: int, pattern: Segments, now: float) -> None:
        self._taps[number] = _Tap(Bucket(TAP_BYTES, TAP_MESSAGES, now))
        self._watchers.taps[number] = pattern
        self._router.forget_routes()

    def untap(self, number: int) -> None:
        """One that is not there is passed over: it was opened while there was no backbone."""
        self._taps.pop(number, None)
        self._watchers.taps.pop(number, None)
        self._router.forget_routes()

    def show(self, now: float) -> None:
        """Show this turn's messages to those who watch. What finds no room is lost and counted; nobody waits."""
        watchers, sockets = self._watchers, self._sockets
        if watchers.for_spine:
            seen, watchers.for_spine = watchers.for_spine, []
            if sockets is not None:
                for each in seen:
                    sockets.publish(spine.frames(each.topic, self._stamps(each), each.payload))
                self.news = self.news or sockets.pending()
        if watchers.for_taps:
            tapped, watchers.for_taps = watchers.for_taps, []
            for number, each in tapped:
                self._offer(number, each, now)
        self.due = math.inf
        for number, tap in self._taps.items():
            if tap.held is not None:
                self._release(number, tap, now)
            if tap.held is not None and self._has_room():
                self.due = min(self.due, now + tap.bucket.wait())

    def close(self) -> None:
        if self._sockets is not None:
            self._sockets.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _offer(self, number: int, seen: Seen, now: float) -> None:
        tap = self._taps.get(number)
        if tap is None:
            return  # it has ended in this turn
        if tap.held is not None:
            self._release(number, tap, now)
        if tap.held is not None:
            tap.lost += 1
        tap.held = seen
        if not tap.lost:
            self._release(number, tap, now)

    def _release(self, number: int, tap: _Tap, now: float) -> None:
        """Tell what is held, if there is room for it."""
        seen = tap.held
        tap.bucket.charge(0, 0, now)
        if seen is None or tap.bucket.wait() or not self._has_room():
            return
        tap.bucket.charge(len(seen.payload), 1, now)
        origin = self._router.origin(seen.origin)
        stamped = protocol.stamped(seen.topic, origin, seen.seq, seen.time_ms, seen.cause)
        self._channel.tell(
            {"op": "tapped", "tap": number, "lost": tap.lost, "payload": seen.payload, **stamped}
        )
        tap.held, tap.lost = None, 0

    def _has_room(self) -> bool:
        return self._channel.waiting <= protocol.MAX_TAPPED

    def _stamps(self, seen: Seen) -> spine.Stamps:
        origin = self._router.origin(seen.origin)
        return spine.Stamps(
            origin.name, origin.instance, origin.principal, seen.seq, seen.time_ms, seen.cause
        )


def _refusal(topic: bytes) -> str:
    """Why the operator may not publish it on the spine; empty when he may."""
    try:
        first, *_ = topics.split(topic.decode())
    except ValueError:  # not UTF-8, or a TopicError
        return "malformed"
    return topics.RESERVED if first == topics.RESERVED else ""
