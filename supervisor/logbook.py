"""The log of one capsule: the last lines in memory, all of them offered to the files and to whoever follows.

A rule but for its followers: it never blocks, and every bound is counted where it cuts.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from datetime import datetime

from capsuled.proto.control import LogStream
from capsuled.supervisor.clock import rfc3339
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.control.streams import Broadcast

LINE_OVERHEAD = 256
"""Bytes that a line costs beyond its text: the other fields, and the objects that hold them."""


class LogBook:
    """Lines, newest last, bounded in number and in bytes."""

    def __init__(self, capsule: str, lines: int, size: int, offer: Callable[[str, JsonObject], None]) -> None:
        """`offer` takes each line for the files, and must not block."""
        self._capsule = capsule
        self._max_lines = lines
        self._max_bytes = size
        self._offer = offer
        self._lines: deque[tuple[datetime, JsonObject, int]] = deque()
        self._bytes = 0
        self.followers = Broadcast()

    def append(self, time: datetime, instance: str, stream: LogStream, level: str, message: str) -> None:
        line: JsonObject = {
            "time": rfc3339(time),
            "capsule": self._capsule,
            "instance": instance,
            "stream": stream.value,
            "level": level,
            "message": message,
        }
        # In memory, where one letter beyond the usual makes each of them take four bytes.
        size = sys.getsizeof(message) + LINE_OVERHEAD
        self._lines.append((time, line, size))
        self._bytes += size
        while len(self._lines) > 1 and (len(self._lines) > self._max_lines or self._bytes > self._max_bytes):
            self._bytes -= self._lines.popleft()[2]
        self._offer(self._capsule, line)
        self.followers.publish(line)

    def last(self, count: int, since: datetime | None = None) -> list[JsonObject]:
        """The last `count` lines, oldest first, none older than `since`."""
        if not count:
            return []
        found = [line for time, line, _ in self._lines if since is None or time >= since]
        return found[-count:]
