"""The router: from a frame that came in on a member's edge to the outboxes of those who subscribed.

A rule: no sockets, no clock. It decides anew everything that workers have checked for their guests' sake,
since a worker may have been taken over: who published is the socket, whether it may is the grant, and what
it says of its principal or of the cause is looked up, never believed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from capsuled.proto import ledger, records, topics
from capsuled.proto.bucket import Bucket
from capsuled.proto.records import DownKind, RecordError, UpKind
from capsuled.proto.refusals import Errno
from capsuled.proto.subscriptions import Subscriptions
from capsuled.proto.topics import TopicError
from capsuled.supervisor.backbone.members import (
    CONTROL_RATE,
    MAX_ROUTES,
    Admission,
    Member,
    Route,
    Subscription,
)
from capsuled.supervisor.backbone.outbox import MAX_CONTROL, Outbox, Stamp

_COUNT_MASK = 0xFFFF_FFFF
_STAMPS = records.DOWN.size - records.UP.size
"""By how much a message's head grows on its way through."""

_PUBLISH = int(UpKind.PUBLISH)
_MESSAGE = int(DownKind.MESSAGE)


@dataclass(frozen=True)
class Origin:
    """An instance of a capsule together with the principal that it publishes for."""

    name: str
    instance: bytes
    principal: str

    def introduction(self, index: int) -> bytes:
        return records.down(
            DownKind.ORIGIN, self.name.encode(), a=index, body=self.instance + self.principal.encode()
        )


@dataclass
class Router:
    """All members, their subscriptions and the routes between them, in one epoch of the backbone."""

    epoch: int
    on_subscriptions: Callable[[int, list[tuple[int, str, bool]]], None] = lambda _index, _table: None
    """Told a member's whole table after each change and *before* the worker is answered, so that no
    subscription is acknowledged which the supervisor could not hand to the next epoch."""
    members: dict[int, Member] = field(default_factory=dict[int, Member])
    seq: int = 0
    """Global sequence number of the last message."""
    flush: list[Outbox] = field(default_factory=list[Outbox])
    """Outboxes that this turn has put something into."""
    _table: Subscriptions[Subscription] = field(default_factory=Subscriptions[Subscription])
    _origins: list[Origin] = field(default_factory=list[Origin])
    _origin_index: dict[Origin, int] = field(default_factory=dict[Origin, int])

    # ── members come and go ──────────────────────────────────────────────────────────────────────

    def attach(self, admission: Admission, now: float) -> Member:
        """Take a capsule in, with the subscriptions that it has already."""
        origin = self._origin(Origin(admission.name, admission.instance, admission.principal))
        member = Member(
            admission=admission,
            outbox=Outbox(admission.index, admission.queue_messages, admission.queue_bytes),
            bucket=Bucket(admission.publish_bytes_per_second, admission.publish_messages_per_second, now),
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
        self._tell(
            member, records.down(DownKind.HELLO, b=self.epoch, c=member.outbox.sent), before_everything=True
        )

    def detach(self, index: int) -> dict[str, Any]:
        """Let a capsule go; returns its last figures."""
        member = self.members[index]
        self._forget_routes()
        figures = self.figures(member)
        for subscription in member.subscriptions.values():
            self._table.remove(subscription.pattern, subscription)
        del self.members[index]
        return figures

    # ── frames come in ───────────────────────────────────────────────────────────────────────────

    def take(self, member: Member, frame: bytes, now: float, now_ms: int) -> None:
        """Do what a frame asks for, and charge its publisher.

        Raises `RecordError` where the frame stops being records; what stood before that has been done.
        """
        position, end, head = 0, len(frame), records.UP.size
        unpack, pack = records.UP.unpack_from, records.DOWN.pack
        routes, max_payload = member.routes, member.admission.max_payload
        size = count = 0
        try:
            while position < end:
                length, kind, text_length, a, b = unpack(frame, position)
                text_at = position + head
                body_at = text_at + text_length
                stop = position + 4 + length
                if body_at > stop or stop > end:
                    raise RecordError(f"the record at {position} says {length} bytes; the frame has {end}")
                position = stop
                if kind != _PUBLISH:
                    self._control(member, kind, frame[text_at:body_at], a, b, now)
                    continue
                size += stop - body_at
                count += 1
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
                    member.refused[Errno.MSGSIZE.name.lower()] += 1
                    continue
                origin = member.origin
                if b:
                    cause = member.outbox.delivered(b)
                    if cause is None:
                        member.refused[Errno.BADF.name.lower()] += 1
                        continue
                    origin = self._caused(member, cause, route)
                self.seq = seq = self.seq + 1
                route.count += 1
                member.published += 1
                item = (
                    pack(length + _STAMPS, _MESSAGE, text_length, origin, seq, now_ms, b) + frame[text_at:stop],
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
        except struct.error as exc:
            raise RecordError(f"{end - position} bytes at {position} are too few for a record's head") from exc
        finally:
            member.received += count
            member.bucket.charge(size, count, now)

    def bound_total(self, outboxes: Iterable[Outbox], max_bytes: int) -> None:
        """Lose the oldest of the fullest until all that wait hold `max_bytes` together."""
        waiting = [outbox for outbox in outboxes if len(outbox.items) > 1]
        excess = sum(outbox.bytes for outbox in waiting) - max_bytes
        while excess > 0 and waiting:
            fullest = max(waiting, key=lambda outbox: outbox.bytes)
            before = fullest.bytes
            fullest.lose_oldest()
            excess -= before - fullest.bytes
            if len(fullest.items) <= 1:
                waiting.remove(fullest)

    # ── figures go out ───────────────────────────────────────────────────────────────────────────

    def figures(self, member: Member) -> dict[str, Any]:
        """The backbone's side of a member's ledger."""
        for route in member.routes.values():
            route.settle()
        queued = dict.fromkeys(member.subscriptions, 0)
        index = member.admission.index
        for _, stamp in member.outbox.items:
            for subscription in stamp.route.subscriptions[index]:
                if member.subscriptions.get(subscription.handle) is subscription:
                    queued[subscription.handle] += 1
        return {
            "index": index,
            "published": member.published,
            "missing": member.missing,
            "refused": dict(member.refused),
            "sent": member.outbox.sent,
            "lost": member.outbox.lost,
            "queued": len(member.outbox.items),
            "queued_bytes": member.outbox.bytes,
            "closed_matched": member.closed_matched,
            "closed_lagged": member.closed_lagged,
            "subscriptions": [
                {
                    "handle": each.handle,
                    "pattern": each.text,
                    "runtime_owned": each.runtime_owned,
                    "matched": each.matched,
                    "lagged": each.lagged,
                    "queued": queued[each.handle],
                }
                for each in member.subscriptions.values()
            ],
        }

    def settle(self) -> None:
        """Bring every subscription's `matched` up to date."""
        for member in self.members.values():
            for route in member.routes.values():
                route.settle()

    # ── what the busy path leaves aside ──────────────────────────────────────────────────────────

    def _control(self, member: Member, kind: int, text: bytes, a: int, b: int, now: float) -> None:
        if kind == UpKind.SUBSCRIBE:
            member.control_bucket.charge(1, 1, now)
            self._subscribe(member, a, text)
        elif kind == UpKind.UNSUBSCRIBE:
            member.control_bucket.charge(1, 1, now)
            self._unsubscribe(member, a)
        elif kind == UpKind.HELLO:
            member.next_count = b & _COUNT_MASK
        elif kind == UpKind.BYE:
            if member.next_count is not None:
                self._gap(member, b & _COUNT_MASK)
            member.said_bye = True
            self._tell(member, records.down(DownKind.BYE, b=member.received))
        else:
            raise RecordError(f"there is no kind {kind} of record from a worker")

    def _gap(self, member: Member, count: int) -> None:
        """The worker counts `count` where another was expected: what lies between was lost on the way."""
        if member.next_count is not None:
            member.missing += (count - member.next_count) & _COUNT_MASK
        member.next_count = count

    def _route(self, member: Member, topic: bytes) -> Route | None:
        """The route of a topic, cached; None where the topic is malformed or not granted (and counted)."""
        try:
            segments = topics.split(topic.decode())
        except UnicodeDecodeError:
            member.refused[Errno.ILSEQ.name.lower()] += 1
            return None
        except TopicError as exc:
            errno = Errno.NAMETOOLONG if isinstance(exc, topics.TooLong) else Errno.INVAL
            member.refused[errno.name.lower()] += 1
            return None
        if member.admission.grants.publisher(segments) is None:
            member.refused[Errno.NOTCAPABLE.name.lower()] += 1
            return None
        groups: dict[int, tuple[Subscription, ...]] = {}
        for subscription in self._table.match(segments):
            groups[subscription.member] = (*groups.get(subscription.member, ()), subscription)
        route = Route(tuple(self.members[index].outbox for index in groups), groups)
        for index in groups:
            self._introduce(self.members[index], member.origin)
        if len(member.routes) >= MAX_ROUTES:
            for each in member.routes.values():
                each.settle()
            member.routes.clear()
        member.routes[topic] = route
        return route

    def _caused(self, member: Member, cause: Stamp, route: Route) -> int:
        """The origin of a message that carries on the principal of its cause."""
        principal = self._origins[cause.origin].principal
        if principal == member.admission.principal:
            return member.origin
        origin = self._origin(Origin(member.admission.name, member.admission.instance, principal))
        for index in route.subscriptions:
            self._introduce(self.members[index], origin)
        return origin

    def _origin(self, origin: Origin) -> int:
        index = self._origin_index.get(origin)
        if index is None:
            index = self._origin_index[origin] = len(self._origins)
            self._origins.append(origin)
        return index

    def _introduce(self, member: Member, origin: int) -> None:
        if origin not in member.known_origins:
            member.known_origins.add(origin)
            self._tell(member, self._origins[origin].introduction(origin))

    def _subscribe(self, member: Member, handle: int, text: bytes) -> None:
        errno, sentence = self._try_subscribe(member, handle, text)
        if errno:
            member.refused[Errno(errno).name.lower()] += 1
        self._tell(member, records.down(DownKind.SUBSCRIBED, sentence.encode(), a=handle, b=errno, c=self.seq))

    def _try_subscribe(self, member: Member, handle: int, text: bytes) -> tuple[int, str]:
        """Errno (0: done) and the sentence of a refusal."""
        present = member.subscriptions.get(handle)
        if present is not None and present.text.encode() == text:
            return 0, ""  # asked again after a change of epoch
        try:
            pattern = topics.split_subscribable(text.decode())
        except UnicodeDecodeError:
            return Errno.ILSEQ, "the pattern is not UTF-8"
        except topics.TooLong as exc:
            return Errno.NAMETOOLONG, str(exc)
        except TopicError as exc:
            return Errno.INVAL, str(exc)
        if member.admission.grants.subscriber(pattern) is None:
            return Errno.NOTCAPABLE, f"subscribe to '{text.decode()}' is not granted"
        if len(member.subscriptions) >= ledger.MAX_SUBSCRIPTIONS:
            return Errno.MFILE, f"{ledger.MAX_SUBSCRIPTIONS} subscriptions are the most"
        if present is not None or not handle:
            return Errno.BADF, f"the handle {handle} is in use or is 0"
        self._add(member, handle, text.decode(), pattern, runtime_owned=False)
        self._forget_routes()
        self._publish_table(member)
        return 0, ""

    def _unsubscribe(self, member: Member, handle: int) -> None:
        subscription = member.subscriptions.get(handle)
        if subscription is None or subscription.runtime_owned:
            errno = Errno.BADF if subscription is None else Errno.PERM
            member.refused[errno.name.lower()] += 1
            return
        self._forget_routes()
        del member.subscriptions[handle]
        member.closed_matched += subscription.matched
        member.closed_lagged += subscription.lagged
        self._table.remove(subscription.pattern, subscription)
        self._publish_table(member)
        self._tell(member, records.down(DownKind.UNSUBSCRIBED, a=handle))

    def _add(self, member: Member, handle: int, text: str, pattern: topics.Segments, runtime_owned: bool) -> None:
        subscription = Subscription(member.admission.index, handle, text, pattern, runtime_owned)
        member.subscriptions[handle] = subscription
        self._table.add(pattern, subscription)

    def _publish_table(self, member: Member) -> None:
        self.on_subscriptions(
            member.admission.index,
            [(each.handle, each.text, each.runtime_owned) for each in member.subscriptions.values()],
        )

    def _forget_routes(self) -> None:
        for member in self.members.values():
            for route in member.routes.values():
                route.settle()
            member.routes.clear()

    def _tell(self, member: Member, record: bytes, before_everything: bool = False) -> None:
        outbox = member.outbox
        if before_everything:
            outbox.control.insert(0, record)
        else:
            outbox.control.append(record)
        if not outbox.dirty:
            outbox.dirty = True
            self.flush.append(outbox)

    @staticmethod
    def deaf(member: Member) -> bool:
        """Whether so many answers wait that the member must not be read until it has taken some."""
        return len(member.outbox.control) >= MAX_CONTROL
