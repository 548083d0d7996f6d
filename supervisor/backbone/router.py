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
from capsuled.supervisor.backbone.requests import Failure, Pending, Requests
from capsuled.supervisor.backbone.retained import Retained, Shelves
from capsuled.supervisor.backbone.traces import Hop, Traces
from capsuled.supervisor.backbone.watchers import Seen, Watchers

_COUNT_MASK = 0xFFFF_FFFF
_STAMPS = records.DOWN.size - records.UP.size
"""By how much a message's head grows on its way through."""

_PUBLISH = int(UpKind.PUBLISH)
_REQUEST = int(UpKind.REQUEST)
_MESSAGE = int(DownKind.MESSAGE)

NOBODY = bytes(16)
"""Instance of a source that is no capsule."""


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
    _requests: Requests = field(default_factory=Requests)
    _shelves: Shelves = field(default_factory=Shelves)
    traces: Traces = field(default_factory=Traces)
    watchers: Watchers = field(default_factory=Watchers)
    """The spine's subscribers and the operator's taps."""

    def __post_init__(self) -> None:
        self.seq = self.epoch << records.EPOCH_SHIFT

    # ── members come and go ──────────────────────────────────────────────────────────────────────

    def attach(self, admission: Admission, now: float) -> Member:
        """Take a capsule in, with the subscriptions that it has already."""
        origin = self._origins.index(Origin(admission.name, admission.instance, admission.principal))
        byte_rate, message_rate = admission.publish_bytes_per_second, admission.publish_messages_per_second
        member = Member(
            admission=admission,
            outbox=Outbox(
                admission.index, admission.queue_messages, admission.queue_bytes, self._requests.pending
            ),
            # A rate below one could not even be waited for: the bucket would never hold what one message takes.
            bucket=Bucket(max(1, byte_rate), max(1, message_rate), now),
            control_bucket=Bucket(CONTROL_RATE, CONTROL_RATE, now),
            origin=origin,
        )
        self.members[admission.index] = member
        for handle, text, runtime_owned in admission.subscriptions:
            self._add(member, handle, text, topics.split_subscribable(text), runtime_owned)
        self.forget_routes()
        return member

    def greet(self, member: Member) -> None:
        """Begin a connection: the first record that its worker reads tells the epoch."""
        member.outbox.control = [
            records.down(DownKind.HELLO, b=self.epoch, c=member.outbox.sent),
            # What an earlier backbone took and could not answer any more stands, and the worker must know it.
            *(
                records.down(DownKind.SUBSCRIBED, a=each.handle, c=each.since)
                for each in member.subscriptions.values()
                if not each.runtime_owned
            ),
            *member.outbox.control,
        ]
        self.mark(member.outbox)

    def detach(self, index: int) -> Figures:
        """Let a capsule go; returns its last figures."""
        member = self.members[index]
        self.forget_routes()
        last = figures(member)
        for subscription in member.subscriptions.values():
            self._table.remove(subscription.pattern, subscription)
        del self.members[index]
        member.outbox.clear()
        for failure in self._requests.ended(index):
            self._fail(failure, Errno.CONNRESET)
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
        size = publishes = controls = asked = 0
        try:
            while position < end:
                if end - position < head:
                    raise RecordError(f"{end - position} bytes at {position} are too few for a record's head")
                if publishes + controls + asked == records.MAX_RECORDS:
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
                        self._control(member, kind, text, a, b, member.received + publishes)
                    else:  # as dear as a publish, but not counted by its worker
                        size += stop - body_at
                        asked += 1
                        self._converse(member, kind, text, a, b, frame[body_at:stop], now_ms)
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
                    origin = self._caused(member, cause, route.subscriptions)
                    self._trace(self.seq + 1, cause, now_ms, topic, origin)
                self.seq = seq = self.seq + 1
                route.count += 1
                member.published += 1
                item = (
                    pack(length + _STAMPS, _MESSAGE, text_length, origin, seq, now_ms, b)
                    + frame[text_at:stop],
                    Stamp(seq, origin, route, now_ms),
                )
                if route.extra:
                    self._watched(
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
        finally:
            # What was refused is charged too: an honest worker refuses it itself, and reading it is work. For the
            # same reason a frame without a publish costs a control record at least, an empty one as well.
            member.received += publishes
            member.bucket.charge(size, publishes + asked, now)
            member.control_bucket.charge(0, controls or not (publishes or asked), now)
            if member.table_changed:
                self._tell_table(member)
        return publishes + controls + asked

    def inject(self, name: str, topic: bytes, payload: bytes, now_ms: int) -> int:
        """Route a message of somebody who is no capsule: the supervisor itself, or the operator.

        The topic is well-formed. Returns its global sequence number.
        """
        segments = topics.split(topic.decode())
        origin = self._origins.index(Origin(name, NOBODY, name))
        route = self._build(topic, segments, origin)
        self.seq = seq = self.seq + 1
        record = records.down(DownKind.MESSAGE, topic, origin, seq, now_ms, 0, payload)
        self._push(route, (record, Stamp(seq, origin, route, now_ms)))
        route.settle()
        if route.extra:
            self.watchers.see(segments, Seen(topic, origin, seq, now_ms, 0, payload))
        return seq

    def due(self) -> list[Outbox]:
        """The outboxes to flush now. Who waits for an answer to what was lost in one of them is told first."""
        for outbox in self.flush:  # grows as it goes: a failure is put into its asker's outbox
            lost, outbox.lost_requests = outbox.lost_requests, []
            for seq in lost:
                failure = self._requests.lost(seq, outbox.member)
                if failure is not None:
                    self._fail(failure, Errno.CONNRESET)
        due, self.flush = self.flush, []
        return due

    def origin(self, index: int) -> Origin:
        """What an origin index stands for."""
        return self._origins[index]

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

    def _converse(
        self, member: Member, kind: int, text: bytes, a: int, b: int, payload: bytes, now_ms: int
    ) -> None:
        """Requests and their answers."""
        if kind == UpKind.REQUEST:
            self._request(member, text, a, b, payload, now_ms)
        elif kind == UpKind.REPLY:
            self._reply(member, b, payload, now_ms)
        elif kind == UpKind.DECLINE:
            self._decline(member, b, text)
        else:
            raise RecordError(f"there is no kind {kind} of record from a worker")

    def _request(
        self, member: Member, topic: bytes, handle: int, cause: int, payload: bytes, now_ms: int
    ) -> None:
        """Route a request. Whatever is wrong with it is an answer too: nobody waits in vain."""
        before = dict(member.refused)
        route = member.routes.get(topic) or self._route(member, topic)
        index = member.admission.index
        member.requests += 1
        if route is None:
            (code,) = (each for each in member.refused if member.refused[each] != before.get(each, 0))
            self._fail(Failure(index, handle, f"the request is refused: {code}"), Errno[code.upper()])
            return
        caused = member.outbox.delivered(cause) if cause else None
        if len(payload) > member.admission.max_payload or (cause and caused is None):
            errno = Errno.BADF if cause and caused is None else Errno.MSGSIZE
            member.refuse(errno)
            self._fail(Failure(index, handle, f"the request is refused: {errno.name.lower()}"), errno)
            return
        if not route.outboxes:
            why = f"nobody is subscribed to '{topic.decode()}'"
            self._fail(Failure(index, handle, why), Errno.CONNREFUSED)
            return
        origin = member.origin
        if caused is not None:
            origin = self._caused(member, caused, route.subscriptions)
            self._trace(self.seq + 1, caused, now_ms, topic, origin)
        self.seq = seq = self.seq + 1
        member.published += 1
        given_up = self._requests.open(seq, Pending(index, handle, topic, set(route.subscriptions)))
        if given_up is not None:
            self._fail(given_up, Errno.CONNRESET)
        record = records.down(DownKind.REQUEST, topic, origin, seq, now_ms, cause, payload)
        self._push(route, (record, Stamp(seq, origin, route, now_ms)))
        if route.extra:
            self._watched(member.admission, route, Seen(topic, origin, seq, now_ms, cause, payload))

    def _reply(self, member: Member, seq: int, payload: bytes, now_ms: int) -> None:
        """Answer a request that was delivered to this member; to nobody but its asker."""
        if len(payload) > member.admission.max_payload:
            member.refuse(Errno.MSGSIZE)
            return
        asked, request = self._answered(member, seq)
        if asked is None or request is None:
            member.refuse(Errno.BADF)
            return
        asker = self.members[request.asker]
        asker.answered += 1
        member.published += 1
        origin = self._caused(member, asked, (request.asker,))
        self._introduce(asker, origin)
        self.seq = number = self.seq + 1
        topic = b"reply.%d" % seq
        self._trace(number, asked, now_ms, topic, origin)
        route = Route((), {}, topic)
        asker.outbox.answers.append(Stamp(number, origin, route, now_ms))
        record = records.down(DownKind.REPLY, topic, origin, number, now_ms, request.handle, payload)
        self._tell(asker, record)

    def _decline(self, member: Member, seq: int, why: bytes) -> None:
        """Refuse a request; the reason is the responder's, and the asker's guest reads it."""
        asked, request = self._answered(member, seq)
        if asked is None or request is None:
            member.refuse(Errno.BADF)
            return
        reason = why.decode(errors="replace")
        text = f"{member.admission.name} declines the request on '{request.topic.decode()}': {reason}"
        self._fail(Failure(request.asker, request.handle, text), Errno.CONNREFUSED)

    def _answered(self, member: Member, seq: int) -> tuple[Stamp | None, Pending | None]:
        """A request that was sent to this member and waits for its answer no more."""
        asked = member.outbox.delivered(seq)
        if asked is None:
            return None, None
        return asked, self._requests.answer(seq, member.admission.index)

    def _fail(self, failure: Failure, errno: Errno) -> None:
        asker = self.members.get(failure.asker)
        if asker is not None:
            asker.failed += 1
            text = failure.why.encode()[: topics.MAX_BYTES * 2]
            self._tell(asker, records.down(DownKind.FAILED, text, a=failure.handle, b=errno))

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
        route = self._build(topic, segments, member.origin)
        if member.admission.grants.retained(segments):
            route.extra = True
        if len(member.routes) >= MAX_ROUTES:
            member.forget_routes()
        member.routes[topic] = route
        return route

    def _build(self, topic: bytes, segments: topics.Segments, origin: int) -> Route:
        """Where a topic leads, and its origin introduced there."""
        groups: dict[int, dict[Subscription, None]] = {}
        for subscription in self._table.match(segments):
            groups.setdefault(subscription.member, {})[subscription] = None
        for index in groups:
            self._introduce(self.members[index], origin)
        outboxes = tuple(self.members[index].outbox for index in groups)
        return Route(outboxes, groups, topic, extra=self.watchers.want(segments))

    def _push(self, route: Route, item: tuple[bytes, Stamp]) -> None:
        """What `take` does inline, for what is not its busy path."""
        route.count += 1
        for outbox in route.outboxes:
            outbox.items.append(item)
            outbox.bytes += len(item[0])
            outbox.overflow()
            self.mark(outbox)

    def _caused(self, member: Member, cause: Stamp, receivers: Iterable[int]) -> int:
        """The origin of a message that carries on the principal of its cause."""
        principal = self._origins[cause.origin].principal
        if principal == member.admission.principal:
            return member.origin
        origin = self._origins.index(Origin(member.admission.name, member.admission.instance, principal))
        for index in receivers:
            self._introduce(self.members[index], origin)
        return origin

    def _trace(self, seq: int, cause: Stamp, now_ms: int, topic: bytes, origin: int) -> None:
        before = Hop(cause.seq, 0, cause.time_ms, cause.route.topic, cause.origin)
        self.traces.note(Hop(seq, cause.seq, now_ms, topic, origin), before)

    def _watched(self, admission: Admission, route: Route, seen: Seen) -> None:
        """More than the outboxes wants this message."""
        segments = topics.split(seen.topic.decode())
        self.watchers.see(segments, seen)
        if admission.grants.retained(segments):
            kept = Retained(seen.origin, seen.time_ms, seen.topic, seen.payload)
            self._shelves.keep(admission.name, kept, admission.queue_bytes)

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
        self.forget_routes()
        member.table_changed = True
        return None, ""

    def _unsubscribe(self, member: Member, handle: int) -> None:
        """End a subscription. What is on the wire before the answer counts for it; what waits does not, since
        the answer overtakes it."""
        subscription = member.subscriptions.get(handle)
        if subscription is None or subscription.runtime_owned:
            member.refuse(Errno.BADF if subscription is None else Errno.PERM)
            return
        self.forget_routes()
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
        for kept in self._shelves.matching(pattern):
            self._hand_over(member, subscription, kept)

    def _hand_over(self, member: Member, subscription: Subscription, kept: Retained) -> None:
        """A retained message to a late subscriber, and to nobody else: under a number of its own, as sent now."""
        self._introduce(member, kept.origin)
        self.seq = seq = self.seq + 1
        route = Route((member.outbox,), {subscription.member: {subscription: None}}, kept.topic)
        record = records.down(
            DownKind.RETAINED, kept.topic, kept.origin, seq, kept.time_ms, subscription.handle, kept.payload
        )
        self._push(route, (record, Stamp(seq, kept.origin, route, kept.time_ms)))
        route.settle()

    def _tell_table(self, member: Member) -> None:
        member.table_changed = False
        self.on_subscriptions(
            member.admission.index,
            [(each.handle, each.text, each.runtime_owned) for each in member.subscriptions.values()],
        )

    def forget_routes(self) -> None:
        """Have all routes built anew: somebody has come, gone, or wants other topics."""
        for member in self.members.values():
            member.forget_routes()

    def _tell(self, member: Member, record: bytes) -> None:
        member.outbox.control.append(record)
        self.mark(member.outbox)
