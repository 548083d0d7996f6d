"""What waits in the backbone for one capsule: bounded in messages and in bytes, the oldest lost first.

The queue is here and not in ZeroMQ because ZeroMQ's high-water marks count frames, not bytes, and are
inexact (a burst just under the mark lost 14 %). Here every loss is counted, for each subscription.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Container
from typing import TYPE_CHECKING, NamedTuple

from capsuled.proto import records
from capsuled.proto.records import HISTORY_MESSAGES

if TYPE_CHECKING:
    from capsuled.supervisor.backbone.members import Route, Subscription

ANSWERS = 64
"""Answers to its requests that a capsule can name as a cause; they overtake what waits, and so are kept apart."""

MAX_CONTROL = 512
"""Control records that may wait; over it the capsule is not read. Answers to four times all the
subscriptions that it may have: a worker that asks for more does not listen to what it is told."""


class Stamp(NamedTuple):
    """What the backbone knows of a message that it routed."""

    seq: int
    origin: int
    route: Route
    time_ms: int = 0


Item = tuple[bytes, Stamp]
"""A record and its stamp: made once for each message, shared by all outboxes that it is in."""


class Outbox:
    """The queue of one capsule. The router appends to `items` itself: that is the busiest line there is."""

    __slots__ = (
        "answers",
        "bytes",
        "control",
        "dirty",
        "epoch",
        "history",
        "history_size",
        "items",
        "lagging",
        "lost",
        "lost_requests",
        "max_bytes",
        "max_messages",
        "member",
        "requests",
        "sent",
    )

    def __init__(
        self,
        member: int,
        max_messages: int,
        max_bytes: int,
        *,
        epoch: int,
        requests: Container[int] = frozenset(),
    ) -> None:
        """`requests` are the sequence numbers of messages whose senders wait for an answer."""
        self.member = member
        self.epoch = epoch
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.items: deque[Item] = deque()
        self.bytes = 0
        """Of the records in `items`."""
        self.control: list[bytes] = []
        """Control records; they go before all messages that wait."""
        self.lagging: dict[Subscription, None] = {}
        """Subscriptions that have lost messages since the worker was last told how many."""
        self.dirty = False
        """Whether it is on this turn's list of outboxes to flush."""
        self.sent = 0
        """Messages taken to be given to ZeroMQ, in all."""
        self.lost = 0
        """Messages lost to the bounds in all."""
        self.history: deque[list[Stamp]] = deque()
        """Of each frame with messages, their stamps; seq grows within a frame and from frame to frame."""
        self.history_size = 0
        self.answers: deque[Stamp] = deque(maxlen=ANSWERS)
        self.requests = requests
        self.lost_requests: dict[int, None] = {}
        """Requests that were lost here and whose senders have not been told yet, in order."""

    def overflow(self) -> None:
        """Lose the oldest until the bounds hold again. One message always fits, however large."""
        items = self.items
        while len(items) > 1 and (len(items) > self.max_messages or self.bytes > self.max_bytes):
            self.lose_oldest()

    def lose_oldest(self) -> None:
        """Lose one message and count it for each subscription that it was meant for."""
        record, stamp = self.items.popleft()
        self.bytes -= len(record)
        self.lost += 1
        if stamp.seq in self.requests:
            self.lost_requests[stamp.seq] = None
        for subscription in stamp.route.subscriptions[self.member]:
            subscription.lagged += 1
            self.lagging[subscription] = None

    def take_frame(self) -> bytes:
        """The next frame to send, b"" when nothing waits. What is in it counts as sent.

        It has `COALESCE_BYTES` at most, or is one record that is larger.
        """
        parts, room = self._take_control()
        if self.control:
            return b"".join(parts)
        batch = self._take_items(room, at_least_one=not parts)
        if not batch:
            return b"".join(parts)
        self.sent += len(batch)
        self._remember([item[1] for item in batch])
        if len(batch) == 1 and not parts:
            return batch[0][0]
        parts += [item[0] for item in batch]
        return b"".join(parts)

    def take_greeting(self, count: int) -> bytes:
        """The first `count` control records in one frame: nothing else may reach who has not said who he is."""
        greeting = b"".join(self.control[:count])
        del self.control[:count]
        return greeting

    def forget_introductions(self, gone: set[int]) -> None:
        """Let go of those that wait, of origins that nothing names any more: who does not read would pile them up."""
        self.control = [record for record in self.control if records.introduced(record) not in gone]

    def deaf(self) -> bool:
        """Whether so many control records wait, or so much in answers to requests, that its capsule must not be read
        until it has taken some: what it asks for is not held to the bounds of the queue."""
        control = self.control
        return len(control) >= MAX_CONTROL or sum(map(len, control)) > self.max_bytes

    def waits(self, seq: int) -> bool:
        """Whether the message `seq`, which was routed here, has not been sent: it waits, or was lost this turn."""
        # What waits is in the order of its numbers, and all that was routed here before it is gone.
        return bool(self.items and self.items[0][1].seq <= seq) or seq in self.lost_requests

    def delivered(self, seq: int) -> Stamp | None:
        """The stamp of the message `seq` if it was sent to this capsule lately, else None."""
        # By bisection, since a worker that invents causes must not make the backbone search for each.
        after = bisect_right(self.history, seq, key=_first_seq)
        if not after:
            return self.answered(seq)
        batch = self.history[after - 1]
        stamp = batch[bisect_right(batch, seq, key=_seq) - 1]
        return stamp if stamp.seq == seq else self.answered(seq)

    def answered(self, seq: int) -> Stamp | None:
        """The same for an answer to one of its requests."""
        return next((stamp for stamp in self.answers if stamp.seq == seq), None)

    def origins(self) -> set[int]:
        """Those of all that waits here, and of what can be a cause."""
        found = {stamp.origin for _, stamp in self.items}
        found.update(stamp.origin for batch in self.history for stamp in batch)
        found.update(stamp.origin for stamp in self.answers)
        return found

    def release(self, subscription: Subscription) -> int:
        """What waits for `subscription`, which has just ended, leaves its account. Returns how much that is.

        No cached route may lead to it any more. A message that is for no other subscription of this capsule is
        taken out: its worker would not know either whom to count it for.
        """
        self.lagging.pop(subscription, None)
        waiting = 0
        orphaned: set[Route] = set()
        for route, count in Counter(stamp.route for _, stamp in self.items).items():
            group = route.subscriptions[self.member]
            if subscription in group:
                waiting += count
                del group[subscription]
                if not group:
                    orphaned.add(route)
        if orphaned:
            self.lost_requests.update(
                (stamp.seq, None)
                for _, stamp in self.items
                if stamp.route in orphaned and stamp.seq in self.requests
            )
            self.items = deque(item for item in self.items if item[1].route not in orphaned)
            self.bytes = sum(len(record) for record, _ in self.items)
        return waiting

    def queued(self) -> Counter[Subscription]:
        """How many messages wait for each subscription; one that has none may be left out."""
        found: Counter[Subscription] = Counter()
        for route, count in Counter(stamp.route for _, stamp in self.items).items():
            for subscription in route.subscriptions[self.member]:
                found[subscription] += count
        return found

    def clear(self) -> None:
        """Let go of everything. Others' histories may still lead here, and must not keep messages alive."""
        self.items.clear()
        self.control.clear()
        self.lagging.clear()
        self.history.clear()
        self.answers.clear()
        self.lost_requests.clear()
        self.bytes = self.history_size = 0

    def _take_control(self) -> tuple[list[bytes], int]:
        """As many control records as fit a frame, at least one if there are any; and the room that is left."""
        if self.lagging:
            self.control += [
                records.control(records.DownKind.LAGGED, self.epoch, a=each.handle, b=each.lagged)
                for each in self.lagging
            ]
            self.lagging = {}
        room = records.COALESCE_BYTES
        count = 0
        for record in self.control:
            if len(record) > room and count:
                break
            room -= len(record)
            count += 1
        parts = self.control[:count]
        del self.control[:count]
        return parts, room

    def _take_items(self, room: int, *, at_least_one: bool) -> list[Item]:
        """As many of the oldest as fit `room` bytes."""
        items = self.items
        if self.bytes <= room:
            batch = list(items)
            items.clear()
            self.bytes = 0
            return batch
        some: list[Item] = []
        size = 0
        while items and (size + len(items[0][0]) <= room or (at_least_one and not some)):
            some.append(items.popleft())
            size += len(some[-1][0])
        self.bytes -= size
        return some

    def _remember(self, stamps: list[Stamp]) -> None:
        history = self.history
        history.append(stamps)
        self.history_size += len(stamps)
        while self.history_size - len(history[0]) >= HISTORY_MESSAGES:
            self.history_size -= len(history.popleft())


def _first_seq(batch: list[Stamp]) -> int:
    return batch[0].seq


def _seq(stamp: Stamp) -> int:
    return stamp.seq
