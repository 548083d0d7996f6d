"""Requests that wait for their answer: who asked, who may answer, and how each comes to an end.

A request is routed like a publish. What makes it one is the entry here, under its sequence number, until one of
those that it was sent to has answered. It always comes to an end: by an answer or a refusal, or because nobody is
left who could give one: nobody had subscribed, its copies were lost, or their holders have ended.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto.records import MAX_REQUESTS
from capsuled.proto.refusals import Errno
from capsuled.supervisor.backbone.outbox import Stamp

MAX_OVER = 4096
"""Requests that are remembered after their end, so that an answer which comes too late is told from one to a request
that was another's."""


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
    _forgotten: int = 0
    """The highest number of one that has ended and is not remembered: up to here nobody can be told to be wrong."""

    def open(self, seq: int, request: Pending) -> Failure | None:
        """Note a request. Returns the failure of the asker's oldest where it has too many."""
        self.pending[seq] = request
        waiting = self._of_asker.setdefault(request.asker, [])
        waiting.append(seq)
        if len(waiting) <= MAX_REQUESTS:
            return None
        return _failure(
            self._end(waiting[0]), f"was given up for newer ones: {MAX_REQUESTS} may wait at once"
        )

    def give_up(self, asker: int, handle: int) -> bool:
        """The asker waits no more. False when it has no such request that waits, as after an answer on its way."""
        for seq in self._of_asker.get(asker, ()):
            if self.pending[seq].handle == handle:
                self._end(seq)
                return True
        return False

    def origins(self) -> set[int]:
        """Those of all requests that wait: an answer carries the principal on."""
        return {each.stamp.origin for each in self.pending.values()}

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
        """Whether `responder` had that request, which is over by now: once for each, as long as that is remembered."""
        responders = self._over.get(seq)
        if responders is None:
            return seq <= self._forgotten and seq not in self.pending
        if responder not in responders:
            return False
        responders.discard(responder)
        return True

    def lost(self, seq: int, responder: int) -> Failure | None:
        """`responder` will not answer: the copy for its guest is lost."""
        return self._without(
            seq, responder, "will not be answered: its receiver has lost it, or has closed its handle"
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
            forgotten, _ = self._over.popitem(last=False)
            self._forgotten = max(self._forgotten, forgotten)
        return found


def _failure(request: Pending, why: str) -> Failure:
    topic = request.stamp.route.topic.decode()
    return Failure(request.asker, request.handle, Errno.CONNRESET, f"the request on '{topic}' {why}")
