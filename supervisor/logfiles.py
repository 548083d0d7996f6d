"""The files of the capsules' logs: one line of JSON each, appended by one task, rotated by size.

Lines wait in memory until a thread has written them, so that a slow disk never holds the supervisor up; what is
over the bound is lost and counted, and the next line that is written says so. What `logdisk` does is done there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from capsuled.supervisor.control import shapes
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.logdisk import Disk, Item, Lost, Mark
from capsuled.supervisor.logline import Line
from capsuled.supervisor.logtail import Tail
from capsuled.supervisor.ownlog import fields

LOG = logging.getLogger("capsuled.logs")

WAITING_BYTES = 4 * 1024 * 1024
"""Of all capsules together, in memory, while the disk is slow."""

RECALL_SECONDS = 2.0
"""Who asks for a log is answered after it, with what memory has, when the disk does not answer."""

Recall = Callable[[int, int], Awaitable["Sequence[Line] | None"]]
"""Given a number of lines and of bytes: the newest older lines, oldest first; None when the disk is too slow."""


@dataclass
class _Waiting:
    items: list[Item] = field(default_factory=list[Item])
    lost: int = 0


@dataclass(eq=False)
class _Wanted:
    mark: Mark
    lines: int
    size: int
    done: trio.Event = field(default_factory=trio.Event)
    found: Tail | None = None


class LogFiles:
    """All capsules' files."""

    def __init__(self, folder: Path, max_bytes: int, keep: int) -> None:
        """A file is rotated before it would grow beyond `max_bytes`; `keep` rotated ones stay."""
        self._disk = Disk(folder, max_bytes, keep)
        self._waiting: dict[str, _Waiting] = {}
        self._wanted: list[_Wanted] = []
        self._bytes = 0
        self._more = trio.Event()

    def offer(self, capsule: str, line: JsonObject) -> None:
        """Queue a line. Never blocks."""
        waiting = self._waiting.setdefault(capsule, _Waiting())
        data = shapes.line(line)
        if self._bytes + len(data) > WAITING_BYTES:
            waiting.lost += 1
        else:
            _tell_lost(waiting)
            waiting.items.append(data)
            self._bytes += len(data)
        self._more.set()

    def begin(self, capsule: str) -> Recall:
        """From now on lines are new; the result asks for those before. Never blocks."""
        waiting = self._waiting.setdefault(capsule, _Waiting())
        _tell_lost(waiting)
        mark = Mark(capsule)
        waiting.items.append(mark)
        return partial(self._before, mark)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write what is offered, until cancelled; what waits then is written by `flush`."""
        task_status.started()
        while True:
            await self._more.wait()
            # Shielded: what is taken has to be written, and half a line in a file would spoil it.
            with trio.CancelScope(shield=True):
                wanted, self._wanted = self._wanted, []
                await trio.to_thread.run_sync(self._work, self._take(), wanted)
                for each in wanted:
                    each.done.set()

    def flush(self) -> None:
        """Write all that waits. Blocks for as long as the disk does."""
        self._work(self._take(), ())

    async def _before(self, mark: Mark, lines: int, size: int) -> Sequence[Line] | None:
        wanted = _Wanted(mark, lines, size)
        self._wanted.append(wanted)
        self._more.set()
        with trio.move_on_after(RECALL_SECONDS):
            await wanted.done.wait()
        if wanted.found is None:
            return None
        if wanted.found.odd:
            LOG.warning(
                "what is no line in the files of a log was passed over",
                extra=fields(capsule=mark.capsule, count=wanted.found.odd),
            )
        return wanted.found.lines

    def _take(self) -> Mapping[str, _Waiting]:
        self._more = trio.Event()
        batch, self._waiting = self._waiting, {}
        self._bytes = 0
        return batch

    def _work(self, batch: Mapping[str, _Waiting], wanted: Sequence[_Wanted]) -> None:
        for capsule, waiting in batch.items():
            _tell_lost(waiting)
            self._disk.write(capsule, waiting.items)
        for each in wanted:  # last, for what they want to know is where their marks were put
            each.found = self._disk.before(each.mark, each.lines, each.size)


def _tell_lost(waiting: _Waiting) -> None:
    if waiting.lost:
        waiting.items.append(Lost(waiting.lost))
        waiting.lost = 0
