"""Traces: what was caused by what, for as long as it is remembered.

Only messages with a cause are noted, and the causes themselves, so that a bus without causes pays nothing. A causal
id is the sequence number of any message of a chain.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_HOPS = 16_384
"""Messages that are remembered: at a hundred chains a second, some minutes."""

MAX_TRACE = 1024
"""Most messages of one answer: what fans out without end is cut there, and says so."""


class Hop(NamedTuple):
    """One message of a chain."""

    seq: int
    cause: int
    """0 where it has none."""
    time_ms: int
    topic: bytes
    origin: int


@dataclass
class Traces:
    """The hops that are remembered, by sequence number."""

    _hops: OrderedDict[int, Hop] = field(default_factory=OrderedDict[int, Hop])
    _effects: dict[int, list[int]] = field(default_factory=dict[int, list[int]])

    def note(self, hop: Hop, cause: Hop) -> None:
        """A message and what caused it."""
        if cause.seq not in self._hops:
            self._add(cause)
        self._add(hop)
        # Not where adding it has pushed out its cause: nobody would ever take that entry out again.
        if cause.seq in self._hops:
            self._effects.setdefault(cause.seq, []).append(hop.seq)

    def chain(self, seq: int) -> tuple[list[Hop], bool]:
        """The whole chain that `seq` belongs to, in order, from its first cause; and whether it was cut.

        Empty when the message is not remembered. What is cut is its latest part.
        """
        root = seq
        while (hop := self._hops.get(root)) is not None and hop.cause in self._hops:
            root = hop.cause
        if root not in self._hops:
            return [], False
        found: list[Hop] = []
        waiting = [root]
        while waiting and len(found) < MAX_TRACE:
            current = heapq.heappop(
                waiting
            )  # an effect has a higher number than its cause: they come in order
            found.append(self._hops[current])
            for effect in self._effects.get(current, ()):
                if effect in self._hops:
                    heapq.heappush(waiting, effect)
        return found, bool(waiting)

    def origins(self) -> set[int]:
        """Those of all hops."""
        return {hop.origin for hop in self._hops.values()}

    def _add(self, hop: Hop) -> None:
        self._hops[hop.seq] = hop
        if len(self._hops) > MAX_HOPS:
            gone, _ = self._hops.popitem(last=False)
            self._effects.pop(gone, None)
