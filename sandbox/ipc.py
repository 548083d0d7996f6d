"""Publish, subscribe, receive: the rules of `inbox` and `outgoing` put to work on the edge.

What is refused here is refused for the guest's sake, with a sentence. The backbone decides everything again.

Cancellation wins: whatever blocks here polls the control descriptor as well, looks at it before anything else,
and once more just before it takes a message.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from capsuled.proto import envelopes, payloads, records, topics
from capsuled.proto.abi import MAX_RECV_TIMEOUT_MS
from capsuled.proto.bucket import Bucket
from capsuled.proto.ledger import Total, Waits
from capsuled.proto.order import Order
from capsuled.proto.records import Down, DownKind, UpKind
from capsuled.proto.refusals import Errno, Refusal
from capsuled.proto.topics import Segments
from capsuled.sandbox.answers import Answers
from capsuled.sandbox.edge import Edge
from capsuled.sandbox.inbox import Inbox
from capsuled.sandbox.outgoing import Outgoing
from capsuled.sandbox.page import Page
from capsuled.sandbox.subscription import NOT_YET, Subscription
from capsuled.sandbox.supervisor import Supervisor

FLUSH_SECONDS = 0.001
"""So that only what comes in bursts is gathered into frames: a publish goes at once unless another just did, and
then with the next host call after this time. A guest that computes without a call keeps the end of its burst."""

FRAMES_PER_DRAIN = 64
"""Frames read in one go, so that a flood of messages cannot keep a call from returning."""

ACKNOWLEDGE_SECONDS = 10.0
"""How long a subscribe waits for the backbone, which may just be restarted; then the guest is told to try again."""

BYE_SECONDS = 1.0
"""How long an orderly exit waits until the backbone has all that was published. Without it the tail is lost."""

LOST_SECONDS = 0.01
"""At least so long between two reports of lost requests, unless a whole record of them waits."""

MAX_TOPICS = 1024
"""Topics that are remembered as granted."""

MEMORY_HEADROOM = 64 * 1024 * 1024
"""What the worker needs beside its guest's memory and the queues."""

_PUBLISH = int(UpKind.PUBLISH)
_MESSAGE = int(DownKind.MESSAGE)
_COUNT_MASK = 0xFFFF_FFFF


class Ipc:
    """The messages of one capsule."""

    def __init__(self, order: Order, edge: Edge, supervisor: Supervisor, page: Page) -> None:
        limits = order.limits
        self._edge = edge
        self._supervisor = supervisor
        self._page = page
        self._grants = order.grants
        self._interceptors = order.interceptors
        self._granted: set[bytes] = set()
        self.max_payload = limits.max_payload
        self._bucket = Bucket(
            limits.publish_bytes_per_second, limits.publish_messages_per_second, time.monotonic()
        )
        self._rate = (
            f"{limits.publish_bytes_per_second} bytes and "
            f"{limits.publish_messages_per_second} messages a second"
        )
        self._outgoing = Outgoing()
        self._published = 0
        self._last_flush = 0.0
        room = (limits.process_memory - limits.memory - MEMORY_HEADROOM) // 2
        self._inbox = Inbox(limits.queue_messages, limits.queue_bytes, max(room, limits.queue_bytes))
        self._inbox.open_runtime(order.interceptors)
        self._answers = Answers()
        self._refused: dict[int, Refusal] = {}
        """Answers of the backbone to subscriptions, until the guest's call has read them."""
        self._next_report = 0.0
        """When losses may be reported again; of a monotonic clock."""
        self._bye = False
        self._poll = select.poll()
        self._poll.register(edge.fd, select.POLLIN)
        self._poll.register(supervisor.fileno(), select.POLLIN)
        self.before_wait: Callable[[], None] = lambda: None
        """Here the worker brings the slow figures of its page up to date."""

    # ── publish ──────────────────────────────────────────────────────────────────────────────────

    def check_topic(self, topic: bytes) -> None:
        """Raise `Refusal` unless this capsule may publish on `topic`. Length, UTF-8, form, grant, in this order."""
        if topic in self._granted:
            return
        text, segments = _parse("publish to", topic, topics.split)
        if self._grants.publisher(segments) is None:
            raise Refusal(
                Errno.NOTCAPABLE,
                f"publish to '{text}' is not granted: ipc_publish = {list(self._grants.publish)}",
            )
        if len(self._granted) >= MAX_TOPICS:
            self._granted.clear()
        self._granted.add(topic)

    def admit(self, size: int) -> None:
        """Take a payload's size from the rate. Raises `Refusal` when it is over the rate; then nothing is taken."""
        if not self._bucket.admits(size, time.monotonic()):
            raise Refusal(
                Errno.DQUOT, f"a publish of {size} bytes is over the rate of {self._rate}: wait a little"
            )

    def publish(self, topic: bytes, payload: bytes, cause: int) -> None:
        """Hand over what `check_topic` and `admit` have passed. Raises `Refusal`, and then it has cost no quota."""
        # Not `with self._refunding(…)`, which says the same: this is the busiest line of a publisher.
        try:
            if cause and not self._inbox.was_delivered(cause):
                raise Refusal(Errno.BADF, f"the message {cause} was not delivered here lately: no cause")
            payloads.check(payload)
            record = records.up(_PUBLISH, topic, self._published & _COUNT_MASK, cause, payload)
            if not self._outgoing.has_room(len(record)):
                self._make_room(len(record))
        except (Refusal, payloads.NotCbor) as exc:
            with self._refunding(len(payload)):
                raise exc
        self._published = count = self._published + 1
        self._page.slots[Total.PUBLISHED] = count
        if self._outgoing.publish(record) or time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self._flush()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def request(self, topic: bytes, payload: bytes, timeout_ms: int) -> int:
        """Ask whoever is subscribed to `topic`; returns the handle on which the one answer is received.

        `check_topic` and `admit` have passed it. Raises `Refusal`, and then it has cost no quota.
        """
        with self._refunding(len(payload)):
            self._answers.check_room()
            payloads.check(payload)
            handle = self._inbox.new_handle(self._answers)
            self._hand_over(records.up(UpKind.REQUEST, topic, handle, 0, payload))
        timeout = min(timeout_ms, MAX_RECV_TIMEOUT_MS) / 1000
        self._answers.open(handle, topic.decode(), time.monotonic() + timeout)
        self._flush()
        return handle

    def reply(self, request: int, payload: bytes) -> None:
        """Answer a request; `admit` has passed the payload. Raises `Refusal`, and then it has cost no quota."""
        with self._refunding(len(payload)):
            payloads.check(payload)
            self._inbox.check_request(request)
            self._hand_over(records.up(UpKind.REPLY, b"", 0, request, payload))
            self._inbox.answered(request)
        self._flush()

    def decline(self, request: int, reason: bytes) -> None:
        """Refuse a request, with a reason for its sender. Raises `Refusal`."""
        self._inbox.check_request(request)
        self._hand_over(records.up(UpKind.DECLINE, reason, 0, request))
        self._inbox.answered(request)
        self._flush()

    def flush_due(self) -> None:
        """Send what has been held back for its time. For calls that have nothing else to do with messages."""
        waits = self._outgoing.bytes or self._inbox.lost_requests
        if waits and time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self._flush()

    # ── subscriptions ────────────────────────────────────────────────────────────────────────────

    def subscribe(self, pattern: bytes) -> int:
        """A handle whose subscription the backbone has acknowledged: nothing published later is missed."""
        text, segments = _parse("subscribe to", pattern, topics.split_subscribable)
        if self._grants.subscriber(segments) is None:
            raise Refusal(
                Errno.NOTCAPABLE,
                f"subscribe to '{text}' is not granted: ipc_subscribe = {list(self._grants.subscribe)}",
            )
        # Before anything is begun: a guest that asks again and again while it is stopped must not pile up requests.
        self._check_cancelled()
        subscription = self._inbox.open(text, segments, self._answers)
        handle = subscription.handle
        self._outgoing.control(records.up(UpKind.SUBSCRIBE, pattern, a=handle))
        try:
            self._await(
                lambda: subscription.closed or subscription.since != NOT_YET,
                time.monotonic() + ACKNOWLEDGE_SECONDS,
                Refusal(
                    Errno.AGAIN, f"cannot subscribe to '{text}': the backbone does not answer: try again"
                ),
            )
        except Refusal:
            if self._refused.pop(handle, None) is None:
                self._close(handle)
            raise
        refusal = self._refused.pop(handle, None)
        if refusal is not None:
            raise refusal
        self.settle()
        return handle

    def unsubscribe(self, handle: int) -> None:
        if handle in self._answers:
            self._answers.forget(handle)
            self._give_up(handle)
            return
        self._close(handle)
        self._flush()
        self.settle()

    def interceptors(self) -> list[dict[str, object]]:
        """What the manifest has subscribed, for the guest."""
        return [
            {"handle_id": each.handle, "action": each.action, "topic": each.pattern}
            for each in self._interceptors
        ]

    # ── receive ──────────────────────────────────────────────────────────────────────────────────

    def poll(self, handle: int, cap: int) -> bytes:
        """The envelope of what waits; never blocks."""
        if handle in self._answers:
            self._turn()
            return self._take_answer(handle, cap)
        subscription = self._inbox.get(handle)
        self._turn()
        return self._take(subscription, cap)

    def receive(self, handle: int, timeout_ms: int, cap: int) -> bytes:
        """The envelope after a message or the timeout. Raises `Refusal` (canceled) when this capsule is stopped."""
        deadline = time.monotonic() + min(timeout_ms, MAX_RECV_TIMEOUT_MS) / 1000
        if handle in self._answers:
            waiting = self._answers.waiting[handle]
            self._await(lambda: waiting.over(time.monotonic()), min(deadline, waiting.deadline), None)
            return self._take_answer(handle, cap)
        subscription = self._inbox.get(handle)
        self._await(lambda: bool(subscription.queue), deadline, None, Waits.FOR_MESSAGES)
        return self._take(subscription, cap)

    def sleep(self, seconds: float) -> None:
        """Wait; returns early when this capsule is being stopped."""
        try:
            self._await(lambda: False, time.monotonic() + seconds, None)
        except Refusal:
            return

    # ── the edge's beginning and end ─────────────────────────────────────────────────────────────

    def await_greeting(self) -> bool:
        """Wait for the backbone's first HELLO. False when this capsule is being stopped instead."""
        try:
            self._await(lambda: self._inbox.epoch != 0, None, None)
        except Refusal:
            return False
        return True

    def say_bye(self) -> None:
        """Wait, for a short while, until the backbone has routed all that was published."""
        deadline = time.monotonic() + BYE_SECONDS
        self._outgoing.control(records.up(UpKind.BYE, b=self._published))
        while True:
            more = self._turn()
            left = deadline - time.monotonic()
            if self._bye or left <= 0:
                break
            if not more:
                self._poll_edge(left)
        self.settle()

    def settle(self) -> None:
        """Bring the ledger page up to date."""
        page, inbox = self._page, self._inbox
        slots, closed = page.slots, inbox.closed
        page.begin()
        slots[Total.EPOCH] = inbox.epoch
        slots[Total.RECEIVED] = inbox.received
        slots[Total.MALFORMED] = inbox.malformed
        if inbox.closed_changed:
            slots[Total.CLOSED_RECEIVED] = closed.received
            slots[Total.CLOSED_DELIVERED] = closed.delivered
            slots[Total.CLOSED_DROPPED] = closed.dropped
            slots[Total.CLOSED_LEFT] = closed.left
            slots[Total.CLOSED_CARRIED] = closed.carried
            inbox.closed_changed = False
        if inbox.changed:
            for each in inbox.changed:
                if each.closed:
                    page.free_row(each.row)
                else:
                    page.row(
                        each.row,
                        each.handle,
                        each.received,
                        each.delivered,
                        each.dropped,
                        len(each.queue),
                        each.carried,
                    )
            inbox.changed.clear()
        page.end()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _take(self, subscription: Subscription, cap: int) -> bytes:
        try:
            return self._inbox.take(subscription, cap)
        finally:
            self.settle()

    def _await(
        self,
        done: Callable[[], bool],
        deadline: float | None,
        late: Refusal | None,
        waits: Waits = Waits.FOR_SOMETHING,
    ) -> None:
        """Turn until `done`, or until `deadline` (monotonic), when `late` is raised if there is one. Who looks on is
        told what it `waits` for.

        Raises `Refusal` (canceled) as soon as this capsule is being stopped, even when it is done as well.
        """
        self._check_cancelled()
        while True:
            more = self._turn()
            if done():
                self._check_cancelled()
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._check_cancelled()
                if late is not None:
                    raise late
                return
            if more:
                continue
            self.settle()
            self.before_wait()
            if self._inbox.lost_requests and not self._outgoing.bytes:
                left = LOST_SECONDS if left is None else min(left, LOST_SECONDS)
            self._page.slots[Total.WAITING] = waits
            self._poll.poll(None if left is None else left * 1000)
            self._page.slots[Total.WAITING] = Waits.FOR_NOTHING
            self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._supervisor.cancelled():
            raise Refusal(Errno.CANCELED, "this capsule is being stopped")

    def _poll_edge(self, seconds: float) -> None:
        poll = select.poll()  # once, at the end of a life: the control descriptor has nothing to add then
        poll.register(self._edge.fd, select.POLLIN)
        poll.poll(seconds * 1000)

    def _turn(self) -> bool:
        """Send what waits and read what has come. In this order, for a send may eat the news of something to read.

        True when there may be more to read: the edge must not be waited for then.
        """
        self._flush()
        self._last_flush = 0.0  # so that the answer to what is received goes at once
        receive = self._edge.receive
        more = True
        for _ in range(FRAMES_PER_DRAIN):
            frame = receive()
            if frame is None:
                more = False
                break
            self._read(frame)
            if len(self._inbox.lost_requests) >= records.MAX_LOST:
                self._report_losses()
        if self._inbox.lost_requests and self._report_losses():
            return True
        # What waits may have room now, and the last receive may have eaten the news of it.
        return more or (bool(self._outgoing.bytes) and self._edge.has_news())

    def _report_losses(self) -> bool:
        """Tell of requests that the guest will never answer, so that their senders need not wait. False when it is
        too early, or something else has to be sent before: so that there is one such record in a frame."""
        lost, now = self._inbox.lost_requests, time.monotonic()
        if self._outgoing.bytes or (now < self._next_report and len(lost) < records.MAX_LOST):
            return False
        self._next_report = now + LOST_SECONDS
        count = min(len(lost), records.MAX_LOST)
        numbers = b"".join(lost.popleft().to_bytes(8, "big") for _ in range(count))
        self._outgoing.control(records.up(UpKind.LOST, body=numbers))
        self._send()
        return True

    def _give_up(self, handle: int) -> None:
        """Nobody will ask for that answer: or the backbone would keep a place for it."""
        self._outgoing.control(records.up(UpKind.GIVE_UP, a=handle))
        self._flush()

    def _flush(self) -> None:
        self._send()
        if self._inbox.lost_requests:
            self._report_losses()

    def _send(self) -> None:
        outgoing = self._outgoing
        if outgoing.bytes:
            self._last_flush = time.monotonic()
        while (frame := outgoing.peek()) is not None:
            if not self._edge.send(frame):
                return
            outgoing.sent_first()

    def _read(self, frame: bytes) -> None:
        put = self._inbox.put
        for record in records.split_down(frame):
            if record.kind == _MESSAGE:
                put(record.text, record.a, record.b, record.c, record.d, record.body)
            else:
                self._hear(record)

    def _hear(self, record: Down) -> None:
        kind, inbox = record.kind, self._inbox
        if kind == DownKind.RETAINED:
            inbox.put(record.text, record.a, record.b, record.c, 0, record.body, envelopes.RETAINED, record.d)
        elif kind == DownKind.REQUEST:
            inbox.put(record.text, record.a, record.b, record.c, record.d, record.body, envelopes.REQUEST)
        elif kind == DownKind.REPLY:
            self._answered(record)
        elif kind == DownKind.HELLO:
            self._greeted(record.b)
        elif record.d != inbox.epoch:
            return  # of a backbone that is gone: what it says of handles and origins is so no more
        elif kind == DownKind.ORIGIN:
            inbox.introduce(record)
        elif kind == DownKind.LAGGED:
            inbox.lag(record.a, record.b)
        elif kind == DownKind.SUBSCRIBED:
            if record.b:
                if inbox.reject(record.a):
                    self._refused[record.a] = Refusal(Errno(record.b), record.text.decode())
            else:
                inbox.acknowledge(record.a, record.c)
        elif kind == DownKind.UNSUBSCRIBED:
            inbox.forget(record.a)
        elif kind == DownKind.FAILED:
            self._answers.fail(record.a, Errno(record.b), record.text.decode(errors="replace"))
        elif kind == DownKind.BYE:
            self._bye = True

    def _greeted(self, epoch: int) -> None:
        """A backbone has connected. What the last one may not have heard is said again."""
        if epoch < self._inbox.epoch:
            return  # its successor's greeting was read before
        closing = self._inbox.closing()
        if epoch != self._inbox.epoch:
            self._inbox.begin_epoch(epoch)
            self._answers.fail_all(Errno.CONNRESET, "the backbone was restarted: the request may be lost")
        # Each goes before the last: HELLO is the first, and ends make room before what begins needs it.
        for each in self._inbox.unacknowledged():
            self._outgoing.control_first(records.up(UpKind.SUBSCRIBE, each.text.encode(), a=each.handle))
        for handle in closing:
            self._outgoing.control_first(records.up(UpKind.UNSUBSCRIBE, a=handle, b=records.AGAIN))
        self._outgoing.control_first(records.up(UpKind.HELLO, b=self._outgoing.sent))
        self._flush()

    def _close(self, handle: int) -> None:
        self._inbox.close(handle)
        self._outgoing.control(records.up(UpKind.UNSUBSCRIBE, a=handle, b=self._inbox.epoch))

    def _take_answer(self, handle: int, cap: int) -> bytes:
        seq = self._answers.waiting[handle].seq
        try:
            envelope = self._answers.take(handle, cap, time.monotonic())
        except Refusal as exc:
            if exc.errno is Errno.TIMEDOUT:
                self._give_up(handle)
            raise
        if handle not in self._answers:
            self._inbox.delivered(seq)
        return envelope

    def _answered(self, record: Down) -> None:
        """An answer; its topic is `reply.` and the number of the request, which is what caused it.

        One of a backbone that is gone is passed over: its request has failed with it.
        """
        if record.b >> records.EPOCH_SHIFT != self._inbox.epoch:
            return
        try:
            encoded = self._inbox.encode(record, int(record.text.rpartition(b".")[2]))
        except payloads.NotCbor as exc:
            self._answers.fail(record.d, Errno.BADMSG, f"the answer is {exc}")
        else:
            self._answers.answer(record.d, record.b, encoded)

    def _hand_over(self, record: bytes) -> None:
        """Put a record that counts as no publish behind all that waits. Raises `Refusal` (again)."""
        if not self._outgoing.has_room(len(record)):
            self._make_room(len(record))
        self._outgoing.control(record)

    def _make_room(self, size: int) -> None:
        self._flush()
        if not self._outgoing.has_room(size):
            raise Refusal(Errno.AGAIN, "the backbone takes nothing at the moment: try again")

    @contextmanager
    def _refunding(self, size: int) -> Generator[None, None, None]:
        """What is refused in here has cost no quota."""
        try:
            yield
        except payloads.NotCbor as exc:
            self._bucket.charge(-size, -1, time.monotonic())
            raise Refusal(Errno.BADMSG, f"the payload is {exc}") from exc
        except Refusal:
            self._bucket.charge(-size, -1, time.monotonic())
            raise


def _parse(what: str, text: bytes, split: Callable[[str], Segments]) -> tuple[str, Segments]:
    """A topic or pattern and its segments. Raises `Refusal` with the errno of the first rule that it breaks."""
    if len(text) > topics.MAX_BYTES:
        raise too_long(what, len(text))
    try:
        decoded = text.decode()
        return decoded, split(decoded)
    except UnicodeDecodeError as exc:
        raise Refusal(Errno.ILSEQ, f"cannot {what} {text[:32]!r}: it is not UTF-8") from exc
    except topics.TopicError as exc:
        raise Refusal(Errno.INVAL, f"cannot {what} {exc}") from exc


def too_long(what: str, size: int) -> Refusal:
    """The refusal of a topic or pattern by its length alone, before it is read."""
    return Refusal(
        Errno.NAMETOOLONG, f"cannot {what} {size} bytes: a topic or pattern has {topics.MAX_BYTES} at most"
    )
