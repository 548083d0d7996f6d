"""The files of the capsules' logs: one line of JSON each, appended by one task, rotated by size.

`<folder>/<capsule>.log`, and `.log.1` … for what was rotated, `.1` the newest. Lines wait in memory until a thread
has written them, so that a slow disk never holds the supervisor up; what is over the bound is lost and counted, and
the next line that is written says so.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import trio

from capsuled.supervisor.control.shapes import JsonObject

LOG = logging.getLogger("capsuled.logs")

WAITING_BYTES = 4 * 1024 * 1024
"""Of all capsules together, in memory, while the disk is slow."""


@dataclass
class _Waiting:
    lines: list[bytes] = field(default_factory=list[bytes])
    lost: int = 0


class LogFiles:
    """All capsules' files."""

    def __init__(self, folder: Path, max_bytes: int, keep: int) -> None:
        """A file is rotated before it would grow beyond `max_bytes`; `keep` rotated ones stay."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep = keep
        self._waiting: dict[str, _Waiting] = {}
        self._bytes = 0
        self._more = trio.Event()
        self._unwritten: Counter[str] = Counter()
        """Lines that the disk refused; the writer's alone, since it runs in a thread."""
        self._complained: set[str] = set()

    def offer(self, capsule: str, line: JsonObject) -> None:
        """Queue a line. Never blocks."""
        waiting = self._waiting.setdefault(capsule, _Waiting())
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self._bytes + len(data) > WAITING_BYTES:
            waiting.lost += 1
        else:
            if waiting.lost:
                waiting.lines.append(_lost(waiting.lost))
                waiting.lost = 0
            waiting.lines.append(data)
            self._bytes += len(data)
        self._more.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write what is offered, until cancelled; what waits then is written by `flush`."""
        task_status.started()
        while True:
            await self._more.wait()
            # Shielded: what is taken has to be written, and half a line in a file would spoil it.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write_all, self._take())

    def flush(self) -> None:
        """Write all that waits. Blocks for as long as the disk does."""
        self._write_all(self._take())

    def _take(self) -> dict[str, _Waiting]:
        self._more = trio.Event()
        batch, self._waiting = self._waiting, {}
        self._bytes = 0
        return batch

    def _write_all(self, batch: dict[str, _Waiting]) -> None:
        for capsule, waiting in batch.items():
            path = self._folder / f"{capsule}.log"
            before = [_lost(self._unwritten[capsule])] if self._unwritten[capsule] else []
            after = [_lost(waiting.lost)] if waiting.lost else []
            try:
                self._append(path, [*before, *waiting.lines, *after])
                self._complained.discard(capsule)
                del self._unwritten[capsule]
            except OSError as exc:
                self._unwritten[capsule] += len(waiting.lines) + waiting.lost
                if capsule not in self._complained:
                    self._complained.add(capsule)  # once, or a full disk would fill the supervisor's own log
                    LOG.error("cannot write %s: %s: its lines are lost", path, exc.strerror)

    def _append(self, path: Path, lines: Iterable[bytes]) -> None:
        size = path.stat().st_size if path.exists() else 0
        pending: list[bytes] = []
        for line in lines:
            if size and size + len(line) > self._max_bytes:
                self._write(path, pending)
                self._rotate(path)
                pending, size = [], 0
            pending.append(line)
            size += len(line)
        self._write(path, pending)

    def _write(self, path: Path, lines: list[bytes]) -> None:
        if lines:
            with path.open("ab") as file:
                file.write(b"".join(lines))

    def _rotate(self, path: Path) -> None:
        for number in range(self._keep, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            if newer.exists():
                newer.replace(older)
        if not self._keep:
            path.unlink(missing_ok=True)


def _lost(count: int) -> bytes:
    return json.dumps({"lost": count}).encode() + b"\n"
