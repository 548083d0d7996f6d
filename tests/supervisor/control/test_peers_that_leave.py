"""Peers that hang up in the middle of something, and peers that do not read what they asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h11
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from capsuled.supervisor.control.limits import PIECE
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.control.streams import Broadcast

from .serving import DEFAULTS, Daemon, Served, ask, request, run, serving, talking

STATUS = request("GET", "/v1/status")
FOLLOW = request("GET", "/v1/events?follow")
WAIT = request("POST", "/v1/capsules/slow/start?wait=ready")


@pytest.mark.parametrize("next_request", [b"", b"G", STATUS, STATUS * 3])
def test_a_hang_up_ends_the_waiting_only(next_request: bytes) -> None:
    """Who hangs up waits no more, whatever it had sent by then; the change that it set going goes on."""

    async def main() -> None:
        async with serving() as served:
            async with talking(served) as talk:
                await talk.send(WAIT + next_request)
                await served.daemon.waiting.wait()
                assert not served.daemon.abandoned.is_set()
            await served.daemon.abandoned.wait()
            assert served.daemon.acted[0][0] == "slow"
            assert (await ask(served, "GET", "/v1/status")).status == 200

    run(main)


@pytest.mark.parametrize("next_request", [b"", STATUS])
def test_a_hang_up_ends_the_following(next_request: bytes) -> None:
    """Who hangs up follows no more, though nothing happens that it could be told."""

    async def main() -> None:
        async with serving() as served:
            async with talking(served) as talk:
                await talk.send(FOLLOW + next_request)
                await served.daemon.followed.wait()
            await served.daemon.left.wait()

    run(main)


def test_who_only_ends_its_requests_is_answered() -> None:
    """A peer that closes its sending half gets its answer; when it leaves then, it is gone."""

    async def main() -> None:
        async with serving() as served:
            async with talking(served) as talk:
                await talk.send(WAIT)
                await talk.stream.send_eof()
                await served.daemon.waiting.wait()
                await wait_all_tasks_blocked()
                assert not served.daemon.abandoned.is_set()
                served.daemon.release.set()
                assert (await talk.reply()).status == 200
                assert await talk.at_end()
            async with talking(served) as talk:
                await talk.send(FOLLOW)
                await talk.stream.send_eof()
                await served.daemon.followed.wait()
            await served.daemon.left.wait()

    run(main)


def test_hang_ups_leak_no_descriptor() -> None:
    """Hundreds of connections, ended by either side, leave the number of descriptors as it was."""

    async def main() -> None:
        async with serving() as served:
            before = open_descriptors()
            for _ in range(100):
                await ask(served, "GET", "/v1/status")
                async with talking(served) as talk:
                    await talk.send(FOLLOW)
                    await served.daemon.followed.wait()
                served.daemon.followed = trio.Event()
                async with talking(served) as talk:
                    await talk.send(b"x\r\n\r\n")
                    await talk.reply()
            await wait_all_tasks_blocked()
            assert open_descriptors() == before

    run(main)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Peers that do not read.


async def flood(served: Served, lines: int) -> None:
    """Publish more than the socket's buffers hold, and let the server send what it can."""
    for n in range(lines):
        served.daemon.happenings.publish({"n": n, "pad": "x" * 1000})
        if n % 8 == 0:
            await wait_all_tasks_blocked()


def told(lines: Sequence[JsonObject]) -> int:
    """How many lines a follower got, or was told that it lost; each is at its place."""
    expected = 0
    for line in lines:
        if "lost" in line:
            assert isinstance(line["lost"], int)
            expected += line["lost"]
        else:
            assert line["n"] == expected
            expected += 1
    return expected


def test_a_follower_that_does_not_read_loses_lines_and_is_told() -> None:
    """It holds nobody up, and when it reads again it is told how many lines are missing, and where."""

    async def main() -> None:
        daemon = Daemon(Broadcast(lines=4))
        async with serving(daemon) as served, talking(served) as talk:
            await talk.send(FOLLOW)
            await daemon.followed.wait()
            await flood(served, 4000)
            assert (await ask(served, "GET", "/v1/status")).status == 200
            daemon.happenings.close()
            lines = (await talk.reply()).lines
            lost = [line for line in lines if "lost" in line]
            assert lost
            assert told(lines) == 4000
            # The stream has ended properly, and the connection serves on.
            await talk.send(STATUS)
            assert (await talk.reply()).status == 200

    run(main)


def test_a_follower_that_never_reads_gives_its_place_up() -> None:
    """After the stalled limit the server hangs up on it, and not before."""
    clock = MockClock()

    async def main() -> None:
        daemon = Daemon(Broadcast(lines=4))
        async with serving(daemon) as served, talking(served) as talk:
            await talk.send(FOLLOW)
            await daemon.followed.wait()
            await flood(served, 1000)
            clock.jump(DEFAULTS.stalled - 0.1)
            await wait_all_tasks_blocked()
            assert daemon.following == 1
            clock.jump(0.2)
            await talk.left()
            assert daemon.following == 0

    run(main, clock)


def long_answer() -> Daemon:
    daemon = Daemon()
    daemon.capsules_by_name["echo"]["long"] = "x" * (16 * PIECE)
    return daemon


def test_who_does_not_take_its_answer_is_left() -> None:
    """An answer that stands still ends with the connection, and cannot be taken for a whole one."""
    clock = MockClock()

    async def main() -> None:
        async with serving(long_answer()) as served, talking(served) as talk:
            await talk.send(request("GET", "/v1/capsules/echo"))
            await wait_all_tasks_blocked()
            clock.jump(DEFAULTS.write + 0.1)
            await talk.left()
            with pytest.raises(h11.RemoteProtocolError, match="without sending complete message body"):
                await talk.reply()

    run(main, clock)


def test_a_slow_reader_that_moves_on_gets_all() -> None:
    """The write deadline is for each piece: an answer may take far longer than it, as long as it moves."""
    clock = MockClock()

    async def main() -> None:
        async with serving(long_answer()) as served, talking(served) as talk:
            await talk.send(request("GET", "/v1/capsules/echo", "Connection: close"))
            began, size = trio.current_time(), 0
            await wait_all_tasks_blocked()
            while data := await talk.stream.receive_some(PIECE):
                size += len(data)
                clock.jump(DEFAULTS.write / 3)
                await wait_all_tasks_blocked()
            assert size > 16 * PIECE
            assert trio.current_time() - began > 2 * DEFAULTS.write

    run(main, clock)


def test_the_descriptors_are_counted() -> None:
    """The count above sees an open descriptor."""
    before = open_descriptors()
    read, write = os.pipe()
    assert open_descriptors() == before + 2
    os.close(read)
    os.close(write)
