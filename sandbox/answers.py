"""Answers to the guest's requests: each on a handle of its own, which nobody else can receive on.

A rule: `now` is an argument, in seconds of a monotonic clock. A handle has one answer or one failure, which is
received like any message, and then it is gone. Each request ends: by its answer, its failure, or its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from capsuled.proto import envelopes
from capsuled.proto.records import MAX_REQUESTS
from capsuled.proto.refusals import Errno, Refusal


@dataclass
class Waiting:
    """A request whose answer has not been received by the guest."""

    topic: str
    deadline: float
    encoded: bytes = b""
    """The answer, as it stands in an envelope."""
    seq: int = 0
    """Of the answer."""
    failure: Refusal | None = None

    def over(self, now: float) -> bool:
        """Whether receiving on it returns at once."""
        return bool(self.encoded) or self.failure is not None or now >= self.deadline


class Answers:
    """All requests of one capsule that wait."""

    def __init__(self) -> None:
        self.waiting: dict[int, Waiting] = {}

    def __contains__(self, handle: object) -> bool:
        return handle in self.waiting

    def open(self, handle: int, topic: str, deadline: float) -> None:
        """Raises `Refusal` when too many wait."""
        self.check_room()
        self.waiting[handle] = Waiting(topic, deadline)

    def check_room(self) -> None:
        """Raise `Refusal` when no other request may be made now."""
        if len(self.waiting) >= MAX_REQUESTS:
            # The backbone would give the oldest of them up.
            raise Refusal(Errno.MFILE, f"{MAX_REQUESTS} requests wait already: receive their answers first")

    def answer(self, handle: int, seq: int, encoded: bytes) -> bool:
        """An answer has come; False when nobody waits for it any more."""
        found = self.waiting.get(handle)
        if found is None or found.failure is not None:
            return False
        found.seq, found.encoded = seq, encoded
        return True

    def fail(self, handle: int, errno: Errno, sentence: str) -> None:
        found = self.waiting.get(handle)
        if found is not None and not found.encoded:
            found.failure = Refusal(errno, sentence)

    def fail_all(self, errno: Errno, sentence: str) -> None:
        """Whoever could have answered is gone."""
        for handle in self.waiting:
            self.fail(handle, errno, sentence)

    def take(self, handle: int, cap: int, now: float) -> bytes:
        """The envelope with the answer, or one without messages while there is none; the handle is gone with it.

        Raises `Refusal`: the request's failure, its time is over (timedout), or the buffer is too small (nobufs):
        then the answer stays.
        """
        found = self.waiting[handle]
        if found.encoded:
            needed = len(found.encoded) + envelopes.overhead(1, 0, 0)
            if needed > cap:
                raise Refusal(Errno.NOBUFS, f"the buffer has {cap} bytes: the answer needs {needed}", needed)
            del self.waiting[handle]
            return envelopes.envelope([found.encoded], 0, 0)
        if found.failure is not None:
            del self.waiting[handle]
            raise found.failure
        if now >= found.deadline:
            del self.waiting[handle]
            raise Refusal(Errno.TIMEDOUT, f"the request on '{found.topic}' was not answered in time")
        needed = envelopes.overhead(0, 0, 0)
        if needed > cap:
            raise Refusal(
                Errno.NOBUFS, f"the buffer has {cap} bytes: an empty envelope needs {needed}", needed
            )
        return envelopes.envelope([], 0, 0)

    def forget(self, handle: int) -> None:
        """The guest does not want the answer any more. Raises KeyError."""
        del self.waiting[handle]
