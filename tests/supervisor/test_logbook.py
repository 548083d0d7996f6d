"""The lines of one capsule in memory: bounded, newest last, offered to whoever keeps or follows them."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import LogStream
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.logbook import LINE_OVERHEAD, LogBook

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
