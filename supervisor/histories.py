"""The files of the capsules' histories, `<folder>/<capsule>.json`: read when a capsule is made, written by one task.

A file is replaced as a whole, so that a supervisor which is killed while it writes leaves the old one. It is not
forced to the disk: a history outlives the supervisor, and what a machine without power forgets is one boot older.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

import trio

from capsuled.supervisor import history
from capsuled.supervisor.faults import Fault
from capsuled.supervisor.history import History, HistoryInvalid, Moment

LOG = logging.getLogger("capsuled.histories")

AGAIN_SECONDS = 5.0
"""After which it is tried again to write what the disk has refused."""


_Waiting = dict[str, Callable[[], History] | None]
"""Who says what to write, asked when its turn comes; None: the file is to go."""


def now() -> Moment:
    """The clock that failures are counted on."""
    return Moment(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))


@cache
def _boot_id() -> str:
    """Which boot of the machine this is (random(4)); empty where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Histories:
    """All capsules' files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: _Waiting = {}
        self._writing: _Waiting = {}
        self._more = trio.Event()
        self._refused: dict[str, str] = {}
        """Whose file the disk has refused, and why: said once for each in the log, and in the status for as long."""

    @property
    def faults(self) -> list[Fault]:
        """What is not written, though it was tried."""
        return [
            Fault(str(self._path(name)), "", f"cannot be written: {why}: make room; it is tried again")
            for name, why in self._refused.items()
        ]

    def read(self, capsule: str) -> History:
        """What is remembered of a capsule: nothing where there is no file, or none that can be read, which is said."""
        for unwritten in (self._waiting, self._writing):  # the file is older
            if capsule in unwritten:
                of = unwritten[capsule]
                return History() if of is None else of()
        path = self._path(capsule)
        try:
            return history.decode(_read(path), now())
        except FileNotFoundError:
            return History()
        except (OSError, HistoryInvalid) as exc:
            LOG.error("cannot read %s: %s: it is put aside, and what was remembered is forgotten", path, exc)
            with suppress(OSError):
                path.replace(path.with_suffix(".bad"))
            return History()

    def write(self, capsule: str, of: Callable[[], History]) -> None:
        """Write what `of` says when its turn comes. Never blocks."""
        self._waiting[capsule] = of
        self._more.set()

    def forget(self, capsule: str) -> None:
        """The capsule is there no more."""
        self._waiting[capsule] = None
        self._more.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write what is to be written, until cancelled; what waits then is written by `flush`."""
        task_status.started()
        while True:
            with trio.move_on_after(AGAIN_SECONDS if self._refused else float("inf")):
                await self._more.wait()
            batch, asked = self._take()
            refused: dict[str, OSError] = {}
            with trio.CancelScope(shield=True):
                refused = await trio.to_thread.run_sync(self._write_all, batch)
            self._writing = {}
            self._again(asked, refused)

    def flush(self) -> None:
        """Write all that waits. Blocks for as long as the disk does."""
        batch, _ = self._take()
        self._write_all(batch)

    def _take(self) -> tuple[dict[str, bytes | None], _Waiting]:
        """What is to be written now, and who was asked for it."""
        self._more = trio.Event()
        at = now()
        asked, self._waiting = self._waiting, {}
        self._writing = asked
        batch: dict[str, bytes | None] = {}
        for name, of in asked.items():
            try:
                batch[name] = None if of is None else history.encode(of(), at)
            except (ValueError, OverflowError, RecursionError):
                # A defect of ours costs this capsule its history, and not everybody the supervisor.
                LOG.exception("cannot remember what became of %s", name)
        return batch, asked

    def _again(self, asked: _Waiting, refused: dict[str, OSError]) -> None:
        for name, exc in refused.items():
            self._waiting.setdefault(name, asked[name])
            if name not in self._refused:  # once, or a full disk would fill the supervisor's own log
                LOG.error("cannot write %s: %s: it is tried again", self._path(name), exc.strerror)
        if back := self._refused.keys() - refused.keys():
            LOG.info("histories can be written again: %s", ", ".join(sorted(back)))
        self._refused = {name: str(exc.strerror) for name, exc in refused.items()}

    def _write_all(self, batch: dict[str, bytes | None]) -> dict[str, OSError]:
        refused: dict[str, OSError] = {}
        for name, data in batch.items():
            path = self._path(name)
            try:
                if data is None:
                    path.unlink(missing_ok=True)
                else:
                    _replace(path, data)
            except OSError as exc:
                refused[name] = exc
        return refused

    def _path(self, capsule: str) -> Path:
        return self._folder / f"{capsule}.json"


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(history.MAX_BYTES + 1)
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    new = path.with_suffix(".new")
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError:
        with suppress(OSError):  # a disk that is full has got no room for half of it either
            new.unlink()
        raise
