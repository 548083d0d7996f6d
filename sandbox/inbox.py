"""What the guest has subscribed to and received: handles, their queues, and who gets which message.

A rule: no socket, no clock. It demultiplexes by the same matcher that the backbone routes with, since one
message comes over the edge once, however many handles of this capsule it is for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterable

from capsuled.proto import envelopes, payloads, topics
from capsuled.proto.ledger import MAX_SUBSCRIPTIONS
from capsuled.proto.order import Interceptor
from capsuled.proto.records import EPOCH_SHIFT, HISTORY_MESSAGES, Down
from capsuled.proto.refusals import Errno, Refusal
from capsuled.proto.subscriptions import Subscriptions
from capsuled.proto.topics import Segments
from capsuled.sandbox.subscription import NOT_YET, Message, Subscription

MAX_HANDLE = 0x7FFF_FFFF
"""Handles are positive i32."""

MAX_TOPICS = 1024
"""Topics whose subscriptions are remembered; a publisher of ever new topics costs a look-up each."""


class ClosedCounts:
    """Sums over the subscriptions that the guest has ended, in this epoch."""

    __slots__ = ("carried", "delivered", "dropped", "left", "received")

    def __init__(self) -> None:
        self.received = self.delivered = self.dropped = self.left = self.carried = 0


class Inbox:
    """The subscriptions of one capsule."""

    def __init__(self, queue_messages: int, queue_bytes: int, total_bytes: int) -> None:
        self._queue_messages = queue_messages
        self._queue_bytes = queue_bytes
        self._total_bytes = total_bytes
        """Bound of all queues together: they share the memory of one process."""
        self.bytes = 0
        """Of the encoded messages in all queues; one that is in several counts in each."""
        self.handles: dict[int, Subscription] = {}
        self._closing: dict[int, Subscription] = {}
        self._table: Subscriptions[Subscription] = Subscriptions()
        self._by_topic: dict[bytes, tuple[Subscription, ...]] = {}
        self._origins: dict[int, bytes] = {}
        self._free_rows = list(range(MAX_SUBSCRIPTIONS - 1, -1, -1))
        self._next_handle = 1
        self._history: deque[list[int]] = deque()
        """Sequence numbers of what the guest has got, by call."""
        self._history_size = 0
        self._unread: dict[int, int] = {}
        """Requests that the guest has not received on any handle: in how many queues each waits."""
        self._left_queues: list[int] = []
        """Requests that have left a queue without being received, once for each."""
        self._requests: OrderedDict[int, None] = OrderedDict()
        """Requests that the guest has received and not answered."""
        self.lost_requests: deque[int] = deque(maxlen=HISTORY_MESSAGES)
        """Requests that the guest will never answer, and whose senders wait in vain until the backbone is told. Over
        the bound the oldest are forgotten, and end by their senders' timeouts."""
        self.epoch = 0
        self.received = 0
        """Messages read from the edge in this epoch."""
        self.malformed = 0
        self.closed = ClosedCounts()
        self.closed_changed = False
        """Whether the sums of what has ended differ from what the ledger page says."""
        self.changed: dict[Subscription, None] = {}
        """Subscriptions whose counts differ from what the ledger page says."""

    # ── the guest's side ─────────────────────────────────────────────────────────────────────────

    def open_runtime(self, interceptors: Iterable[Interceptor]) -> None:
        """Open what the manifest subscribes; the backbone was told by the supervisor, and needs no asking."""
        for each in interceptors:
            pattern = topics.split_subscribable(each.pattern)
            self._open(each.handle, each.pattern, pattern, runtime_owned=True).since = 0
            self._next_handle = max(self._next_handle, each.handle + 1)

    def open(self, text: str, pattern: Segments, in_use: Container[int] = ()) -> Subscription:
        """A new subscription on no handle in `in_use`, not acknowledged yet. Raises `Refusal` for one too many."""
        if not self._free_rows:
            raise Refusal(
                Errno.MFILE, f"cannot subscribe to '{text}': {MAX_SUBSCRIPTIONS} subscriptions are the most"
            )
        return self._open(self.new_handle(in_use), text, pattern, runtime_owned=False)

    def new_handle(self, in_use: Container[int] = ()) -> int:
        """The next number that is no handle of the guest's, nor one in `in_use`."""
        handle = self._next_handle
        while handle in self.handles or handle in self._closing or handle in in_use:
            handle = handle + 1 if handle < MAX_HANDLE else 1
        self._next_handle = handle + 1 if handle < MAX_HANDLE else 1
        return handle

    def get(self, handle: int) -> Subscription:
        """Raises `Refusal` for a handle that is not open."""
        found = self.handles.get(handle)
        if found is None:
            raise Refusal(Errno.BADF, f"there is no subscription {handle}")
        return found

    def close(self, handle: int) -> None:
        """End a subscription; what it has queued is gone. Raises `Refusal`."""
        found = self.handles.get(handle)
        if found is not None and found.runtime_owned:
            raise Refusal(Errno.PERM, f"the runtime owns the subscription {handle}: it ends with the capsule")
        subscription = self.get(handle)
        del self.handles[handle]
        self._closing[handle] = subscription
        subscription.closed = True
        closed = self.closed
        closed.received += subscription.received
        closed.delivered += subscription.delivered
        closed.dropped += subscription.dropped
        closed.carried += subscription.carried
        closed.left += len(subscription.queue)
        self.closed_changed = True
        self.bytes -= subscription.bytes
        self._left_queues += [message.seq for message in subscription.queue if message.request]
        self._note_losses()
        subscription.queue.clear()
        # The row is free at once, for the next subscription must not wait for an answer. Its clearing stands in
        # `changed` before whatever takes it.
        self._free_rows.append(subscription.row)
        self.changed[subscription] = None

    def take(self, subscription: Subscription, cap: int) -> bytes:
        """The envelope of what waits and fits. Raises `Refusal` (nobufs)."""
        before = subscription.bytes
        messages, envelope = subscription.take(cap)
        self.bytes -= before - subscription.bytes
        self.changed[subscription] = None
        if messages:
            self._remember([message.seq for message in messages])
            for message in messages:
                # Not when it was received on another handle before: it is answered once.
                if message.request and self._unread.pop(message.seq, 0):
                    self._note_request(message.seq)
        return envelope

    def check_request(self, seq: int) -> None:
        """Raise `Refusal` unless the guest has received a request of that number and not answered it."""
        if seq not in self._requests:
            raise Refusal(
                Errno.BADF, f"the message {seq} is no request that was received and not answered yet"
            )

    def answered(self, seq: int) -> None:
        """A request that `check_request` has passed is answered: once."""
        del self._requests[seq]

    def delivered(self, seq: int) -> None:
        """The guest has got a message that was in no queue: the answer to a request of its own."""
        self._remember([seq])

    def was_delivered(self, seq: int) -> bool:
        """Whether the guest has got that message, lately enough to name it as a cause.

        One of an earlier epoch does not count: this backbone has not sent it, and would refuse it unheard.
        """
        return seq >> EPOCH_SHIFT == self.epoch and any(seq in batch for batch in reversed(self._history))

    # ── the backbone's side ──────────────────────────────────────────────────────────────────────

    def begin_epoch(self, epoch: int) -> None:
        """Another backbone speaks: its counts begin at nothing, and so do ours that are compared with them.

        What the guest has ended is forgotten, heard of or not: a backbone that does not know it answers nothing.
        """
        self.epoch = epoch
        self.received = 0
        self.closed = ClosedCounts()
        self.closed_changed = True
        self._origins = {}
        for each in (self._requests, self._unread, self.lost_requests):
            each.clear()  # nobody waits for their answers any more
        for handle in self.closing():
            self.forget(handle)
        for subscription in self.handles.values():
            subscription.begin_epoch()
            self.changed[subscription] = None

    def encode(self, record: Down, cause: int) -> bytes:
        """A message as it stands in an envelope. Raises `payloads.NotCbor`."""
        payloads.check(record.body)
        source = self._origins[record.a]
        return envelopes.message(record.text, record.body, source, record.b, record.c, cause)

    def introduce(self, record: Down) -> None:
        """An origin, before its first message: its part of every envelope is encoded once, here."""
        self._origins[record.a] = envelopes.source_part(record.text, record.body[:16], record.body[16:])

    def acknowledge(self, handle: int, since: int) -> None:
        if handle in self.handles:
            self.handles[handle].since = since

    def forget(self, handle: int) -> None:
        """The backbone has heard that it is closed: no message comes on its account any more."""
        subscription = self._closing.pop(handle, None)
        if subscription is not None:
            self._drop(subscription)

    def reject(self, handle: int) -> bool:
        """The backbone has refused it. False when the guest has ended it meanwhile, and nobody waits for that."""
        subscription = self.handles.pop(handle, None)
        if subscription is None:
            self.forget(handle)  # its UNSUBSCRIBE will not be answered: there is nothing to end
            return False
        subscription.closed = True
        self.bytes -= subscription.bytes
        self._free_rows.append(subscription.row)
        self.changed[subscription] = None
        self._drop(subscription)
        return True

    def lag(self, handle: int, total: int) -> None:
        subscription = self.handles.get(handle)
        if subscription is not None:
            subscription.lag(total)

    def unacknowledged(self) -> list[Subscription]:
        return [each for each in self.handles.values() if each.since == NOT_YET]

    def closing(self) -> list[int]:
        return list(self._closing)

    def put(
        self,
        topic: bytes,
        origin: int,
        seq: int,
        time_ms: int,
        cause: int,
        payload: bytes,
        extra: bytes = b"",
        only: int = 0,
    ) -> None:
        """Queue a message for every handle that it is for, or for `only` one.

        `extra` is `envelopes.REQUEST` or `RETAINED` where it is such a message.
        """
        subscriptions = self._by_topic.get(topic)
        if subscriptions is None:
            subscriptions = self._match(topic)
        if only:
            subscriptions = tuple(each for each in subscriptions if each.handle == only)
        if seq >> EPOCH_SHIFT != self.epoch:
            # Sent by a backbone that is gone, read after its successor's greeting: nobody can say any more who its
            # origin was. It counts as lost on the way.
            for subscription in subscriptions:
                if seq > subscription.since_before:
                    subscription.lagged_unread += 1
            return
        self.received += 1
        try:
            # The backbone does not look into payloads, and their publisher's worker may have been taken over. What
            # is spliced into an envelope unseen could close it early and forge what follows.
            payloads.check(payload)
            encoded = envelopes.message(topic, payload, self._origins[origin], seq, time_ms, cause, extra)
        except payloads.NotCbor:
            self.malformed += 1
            encoded = b""
        message = Message(encoded, len(payload), seq, extra is envelopes.REQUEST)
        queues = 0
        for subscription in subscriptions:
            if seq <= subscription.since:
                continue
            if subscription.closed:
                self.closed.received += 1
                self.closed.left += 1
                self.closed_changed = True
                continue
            subscription.received += 1
            self.changed[subscription] = None
            if encoded:
                self.bytes += subscription.put(message)
                queues += 1
            else:
                subscription.refuse()
        if message.request:
            if queues:
                self._unread[seq] = queues
            else:
                self.lost_requests.append(seq)
        if self.bytes > self._total_bytes:
            self._bound()
        if self._left_queues:
            self._note_losses()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _open(self, handle: int, text: str, pattern: Segments, *, runtime_owned: bool) -> Subscription:
        subscription = Subscription(
            handle,
            text,
            pattern,
            runtime_owned=runtime_owned,
            row=self._free_rows.pop(),
            max_messages=self._queue_messages,
            max_bytes=self._queue_bytes,
            lost_requests=self._left_queues,
        )
        self.handles[handle] = subscription
        self._table.add(pattern, subscription)
        self._by_topic.clear()
        self.changed[subscription] = None
        return subscription

    def _drop(self, subscription: Subscription) -> None:
        self._table.remove(subscription.pattern, subscription)
        self._by_topic.clear()

    def _match(self, topic: bytes) -> tuple[Subscription, ...]:
        found = tuple(self._table.match(topics.split(topic.decode())))
        if len(self._by_topic) >= MAX_TOPICS:
            self._by_topic.clear()
        self._by_topic[topic] = found
        return found

    def _note_request(self, seq: int) -> None:
        self._requests[seq] = None
        if len(self._requests) > HISTORY_MESSAGES:
            oldest, _ = self._requests.popitem(last=False)
            self.lost_requests.append(oldest)

    def _note_losses(self) -> None:
        """Requests have left queues unread: those that wait in no other one are lost."""
        for seq in self._left_queues:
            queues = self._unread.pop(seq, 0)
            if queues > 1:
                self._unread[seq] = queues - 1
            elif queues:
                self.lost_requests.append(seq)
        self._left_queues.clear()

    def _remember(self, seqs: list[int]) -> None:
        self._history.append(seqs)
        self._history_size += len(seqs)
        while self._history_size - len(self._history[0]) >= HISTORY_MESSAGES:
            self._history_size -= len(self._history.popleft())

    def _bound(self) -> None:
        while self.bytes > self._total_bytes:
            several = (each for each in self.handles.values() if len(each.queue) > 1)
            fullest = max(several, key=lambda each: each.bytes, default=None)
            if fullest is None:
                return
            self.bytes -= fullest.lose_oldest()
            self.changed[fullest] = None
