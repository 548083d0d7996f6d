"""A worker's end of an edge without a worker's rules: it listens, and says whatever a test wants it to say."""

from __future__ import annotations

import os
import socket
from collections import deque
from pathlib import Path
from types import TracebackType

import zmq

from capsuled.proto import records
from capsuled.proto.records import Down, DownKind, UpKind

DEADLINE_MS = 20_000
"""For what takes a millisecond on an idle machine; CI is shared."""

Context = zmq.Context[zmq.Socket[bytes]]


def identity() -> str:
    """`uid:gid:pid` of this process, as the kernel reports it to a backbone that connects here."""
    return f"{os.getuid()}:{os.getgid()}:{os.getpid()}"


class EdgePeer:
    """One edge. What is waited for is waited for with a deadline, and then fails."""

    def __init__(self, path: Path, *, receive_hwm: int = 64) -> None:
        self.path = path
        self.published = 0
        """Publishes so far; the next one says this count."""
        self._records: deque[Down] = deque()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(path))
        listener.listen(1)
        self._context: Context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.SNDTIMEO, DEADLINE_MS)
        self._socket.setsockopt(zmq.RCVHWM, receive_hwm)
        self._socket.setsockopt(zmq.USE_FD, listener.detach())
        self._socket.bind(f"ipc://{path}")

    def __enter__(self) -> EdgePeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, and listen no more."""
        self._socket.close(0)
        self._context.term()
        self.path.unlink(missing_ok=True)

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    def send(self, *parts: bytes) -> None:
        """One frame of these records, or of anything else."""
        self._socket.send(b"".join(parts))

    def greet(self) -> Down:
        """Read the backbone's HELLO and answer it. Returns it."""
        hello = self.next(DownKind.HELLO)
        self.send(records.up(UpKind.HELLO, b=self.published))
        return hello

    def publish_record(self, topic: str, payload: bytes = b"\0", cause: int = 0) -> bytes:
        """A publish with the next count."""
        count, self.published = self.published, self.published + 1
        return records.up(UpKind.PUBLISH, topic.encode(), a=count & 0xFFFF_FFFF, b=cause, body=payload)

    def publish(self, topic: str, payload: bytes = b"\0", cause: int = 0) -> None:
        """Publish in a frame of its own."""
        self.send(self.publish_record(topic, payload, cause))

    def subscribe(self, handle: int, pattern: str) -> Down:
        """Ask for a subscription. Returns the answer, which must be the next record."""
        self.send(records.up(UpKind.SUBSCRIBE, pattern.encode(), a=handle))
        return self.next(DownKind.SUBSCRIBED)

    def bye(self) -> Down:
        """Say BYE. Returns the answer, which must be the next record: then all that was said before is done."""
        self.send(records.up(UpKind.BYE, b=self.published))
        return self.next(DownKind.BYE)

    # ── what it hears ────────────────────────────────────────────────────────────────────────────

    def next(self, kind: DownKind) -> Down:
        """The next record, which must be of this kind."""
        while not self._records:
            assert self.hears(DEADLINE_MS), f"no {kind.name} within {DEADLINE_MS} ms"
            self._records.extend(records.split_down(self._socket.recv()))
        record = self._records.popleft()
        assert record.kind == kind, f"{record} where {kind.name} was expected"
        return record

    def message(self) -> Down:
        """The next message; its origin's introduction is read over."""
        while self.peek() == DownKind.ORIGIN:
            self.next(DownKind.ORIGIN)
        return self.next(DownKind.MESSAGE)

    def peek(self) -> int:
        """The kind of the next record."""
        while not self._records:
            assert self.hears(DEADLINE_MS), f"no record within {DEADLINE_MS} ms"
            self._records.extend(records.split_down(self._socket.recv()))
        return self._records[0].kind

    def hears(self, milliseconds: int) -> bool:
        """Whether there is something to read within that time."""
        return bool(self._records) or bool(self._socket.poll(milliseconds, zmq.POLLIN))
