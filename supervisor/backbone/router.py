"""The router: from a frame that came in on a member's edge to the outboxes of those who subscribed.

A rule: no sockets, no clock. It decides anew everything that workers have checked for their guests' sake,
since a worker may have been taken over: who published is the socket, whether it may is the grant, and what
it says of its principal or of the cause is looked up, never believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from capsuled.proto import ledger, records, topics
from capsuled.proto.bucket import Bucket
from capsuled.proto.records import DownKind, RecordError, UpKind
from capsuled.proto.refusals import Errno
from capsuled.proto.subscriptions import Subscriptions
from capsuled.proto.topics import TopicError
from capsuled.supervisor.backbone.figures import Figures, figures
from capsuled.supervisor.backbone.members import (
    CONTROL_RATE,
    MAX_ROUTES,
    Admission,
    Member,
    Route,
    Subscription,
)
from capsuled.supervisor.backbone.origins import Origin, Origins
from capsuled.supervisor.backbone.outbox import MAX_CONTROL, Outbox, Stamp

_COUNT_MASK = 0xFFFF_FFFF
_STAMPS = records.DOWN.size - records.UP.size
"""By how much a message's head grows on its way through."""

_PUBLISH = int(UpKind.PUBLISH)
_MESSAGE = int(DownKind.MESSAGE)


@dataclass
class Router:
    """All members, their subscriptions and the routes between them, in one epoch of the backbone."""

    epoch: int
    on_subscriptions: Callable[[int, list[tuple[int, str, bool]]], None] = lambda _index, _table: None
    """Told a member's whole table after a frame that has changed it and *before* the worker is answered, so
    that no subscription is acknowledged which the supervisor could not hand to the next epoch."""
    members: dict[int, Member] = field(default_factory=dict[int, Member])
    seq: int = field(init=False)
    """Global sequence number of the last message; of none, to begin with."""
    flush: list[Outbox] = field(default_factory=list[Outbox])
    """Outboxes that this turn has put something into."""
    _table: Subscriptions[Subscription] = field(default_factory=Subscriptions[Subscription])
    _origins: Origins = field(default_factory=Origins)

    def __post_init__(self) -> None:
        self.seq = self.epoch << records.EPOCH_SHIFT

    # ── members come and go ──────────────────────────────────────────────────────────────────────

    def attach(self, admission: Admission, now: float) -> Member:
        """Take a capsule in, with the subscriptions that it has already."""
        origin = self._origins.index(Origin(admission.name, admission.instance, admission.principal))
        byte_rate, message_rate = admission.publish_bytes_per_second, admission.publish_messages_per_second
        member = Member(
            admission=admission,
            outbox=Outbox(admission.index, admission.queue_messages, admission.queue_bytes),
            # A rate below one could not even be waited for: the bucket would never hold what one message takes.
            bucket=Bucket(max(1, byte_rate), max(1, message_rate), now),
            control_bucket=Bucket(CONTROL_RATE, CONTROL_RATE, now),
            origin=origin,
        )
        self.members[admission.index] = member
        for handle, text, runtime_owned in admission.subscriptions:
            self._add(member, handle, text, topics.split_subscribable(text), runtime_owned)
        self._forget_routes()
        return member

    def greet(self, member: Member) -> None:
        """Begin a connection: the first record that its worker reads tells the epoch."""
        member.outbox.control.insert(0, records.down(DownKind.HELLO, b=self.epoch, c=member.outbox.sent))
        self.mark(member.outbox)

    def detach(self, index: int) -> Figures:
        """Let a capsule go; returns its last figures."""
        member = self.members[index]
        self._forget_routes()
        last = figures(member)
        for subscription in member.subscriptions.values():
            self._table.remove(subscription.pattern, subscription)
        del self.members[index]
        member.outbox.clear()
        return last

    # ── frames come in ───────────────────────────────────────────────────────────────────────────

    def take(self, member: Member, frame: bytes, now: float, now_ms: int) -> int:
        """Do what a frame asks for, and charge its sender. Returns how many records it had.

        Raises `RecordError` where the frame stops being records, or has more than `MAX_RECORDS` of them; what
        stood before that has been done. `now` in seconds of a monotonic clock, `now_ms` since 1970.
        """
        position, end, head = 0, len(frame), records.UP.size
        unpack, pack = records.UP.unpack_from, records.DOWN.pack
        routes, max_payload = member.routes, member.admission.max_payload
        size = publishes = controls = 0
        try:
            while position < end:
                if end - position < head:
                    raise RecordError(f"{end - position} bytes at {position} are too few for a record's head")
                if publishes + controls == records.MAX_RECORDS:
                    raise RecordError(f"more than {records.MAX_RECORDS} records in a frame of {end} bytes")
                length, kind, text_length, a, b = unpack(frame, position)
                text_at = position + head
                body_at = text_at + text_length
                stop = position + 4 + length
                if body_at > stop or stop > end:
                    raise RecordError(
                        f"the record at {position} says {length} bytes, {text_length} of them text; "
                        f"it has {end - position - 4}"
                    )
                position = stop
                if kind != _PUBLISH:
                    controls += 1
                    self._control(member, kind, frame[text_at:body_at], a, b, member.received + publishes)
                    continue
                size += stop - body_at
                publishes += 1
                if a != member.next_count:
                    self._gap(member, a)
                member.next_count = (a + 1) & _COUNT_MASK
                topic = frame[text_at:body_at]
                route = routes.get(topic)
                if route is None:
                    route = self._route(member, topic)
                    if route is None:
                        continue
                if stop - body_at > max_payload:
                    member.refuse(Errno.MSGSIZE)
                    continue
                origin = member.origin
                if b:
                    cause = member.outbox.delivered(b)
                    if cause is None:
                        member.refuse(Errno.BADF)
                        continue
                    origin = self._caused(member, cause, route)
                self.seq = seq = self.seq + 1
                route.count += 1
                member.published += 1
                item = (
                    pack(length + _STAMPS, _MESSAGE, text_length, origin, seq, now_ms, b)
                    + frame[text_at:stop],
                    Stamp(seq, origin, route),
                )
                grown = len(item[0])
                for outbox in route.outboxes:
                    outbox.items.append(item)
                    outbox.bytes += grown
                    if outbox.bytes > outbox.max_bytes or len(outbox.items) > outbox.max_messages:
                        outbox.overflow()
                    if not outbox.dirty:
                        outbox.dirty = True
                        self.flush.append(outbox)
        finally:
            # What was refused is charged too: an honest worker refuses it itself, and reading it is work. For the
            # same reason a frame without a publish costs a control record at least, an empty one as well.
            member.received += publishes
            member.bucket.charge(size, publishes, now)
            member.control_bucket.charge(0, controls or not publishes, now)
            if member.table_changed:
                self._tell_table(member)
        return publishes + controls

    def bound_total(self, outboxes: Iterable[Outbox], max_bytes: int) -> None:
        """Lose the oldest of the fullest until all hold `max_bytes` together. Each keeps its last message."""
        waiting = list(outboxes)
        excess = sum(outbox.bytes for outbox in waiting) - max_bytes
        if excess > 0:
            waiting = [outbox for outbox in waiting if len(outbox.items) > 1]
        while excess > 0 and waiting:
            fullest = max(waiting, key=lambda outbox: outbox.bytes)
            before = fullest.bytes
            fullest.lose_oldest()
            excess -= before - fullest.bytes
            if len(fullest.items) <= 1:
                waiting.remove(fullest)

    def mark(self, outbox: Outbox) -> None:
        """Have an outbox flushed at the end of this turn."""
        if not outbox.dirty:
            outbox.dirty = True
            self.flush.append(outbox)

    @staticmethod
    def deaf(member: Member) -> bool:
        """Whether so many answers wait that the member must not be read until it has taken some."""
        return len(member.outbox.control) >= MAX_CONTROL

    # ── figures go out ───────────────────────────────────────────────────────────────────────────

    def figures(self, member: Member) -> Figures:
        """The backbone's side of a member's ledger."""
        self.settle()
        return figures(member)

    def all_figures(self) -> list[Figures]:
        """The same for every member, of one moment."""
        self.settle()
        return [figures(member) for member in self.members.values()]

    def settle(self) -> None:
        """Bring every subscription's `matched` up to date."""
        for member in self.members.values():
            member.settle()

    # ── what the busy path leaves aside ──────────────────────────────────────────────────────────

    def _control(self, member: Member, kind: int, text: bytes, a: int, b: int, received: int) -> None:
        if kind == UpKind.SUBSCRIBE:
            self._subscribe(member, a, text)
        elif kind == UpKind.UNSUBSCRIBE:
            self._unsubscribe(member, a)
        elif kind == UpKind.HELLO:
            member.next_count = b & _COUNT_MASK
        elif kind == UpKind.BYE:
            if member.next_count is not None:
                self._gap(member, b & _COUNT_MASK)
            self._tell(member, records.down(DownKind.BYE, b=received))
        else:
            raise RecordError(f"there is no kind {kind} of record from a worker")

    def _gap(self, member: Member, count: int) -> None:
        """The worker counts `count` where another was expected: what lies between was lost on the way."""
        if member.next_count is not None:
            member.missing += (count - member.next_count) & _COUNT_MASK
        member.next_count = count

    def _route(self, member: Member, topic: bytes) -> Route | None:
        """The route of a topic, cached; None where the topic is malformed or not granted (and counted)."""
        if len(topic) > topics.MAX_BYTES:
            member.refuse(Errno.NAMETOOLONG)
            return None
        try:
            segments = topics.split(topic.decode())
        except UnicodeDecodeError:
            member.refuse(Errno.ILSEQ)
            return None
        except TopicError:
            member.refuse(Errno.INVAL)
            return None
        if member.admission.grants.publisher(segments) is None:
            member.refuse(Errno.NOTCAPABLE)
            return None
        groups: dict[int, dict[Subscription, None]] = {}
        for subscription in self._table.match(segments):
            groups.setdefault(subscription.member, {})[subscription] = None
        route = Route(tuple(self.members[index].outbox for index in groups), groups)
        for index in groups:
            self._introduce(self.members[index], member.origin)
        if len(member.routes) >= MAX_ROUTES:
            member.forget_routes()
        member.routes[topic] = route
        return route

    def _caused(self, member: Member, cause: Stamp, route: Route) -> int:
        """The origin of a message that carries on the principal of its cause."""
        principal = self._origins[cause.origin].principal
        if principal == member.admission.principal:
            return member.origin
        origin = self._origins.index(Origin(member.admission.name, member.admission.instance, principal))
        for index in route.subscriptions:
            self._introduce(self.members[index], origin)
        return origin

    def _introduce(self, member: Member, origin: int) -> None:
        if origin not in member.known_origins:
            member.known_origins.add(origin)
            self._tell(member, self._origins[origin].introduction(origin))

    def _subscribe(self, member: Member, handle: int, text: bytes) -> None:
        errno, sentence = self._try_subscribe(member, handle, text)
        if errno:
            member.refuse(errno)
            record = records.down(DownKind.SUBSCRIBED, sentence.encode(), a=handle, b=errno)
        else:
            record = records.down(DownKind.SUBSCRIBED, a=handle, c=member.subscriptions[handle].since)
        self._tell(member, record)

    def _try_subscribe(self, member: Member, handle: int, text: bytes) -> tuple[Errno | None, str]:
        """Errno (None: it stands) and the sentence of a refusal."""
        present = member.subscriptions.get(handle)
        if present is not None and present.text.encode() == text:
            return None, ""  # asked again after a change of epoch
        if len(text) > topics.MAX_BYTES:
            return Errno.NAMETOOLONG, f"a pattern of {len(text)} bytes: {topics.MAX_BYTES} at most"
        try:
            decoded = text.decode()
            pattern = topics.split_subscribable(decoded)
        except UnicodeDecodeError:
            return Errno.ILSEQ, f"the pattern {text[:32]!r} is not UTF-8"
        except TopicError as exc:
            return Errno.INVAL, str(exc)
        if member.admission.grants.subscriber(pattern) is None:
            return Errno.NOTCAPABLE, f"subscribe to '{decoded}' is not granted"
        if len(member.subscriptions) >= ledger.MAX_SUBSCRIPTIONS:
            return Errno.MFILE, f"subscribe to '{decoded}': {ledger.MAX_SUBSCRIPTIONS} are open, the most"
        if present is not None or not handle:
            return Errno.BADF, f"subscribe to '{decoded}': the handle {handle} is in use or is 0"
        self._add(member, handle, decoded, pattern, runtime_owned=False)
        self._forget_routes()
        member.table_changed = True
        return None, ""

    def _unsubscribe(self, member: Member, handle: int) -> None:
        """End a subscription. What is on the wire before the answer counts for it; what waits does not, since
        the answer overtakes it."""
        subscription = member.subscriptions.get(handle)
        if subscription is None or subscription.runtime_owned:
            member.refuse(Errno.BADF if subscription is None else Errno.PERM)
            return
        self._forget_routes()
        del member.subscriptions[handle]
        self._table.remove(subscription.pattern, subscription)
        member.closed_matched += subscription.matched - member.outbox.release(subscription)
        member.closed_lagged += subscription.lagged
        member.table_changed = True
        self._tell(member, records.down(DownKind.UNSUBSCRIBED, a=handle))

    def _add(
        self, member: Member, handle: int, text: str, pattern: topics.Segments, runtime_owned: bool
    ) -> None:
        subscription = Subscription(member.admission.index, handle, text, pattern, runtime_owned, self.seq)
        member.subscriptions[handle] = subscription
        self._table.add(pattern, subscription)

    def _tell_table(self, member: Member) -> None:
        member.table_changed = False
        self.on_subscriptions(
            member.admission.index,
            [(each.handle, each.text, each.runtime_owned) for each in member.subscriptions.values()],
        )

    def _forget_routes(self) -> None:
        for member in self.members.values():
            member.forget_routes()

    def _tell(self, member: Member, record: bytes) -> None:
        member.outbox.control.append(record)
        self.mark(member.outbox)
