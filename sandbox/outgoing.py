"""What was published and not sent yet: records, gathered into frames, in order and bounded."""

from __future__ import annotations

from collections import deque

from capsuled.proto import records

MAX_BYTES = 256 * 1024
"""What may wait for an edge that takes nothing, because this capsule is over its rate or the backbone is being
restarted. Beyond it a publish is told to try again. One record always fits an empty buffer, however large."""


class Outgoing:
    """Frames that are closed, and the one that is still being filled."""

    __slots__ = ("_frames", "_open", "_open_bytes", "_open_publishes", "bytes", "sent")

    def __init__(self) -> None:
        self._frames: deque[tuple[bytes, int]] = deque()
        """A frame and how many publishes are in it."""
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._open_publishes = 0
        self.bytes = 0
        """Of all that waits."""
        self.sent = 0
        """Publishes handed to ZeroMQ so far; the next one on the wire has this count."""

    def has_room(self, size: int) -> bool:
        """Whether a record of that size may still be added."""
        return not self.bytes or self.bytes + size <= MAX_BYTES

    def publish(self, record: bytes) -> bool:
        """Add a publish. True when a frame is full, and ought to be sent now."""
        return self._add(record, 1)

    def control(self, record: bytes) -> None:
        """Add what is no publish behind all that waits."""
        self._add(record, 0)

    def control_first(self, record: bytes) -> None:
        """Add a control record before all that waits: an answer to HELLO tells the count of what follows it."""
        self.bytes += len(record)
        self._frames.appendleft((record, 0))

    def peek(self) -> bytes | None:
        """The next frame to send, None when nothing waits."""
        if not self._frames:
            if not self._open:
                return None
            self._close()
        return self._frames[0][0]

    def sent_first(self) -> None:
        """The frame that `peek` gave has been handed over."""
        frame, publishes = self._frames.popleft()
        self.bytes -= len(frame)
        self.sent += publishes

    def _add(self, record: bytes, publishes: int) -> bool:
        size = len(record)
        self.bytes += size
        if size > records.ALONE_BYTES:
            self._close()
            self._frames.append((record, publishes))
            return True
        self._open.append(record)
        self._open_bytes += size
        self._open_publishes += publishes
        if len(self._open) >= records.COALESCE_RECORDS or self._open_bytes >= records.COALESCE_BYTES:
            self._close()
            return True
        return False

    def _close(self) -> None:
        if self._open:
            self._frames.append((b"".join(self._open), self._open_publishes))
            self._open = []
            self._open_bytes = self._open_publishes = 0
