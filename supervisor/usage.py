"""What capsules use now: sampled in the background, so that no answer has to ask the kernel about a thousand processes.

It runs on the supervisor's one thread. A turn of the event loop gives it `SLICE_SECONDS`, and after each slice it rests
for so long that all of it stays below `SHARE` of a core, however many capsules there are: with more of them, and on a
slower machine, the samples only get older. Each tells when it was taken.

    100 capsules   each is sampled once a second          1000 capsules   about once in three seconds
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple, NoReturn

import psutil
import trio

from capsuled.supervisor import clock
from capsuled.supervisor.control.shapes import JsonObject

SHARE = 0.02
"""Part of a core that sampling may take: what is left of an idle supervisor's 5 % is for all else that it does."""

SLICE_SECONDS = 0.002
"""Of one turn: no request is noticeably later for it."""

ROUND_SECONDS = 1.0
"""Between two samples of one capsule, where that is not too much: no operator looks more often."""


class Target(NamedTuple):
    """A process to sample. `key` is never used for another one; `memory` tells its guest's linear memory in bytes."""

    key: int
    pid: int
    memory: Callable[[], int]


class Usage(NamedTuple):
    """Of one process at one moment; bytes and seconds. None is what we may not see, or what had just ended."""

    cpu_seconds: float | None
    memory: int
    process_memory: int | None
    open_files: int | None
    sampled_at: datetime

    def shape(self) -> JsonObject:
        """As it stands in a capsule of the control contract."""
        return {**self._asdict(), "sampled_at": clock.rfc3339(self.sampled_at)}


NOTHING: JsonObject = {"cpu_seconds": 0.0, "memory": 0, "process_memory": 0, "open_files": 0}
"""What a capsule without a process uses."""


class Kernel:
    """Looks at processes. It keeps psutil's objects: to make one costs nearly as much as all that is asked of it."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def look(self, target: Target) -> Usage:
        """Ask about one process, now. Raises nothing."""
        cpu_seconds: float | None = None
        process_memory: int | None = None
        open_files: int | None = None
        try:
            process = self._process(target)
            with process.oneshot():
                times = process.cpu_times()
                cpu_seconds = round(times.user + times.system, 3)
                process_memory = process.memory_info().rss
                # Last: only root may count those of a sealed process, which cannot be looked into.
                open_files = process.num_fds()
        except psutil.Error:
            pass  # what is known by now is told, and the rest is not guessed
        return Usage(cpu_seconds, target.memory(), process_memory, open_files, clock.now())

    def forget(self, key: int) -> None:
        self._processes.pop(key, None)

    def _process(self, target: Target) -> psutil.Process:
        found = self._processes.get(target.key)
        # A worker goes on in a clone of itself.
        if found is None or found.pid != target.pid:
            self._processes[target.key] = found = psutil.Process(target.pid)
        return found


class Sampler:
    """The last sample of each target."""

    def __init__(
        self,
        targets: Callable[[], Iterable[Target]],
        kernel: Kernel | None = None,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        """`spent` are seconds of processor time of this thread: what others take of the machine is no cost of ours."""
        self._targets = targets
        self._kernel = kernel or Kernel()
        self._spent = spent
        self._last: dict[int, Usage] = {}

    def last(self, target: Target) -> Usage:
        """Its last sample; one that is taken now where there is none yet, as of a capsule that has just started."""
        found = self._last.get(target.key)
        return self.now(target) if found is None else found

    def now(self, target: Target) -> Usage:
        """One that is taken now."""
        self._last[target.key] = found = self._kernel.look(target)
        return found

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Sample round after round until cancelled."""
        task_status.started()
        while True:
            began = trio.current_time()
            await self._round()
            await trio.sleep_until(max(began + ROUND_SECONDS, trio.current_time()))

    async def _round(self) -> None:
        found = list(self._targets())
        for key in self._last.keys() - {each.key for each in found}:
            del self._last[key]
            self._kernel.forget(key)
        waiting = iter(found)
        target = next(waiting, None)
        while target is not None:
            began = self._spent()
            cost = 0.0
            while target is not None and cost < SLICE_SECONDS:
                self.now(target)
                target = next(waiting, None)
                cost = self._spent() - began
            # After the last slice too: a round that was just long enough must not be followed by the next at once.
            await trio.sleep(cost / SHARE - cost)
