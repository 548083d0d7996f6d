"""Where capsules' lines go: a book for each capsule, the files, and the journal where there is one."""

from __future__ import annotations

from pathlib import Path

import trio

from capsuled.supervisor import journal
from capsuled.supervisor.configuration import Log
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.journal import Journal
from capsuled.supervisor.logbook import LogBook
from capsuled.supervisor.logfiles import LogFiles


class Logs:
    """The logs of all capsules. `run` them, make a `book` for each, and `flush` at the end."""

    def __init__(self, using: Log, folder: Path) -> None:
        self._using = using
        self._files = LogFiles(folder, using.file_bytes, using.file_count)
        path = journal.path(using)
        self._journal = Journal(path) if path is not None else None

    def book(self, capsule: str) -> LogBook:
        return LogBook(
            capsule, self._using.ring_lines, self._using.ring_bytes, self._offer, self._files.begin(capsule)
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write and send what is said, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._files.run)
            if self._journal is not None:
                await nursery.start(self._journal.run)
            task_status.started()

    def flush(self) -> None:
        """Write and send what waits still. The files are waited for, the journal for a second."""
        self._files.flush()
        if self._journal is not None:
            self._journal.flush()

    def _offer(self, capsule: str, line: JsonObject) -> None:
        self._files.offer(capsule, line)
        if self._journal is not None:
            self._journal.offer(line)
