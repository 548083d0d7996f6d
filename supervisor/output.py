"""What a worker writes: log packets, and raw bytes on its standard output and error. All within one rate.

A worker may have been taken over, so its own rate is not relied on. What is over it is not read: the worker's
buffer fills, and it is the worker that waits or loses.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

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


class Write(Protocol):
    """Takes one line: its stream, its level and its text."""

    def __call__(self, stream: LogStream, level: str, text: str) -> None: ...


class Rate:
    """The rate of one instance's output, of all its streams together."""

    def __init__(self, bytes_per_second: int, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._bucket = Bucket(bytes_per_second, LINES_PER_SECOND, now())

    async def charge(self, size: int) -> None:
        """Account for a line that was read, and wait until another may be."""
        self._bucket.charge(size + LINE_BYTES, 1, self._now())
        wait = self._bucket.wait()
        if wait:
            await trio.sleep(wait)


async def read_lines(log: socket.socket, write: Write, rate: Rate) -> None:
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
                write(line.stream, line.level, line.text)
            except loglines.LogLineError as exc:
                if not complained:
                    complained = True
                    write(LogStream.SUPERVISOR, "warn", f"the worker has sent what is no log line: {exc}")
            await rate.charge(len(packet))


async def read_stream(fd: int, stream: LogStream, write: Write, rate: Rate) -> None:
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
                    write(stream, level, part.decode(errors="replace"))
                    await rate.charge(len(part))
    if rest:
        write(stream, level, rest.decode(errors="replace"))


def _parts(line: bytes) -> list[bytes]:
    """A line in pieces that a log line can hold; an empty one is a piece, too."""
    return [line[at : at + MAX_LOG_TEXT] for at in range(0, len(line), MAX_LOG_TEXT)] or [b""]
