"""What the thread of the log files does: append lines, rotate by size, and keep count of what the disk refuses.

`<folder>/<capsule>.log`, and `.log.1` … for what was rotated, `.1` the newest.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from capsuled.supervisor import clock, logline, logtail
from capsuled.supervisor.control import shapes
from capsuled.supervisor.folders import PRIVATE
from capsuled.supervisor.logtail import Part, Tail
from capsuled.supervisor.ownlog import fields

LOG = logging.getLogger("capsuled.logs")


@dataclass(eq=False)
class Mark:
    """A place in a capsule's files: the end of what had been written when it was put there."""

    capsule: str
    rotations: int = 0
    """Of this capsule, when it was put."""
    inode: int | None = None
    """Of the file that it is in; None when there was none."""
    end: int = 0


class Lost(NamedTuple):
    """Stands where lines are missing."""

    lines: int


Item = bytes | Lost | Mark
"""What is to be done with a capsule's files, in this order: a line with its newline, a loss, or a mark."""


class _Encoded(NamedTuple):
    data: bytes
    lines: int
    """How many are missing without it."""


@dataclass
class _State:
    rotations: int = 0
    unwritten: int = 0
    complained: bool = False


class Disk:
    """All capsules' files. For one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int, keep: int) -> None:
        """A file is rotated before it would grow beyond `max_bytes`; `keep` rotated ones stay."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep = keep
        self._states: defaultdict[str, _State] = defaultdict(_State)

    def write(self, capsule: str, items: Sequence[Item]) -> None:
        """Append. What cannot be is counted, said once, and told by the next line that can. Raises nothing."""
        state = self._states[capsule]
        todo = [*([Lost(state.unwritten)] if state.unwritten else []), *items]
        missing = sum(_lines(item) for item in todo)
        appending = _Appending()
        try:
            try:
                self._append(appending, capsule, state, todo)
            finally:
                appending.close()
            if missing and state.complained:
                state.complained = False
                LOG.info("lines are written again", extra=fields(capsule=capsule))
        except OSError as exc:
            if not state.complained:
                state.complained = True  # once, or a full disk would fill the supervisor's own log
                LOG.error(
                    "cannot write %s: %s: its lines are lost",
                    self._path(capsule),
                    exc.strerror,
                    extra=fields(capsule=capsule),
                )
        state.unwritten = missing - appending.written

    def before(self, mark: Mark, lines: int, size: int) -> Tail:
        """The newest lines that had been written when `mark` was put, within these bounds; see `logtail.read`."""
        age = self._states[mark.capsule].rotations - mark.rotations
        if mark.inode is None:
            return Tail((), 0)
        parts = [Part(self._path(mark.capsule, number)) for number in range(age + 1, self._keep + 1)]
        marked = self._path(mark.capsule, age)
        # Somebody else may have moved or cut it: then nobody knows which of its lines are older.
        found = _status(marked)
        if found is not None and found.st_ino == mark.inode and found.st_size >= mark.end:
            parts.insert(0, Part(marked, mark.end))
        return logtail.read(parts, mark.capsule, lines, size)

    def _append(self, appending: _Appending, capsule: str, state: _State, items: Sequence[Item]) -> None:
        path = self._path(capsule)
        for item in items:
            if isinstance(item, Mark):
                appending.flush()
                self._put(item, state)
                continue
            line = _encoded(capsule, item)
            if not appending.opened:
                self._open(appending, path)
            if appending.size and appending.size + len(line.data) > self._max_bytes:
                appending.close()
                self._rotate(capsule)
                state.rotations += 1
                self._open(appending, path)
            appending.add(line)

    def _open(self, appending: _Appending, path: Path) -> None:
        try:
            appending.open(path)
        except FileNotFoundError:
            self._folder.mkdir(mode=PRIVATE)
            LOG.warning(
                "the folder of the logs had vanished: it is made again", extra=fields(path=str(self._folder))
            )
            appending.open(path)

    def _put(self, mark: Mark, state: _State) -> None:
        # A supervisor that was killed while it rotated has left no file, but the one before.
        for age in (0, 1):
            if (found := _status(self._path(mark.capsule, age))) is not None:
                mark.rotations = state.rotations - age
                mark.inode, mark.end = found.st_ino, found.st_size
                return

    def _path(self, capsule: str, age: int = 0) -> Path:
        return self._folder / (f"{capsule}.log.{age}" if age else f"{capsule}.log")

    def _rotate(self, capsule: str) -> None:
        for age in range(self._keep, 0, -1):
            newer = self._path(capsule, age - 1)
            if os.path.lexists(newer):
                newer.replace(self._path(capsule, age))
        if not self._keep:
            self._path(capsule).unlink(missing_ok=True)


class _Appending:
    """One file that is open or none. Lines are collected, and written in one go."""

    def __init__(self) -> None:
        self.written = 0
        """Lines that are in a file, as `_Encoded` counts them."""
        self.size = 0
        """Of the file with what is collected."""
        self._pending: list[_Encoded] = []
        self._held = ExitStack()
        self._fd = -1

    @property
    def opened(self) -> bool:
        return self._fd >= 0

    def open(self, path: Path) -> None:
        fd, found = self._held.enter_context(logtail.opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT))
        self._fd, self.size = fd, found.st_size
        if self.size and os.pread(fd, 1, self.size - 1) != b"\n":
            self.add(
                _Encoded(b"\n", 0)
            )  # half a line, of a supervisor that was killed or a disk that was full

    def add(self, line: _Encoded) -> None:
        self._pending.append(line)
        self.size += len(line.data)

    def flush(self) -> None:
        """Write what is collected. Where that fails no half line stays."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        view = memoryview(b"".join(line.data for line in pending))
        size, done = self.size - len(view), 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        finally:
            whole = 0
            for line in pending:
                if whole + len(line.data) > done:
                    break
                whole += len(line.data)
                self.written += line.lines
            self.size = size + whole
            if whole < done:
                with suppress(OSError):  # the next to open it ends the half line
                    os.ftruncate(self._fd, self.size)

    def close(self) -> None:
        """Write what is collected, and close."""
        held, self._held = self._held, ExitStack()
        try:
            with held:
                self.flush()
        finally:
            self._fd = -1


def _lines(item: Item) -> int:
    if isinstance(item, Mark):
        return 0
    return item.lines if isinstance(item, Lost) else 1


def _encoded(capsule: str, item: bytes | Lost) -> _Encoded:
    if isinstance(item, Lost):
        return _Encoded(shapes.line(logline.lost(clock.now(), capsule, item.lines).shape), item.lines)
    return _Encoded(item, 1)


def _status(path: Path) -> os.stat_result | None:
    """Of a regular file; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None
