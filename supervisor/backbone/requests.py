"""Requests that wait for their answer: who asked, who may answer, and how each comes to an end.

A request is routed like a publish. What makes it one is the entry here, under its sequence number, until one of
those that it was sent to has answered. It always comes to an end: by an answer or a refusal, or because nobody is
left who could give one: nobody had subscribed, its copies were lost, or their holders have ended.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto.refusals import Errno
from capsuled.supervisor.backbone.outbox import Stamp

MAX_PENDING = 16
"""Requests of one capsule that may wait. Over it the oldest is given up: an honest worker asks no more."""

MAX_OVER = 4096
"""Requests that are remembered after their end, so that an honest answer which comes too late is told from one to
a request that never was."""


@dataclass
class Pending:
    """A request that has not been answered."""

    asker: int
    """Member index."""
    handle: int
    """By which the asker's worker knows it."""
    stamp: Stamp
    responders: set[int]
    """Indices of the members that have it, or will get it, and may answer."""


class Failure(NamedTuple):
    """A request that comes to nothing."""

    asker: int
    handle: int
    errno: Errno
    why: str


@dataclass
class Requests:
    """All requests that wait, by the sequence number of their message."""

    pending: dict[int, Pending] = field(default_factory=dict[int, Pending])
    _of_asker: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    _over: OrderedDict[int, set[int]] = field(default_factory=OrderedDict[int, set[int]])
    """Requests that have ended, and whose answers would be late."""

    def open(self, seq: int, request: Pending) -> Failure | None:
        """Note a request. Returns the failure of the asker's oldest where it has too many."""
        self.pending[seq] = request
        waiting = self._of_asker.setdefault(request.asker, [])
        waiting.append(seq)
        if len(waiting) <= MAX_PENDING:
            return None
        return _failure(self._end(waiting[0]), f"was given up for newer ones: {MAX_PENDING} may wait at once")

    def waiting(self, asker: int) -> int:
        """How many requests of a member wait."""
        return len(self._of_asker.get(asker, ()))

    def answer(self, seq: int, responder: int) -> Pending | None:
        """The request that `responder` answers, which is over now; None when it has none of that number."""
        if not self.holds(seq, responder):
            return None
        self.pending[seq].responders.discard(responder)
        return self._end(seq)

    def holds(self, seq: int, responder: int) -> bool:
        """Whether that request waits for `responder`, among others."""
        found = self.pending.get(seq)
        return found is not None and responder in found.responders

    def late(self, seq: int, responder: int) -> bool:
        """Whether `responder` had that request, which is over by now. It is told so once."""
        responders = self._over.get(seq)
        if responders is None or responder not in responders:
            return False
        responders.discard(responder)
        return True

    def lost(self, seq: int, responder: int) -> Failure | None:
        """A copy was lost before the guest of `responder` got it."""
        return self._without(
            seq, responder, "was lost before it was delivered: its receiver's queue is full, or has ended"
        )

    def ended(self, index: int) -> list[Failure]:
        """A member has ended: what it asked is over, and what only it could answer fails."""
        for seq in list(self._of_asker.get(index, ())):
            self._end(seq)
        self._of_asker.pop(index, None)
        held = [seq for seq, each in self.pending.items() if index in each.responders]
        failures = (self._without(seq, index, "will not be answered: its receiver has ended") for seq in held)
        return [each for each in failures if each is not None]

    def _without(self, seq: int, responder: int, why: str) -> Failure | None:
        found = self.pending.get(seq)
        if found is None:
            return None
        found.responders.discard(responder)
        return None if found.responders else _failure(self._end(seq), why)

    def _end(self, seq: int) -> Pending:
        found = self.pending.pop(seq)
        self._of_asker[found.asker].remove(seq)
        self._over[seq] = found.responders
        if len(self._over) > MAX_OVER:
            self._over.popitem(last=False)
        return found


def _failure(request: Pending, why: str) -> Failure:
    topic = request.stamp.route.topic.decode()
    return Failure(request.asker, request.handle, Errno.CONNRESET, f"the request on '{topic}' {why}")
