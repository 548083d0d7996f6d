"""What waits in the backbone for one capsule: bounded in messages and in bytes, the oldest lost first.

The queue is here and not in ZeroMQ because ZeroMQ's high-water marks count frames, not bytes, and are
inexact (a burst just under the mark lost 14 %). Here every loss is counted, for each subscription.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from capsuled.proto import records

if TYPE_CHECKING:
    from capsuled.supervisor.backbone.members import Route, Subscription

HISTORY_MESSAGES = 4096
"""Deliveries that a capsule can name as a cause: at least its last this many."""

MAX_CONTROL = 512
"""Control records that may wait; over it the capsule is not read. Answers to four times all the
subscriptions that it may have: a worker that asks for more does not listen to what it is told."""


class Stamp(NamedTuple):
    """What the backbone knows of a message that it routed."""

    seq: int
    origin: int
    route: Route


Item = tuple[bytes, Stamp]
"""A record and its stamp: made once for each message, shared by all outboxes that it is in."""


class Outbox:
    """The queue of one capsule. The router appends to `items` itself: that is the busiest line there is."""

    __slots__ = (
        "bytes",
        "control",
        "dirty",
        "history",
        "history_size",
        "items",
        "lagging",
        "lost",
        "max_bytes",
        "max_messages",
        "member",
        "sent",
    )

    def __init__(self, member: int, max_messages: int, max_bytes: int) -> None:
        self.member = member
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
        """Messages given to ZeroMQ in all."""
        self.lost = 0
        """Messages lost to the bounds in all."""
        self.history: deque[list[Stamp]] = deque()
        self.history_size = 0

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
        for subscription in stamp.route.subscriptions[self.member]:
            subscription.lagged += 1
            self.lagging[subscription] = None

    def take_frame(self) -> bytes:
        """The next frame to send, b"" when nothing waits. What is in it counts as sent."""
        parts = self._take_control()
        items = self.items
        if not items:
            return b"".join(parts)
        if self.bytes <= records.COALESCE_BYTES:
            batch = list(items)
            items.clear()
            self.bytes = 0
        else:
            batch = self._take_some()
        self.sent += len(batch)
        self._remember([item[1] for item in batch])
        if len(batch) == 1 and not parts:
            return batch[0][0]
        parts += [item[0] for item in batch]
        return b"".join(parts)

    def delivered(self, seq: int) -> Stamp | None:
        """The stamp of the message `seq` if it was sent to this capsule lately, else None."""
        for batch in reversed(self.history):
            if batch[0].seq <= seq:
                for stamp in batch:
                    if stamp.seq == seq:
                        return stamp
                return None
        return None

    def _take_control(self) -> list[bytes]:
        parts = self.control
        if self.lagging:
            parts += [
                records.down(records.DownKind.LAGGED, a=each.handle, b=each.lagged) for each in self.lagging
            ]
            self.lagging = {}
        self.control = []
        return parts

    def _take_some(self) -> list[Item]:
        """As many of the oldest as fit a frame, at least one."""
        items = self.items
        batch = [items.popleft()]
        size = len(batch[0][0])
        while items and size + len(items[0][0]) <= records.COALESCE_BYTES:
            batch.append(items.popleft())
            size += len(batch[-1][0])
        self.bytes -= size
        return batch

    def _remember(self, stamps: list[Stamp]) -> None:
        history = self.history
        history.append(stamps)
        self.history_size += len(stamps)
        while self.history_size - len(history[0]) >= HISTORY_MESSAGES:
            self.history_size -= len(history.popleft())
