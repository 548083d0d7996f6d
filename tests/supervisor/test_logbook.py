"""The lines of one capsule in memory: bounded, newest last, offered to whoever keeps or follows them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import LogStream
from capsuled.supervisor import logline
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.logbook import LogBook
from capsuled.supervisor.logline import LINE_OVERHEAD, Line

from .control.serving import run

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


class Offered(list[tuple[str, JsonObject]]):
    """Takes lines as the files do."""

    def __call__(self, capsule: str, line: JsonObject) -> None:
        self.append((capsule, line))


def book(lines: int = 1000, size: int = 1 << 20, offered: Offered | None = None) -> LogBook:
    return LogBook("echo", lines, size, Offered() if offered is None else offered)


def say(log: LogBook, message: str, time: datetime = NOON) -> None:
    log.append(time, "1f", LogStream.GUEST, "info", message)


def messages(log: LogBook, count: int = 1000, since: datetime | None = None) -> list[object]:
    return [line["message"] for line in log.last(count, since)]


def test_a_line_has_the_shape_of_the_contract() -> None:
    """time, capsule, instance, stream, level, message; the same object is kept and offered to the files."""
    offered = Offered()
    log = book(offered=offered)
    say(log, "hello")
    expected = {
        "time": "2026-01-31T12:00:00.000Z",
        "capsule": "echo",
        "instance": "1f",
        "stream": "guest",
        "level": "info",
        "message": "hello",
    }
    assert log.last(1) == [expected]
    assert offered == [("echo", expected)]


def test_the_newest_lines_stay() -> None:
    """One line more than there is room for pushes the oldest out; the files get it all the same."""
    offered = Offered()
    log = book(lines=3, offered=offered)
    for number in range(4):
        say(log, str(number))
    assert messages(log) == ["1", "2", "3"]
    assert len(offered) == 4


def test_last_takes_from_the_end() -> None:
    """So many lines at most, oldest first; none for 0; and none that is older than asked for."""
    log = book()
    for number in range(4):
        say(log, str(number), NOON + timedelta(seconds=number))
    assert messages(log, 2) == ["2", "3"]
    assert messages(log, 0) == []
    assert messages(log, 9) == ["0", "1", "2", "3"]
    assert messages(log, 9, NOON + timedelta(seconds=2)) == ["2", "3"]
    assert messages(log, 1, NOON + timedelta(seconds=2)) == ["3"]


def test_since_hides_nothing_that_came_later() -> None:
    """The clock is set back by an hour: what comes then has older times, stays in its place, and is shown."""
    log = book()
    say(log, "old", NOON - timedelta(minutes=1))
    say(log, "new", NOON)
    say(log, "after the step", NOON - timedelta(hours=1))
    say(log, "and on", NOON - timedelta(minutes=59))
    assert messages(log, 9, NOON) == ["new", "after the step", "and on"]
    assert messages(log, 9, NOON + timedelta(milliseconds=1)) == []
    assert messages(log) == ["old", "new", "after the step", "and on"]


def test_a_line_larger_than_the_whole_bound_is_kept_alone() -> None:
    """The newest line is never lost, whatever its size."""
    log = book(size=1024)
    say(log, "small")
    say(log, "x" * 5000)
    assert messages(log) == ["x" * 5000]
    say(log, "next")
    assert messages(log) == ["next"]


@given(st.lists(st.text(max_size=300), max_size=60), st.integers(1, 20), st.integers(1000, 8000))
def test_never_more_than_its_bounds(texts: list[str], lines: int, size: int) -> None:
    """Invariant: no more lines than may be; no more bytes than may be, but for the newest line; the newest are kept."""
    log = book(lines, size)
    for text in texts:
        say(log, text)
    kept = messages(log)
    assert kept == texts[len(texts) - len(kept) :]
    assert len(kept) <= lines
    # As they lie in memory: a letter beyond Latin-1 makes each one of its line take two bytes or four.
    assert len(kept) <= 1 or sum(sys.getsizeof(each) + LINE_OVERHEAD for each in kept) <= size
    assert bool(kept) == bool(texts)


def test_followers_get_what_is_appended() -> None:
    """Who follows reads each line from then on, as JSON."""

    async def main() -> None:
        log = book()
        say(log, "before")
        with log.followers.follow() as follower:
            say(log, "after")
            assert json.loads(await follower.receive())["message"] == "after"

    run(main)


def older(*texts: str) -> list[Line]:
    return [logline.make(NOON, "echo", "0f", LogStream.GUEST, "info", text) for text in texts]


class Before:
    """What files hold from before, and what they were asked for."""

    def __init__(self, lines: Sequence[Line] | None) -> None:
        self.lines = lines
        self.asked: list[tuple[int, int]] = []
        self.go_on = trio.Event()
        self.go_on.set()

    async def __call__(self, lines: int, size: int) -> Sequence[Line] | None:
        self.asked.append((lines, size))
        await self.go_on.wait()
        return self.lines


def remembering(before: Before, lines: int = 1000, size: int = 1 << 20) -> LogBook:
    return LogBook("echo", lines, size, Offered(), before)


def test_older_lines_stand_in_front() -> None:
    """They are asked for once, within the ring's bounds, and neither offered nor published again."""

    async def main() -> None:
        before = Before(older("a", "b"))
        log = remembering(before)
        say(log, "c")
        with log.followers.follow() as follower:
            await log.recall()
            await log.recall()
            assert messages(log) == ["a", "b", "c"]
            say(log, "d")
            assert json.loads(await follower.receive())["message"] == "d"
        assert before.asked == [(1000, 1 << 20)]

    run(main)


def test_older_lines_only_where_there_is_room() -> None:
    """The newest of them, and no more than the bounds allow; nothing of this run goes for them."""

    async def main() -> None:
        log = remembering(Before(older("a", "b", "c")), lines=3)
        say(log, "d")
        await log.recall()
        assert messages(log) == ["b", "c", "d"]
        (large,) = older("x" * 1000)
        log = remembering(Before([*older("a"), large, *older("b")]), size=1200)
        say(log, "c")
        await log.recall()
        assert messages(log) == ["b", "c"]

    run(main)


def test_a_ring_that_was_full_asks_nobody() -> None:
    """What stands in the files before lines that went would stand before a gap."""

    async def main() -> None:
        before = Before(older("a"))
        log = remembering(before, lines=1)
        say(log, "b")
        say(log, "c")
        await log.recall()
        assert (messages(log), before.asked) == (["c"], [])

    run(main)


def test_a_ring_that_fills_while_it_asks() -> None:
    """What comes meanwhile is not lost, and what was pushed out is not missing in the middle."""

    async def main() -> None:
        before = Before(older("a"))
        before.go_on = trio.Event()
        log = remembering(before, lines=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.recall)
            await trio.testing.wait_all_tasks_blocked()
            for text in "bcd":
                say(log, text)
            before.go_on.set()
        assert messages(log) == ["c", "d"]

    run(main)


def test_two_who_ask_at_once() -> None:
    """No line comes twice."""

    async def main() -> None:
        before = Before(older("a"))
        before.go_on = trio.Event()
        log = remembering(before)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(log.recall)
            await trio.testing.wait_all_tasks_blocked()
            before.go_on.set()
        assert messages(log) == ["a"]

    run(main)


def test_a_slow_disk_is_asked_again() -> None:
    """Who asks while it does not answer gets what memory has; the next one gets all."""

    async def main() -> None:
        before = Before(None)
        log = remembering(before)
        say(log, "b")
        await log.recall()
        assert messages(log) == ["b"]
        before.lines = older("a")
        await log.recall()
        assert messages(log) == ["a", "b"]

    run(main)
