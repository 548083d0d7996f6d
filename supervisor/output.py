"""What a worker writes: log packets, and raw bytes on its standard output and error. All within one rate.

A worker may have been taken over, so its own rate is not relied on. While it lives, what is over the rate is not
read: its buffer fills, and it is the worker that waits, or cuts lines and counts them. Once it has ended, what its
buffers hold is read at once, and cut here where it is more than a second's worth.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import trio

from capsuled.proto import loglines
from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.bucket import Bucket
from capsuled.proto.control import LogStream

READ_BYTES = 16 * 1024

LINES_PER_SECOND = 10_000
"""Empty lines cost no bytes; they cost us time all the same."""

LINE_BYTES = 64
"""What a line is charged beyond its text: its stamps are stored too."""

CUT_SECONDS = 1.0
"""Between two lines that tell of cut ones."""

IDLE_SECONDS = 30.0
"""Nothing can be cut that no line went before, but for a guest that has spent hours' worth with one line: it is looked
after so often without any."""


class Write(Protocol):
    """Takes one line: its stream, its level and its text."""

    def __call__(self, stream: LogStream, level: str, text: str) -> None: ...


class _Line(NamedTuple):
    stream: LogStream
    level: str
    text: str
    size: int


class Intake:
    """Lines of one instance, of all its streams together, on their way to its log."""

    def __init__(
        self, write: Write, bytes_per_second: int, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._write = write
        self._rate = bytes_per_second
        self._now = now
        self._bucket = Bucket(bytes_per_second, LINES_PER_SECOND, now())
        self._ended = trio.Event()
        self._left: deque[_Line] = deque()
        self._left_bytes = 0
        self._claimed = 0
        self._told = 0
        self.read = trio.Event()
        """Something has been read since it was made."""
        self.cut = 0
        """Lines that were cut here, and not by the worker."""

    async def take(self, stream: LogStream, level: str, text: str, size: int) -> None:
        """One line of `size` bytes that was read: write it, and wait until another may be read."""
        self.read.set()
        if self._ended.is_set():
            self._keep(_Line(stream, level, text, size + LINE_BYTES))
            return
        self._write(stream, level, text)
        await self.charge(size)

    async def charge(self, size: int) -> None:
        """Account for what was read, and wait until more may be."""
        self._bucket.charge(size + LINE_BYTES, 1, self._now())
        wait = self._bucket.wait()
        if wait and not self._ended.is_set():
            with trio.move_on_after(wait):
                await self._ended.wait()

    def end(self) -> None:
        """The process is gone: what comes from here on is what it has left, and no rate delays it."""
        self._ended.set()

    def finish(self) -> None:
        """All that was left has been read. The newest of it, a second's worth, is written; the rest was cut."""
        for line in self._left:
            self._write(line.stream, line.level, line.text)
        self._left.clear()

    def tell_cut(self, by_worker: int) -> bool:
        """Say how many lines were cut since this was said last, the worker's own count included; False for none."""
        self._claimed = max(self._claimed, by_worker)  # one that goes down is a lie
        more = self._claimed + self.cut - self._told
        if more <= 0:
            return False
        self._told += more
        told = f"cut: {more} lines over log_bytes_per_second = {self._rate}, or faster than they were read"
        self._write(LogStream.SUPERVISOR, "warn", told)
        return True

    def _keep(self, line: _Line) -> None:
        self._left.append(line)
        self._left_bytes += line.size
        while len(self._left) > LINES_PER_SECOND or (self._left_bytes > self._rate and len(self._left) > 1):
            self._left_bytes -= self._left.popleft().size
            self.cut += 1


async def watch_cuts(intake: Intake, counted: Callable[[], int | None]) -> None:
    """Have `intake` tell of cut lines while the worker lives, at most once in `CUT_SECONDS`.

    `counted` is the worker's count; None when it cannot be read now.
    """
    more = False
    while True:
        if not more:
            with trio.move_on_after(IDLE_SECONDS):
                await intake.read.wait()
        intake.read = trio.Event()
        await trio.sleep(CUT_SECONDS)
        count = counted()
        more = count is None or intake.tell_cut(count)


async def read_lines(log: socket.socket, intake: Intake) -> None:
    """Take log packets until the worker's end is closed. What is no log line is said once, and passed over."""
    complained = False
    with trio.socket.from_stdlib_socket(log.dup()) as packets:
        while True:
            try:
                packet = await packets.recv(loglines.MAX_PACKET + 1)
            except ConnectionError:
                return
            if not packet:
                return
            try:
                line = loglines.unpack(packet)
            except loglines.LogLineError as exc:
                told = f"the worker has sent what is no log line: {exc}"
                if complained:
                    await intake.charge(len(packet))
                else:
                    complained = True
                    await intake.take(LogStream.SUPERVISOR, "warn", told, len(packet))
            else:
                await intake.take(line.stream, line.level, line.text, len(packet))


async def read_stream(fd: int, stream: LogStream, intake: Intake) -> None:
    """Make lines of what comes on a pipe, until its end. A longer one than `MAX_LOG_TEXT` bytes becomes several.

    Closes `fd`.
    """
    level = "warn" if stream is LogStream.STDERR else "info"
    rest = b""
    async with trio.lowlevel.FdStream(fd) as pipe:
        while data := await pipe.receive_some(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            while len(rest) > MAX_LOG_TEXT:
                lines.append(rest[:MAX_LOG_TEXT])
                rest = rest[MAX_LOG_TEXT:]
            for line in lines:
                for part in _parts(line):
                    await intake.take(stream, level, part.decode(errors="replace"), len(part))
    if rest:
        await intake.take(stream, level, rest.decode(errors="replace"), len(rest))


def _parts(line: bytes) -> list[bytes]:
    """A line in pieces that a log line can hold; an empty one is a piece, too."""
    return [line[at : at + MAX_LOG_TEXT] for at in range(0, len(line), MAX_LOG_TEXT)] or [b""]
