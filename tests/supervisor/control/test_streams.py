"""Lines for many followers, of whom none can hold the publisher up."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.control.streams import (
    BATCH_BYTES,
    FOLLOWER_BYTES,
    FOLLOWER_LINES,
    Broadcast,
    Follower,
)

from .serving import run


async def rest(follower: Follower) -> list[dict[str, int]]:
    """All that a follower receives until its end."""
    lines: list[dict[str, int]] = []
    while batch := await follower.receive():
        assert batch.endswith(b"\n")
        lines.extend(json.loads(line) for line in batch.splitlines())
    return lines


def test_every_follower_gets_every_line() -> None:
    """What is published reaches all who follow, in order, and then the end."""

    async def main() -> None:
        broadcast = Broadcast()
        with broadcast.follow() as one, broadcast.follow() as two:
            for n in range(3):
                broadcast.publish({"n": n})
            broadcast.close()
            assert await rest(one) == await rest(two) == [{"n": 0}, {"n": 1}, {"n": 2}]

    run(main)


def test_a_follower_gets_nothing_of_before() -> None:
    """Following begins where it is entered."""

    async def main() -> None:
        broadcast = Broadcast()
        broadcast.publish({"n": 0})
        with broadcast.follow() as follower:
            broadcast.publish({"n": 1})
            broadcast.close()
            assert await rest(follower) == [{"n": 1}]

    run(main)


def test_nothing_is_kept_for_who_left() -> None:
    """After its block a follower costs the publisher nothing."""

    async def main() -> None:
        broadcast = Broadcast()
        with broadcast.follow() as follower:
            pass
        broadcast.publish({"n": 0})
        assert await rest(follower) == []

    run(main)


def test_following_what_is_closed_ends_at_once() -> None:
    """A broadcast that is closed has no lines, and nobody waits for them."""

    async def main() -> None:
        broadcast = Broadcast()
        broadcast.close()
        with broadcast.follow() as follower:
            assert await rest(follower) == []

    run(main)


@pytest.mark.parametrize("over", [0, 1, 3])
def test_lines_are_bounded(over: int) -> None:
    """As many lines as the bound wait; each that is over is counted, at its place."""

    async def main() -> None:
        broadcast = Broadcast()
        with broadcast.follow() as follower:
            for n in range(FOLLOWER_LINES + over):
                broadcast.publish({"n": n})
            broadcast.close()
            lines = await rest(follower)
        assert lines[:FOLLOWER_LINES] == [{"n": n} for n in range(FOLLOWER_LINES)]
        assert lines[FOLLOWER_LINES:] == ([{"lost": over}] if over else [])

    run(main)


@pytest.mark.parametrize("over", [0, 1])
def test_bytes_are_bounded(over: int) -> None:
    """As many bytes as the bound wait; a line that goes past it by one is lost."""

    async def main() -> None:
        follower = Follower()
        follower.offer(b"x" * (FOLLOWER_BYTES - 10) + b"\n")
        follower.offer(b"y" * (8 + over) + b"\n")
        assert (await follower.receive()).startswith(b"x")
        follower.close()
        assert await follower.receive() == (b'{"lost":1}\n' if over else b"y" * 8 + b"\n")

    run(main)


def test_a_line_larger_than_the_bound_passes_alone() -> None:
    """No line is too large for a follower that keeps up."""

    async def main() -> None:
        follower = Follower(size=10)
        follower.offer(b"x" * 20)
        follower.offer(b"y")
        assert await follower.receive() == b"x" * 20 + b'{"lost":1}\n'

    run(main)


def test_the_loss_stands_where_the_lines_are_missing() -> None:
    """Between the last line before the loss and the first line after it."""

    async def main() -> None:
        follower = Follower(lines=1)
        follower.offer(b"1\n")
        follower.offer(b"2\n")
        assert await follower.receive() == b'1\n{"lost":1}\n'
        follower.offer(b"3\n")
        follower.offer(b"4\n")
        follower.close()
        assert await follower.receive() == b'3\n{"lost":1}\n'
        assert await follower.receive() == b""

    run(main)


def test_a_batch_is_bounded() -> None:
    """After `BATCH_BYTES` a follower gets what was collected, and the rest next time."""

    async def main() -> None:
        follower = Follower()
        for line in (b"a" * BATCH_BYTES, b"b"):
            follower.offer(line)
        assert await follower.receive() == b"a" * BATCH_BYTES
        assert await follower.receive() == b"b"
        for line in (b"a" * (BATCH_BYTES - 1), b"b"):
            follower.offer(line)
        assert await follower.receive() == b"a" * (BATCH_BYTES - 1) + b"b"

    run(main)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4), st.integers(1, 60))
def test_nothing_is_lost_without_a_word(steps: list[int], lines: int, size: int) -> None:
    """Lines received and lines told to be lost are together those published, in order, none twice."""

    async def main() -> None:
        broadcast = Broadcast(lines, size)
        published = 0
        got: list[dict[str, int]] = []
        with broadcast.follow() as follower:
            for step in steps:
                for _ in range(step):
                    broadcast.publish({"n": published})
                    published += 1
                if step:
                    # Something waits or was lost, so that this cannot block.
                    got.extend(json.loads(line) for line in (await follower.receive()).splitlines())
            broadcast.close()
            got.extend(await rest(follower))
        expected = 0
        for line in got:
            if "lost" in line:
                expected += line["lost"]
            else:
                assert line == {"n": expected}
                expected += 1
        assert expected == published

    trio.run(main)
