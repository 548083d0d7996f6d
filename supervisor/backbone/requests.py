"""Requests that wait for their answer: who asked, who may answer, and how each comes to an end.

A request is routed like a publish. What makes it one is the entry here, under its sequence number, until one of
those that it was sent to has answered. It always comes to an end: by an answer or a refusal, or because nobody is
left who could give one: nobody had subscribed, its copies were lost, or their holders have ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MAX_PENDING = 16
"""Requests of one capsule that may wait. Each answer may have a payload of the largest size, and answers are not
held to the asker's queue: this bounds them. Over it the oldest is given up."""


@dataclass
class Pending:
    """A request that has not been answered."""

    asker: int
    """Member index."""
    handle: int
    """By which the asker's worker knows it."""
    topic: bytes
    responders: set[int]
    """Indices of the members that have it and may answer."""


class Failure(NamedTuple):
    """A request that comes to nothing."""

    asker: int
    handle: int
    why: str


@dataclass
class Requests:
    """All requests that wait, by the sequence number of their message."""

    pending: dict[int, Pending] = field(default_factory=dict[int, Pending])
    _of_asker: dict[int, list[int]] = field(default_factory=dict[int, list[int]])

    def open(self, seq: int, request: Pending) -> Failure | None:
        """Note a request. Returns the failure of the asker's oldest where it has too many."""
        self.pending[seq] = request
        waiting = self._of_asker.setdefault(request.asker, [])
        waiting.append(seq)
        if len(waiting) <= MAX_PENDING:
            return None
        oldest = self._take(waiting[0])
        return Failure(
            oldest.asker, oldest.handle, f"given up for newer ones: {MAX_PENDING} may wait at once"
        )

    def answer(self, seq: int, responder: int) -> Pending | None:
        """The request that `responder` answers, which is over now; None when it has none of that number."""
        found = self.pending.get(seq)
        if found is None or responder not in found.responders:
            return None
        return self._take(seq)

    def lost(self, seq: int, responder: int) -> Failure | None:
        """A copy was lost before `responder` got it."""
        return self._without(
            seq, responder, "was lost before it was delivered: the queue of its receiver is full"
        )

    def ended(self, index: int) -> list[Failure]:
        """A member has ended: what it asked is over, and what only it could answer fails."""
        for seq in list(self._of_asker.get(index, ())):
            self._take(seq)
        self._of_asker.pop(index, None)
        held = [seq for seq, each in self.pending.items() if index in each.responders]
        failures = (self._without(seq, index, "will not be answered: its receiver has ended") for seq in held)
        return [each for each in failures if each is not None]

    def _without(self, seq: int, responder: int, why: str) -> Failure | None:
        found = self.pending.get(seq)
        if found is None:
            return None
        found.responders.discard(responder)
        if found.responders:
            return None
        self._take(seq)
        return Failure(found.asker, found.handle, f"the request on '{found.topic.decode()}' {why}")

    def _take(self, seq: int) -> Pending:
        found = self.pending.pop(seq)
        self._of_asker[found.asker].remove(seq)
        return found
