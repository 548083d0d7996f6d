"""Lines for many followers, of whom none can hold the publisher up.

`Broadcast.publish` never blocks. Each `Follower` has a bounded queue; what does not fit is counted, and the
follower reads a line ``{"lost": n}`` at the place where the lines are missing. A line is encoded once,
however many follow.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from capsuled.supervisor.control import shapes

FOLLOWER_LINES = 1024
"""Lines that wait for one follower: a burst of starts of some hundred capsules, with several events each."""

FOLLOWER_BYTES = 1024 * 1024
"""Bytes that wait for one follower, because a single log line may have 64 KiB of text and more in JSON."""

BATCH_BYTES = 64 * 1024
"""After this much a follower gets what was collected, so that one write stays small."""


class _Entry(NamedTuple):
    lost_before: int
    line: bytes


class Follower:
    """One reader's end. `receive` it until it returns nothing."""

    def __init__(self, lines: int = FOLLOWER_LINES, size: int = FOLLOWER_BYTES) -> None:
        self._size = size
        self._send, self._receive = trio.open_memory_channel[_Entry](lines)
        self._queued = 0
        self._lost = 0
        """Lost since the last line that was queued; it travels with the next one, or alone at the end."""

    def offer(self, line: bytes) -> None:
        """Queue `line`, or count it as lost. A line larger than the whole bound fits into an empty queue."""
        if self._queued and self._queued + len(line) > self._size:
            self._lost += 1
            return
        try:
            self._send.send_nowait(_Entry(self._lost, line))
        except trio.WouldBlock:
            self._lost += 1
        else:
            self._lost = 0
            self._queued += len(line)

    async def receive(self) -> bytes:
        """At least one whole line, and all that wait up to `BATCH_BYTES`; empty at the end of the stream."""
        batch = bytearray(self._loss_at_end())
        if not batch:
            try:
                self._take(batch, await self._receive.receive())
            except trio.EndOfChannel:
                return b""
        while len(batch) < BATCH_BYTES:
            try:
                self._take(batch, self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                batch += self._loss_at_end()
                break
        return bytes(batch)

    def close(self) -> None:
        """End the stream after the lines that wait."""
        self._send.close()

    def _take(self, batch: bytearray, entry: _Entry) -> None:
        self._queued -= len(entry.line)
        if entry.lost_before:
            batch += _lost(entry.lost_before)
        batch += entry.line

    def _loss_at_end(self) -> bytes:
        # Nothing waits and something is missing: say so now, because the next line may be long in coming.
        if not self._lost or self._receive.statistics().current_buffer_used:
            return b""
        lost, self._lost = self._lost, 0
        return _lost(lost)


class Broadcast:
    """One source of events, and whoever follows it at the moment."""

    def __init__(self, lines: int = FOLLOWER_LINES, size: int = FOLLOWER_BYTES) -> None:
        self._lines = lines
        self._size = size
        self._followers: set[Follower] = set()
        self._closed = False

    def publish(self, event: shapes.JsonObject) -> None:
        """Give `event` to every follower that has room, and count it as lost for the others. Never blocks."""
        if self._followers:
            line = shapes.line(event)
            for follower in self._followers:
                follower.offer(line)

    @contextmanager
    def follow(self) -> Generator[Follower, None, None]:
        """Everything that is published from now on. Entering does not block and has no checkpoint."""
        follower = Follower(self._lines, self._size)
        if self._closed:
            follower.close()
        else:
            self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            follower.close()

    def close(self) -> None:
        """Nothing comes any more: followers get what waits for them, and then the end."""
        self._closed = True
        while self._followers:
            self._followers.pop().close()


def _lost(count: int) -> bytes:
    return shapes.line({"lost": count})
