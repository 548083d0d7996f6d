"""The log of one capsule: the last lines in memory, all of them offered to the files and to whoever follows.

It never blocks, and every bound is counted where it cuts. What a supervisor before this one has written is taken from
the files when somebody asks for the first time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime

from capsuled.proto.control import LogStream
from capsuled.supervisor import logline
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.control.streams import Broadcast
from capsuled.supervisor.logfiles import Recall
from capsuled.supervisor.logline import Line


class LogBook:
    """Lines in the order in which they came, newest last, bounded in number and in bytes."""

    def __init__(
        self,
        capsule: str,
        lines: int,
        size: int,
        offer: Callable[[str, JsonObject], None],
        recall: Recall | None = None,
    ) -> None:
        """`offer` takes each line for the files, and must not block. `recall` finds the lines before the first."""
        self._capsule = capsule
        self._max_lines = lines
        self._max_bytes = size
        self._offer = offer
        self._recall = recall
        self._lines: deque[Line] = deque()
        self._bytes = 0
        self.followers = Broadcast()

    def append(self, time: datetime, instance: str, stream: LogStream, level: str, message: str) -> None:
        line = logline.make(time, self._capsule, instance, stream, level, message)
        self._lines.append(line)
        self._bytes += line.size
        while len(self._lines) > 1 and (len(self._lines) > self._max_lines or self._bytes > self._max_bytes):
            self._bytes -= self._lines.popleft().size
            self._recall = None  # what is older would stand before a gap
        self._offer(self._capsule, line.shape)
        self.followers.publish(line.shape)

    async def recall(self) -> None:
        """Put the lines of before in front, as far as there is room. Once; when the disk is slow, the next time."""
        recall = self._recall
        if recall is None:
            return
        older = await recall(self._max_lines, self._max_bytes)
        if older is None or self._recall is not recall:  # by now the ring is full, or another has asked too
            return
        self._recall = None
        for line in reversed(older):
            if len(self._lines) >= self._max_lines or self._bytes + line.size > self._max_bytes:
                return
            self._lines.appendleft(line)
            self._bytes += line.size

    def last(self, count: int, since: datetime | None = None) -> list[JsonObject]:
        """The last `count` lines, oldest first, from the first one on that is not older than `since`.

        What comes after that one is given whatever its time is: when the clock was set back, lines that are new have
        times that are old, and hiding them would be worse than showing some too many.
        """
        if not count:
            return []
        lines = list(self._lines)
        if since is not None:
            first = next((at for at, line in enumerate(lines) if line.time >= since), len(lines))
            lines = lines[first:]
        return [line.shape for line in lines[-count:]]
