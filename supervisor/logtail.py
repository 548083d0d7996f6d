"""The end of what a capsule's log files hold: read backwards, bounded, and believed as far as it has the shape.

The files are the supervisor's own. All the same nothing but a regular file is read, and no link is followed: who
could plant one would have the supervisor read for it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.supervisor import logline
from capsuled.supervisor.logline import Line

BLOCK_BYTES = 64 * 1024

LINE_BYTES = 6 * MAX_LOG_TEXT + 1024
"""Of the longest line in a file: JSON writes each byte of its text as six at most."""

READ_BYTES = 1024 * 1024
"""Read at most, beyond twice what may be kept: a file full of rubbish is given up then."""


class Part(NamedTuple):
    """A file, and how much of it counts; None: all of it."""

    path: Path
    end: int | None = None


class Tail(NamedTuple):
    """The newest lines, oldest first."""

    lines: Sequence[Line]
    odd: int
    """What was passed over, because it is no line of this capsule's log."""


@contextmanager
def opened(path: Path, flags: int) -> Generator[tuple[int, os.stat_result], None, None]:
    """A regular file and what fstat(2) says of it. Raises `OSError`, also for what is no regular file.

    O_NONBLOCK: to open a FIFO would wait for its other end.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield fd, found
    finally:
        os.close(fd)


def read(parts: Sequence[Part], capsule: str, lines: int, size: int) -> Tail:
    """The last lines in `parts`, the newest first: so many at most, of so many bytes in memory. Blocks.

    What cannot be read is passed over, and counted as odd unless it is not there.
    """
    found: list[Line] = []
    odd = 0
    left = READ_BYTES + 2 * size
    for part in parts:
        try:
            with opened(part.path, os.O_RDONLY) as (fd, status):
                end = status.st_size if part.end is None else min(part.end, status.st_size)
                for data in _backwards(fd, end, left):
                    line = logline.parse(data, capsule) if data is not None else None
                    if line is None:
                        odd += 1
                    elif len(found) < lines and line.size <= size:
                        found.append(line)
                        size -= line.size
                    else:
                        return Tail(found[::-1], odd)
                left -= end
                if left <= 0:
                    break
        except FileNotFoundError:
            continue
        except OSError:
            odd += 1
    return Tail(found[::-1], odd)


def _backwards(fd: int, end: int, most: int) -> Iterator[bytes | None]:
    """What stands between newlines in the `most` bytes before `end`, the last first; None for what is too long to be
    a line.

    An empty last piece is none: there a newline ends the file.
    """
    stop = max(0, end - most)
    rest, too_long, last = b"", False, True
    while end > stop:
        start = max(stop, end - BLOCK_BYTES)
        data = os.pread(fd, end - start, start)
        if len(data) < end - start:
            return  # it has become shorter while it is read
        first, *pieces = (data + rest).split(b"\n")
        for piece in reversed(pieces):
            if too_long:
                yield None
            elif piece or not last:
                yield piece
            last = too_long = False
        rest, end = first, start
        if len(rest) > LINE_BYTES:
            rest, too_long = b"", True
    if not stop and (rest or too_long):
        yield None if too_long else rest
