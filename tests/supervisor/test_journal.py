"""Lines on their way to journald: each is an entry, none can be more than one, and nobody waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import LogStream
from capsuled.supervisor import journal, logline
from capsuled.supervisor.configuration import Log
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.journal import DATAGRAM_BYTES, Journal, encode, entry, path

from .control.serving import run
from .journald import Journald, parse

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)

DEADLINE = 20.0


def line(text: str, level: str = "info", stream: LogStream = LogStream.GUEST) -> JsonObject:
    return logline.make(NOON, "echo", "1f", stream, level, text).shape


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    made = Journald(tmp_path / "socket")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("level", "priority"), [("trace", "7"), ("debug", "7"), ("info", "6"), ("warn", "4"), ("error", "3")]
)
def test_a_line_is_an_entry(level: str, priority: str) -> None:
    """Its text is the message; the rest are fields to look for it by."""
    assert parse(entry(line("hello", level, LogStream.STDERR))) == {
        "MESSAGE": "hello",
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "capsuled",
        "CAPSULED_CAPSULE": "echo",
        "CAPSULED_INSTANCE": "1f",
        "CAPSULED_STREAM": "stderr",
        "CAPSULED_TIME": "2026-01-31T12:00:00.000Z",
    }


def test_the_bytes_of_the_protocol() -> None:
    """One line for a field; with a newline in the value: its name, its length in 64 bits little-endian, the value."""
    assert encode({"A": "b=c", "D": "e\nf"}) == b"A=b=c\nD\n\x03\x00\x00\x00\x00\x00\x00\x00e\nf\n"


@given(st.text(st.characters()))
def test_no_text_makes_a_field(text: str) -> None:
    """Invariant: whatever a guest says is its message and nothing else."""
    found = parse(entry(line(text)))
    assert found["MESSAGE"] == text.encode(errors="backslashreplace").decode()
    assert set(found) == set(parse(entry(line(""))))


def test_lines_arrive_in_order(journald: Journald) -> None:
    """While it runs and at the end, all that was offered."""

    async def main() -> None:
        way = Journal(str(journald.path))
        async with trio.open_nursery() as nursery:
            await nursery.start(way.run)
            for number in range(5):
                way.offer(line(f"{number}"))
            await trio.testing.wait_all_tasks_blocked()
            assert journald.messages() == [f"{number}" for number in range(5)]
            nursery.cancel_scope.cancel()
        way.offer(line("last"))
        way.flush()
        assert journald.messages() == ["last"]

    run(main)


@pytest.mark.parametrize(("over", "by_file"), [(0, False), (1, True), (200_000, True)])
def test_what_is_too_large_for_a_datagram(journald: Journald, over: int, by_file: bool) -> None:
    """The largest goes as a datagram; one byte more, and it is a sealed file."""
    text = "x" * (DATAGRAM_BYTES - len(entry(line(""))) + over)
    way = Journal(str(journald.path))

    async def main() -> None:
        way.offer(line(text))
        way.flush()

    run(main)
    (found,) = journald.entries()
    assert (found.fields["MESSAGE"], found.by_file) == (text, by_file)


def test_a_system_whose_sockets_take_less(journald: Journald, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel finds too long for a datagram goes as a file."""
    monkeypatch.setattr(journal, "DATAGRAM_BYTES", 1 << 30)
    way = Journal(str(journald.path))

    async def main() -> None:
        way.offer(line("x" * 2_000_000))
        way.flush()

    run(main)
    (found,) = journald.entries()
    assert found.by_file


def test_a_journal_that_is_slow(journald: Journald) -> None:
    """More than its queue takes at once: nothing is lost, nothing waits for it, and the order stays."""
    count = 2000

    async def main() -> None:
        way = Journal(str(journald.path))
        async with trio.open_nursery() as nursery:
            await nursery.start(way.run)
            for number in range(count):
                way.offer(line(f"{number}"))
            found: list[str] = []
            with trio.fail_after(DEADLINE):
                while len(found) < count:
                    await trio.testing.wait_all_tasks_blocked()
                    found += journald.messages()
            assert found == [f"{number}" for number in range(count)]
            nursery.cancel_scope.cancel()
        way.flush()

    run(main)


def test_what_a_hanging_journal_does_not_take_is_counted(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line over the bound is lost; the journal is told how many when it takes lines again."""
    size = len(entry(line("0")))

    async def main() -> None:
        way = Journal(str(journald.path))
        monkeypatch.setattr(journal, "WAITING_BYTES", 3 * size)
        for number in range(5):
            way.offer(line(f"{number}"))
        monkeypatch.undo()
        way.offer(line("5"))
        way.flush()

    run(main)
    told = "lost: 2 lines that the journal did not take: the files have them"
    assert journald.messages() == ["0", "1", "2", told, "5"]
    assert not caplog.records


def test_the_end_waits_for_no_hanging_journal(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does not take within the time is counted in the supervisor's own log."""
    monkeypatch.setattr(journal, "LAST_LINES_SECONDS", 0.1)

    async def main() -> None:
        way = Journal(str(journald.path))
        for number in range(5000):
            way.offer(line(f"{number}"))
        begun = time.monotonic()
        way.flush()
        assert time.monotonic() - begun < 5.0

    run(main)
    (record,) = caplog.records
    lost = vars(record)["fields"]["lost"]
    assert 0 < lost < 5000
    assert len(journald.messages()) + lost == 5000


def test_a_journal_that_is_started_again(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Under the same name there is another socket: what comes goes there; what came meanwhile too, in order."""
    monkeypatch.setattr(journal, "AGAIN_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "capsuled.journal")

    async def main() -> None:
        way = Journal(str(journald.path))
        async with trio.open_nursery() as nursery:
            await nursery.start(way.run)
            way.offer(line("0"))
            await trio.testing.wait_all_tasks_blocked()
            assert journald.messages() == ["0"]
            journald.close()
            second = Journald(journald.path)
            way.offer(line("1"))
            await trio.testing.wait_all_tasks_blocked()
            assert second.messages() == ["1"]
            assert not caplog.records
            second.close()
            second.path.unlink()
            way.offer(line("2"))
            way.offer(line("3"))
            with trio.fail_after(DEADLINE):
                while not caplog.records:
                    await trio.lowlevel.checkpoint()
            third = Journald(journald.path)
            found: list[str] = []
            with trio.fail_after(DEADLINE):
                while len(found) < 2:
                    await trio.lowlevel.checkpoint()
                    found += third.messages()
            third.close()
            assert found == ["2", "3"]
            nursery.cancel_scope.cancel()
        way.flush()

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_no_journal_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and at the end how many lines it did not get."""

    async def main() -> None:
        way = Journal(str(tmp_path / "none"))
        way.offer(line("1"))
        way.offer(line("2"))
        way.flush()

    run(main)
    assert [vars(record)["fields"].get("lost") for record in caplog.records] == [None, 2]


def test_where_the_journal_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto`: where its socket is; true: there in any case; a path: that one; false: nowhere."""
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "socket"))
    assert path(Log()) is None
    assert path(Log(journal=True)) == str(tmp_path / "socket")
    assert path(Log(journal="/run/mine")) == "/run/mine"
    assert path(Log(journal=False)) is None
    there = Journald(tmp_path / "socket")
    assert path(Log()) == str(tmp_path / "socket")
    assert path(Log(journal=False)) is None
    there.close()
