"""A process that goes on in a clone: followed, signalled, and reaped whoever of the two dies when."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path

import pytest
import trio

from capsuled.supervisor import spawn
from capsuled.supervisor.spawn import Process

DEADLINE = 20.0

CLONE = """
import os, signal, sys, time
from capsuled.sandbox import kernel
pid = kernel.clone(kernel.CLONE_PARENT)
if pid:
    {launcher}
    os._exit(0)
{clone}
"""


def in_trio(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that Trio runs."""

    @wraps(test)
    def run() -> None:
        trio.run(test)

    return run


TELL = "os.write(1, str(pid).encode())"
STAY = "signal.pause()"


@asynccontextmanager
async def started(launcher: str, clone: str) -> AsyncGenerator[tuple[Process, int], None]:
    """A process that clones itself, and the read end of its standard output."""
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    command = (sys.executable, "-I", "-B", "-c", CLONE.format(launcher=launcher, clone=clone))
    process = spawn.spawn(command, stdin=null, stdout=writer, stderr=2, clones=True)
    os.close(null)
    os.close(writer)
    try:
        with trio.fail_after(DEADLINE):
            yield process, reader
    finally:
        process.kill()
        with trio.move_on_after(DEADLINE, shield=True):
            if not process.gone:
                await process.wait()
        os.close(reader)
        assert not in_group(process.group)


async def pid_from(reader: int) -> int:
    await trio.lowlevel.wait_readable(reader)
    return int(os.read(reader, 100))


def in_group(group: int) -> list[int]:
    """All processes of a group, dead ones that nobody has reaped too."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                found.append(int(folder.name))
    return found


@in_trio
async def test_the_end_is_the_clones() -> None:
    """What was started ends with 0; the exit is the clone's own, with what it used, and not before its end."""
    async with started(TELL, "sys.stdin.close(); os._exit(7)") as (process, reader):
        process.follow(await pid_from(reader))
        ended = await process.wait()
        assert (ended.status, ended.signal) == (7, None)
        assert process.gone


@in_trio
async def test_signals_go_to_the_clone() -> None:
    """Once it is followed, it is what is signalled, and its pid is what is told."""
    async with started(TELL, STAY) as (process, reader):
        pid = await pid_from(reader)
        process.follow(pid)
        assert process.pid == pid != process.group
        process.signal(signal.SIGTERM)
        assert (await process.wait()).signal == signal.SIGTERM


@in_trio
async def test_a_kill_before_it_is_followed() -> None:
    """The group is killed, so that a clone that nobody knows of yet dies, and is reaped."""
    async with started(TELL, STAY) as (process, reader):
        await pid_from(reader)
        process.kill()
        await process.wait()
        assert process.gone


@in_trio
async def test_what_was_started_dies_after_it_has_cloned_itself() -> None:
    """Killed before it could say of whom it is a clone: the clone is killed and reaped too."""
    async with started("os.kill(os.getpid(), signal.SIGKILL)", STAY) as (process, _):
        ended = await process.wait()
        assert ended.signal == signal.SIGKILL


@in_trio
async def test_a_clone_that_is_never_told() -> None:
    """What ends with 0 and does not say who goes on has left nobody after a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "FOLLOW_SECONDS", 0.01)
        async with started("pass", STAY) as (process, _):
            assert (await process.wait()).signal == signal.SIGKILL


@in_trio
async def test_a_clone_that_has_ended_already() -> None:
    """It waits to be reaped, so that it can be followed all the same."""
    async with started(TELL, "os._exit(3)") as (process, reader):
        pid = await pid_from(reader)
        await trio.to_thread.run_sync(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        process.follow(pid)
        assert (await process.wait()).status == 3


@in_trio
async def test_what_it_says_is_not_believed() -> None:
    """Only another child of ours in its group is its clone: not itself, not us, not a child of ours elsewhere."""
    async with started(TELL, STAY) as (_, other_reader), started(TELL, STAY) as (process, reader):
        stranger, pid = await pid_from(other_reader), await pid_from(reader)
        for wrong in (process.group, os.getpid(), os.getppid(), stranger, 1, 0, -1, 2**31 - 1, 2**40, 2**70):
            with pytest.raises(ValueError, match=f"process {wrong} is no clone of it"):
                process.follow(wrong)
        process.follow(pid)
        with pytest.raises(ValueError, match="is no clone of it"):
            process.follow(pid)  # it is said once


@in_trio
async def test_one_that_is_not_to_clone_itself() -> None:
    """Its end with 0 is the end, and a clone of it is killed with its group."""
    null = os.open(os.devnull, os.O_RDWR)
    command = (sys.executable, "-I", "-B", "-c", CLONE.format(launcher="pass", clone=STAY))
    process = spawn.spawn(command, stdin=null, stdout=null, stderr=2)
    os.close(null)
    with trio.fail_after(DEADLINE):
        ended = await process.wait()
    assert (ended.status, ended.signal) in ((0, None), (None, signal.SIGKILL))
    assert in_group(process.group) == []
