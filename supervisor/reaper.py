"""As the first process of a pid namespace, as in a container: what the kernel expects of it. pid_namespaces(7).

Whoever loses his parent becomes our child, and is reaped here. Who is a child because we started him is left to
`spawn`, which wants to know how he ended. (What else is special about the first process, that signals without a handler
do nothing to it, `commands.capsuled` sees to.)
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import trio

from capsuled.supervisor import spawn

LOG = logging.getLogger("capsuled.reaper")

FIRST = 1

PAUSE_SECONDS = 0.1
"""Between two looks: a storm of processes that end costs ten of them a second, and zombies cost next to nothing."""


class Child(NamedTuple):
    """A process as /proc/PID/stat tells it."""

    pid: int
    state: str
    parent: int
    group: int


async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Reap orphans; does nothing where we are not the first process, and none come."""
    if os.getpid() != FIRST:
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGCHLD) as ended:
        task_status.started()
        reap()  # who ended before there was a handler
        async for _ in ended:
            reap()
            await trio.sleep(PAUSE_SECONDS)  # signals that come meanwhile are one


def reap() -> list[int]:
    """Reap the orphans that have ended. Returns their pids. Call it in the thread that starts processes."""
    # Nobody is started between these two looks: who is not known to `spawn` now was not started by it.
    gone = orphans(children(), os.getpid(), spawn.own())
    for pid in gone:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            LOG.debug("reaped %d, which has lost its parent", pid)
    return gone


def orphans(processes: Collection[Child], us: int, own: Collection[int]) -> list[int]:
    """Those that have ended, are our children, and are neither in `own` nor in a group that is."""
    return [
        each.pid
        for each in processes
        if each.state == "Z" and each.parent == us and each.pid not in own and each.group not in own
    ]


def children() -> list[Child]:
    """All processes that /proc shows; what ends meanwhile is left out."""
    return list(_children(Path("/proc")))


def _children(proc: Path) -> Iterator[Child]:
    for name in os.listdir(proc):
        if name.isdecimal():
            with suppress(OSError):
                yield parse((proc / name / "stat").read_bytes())


def parse(stat: bytes) -> Child:
    """proc(5). The name in brackets is the process's own choice, and may hold brackets and blanks."""
    pid, _, rest = stat.partition(b" (")
    state, parent, group = rest.rpartition(b") ")[2].split(b" ", 3)[:3]
    return Child(int(pid), state.decode(), int(parent), int(group))
