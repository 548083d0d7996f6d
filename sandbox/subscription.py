"""One handle of the guest: its queue, and the counts that must balance.

carried + received = delivered + dropped + queued
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from capsuled.proto import envelopes
from capsuled.proto.refusals import Errno, Refusal
from capsuled.proto.topics import Segments

NOT_YET = 1 << 64
"""Above every sequence number: nothing belongs to a subscription before the backbone has acknowledged it."""


class Message(NamedTuple):
    """A message in a queue: encoded once, shared by all queues that it is in."""

    encoded: bytes
    payload_bytes: int
    seq: int
    request: bool = False
    """Its sender waits for an answer."""


class Subscription:
    """See the module's docstring. What is `unread` is since the guest's last call, all other counts of the epoch."""

    __slots__ = (
        "bytes",
        "carried",
        "closed",
        "delivered",
        "dropped",
        "dropped_unread",
        "handle",
        "lagged_in_epoch",
        "lagged_unread",
        "lost_requests",
        "max_bytes",
        "max_messages",
        "pattern",
        "queue",
        "received",
        "row",
        "runtime_owned",
        "since",
        "since_before",
        "text",
    )

    def __init__(
        self,
        handle: int,
        text: str,
        pattern: Segments,
        *,
        runtime_owned: bool,
        row: int,
        max_messages: int,
        max_bytes: int,
        lost_requests: list[int],
    ) -> None:
        """Every request that is lost from the queue is added to `lost_requests`."""
        self.handle = handle
        self.text = text
        self.pattern = pattern
        self.runtime_owned = runtime_owned
        self.row = row
        """Of the ledger page."""
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.since = NOT_YET
        """Messages with a sequence number up to this one came before it."""
        self.since_before = NOT_YET
        """The same in the last epoch, some of whose messages may be on their way still."""
        self.closed = False
        """Ended by the guest; it still counts what was on its way until the backbone has heard of it."""
        self.queue: deque[Message] = deque()
        self.bytes = 0
        """Of the encoded messages in the queue."""
        self.received = self.delivered = self.dropped = self.carried = 0
        self.dropped_unread = self.lagged_unread = 0
        self.lost_requests = lost_requests
        self.lagged_in_epoch = 0
        """The backbone's running total, to tell how much of it is news."""

    def put(self, message: Message) -> int:
        """Queue a message, and lose the oldest where that is over a bound. Returns by how many bytes it grew.

        One message always fits, however large: it was allowed to be published.
        """
        queue, before = self.queue, self.bytes
        queue.append(message)
        self.bytes += len(message.encoded)
        while len(queue) > 1 and (len(queue) > self.max_messages or self.bytes > self.max_bytes):
            self.lose_oldest()
        return self.bytes - before

    def lose_oldest(self) -> int:
        """Drop one message and count it. Returns its bytes."""
        message = self.queue.popleft()
        size = len(message.encoded)
        self.bytes -= size
        if message.request:
            self.lost_requests.append(message.seq)
        self.dropped += 1
        self.dropped_unread += 1
        return size

    def refuse(self) -> None:
        """Count a message that is unfit to be queued: received, and dropped."""
        self.dropped += 1
        self.dropped_unread += 1

    def lag(self, total: int) -> None:
        """The backbone says that it has lost this many in all, in this epoch."""
        self.lagged_unread += max(0, total - self.lagged_in_epoch)
        self.lagged_in_epoch = total

    def begin_epoch(self) -> None:
        """Count anew; what is queued is carried over."""
        self.since_before = self.since
        self.carried = len(self.queue)
        self.received = self.delivered = self.dropped = self.lagged_in_epoch = 0

    def take(self, cap: int) -> tuple[list[Message], bytes]:
        """As many whole messages as fit `cap` bytes and the drain budget, and the envelope that holds them.

        Raises `Refusal` (nobufs, with the bytes needed) when not even the first fits; then nothing is consumed.
        """
        count = self._fitting(cap)
        queue = self.queue
        if count == len(queue):
            messages = list(queue)
            queue.clear()
            self.bytes = 0
        else:
            messages = [queue.popleft() for _ in range(count)]
            self.bytes -= sum(len(message.encoded) for message in messages)
        envelope = envelopes.envelope(
            [message.encoded for message in messages], self.dropped_unread, self.lagged_unread
        )
        self.delivered += count
        self.dropped_unread = self.lagged_unread = 0
        return messages, envelope

    def _fitting(self, cap: int) -> int:
        waiting = len(self.queue)
        overhead = envelopes.overhead(waiting, self.dropped_unread, self.lagged_unread)
        if self.bytes + overhead <= cap and self.bytes <= envelopes.MAX_DRAIN_BYTES:
            return waiting
        fixed = envelopes.overhead(0, self.dropped_unread, self.lagged_unread)
        count = size = payload = 0
        for message in self.queue:
            size += len(message.encoded)
            payload += message.payload_bytes
            # The head of the list grows with its count: one byte up to 23, two up to 255, three up to 65 535, five
            # above. One byte of it is in `fixed`.
            head = (count >= 23) + (count >= 255) + 2 * (count >= 65_535)
            if size + fixed + head > cap or payload > envelopes.MAX_DRAIN_BYTES:
                break
            count += 1
        if count == 0:
            needed = fixed + (len(self.queue[0].encoded) if waiting else 0)
            what = "the first message needs" if waiting else "an empty envelope needs"
            raise Refusal(Errno.NOBUFS, f"the buffer has {cap} bytes: {what} {needed}", needed)
        return count
