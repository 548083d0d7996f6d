"""Sampling what capsules use: bounded in each turn and over all time, however many there are."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import psutil
import pytest
import trio
from trio.testing import MockClock

from capsuled.supervisor import clock
from capsuled.supervisor.usage import ROUND_SECONDS, SHARE, SLICE_SECONDS, Kernel, Sampler, Target, Usage

from .control.serving import run

ABOUT = 1.000001
"""Sums of many floats."""


def target(key: int, pid: int = 0) -> Target:
    return Target(key, pid or key, lambda: 65536)


class Slow(Kernel):
    """One whose looks take as long as a test says, and which writes down each."""

    def __init__(self, cost: float) -> None:
        super().__init__()
        self.cost = cost
        self.spent = 0.0
        self.looks: list[tuple[float, int]] = []
        """When, and at whom."""
        self.forgotten: list[int] = []

    def look(self, target: Target) -> Usage:
        self.spent += self.cost
        self.looks.append((trio.current_time(), target.key))
        return Usage(len(self.looks), target.memory(), 1, 1, clock.now())

    def forget(self, key: int) -> None:
        self.forgotten.append(key)


def sampling(kernel: Slow, targets: list[Target], seconds: float) -> Sampler:
    """What a sampler does in so many seconds, on a clock that jumps from one wait to the next."""
    sampler = Sampler(lambda: targets, kernel, lambda: kernel.spent)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(sampler.run)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    run(main, MockClock(autojump_threshold=0))
    return sampler


def test_few_are_sampled_once_a_second() -> None:
    """As often as an operator looks, and no more."""
    kernel = Slow(0.0001)
    sampling(kernel, [target(1), target(2)], 10 * ROUND_SECONDS - 0.5)
    for key in (1, 2):
        times = [time for time, each in kernel.looks if each == key]
        assert len(times) == 10
        assert all(later - earlier >= ROUND_SECONDS / ABOUT for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("count", [10, 1000, 5000])
@pytest.mark.parametrize("cost", [0.00005, 0.001, 0.01])
def test_the_share_is_kept_with_any_number(count: int, cost: float) -> None:
    """Over a minute it takes no more than its share and one slice, though all are sampled in turn."""
    kernel = Slow(cost)
    seconds = 60.0
    sampling(kernel, [target(key) for key in range(1, count + 1)], seconds)
    # This clock stands still during a look, so that the minute was one of rests alone.
    assert kernel.spent <= SHARE * (seconds + kernel.spent) * ABOUT + SLICE_SECONDS + cost
    order = [key for _, key in kernel.looks]
    assert order == [each % count + 1 for each in range(len(order))]


def test_a_turn_is_short() -> None:
    """Between two waits no more is done than a slice and the look that ends it."""
    kernel = Slow(0.0003)
    sampling(kernel, [target(key) for key in range(1, 1001)], 10.0)
    turns: dict[float, int] = {}
    for when, _ in kernel.looks:
        turns[when] = turns.get(when, 0) + 1
    assert len(turns) > 10
    assert max(turns.values()) * kernel.cost < SLICE_SECONDS + kernel.cost


def test_answers_come_from_the_last_sample() -> None:
    """Whoever asks gets what was sampled, and asks the kernel of nobody but one that is new."""
    kernel = Slow(0.0001)
    sampler = sampling(kernel, [target(1)], 0.5)
    before = len(kernel.looks)
    assert [sampler.last(target(1)).cpu_seconds for _ in range(3)] == [1, 1, 1]
    assert len(kernel.looks) == before

    async def main() -> None:
        assert sampler.last(target(2)).cpu_seconds == before + 1
        assert sampler.last(target(2)).cpu_seconds == before + 1
        assert sampler.now(target(2)).cpu_seconds == before + 2
        assert sampler.last(target(2)).cpu_seconds == before + 2

    run(main)


def test_who_has_gone_is_forgotten() -> None:
    """Instances that come and go leave nothing behind."""
    kernel = Slow(0.0001)
    targets = [target(1)]
    sampler = Sampler(lambda: list(targets), kernel, lambda: kernel.spent)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(sampler.run)
            await trio.sleep(ROUND_SECONDS / 2)
            targets[0] = target(2)
            await trio.sleep(ROUND_SECONDS)
            nursery.cancel_scope.cancel()

    run(main, MockClock(autojump_threshold=0))
    assert kernel.forgotten == [1]


# The kernel itself.


@contextmanager
def sleeping(code: str = "") -> Generator[int, None, None]:
    """A process of ours that has done something and now waits."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"{code}\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def test_what_a_process_uses() -> None:
    """Processor time, resident memory and open files are the kernel's; the guest's memory is its page's."""
    code = "import os, time\nfds = [os.open('/dev/null', 0) for _ in range(7)]\n"
    code += "while time.process_time() < 0.1: pass\nkept = b'x' * (32 << 20)"
    with sleeping(code) as pid:
        before = clock.now()
        found = Kernel().look(target(1, pid))
    assert found.cpu_seconds is not None
    assert found.cpu_seconds >= 0.1
    assert found.process_memory is not None
    assert found.process_memory >= 32 << 20
    assert (found.memory, found.open_files) == (65536, 3 + 7)
    assert before <= found.sampled_at <= clock.now()
    assert found.shape()["sampled_at"] == clock.rfc3339(found.sampled_at)


def test_a_process_that_has_ended_is_not_guessed() -> None:
    """What cannot be known is None."""
    with sleeping() as pid:
        kernel = Kernel()
        kernel.look(target(1, pid))
    assert kernel.look(target(1, pid))[:4] == (None, 65536, None, None)
    assert Kernel().look(target(1, pid))[:4] == (None, 65536, None, None)


def test_a_worker_that_goes_on_in_its_clone_is_followed() -> None:
    """The same key with another pid is looked at anew."""
    kernel = Kernel()
    with sleeping() as one, sleeping("kept = b'x' * (64 << 20)") as two:
        small, large = kernel.look(target(1, one)), kernel.look(target(1, two))
    assert small.process_memory is not None
    assert large.process_memory is not None
    assert large.process_memory > small.process_memory + (32 << 20)


def test_files_that_may_not_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sealed process can be looked into by root alone: the rest of its usage is told."""

    def denied(process: psutil.Process) -> int:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "num_fds", denied)
    found = Kernel().look(target(1, os.getpid()))
    assert found.open_files is None
    assert found.process_memory
    assert found.cpu_seconds


def test_a_look_is_cheap() -> None:
    """Less than a millisecond, or a thousand capsules would be sampled too seldom."""
    kernel = Kernel()
    with sleeping() as pid:
        for key in range(100):
            kernel.look(target(key, pid))
        began = time.thread_time()
        for key in range(100):
            kernel.look(target(key, pid))
        assert time.thread_time() - began < 0.1
