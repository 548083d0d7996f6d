"""The supervisor's own log: one line for each fact, that people read and programs parse, and nobody else can write."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor import ownlog
from capsuled.supervisor.ownlog import Formatter, Patient, fields, is_journal, text

PAIR = re.compile(r'([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s"=\\]+))(?: |$)')
"""As readers of logfmt split a line: a bare value has no blank, quote or equals sign."""


def read(line: str) -> dict[str, str]:
    """The pairs of a line; AssertionError where anything is left over or a key comes twice."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        match = PAIR.match(line, at)
        assert match, line[at:]
        key, quoted, bare = match.groups()
        assert key not in found
        found[key] = bare if quoted is None else json.loads(f'"{quoted}"')
        at = match.end()
    return found


def record(message: str, /, *args: object, level: int = logging.INFO, **facts: object) -> logging.LogRecord:
    made = logging.LogRecord("capsuled.x", level, "", 0, message, args, None)
    made.created = 1769860800.5  # 2026-01-31T12:00:00.5Z
    made.fields = facts
    return made


def test_a_line_for_people_and_programs() -> None:
    """Time, level and logger, the fact, and what belongs to it."""
    made = Formatter("text").format(
        record("started: pid %d", 12, path="/run/c.sock", capsules=3, ok=True, none=None)
    )
    assert made == (
        "time=2026-01-31T12:00:00.500Z level=info logger=capsuled.x "
        'event="started: pid 12" path=/run/c.sock capsules=3 ok=true none=null'
    )


def test_a_line_for_programs_alone() -> None:
    """JSON has the same, with its own types."""
    made = Formatter("json").format(record("a\nb", level=logging.WARNING, capsules=3, x=["é"]))
    assert made.isascii()
    assert json.loads(made) == {
        "time": "2026-01-31T12:00:00.500Z",
        "level": "warn",
        "logger": "capsuled.x",
        "event": "a\nb",
        "capsules": 3,
        "x": ["é"],
    }


@pytest.mark.parametrize(
    ("level", "word", "priority"),
    [
        (logging.DEBUG, "debug", 7),
        (logging.INFO, "info", 6),
        (logging.WARNING, "warn", 4),
        (logging.ERROR, "error", 3),
        (logging.CRITICAL, "error", 3),
    ],
)
def test_under_systemd_a_line_has_its_priority(level: int, word: str, priority: int) -> None:
    """As in sd-daemon(3), and no time: the journal stamps it."""
    made = Formatter("text", to_journal=True).format(record("x", level=level))
    assert made == f"<{priority}>level={word} logger=capsuled.x event=x"
    made = Formatter("json", to_journal=True).format(record("x", level=level))
    assert made.startswith(f'<{priority}>{{"level":"{word}"')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("/a/b:c,d-e", "/a/b:c,d-e"),
        ("café", "café"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('a"b', r'"a\"b"'),
        ("a\\b", r'"a\\b"'),
        ("a\nb", r'"a\nb"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("\x9b31m", r'"\u009b31m"'),
        ("\u202eevil", r'"\u202eevil"'),
        ("\u2028", r'"\u2028"'),
        ("\ud800", r'"\ud800"'),
    ],
)
def test_values_as_readers_of_logfmt_want_them(value: str, shown: str) -> None:
    """Bare where that is clear; quoted as JSON does where it is not, and escaped where a terminal would act on it."""
    assert text({"k": value}) == f"k={shown}"


@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=60))
def test_no_words_become_a_line_or_a_field(said: str, more: str) -> None:
    """Invariant: whatever a guest, a peer or a file says is the value it was given as, on one line."""
    for form in ("text", "json"):
        made = Formatter(form).format(record(said, message=more, level_=1))
        assert made.isascii() if form == "json" else made.isprintable()
        assert "\n" not in made
        found = read(made) if form == "text" else json.loads(made)
        assert list(found) == ["time", "level", "logger", "event", "message", "level_"]
        assert (found["event"], found["message"]) == (said, more)


def test_what_is_ours_is_not_overwritten() -> None:
    """A fact that is called like a key of each line does not replace it."""
    found = read(Formatter("text").format(record("x", level=1, event=1, time=1, y=1)))
    assert (found["event"], found["y"]) == ("x", "1")


def test_a_traceback_is_a_field() -> None:
    """Also an exception is one line."""
    try:
        raise ValueError("a\nb")
    except ValueError:
        made = record("a defect")
        made.exc_info = sys.exc_info()
    line = Formatter("text").format(made)
    assert "\n" not in line
    found = read(line)
    assert found["event"] == "a defect"
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("ValueError: a\nb")


def test_fields_reach_the_line(caplog: pytest.LogCaptureFixture) -> None:
    """What a module gives to `fields` stands in the record."""
    logging.getLogger("capsuled.x").warning("x", extra=fields(capsule="a"))
    assert read(Formatter("text").format(caplog.records[0]))["capsule"] == "a"


def test_whether_standard_error_is_the_journal() -> None:
    """Only where device and inode are the ones that systemd has told of: a variable may have been inherited."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    assert is_journal(writer, f"{found.st_dev}:{found.st_ino}")
    assert not is_journal(writer, f"{found.st_dev}:{found.st_ino + 1}")
    assert not is_journal(writer, None)
    assert not is_journal(writer, "rubbish")
    os.close(reader)
    os.close(writer)
    assert not is_journal(writer, f"{found.st_dev}:{found.st_ino}")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_lines_are_written(pipe: tuple[int, int]) -> None:
    """Each once, in order, and all of them when it has finished."""
    handler = Patient(pipe[1], Formatter("text"))
    for number in range(100):
        handler.emit(record("%d", number))
    handler.finish()
    lines = os.read(pipe[0], 1 << 20).decode().splitlines()
    assert [read(line)["event"] for line in lines] == [f"{number}" for number in range(100)]


def test_lines_that_nobody_reads_are_counted(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits; when somebody reads again, a line of the same form says how many are missing."""
    monkeypatch.setattr(ownlog, "WAITING_LINES", 2)
    os.set_blocking(pipe[1], False)
    filler = 0
    with suppress(BlockingIOError):
        while True:
            filler += os.write(pipe[1], b"x" * 4096)
    os.set_blocking(pipe[1], True)
    handler = Patient(pipe[1], Formatter("text"))
    for number in range(10):
        handler.emit(record("%d", number))
    while filler:
        filler -= len(os.read(pipe[0], min(filler, 4096)))
    rest = b""
    while rest.count(b"\n") < 2:
        rest += os.read(pipe[0], 4096)
    handler.emit(record("after"))
    handler.finish()
    while b"event=after" not in rest:
        rest += os.read(pipe[0], 4096)
    found = [read(line) for line in rest.decode().splitlines()]
    told = next(each for each in found if "lost" in each)
    assert told["event"] == f"{told['lost']} lines are lost: nobody has read them"
    assert int(told["lost"]) + len(found) - 2 == 10
