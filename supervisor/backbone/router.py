"""The router: from a frame that came in on a member's edge to the outboxes of those who subscribed.

A rule: no sockets, no clock. It decides anew everything that workers have checked for their guests' sake,
since a worker may have been taken over: who published is the socket, whether it may is the grant, and what
it says of its principal or of the cause is looked up, never believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from capsuled.proto import records, topics
from capsuled.proto.bucket import Bucket
from capsuled.proto.records import DownKind, RecordError, UpKind
from capsuled.proto.refusals import Errno, Refusal
from capsuled.proto.subscriptions import Subscriptions
from capsuled.supervisor.backbone.conversations import Conversations
from capsuled.supervisor.backbone.delivery import Delivery
from capsuled.supervisor.backbone.figures import Figures, figures
from capsuled.supervisor.backbone.members import (
    CONTROL_RATE,
    MAX_ROUTES,
    Admission,
    Member,
    Route,
    Subscription,
)
from capsuled.supervisor.backbone.notes import Notes
from capsuled.supervisor.backbone.origins import Origin
from capsuled.supervisor.backbone.outbox import Outbox, Stamp
from capsuled.supervisor.backbone.retained import Retained
from capsuled.supervisor.backbone.watchers import Seen

_COUNT_MASK = 0xFFFF_FFFF
_STAMPS = records.DOWN.size - records.UP.size
"""By how much a message's head grows on its way through."""

_PUBLISH = int(UpKind.PUBLISH)
_REQUEST = int(UpKind.REQUEST)
_LOST = int(UpKind.LOST)
_MESSAGE = int(DownKind.MESSAGE)

LOOKED_THROUGH, HANDED_OVER, HANDED_OVER_BYTES = 512, 16, 64 * 1024
"""Retained messages that are looked through, and that are handed over, and their bytes, for which a subscription is
charged another control record: or a worker that subscribes and unsubscribes for ever would have all of it copied
each time."""

HANDED_OVER_AT_ONCE, LOOKED_THROUGH_AT_ONCE = 1024, 64 * 1024
"""The same for all subscriptions of an instance that takes over, which nobody can be made to wait for: what is beyond
them it does not get."""

NOBODY = bytes(16)
"""Instance of a source that is no capsule."""


@dataclass
class Router(Delivery):
    """All members, their subscriptions and the routes between them, in one epoch of the backbone."""

    on_subscriptions: Callable[[int, list[tuple[int, str, bool]]], None] = lambda _index, _table: None
    """Told a member's whole table after a frame that has changed it and *before* the worker is answered, so
    that no subscription is acknowledged which the supervisor could not hand to the next epoch."""
    notes: Notes = field(init=False, default_factory=Notes)
    _conversations: Conversations = field(init=False)
    _table: Subscriptions[Subscription] = field(init=False, default_factory=Subscriptions[Subscription])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._conversations = Conversations(self, self.notes, self._route)

    # ── members come and go ──────────────────────────────────────────────────────────────────────

    def attach(self, admission: Admission, now: float) -> Member:
        """Take a capsule in, with the subscriptions that it has already."""
        if self.origins.time_to_forget:
            self._forget_origins()
        origin = self.origins.index(Origin(admission.name, admission.instance, admission.principal))
        byte_rate, message_rate = admission.publish_bytes_per_second, admission.publish_messages_per_second
        member = Member(
            admission=admission,
            outbox=Outbox(
                admission.index,
                admission.queue_messages,
                admission.queue_bytes,
                epoch=self.epoch,
                requests=self._conversations.pending,
            ),
            # A rate below one could not even be waited for: the bucket would never hold what one message takes.
            bucket=Bucket(max(1, byte_rate), max(1, message_rate), now),
            control_bucket=Bucket(CONTROL_RATE, CONTROL_RATE, now),
            origin=origin,
            standby=admission.standby,
        )
        self.members[admission.index] = member
        for handle, text, runtime_owned in admission.subscriptions:
            self._add(member, handle, text, topics.split_subscribable(text), runtime_owned)
        self.forget_routes()
        return member

    def greet(self, member: Member) -> int:
        """Begin a connection: the first records that its worker reads tell the epoch and what stands already.
        Returns how many they are, before all that waits."""
        greeting = [
            records.down(DownKind.HELLO, b=self.epoch, c=member.outbox.sent),
            # What an earlier backbone took and could not answer any more stands, and the worker must know it.
            *(
                records.control(DownKind.SUBSCRIBED, self.epoch, a=each.handle, c=each.since)
                for each in member.subscriptions.values()
                if not each.runtime_owned
            ),
        ]
        member.outbox.control = greeting + member.outbox.control
        self.mark(member.outbox)
        return len(greeting)

    def detach(self, index: int) -> Figures:
        """Let a capsule go; returns its last figures."""
        member = self.members[index]
        self.forget_routes()
        last = figures(member, self._conversations.waiting(member))
        for subscription in member.subscriptions.values():
            self._unlist(member, subscription)
        del self.members[index]
        member.outbox.clear()
        self._conversations.ended(index)
        return last

    def succeed(self, new: int, old: int) -> None:
        """Between two messages: what `old` is subscribed to reaches it no more, and `new`, which stood by, gets what it
        has subscribed to itself. What waits for `old` stays there, and is read by it or counted as left."""
        member = self.members.get(new)
        if member is None:
            return  # it has ended in the same moment, and the supervisor hears of it
        self.forget_routes()
        if (before := self.members.get(old)) is not None:
            for subscription in before.subscriptions.values():
                self._unlist(before, subscription)
            before.standby = True
        member.standby = False
        shelves = self.notes.shelves
        room, looks = min(member.admission.queue_messages, HANDED_OVER_AT_ONCE), LOOKED_THROUGH_AT_ONCE
        for subscription in member.subscriptions.values():
            self._table.add(subscription.pattern, subscription)
            looks -= shelves.looked_through(subscription.pattern)
            for each in shelves.matching(subscription.pattern) if room and looks > 0 else ():
                if room and each.seq > subscription.since:  # what was retained before that it has got
                    self._hand_over(member, subscription, each)
                    room -= 1
            subscription.since = self.seq

    # ── frames come in ───────────────────────────────────────────────────────────────────────────

    def take(self, member: Member, frame: bytes, now: float, now_ms: int) -> int:
        """Do what a frame asks for, and charge its sender. Returns how many records it had.

        Raises `RecordError` where the frame stops being records, or has more than `MAX_RECORDS` of them; what
        stood before that has been done. `now` in seconds of a monotonic clock, `now_ms` since 1970.
        """
        position, end, head = 0, len(frame), records.UP.size
        unpack, pack = records.UP.unpack_from, records.DOWN.pack
        routes, max_payload = member.routes, member.admission.max_payload
        size = publishes = controls = others = dear = worth = losses = 0
        try:
            while position < end:
                if end - position < head:
                    raise RecordError(f"{end - position} bytes at {position} are too few for a record's head")
                if publishes + controls + others == records.MAX_RECORDS:
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
                    text = frame[text_at:body_at]
                    if kind < _REQUEST:
                        controls += 1
                        dear += self._control(member, kind, text, a, b, member.received + publishes)
                        continue
                    # As dear as a publish where nothing else is said, but not counted by its worker.
                    others += 1
                    if kind == _LOST:
                        losses += 1
                        if losses > 1:
                            raise RecordError("more than one record of lost requests in a frame")
                    else:
                        size += stop - body_at
                    body = frame[body_at:stop]
                    worth += self._conversations.take(member, kind, text, a, b, body, now_ms)
                    continue
                size += stop - body_at
                publishes += 1
                if a != member.next_count:
                    self._gap(member, a)
                member.next_count = (a + 1) & _COUNT_MASK
                topic = frame[text_at:body_at]
                route = routes.get(topic)
                if route is None:
                    found = self._route(member, topic)
                    if isinstance(found, Errno):
                        continue
                    route = found
                if stop - body_at > max_payload:
                    member.refuse(Errno.MSGSIZE)
                    continue
                origin = member.origin
                if b:
                    cause = member.outbox.delivered(b)
                    if cause is None:
                        member.refuse(Errno.BADF)
                        continue
                    origin = self.caused(member, cause.origin, route.subscriptions)
                    self.notes.caused(cause, self.seq + 1, now_ms, topic, origin)
                self.seq = seq = self.seq + 1
                route.count += 1
                member.published += 1
                item = (
                    pack(length + _STAMPS, _MESSAGE, text_length, origin, seq, now_ms, b)
                    + frame[text_at:stop],
                    Stamp(seq, origin, route, now_ms),
                )
                if route.extra:
                    self.notes.published(
                        member.admission, route, Seen(topic, origin, seq, now_ms, b, frame[body_at:stop])
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
        except RecordError:
            worth += 1
            raise
        finally:
            # What was refused is charged too: an honest worker refuses it itself, and reading it is work. For the
            # same reason a frame without a publish costs a control record at least, an empty one as well.
            member.received += publishes
            member.bucket.charge(size, publishes + worth, now)
            member.control_bucket.charge(0, controls + dear or not (publishes or others), now)
            if member.table_changed:
                self._tell_table(member)
        return publishes + controls + others

    def inject(self, name: str, topic: bytes, payload: bytes, now_ms: int) -> int:
        """Route a message of somebody who is no capsule: the supervisor itself, or the operator.

        The topic is well-formed. Returns its global sequence number.
        """
        segments = topics.split(topic.decode())
        origin = self.origins.index(Origin(name, NOBODY, name))
        route = self._build(topic, segments, origin)
        self.seq = seq = self.seq + 1
        record = records.down(DownKind.MESSAGE, topic, origin, seq, now_ms, 0, payload)
        self.push(route, (record, Stamp(seq, origin, route, now_ms)))
        route.settle()
        if route.watched:
            self.notes.watchers.see(segments, Seen(topic, origin, seq, now_ms, 0, payload))
        return seq

    def due(self) -> list[Outbox]:
        """The outboxes to flush now. Who waits for an answer to what was lost in one of them is told first."""
        for outbox in self.flush:  # grows as it goes: a failure is put into its asker's outbox
            if outbox.lost_requests:
                self._conversations.lost(outbox)
        due, self.flush = self.flush, []
        return due

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
            if fullest.lost_requests:
                self.mark(fullest)
            excess -= before - fullest.bytes
            if len(fullest.items) <= 1:
                waiting.remove(fullest)

    # ── figures go out ───────────────────────────────────────────────────────────────────────────

    def figures(self, member: Member) -> Figures:
        """The backbone's side of a member's ledger."""
        self.settle()
        return figures(member, self._conversations.waiting(member))

    def all_figures(self) -> list[Figures]:
        """The same for every member, of one moment."""
        self.settle()
        return [figures(member, self._conversations.waiting(member)) for member in self.members.values()]

    def settle(self) -> None:
        """Bring every subscription's `matched` up to date."""
        for member in self.members.values():
            member.settle()

    # ── what the busy path leaves aside ──────────────────────────────────────────────────────────

    def _control(self, member: Member, kind: int, text: bytes, a: int, b: int, received: int) -> int:
        """Returns how many control records it was worth, beside the one that it is."""
        if kind == UpKind.SUBSCRIBE:
            return self._subscribe(member, a, text)
        if kind == UpKind.UNSUBSCRIBE:
            self._unsubscribe(member, a, b)
        elif kind == UpKind.HELLO:
            member.next_count = b & _COUNT_MASK
        elif kind == UpKind.BYE:
            if member.next_count is not None:
                self._gap(member, b & _COUNT_MASK)
            self.tell(member, records.control(DownKind.BYE, self.epoch, b=received))
        else:
            raise RecordError(f"there is no kind {kind} of record from a worker")
        return 0

    def _gap(self, member: Member, count: int) -> None:
        """The worker counts `count` where another was expected: what lies between was lost on the way."""
        if member.next_count is not None:
            member.missing += (count - member.next_count) & _COUNT_MASK
        member.next_count = count

    def _route(self, member: Member, topic: bytes) -> Route | Errno:
        """The route of a topic, cached; where the topic is malformed or not granted why, and that is counted."""
        route = member.routes.get(topic)
        if route is None:
            segments = member.publishable(topic)
            if isinstance(segments, Errno):
                member.refuse(segments)
                return segments
            # What is the supervisor's own is never a capsule's to keep, even where it may publish it.
            retained = segments[0] != topics.RESERVED and member.admission.grants.retained(segments)
            route = self._build(topic, segments, member.origin, retained=retained)
            if len(member.routes) >= MAX_ROUTES:
                member.forget_routes()
            member.routes[topic] = route
        return route

    def _build(
        self, topic: bytes, segments: topics.Segments, origin: int, *, retained: bool = False
    ) -> Route:
        """Where a topic leads, and its origin introduced there."""
        groups: dict[int, dict[Subscription, None]] = {}
        for subscription in self._table.match(segments):
            groups.setdefault(subscription.member, {})[subscription] = None
        for index in groups:
            self.introduce(self.members[index], origin)
        outboxes = tuple(self.members[index].outbox for index in groups)
        watched = self.notes.watchers.want(topic, segments)
        return Route(outboxes, groups, topic, segments, watched=watched, retained=retained)

    def _subscribe(self, member: Member, handle: int, text: bytes) -> int:
        """Returns what it was worth, in control records beside the one that it is."""
        asked = member.subscribable(handle, text)
        worth = 0
        if isinstance(asked, Refusal):
            member.refuse(asked.errno)
            record = records.control(
                DownKind.SUBSCRIBED, self.epoch, asked.sentence.encode(), a=handle, b=asked.errno
            )
        else:
            if handle not in member.subscriptions:  # else it is asked again, after a change of epoch
                worth = self._add(member, handle, text.decode(), asked, runtime_owned=False)
                self.forget_routes()
                member.table_changed = True
            since = member.subscriptions[handle].since
            record = records.control(DownKind.SUBSCRIBED, self.epoch, a=handle, c=since)
        self.tell(member, record)
        return worth

    def _unsubscribe(self, member: Member, handle: int, said: int) -> None:
        """End a subscription, `said` in which epoch. What is on the wire before the answer counts for it; what waits
        does not, since the answer overtakes it."""
        subscription = member.subscriptions.get(handle)
        if subscription is None:
            if said in (0, self.epoch):
                member.refuse(Errno.BADF)
                return
            # To another backbone, or again: who said it could not know whether that was heard.
            member.late += 1
            self.tell(member, records.control(DownKind.UNSUBSCRIBED, self.epoch, a=handle))
            return
        if subscription.runtime_owned:
            member.refuse(Errno.PERM)
            return
        self.forget_routes()
        del member.subscriptions[handle]
        self._unlist(member, subscription)
        member.closed_matched += subscription.matched - member.outbox.release(subscription)
        member.closed_lagged += subscription.lagged
        member.table_changed = True
        self.tell(member, records.control(DownKind.UNSUBSCRIBED, self.epoch, a=handle))

    def _add(
        self, member: Member, handle: int, text: str, pattern: topics.Segments, runtime_owned: bool
    ) -> int:
        """Begin a subscription, with what is retained for it. Returns what that was worth, in control records."""
        subscription = Subscription(member.admission.index, handle, text, pattern, runtime_owned, self.seq)
        member.subscriptions[handle] = subscription
        if not member.standby:
            self._table.add(pattern, subscription)
        shelves = self.notes.shelves
        kept = shelves.matching(pattern)
        for each in kept:
            self._hand_over(member, subscription, each)
        size = sum(len(each.payload) for each in kept)
        looked = shelves.looked_through(pattern)
        return looked // LOOKED_THROUGH + len(kept) // HANDED_OVER + size // HANDED_OVER_BYTES

    def _unlist(self, member: Member, subscription: Subscription) -> None:
        """Nothing reaches it any more."""
        if not member.standby:
            self._table.remove(subscription.pattern, subscription)

    def _hand_over(self, member: Member, subscription: Subscription, kept: Retained) -> None:
        """A retained message to a late subscriber, and to nobody else: under a number of its own, as sent now."""
        self.introduce(member, kept.origin)
        self.seq = seq = self.seq + 1
        route = Route(
            (member.outbox,), {subscription.member: {subscription: None}}, kept.topic, kept.segments
        )
        record = records.down(
            DownKind.RETAINED, kept.topic, kept.origin, seq, kept.time_ms, subscription.handle, kept.payload
        )
        self.push(route, (record, Stamp(seq, kept.origin, route, kept.time_ms)))
        route.settle()

    def _tell_table(self, member: Member) -> None:
        member.table_changed = False
        self.on_subscriptions(
            member.admission.index,
            [(each.handle, each.text, each.runtime_owned) for each in member.subscriptions.values()],
        )

    def _forget_origins(self) -> None:
        """Let go of those that nothing names any more. Each has to be introduced again when it stands for another."""
        named = self.notes.origins() | self._conversations.origins()
        for member in self.members.values():
            named.add(member.origin)
            named |= member.outbox.origins()
        gone = self.origins.forget(named)
        for member in self.members.values():
            member.known_origins -= gone
            member.outbox.forget_introductions(gone)

    def forget_routes(self) -> None:
        """Have all routes built anew: somebody has come, gone, or wants other topics."""
        for member in self.members.values():
            member.forget_routes()
