"""Conversations: a request to whoever has subscribed, and the one answer that goes back to its asker alone.

A rule. Whatever is wrong with a request is an answer too, so that nobody waits in vain; whatever is wrong with an
answer is counted for its sender, and changes nothing for the asker.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from struct import Struct

from capsuled.proto import records
from capsuled.proto.records import DownKind, RecordError, UpKind
from capsuled.proto.refusals import Errno
from capsuled.supervisor.backbone.delivery import Delivery
from capsuled.supervisor.backbone.members import Member, Route
from capsuled.supervisor.backbone.notes import Notes
from capsuled.supervisor.backbone.outbox import Outbox, Stamp
from capsuled.supervisor.backbone.requests import Failure, Pending, Requests
from capsuled.supervisor.backbone.watchers import Seen

MAX_WHY = 1024
"""Bytes of the sentence that tells why a request has failed: the longest topic, and as long a reason again, have
room in it with the names around them."""

SEQ = Struct(">Q")
"""A global sequence number, as it stands in a record of lost requests."""

LOOKED_UP = 16
"""Numbers of no request that are looked up for what one message costs their sender. Those of requests cost him nothing:
he has not asked for them, and each was paid for by who sent it."""

RouteOf = Callable[[Member, bytes], "Route | Errno"]
"""The route of a topic for its publisher, or why there is none; a refusal has been counted."""


class Conversations:
    """All requests of one epoch."""

    def __init__(self, delivery: Delivery, notes: Notes, route_of: RouteOf) -> None:
        self._delivery = delivery
        self._notes = notes
        self._route_of = route_of
        self._requests = Requests()

    @property
    def pending(self) -> Container[int]:
        """The sequence numbers of the requests that wait."""
        return self._requests.pending

    def take(
        self, member: Member, kind: int, text: bytes, a: int, b: int, payload: bytes, now_ms: int
    ) -> int:
        """Do what one record of a conversation asks for. Returns how many messages it was worth.

        Raises `RecordError` for a kind that there is not, and for one that is not as its kind is.
        """
        if kind == UpKind.REQUEST:
            self._request(member, text, a, b, payload, now_ms)
        elif kind == UpKind.REPLY:
            self._reply(member, b, payload, now_ms)
        elif kind == UpKind.DECLINE:
            self._decline(member, b, text)
        elif kind == UpKind.LOST:
            return self._lost_by(member, payload)
        elif kind == UpKind.GIVE_UP:
            return self._give_up(member, a)
        else:
            raise RecordError(f"there is no kind {kind} of record from a worker")
        return 1

    def origins(self) -> set[int]:
        """Those of all requests that wait."""
        return self._requests.origins()

    def waiting(self, member: Member) -> int:
        """How many requests of a member wait for their answer."""
        return self._requests.waiting(member.admission.index)

    def ended(self, index: int) -> None:
        """A member has ended, and is among the members no more."""
        for failure in self._requests.ended(index):
            self._fail(failure)

    def lost(self, outbox: Outbox) -> None:
        """Requests were lost in an outbox: tell those who wait for an answer that no other member can give."""
        lost, outbox.lost_requests = outbox.lost_requests, {}
        for seq in lost:
            failure = self._requests.lost(seq, outbox.member)
            if failure is not None:
                self._fail(failure)

    # ── the five records ────────────────────────────────────────────────────────────────────────

    def _request(
        self, member: Member, topic: bytes, handle: int, cause: int, payload: bytes, now_ms: int
    ) -> None:
        index, delivery = member.admission.index, self._delivery
        member.requests += 1
        route = self._route_of(member, topic)
        caused = member.outbox.delivered(cause) if cause else None
        refused: Errno | None = None
        if isinstance(route, Errno):
            self._refused(member, handle, topic, route)
            return
        if len(payload) > member.admission.max_payload:
            refused = Errno.MSGSIZE
        elif cause and caused is None:
            refused = Errno.BADF
        if refused is not None:
            member.refuse(refused)
            self._refused(member, handle, topic, refused)
            return
        if not route.outboxes:
            why = f"nobody is subscribed to '{topic.decode()}'"
            self._fail(Failure(index, handle, Errno.CONNREFUSED, why))
            return
        origin = member.origin
        delivery.seq = seq = delivery.seq + 1
        if caused is not None:
            origin = delivery.caused(member, caused.origin, route.subscriptions)
            self._notes.caused(caused, seq, now_ms, topic, origin)
        member.published += 1
        stamp = Stamp(seq, origin, route, now_ms)
        # Noted before it is pushed: an outbox that loses it at once must find it among those that wait.
        given_up = self._requests.open(seq, Pending(index, handle, stamp, set(route.subscriptions)))
        if given_up is not None:
            self._fail(given_up)
        delivery.push(
            route, (records.down(DownKind.REQUEST, topic, origin, seq, now_ms, cause, payload), stamp)
        )
        # Not retained: who comes later has not been asked.
        if route.watched:
            self._notes.watchers.see(route.segments, Seen(topic, origin, seq, now_ms, cause, payload))

    def _reply(self, member: Member, seq: int, payload: bytes, now_ms: int) -> None:
        """Answer a request that was delivered to this member; to nobody but its asker."""
        if len(payload) > member.admission.max_payload:
            member.refuse(Errno.MSGSIZE)
            return
        request = self._answered(member, seq)
        if request is None:
            return
        delivery = self._delivery
        asker = delivery.members[request.asker]
        asker.answered += 1
        member.published += 1
        origin = delivery.caused(member, request.stamp.origin, (request.asker,))
        delivery.introduce(asker, origin)
        delivery.seq = number = delivery.seq + 1
        topic = b"reply.%d" % seq
        self._notes.caused(request.stamp, number, now_ms, topic, origin)
        asker.outbox.answers.append(Stamp(number, origin, Route((), {}, topic), now_ms))
        delivery.tell(
            asker, records.down(DownKind.REPLY, topic, origin, number, now_ms, request.handle, payload)
        )

    def _decline(self, member: Member, seq: int, why: bytes) -> None:
        """Refuse a request; the reason is the responder's, and the asker's guest reads it."""
        request = self._answered(member, seq)
        if request is not None:
            topic, reason = request.stamp.route.topic.decode(), why.decode(errors="replace")
            text = f"{member.admission.name} declines the request on '{topic}': {reason}"
            self._fail(Failure(request.asker, request.handle, Errno.CONNREFUSED, text))

    def _lost_by(self, member: Member, numbers: bytes) -> int:
        """A worker has lost requests: as if they had been lost in its outbox. Returns what that was worth."""
        if len(numbers) % SEQ.size or not 0 < len(numbers) <= records.MAX_LOST * SEQ.size:
            what = f"has {len(numbers)} bytes: {SEQ.size} for each, 1 to {records.MAX_LOST} of them"
            raise RecordError(f"a record of lost requests {what}")
        index, idle = member.admission.index, 0
        for (seq,) in SEQ.iter_unpack(numbers):
            if self._ends(member, seq):
                failure = self._requests.lost(seq, index)
                if failure is not None:
                    self._fail(failure)
            else:
                idle += 1
        return -(-idle // LOOKED_UP)

    def _give_up(self, member: Member, handle: int) -> int:
        """The asker's time is over, or its guest does not want the answer. Returns what that was worth."""
        if not self._requests.give_up(member.admission.index, handle):
            return 1
        member.failed += 1
        return 0

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _answered(self, member: Member, seq: int) -> Pending | None:
        """The request that this member has got and that it ends; None where there is none, which is counted."""
        return self._requests.answer(seq, member.admission.index) if self._ends(member, seq) else None

    def _ends(self, member: Member, seq: int) -> bool:
        """Whether that is a request which this member has got and which waits. Where it is not, that is counted."""
        index = member.admission.index
        if not member.outbox.waits(seq):
            if self._requests.holds(seq, index):
                return True
            # Somebody else was faster, or the asker has ended, or another backbone had asked.
            if self._requests.late(seq, index) or seq >> records.EPOCH_SHIFT < self._delivery.epoch:
                member.late += 1
                return False
        member.refuse(Errno.BADF)
        return False

    def _refused(self, member: Member, handle: int, topic: bytes, errno: Errno) -> None:
        why = f"the backbone refuses the request on '{topic.decode(errors='replace')}': {errno.name.lower()}"
        self._fail(Failure(member.admission.index, handle, errno, why))

    def _fail(self, failure: Failure) -> None:
        asker = self._delivery.members.get(failure.asker)
        if asker is not None:
            asker.failed += 1
            text = failure.why.encode()[:MAX_WHY].decode(errors="ignore").encode()
            record = records.control(
                DownKind.FAILED, self._delivery.epoch, text, a=failure.handle, b=failure.errno
            )
            self._delivery.tell(asker, record)
