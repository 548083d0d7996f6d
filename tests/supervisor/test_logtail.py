"""The end of log files, read backwards: the newest lines, whatever else the files hold."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.control import LogStream
from capsuled.supervisor import logline
from capsuled.supervisor.control import shapes
from capsuled.supervisor.logline import LINE_OVERHEAD
from capsuled.supervisor.logtail import BLOCK_BYTES, LINE_BYTES, READ_BYTES, Part, Tail, read

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def line(text: str, capsule: str = "a") -> bytes:
    return shapes.line(logline.make(NOON, capsule, "1f", LogStream.GUEST, "info", text).shape)


def tail(*paths: Path, lines: int = 10_000, size: int = 1 << 30, end: int | None = None) -> Tail:
    return read([Part(paths[0], end), *map(Part, paths[1:])], "a", lines, size)


def texts(found: Tail) -> list[object]:
    return [each.shape["message"] for each in found.lines]


@given(
    st.lists(
        st.one_of(st.text(max_size=50), st.integers(1, 3).map(lambda n: "x" * n * (BLOCK_BYTES // 2))),
        max_size=8,
    )
)
def test_all_comes_back(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> None:
    """Invariant: what was written as lines is read as the same lines, wherever the blocks have their borders."""
    path = tmp_path_factory.mktemp("logs") / "a.log"
    path.write_bytes(b"".join(line(text) for text in said))
    assert texts(tail(path)) == said
    assert tail(path).odd == 0


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_rubbish_hides_no_line(tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes) -> None:
    """Invariant: bytes that are no lines of ours are counted, never raised, and the line between them is found."""
    path = tmp_path_factory.mktemp("logs") / "a.log"
    path.write_bytes(before + b"\n" + line("mine") + after)
    assert texts(tail(path)) == ["mine"]


def test_the_newest_within_the_bounds(tmp_path: Path) -> None:
    """So many lines, or so many bytes in memory: one more is not taken, though a smaller one before it would fit."""
    new, old = tmp_path / "a.log", tmp_path / "a.log.1"
    old.write_bytes(line("1") + line("2"))
    new.write_bytes(line("3") + line("4"))
    assert texts(tail(new, old)) == ["1", "2", "3", "4"]
    assert texts(tail(new, old, lines=3)) == ["2", "3", "4"]
    size = tail(new).lines[0].size
    assert texts(tail(new, old, size=3 * size)) == ["2", "3", "4"]
    assert texts(tail(new, old, size=3 * size - 1)) == ["3", "4"]
    assert texts(tail(new, old, end=len(line("3")))) == ["1", "2", "3"]
    assert texts(tail(new, old, end=0)) == ["1", "2"]


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"null",
        b"[]",
        b'{"time":1}',
        b"[" * 100_000,
        b'{"n":' + b"9" * 5000 + b"}",
        line("x", "b").rstrip(),
        line("x").replace(b"guest", b"kernel").rstrip(),
        line("x").replace(b"info", b"loud").rstrip(),
        line("x").replace(b"2026-01-31T12:00:00.000Z", b"yesterday").rstrip(),
        line("x").replace(b"12:00:00.000Z", b"12:00:00").rstrip(),
        line("x").replace(b'"message"', b'"massage"').rstrip(),
        line("x")[:-10],
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_line_of_this_log(tmp_path: Path, odd: bytes) -> None:
    """It is passed over and counted, in the middle and unfinished at the end, where nothing at all is nothing."""
    path = tmp_path / "a.log"
    path.write_bytes(line("1") + odd + b"\n" + line("2"))
    assert (texts(tail(path)), tail(path).odd) == (["1", "2"], 1)
    path.write_bytes(line("1") + odd)
    assert (texts(tail(path)), tail(path).odd) == (["1"], 1 if odd else 0)


def test_a_whole_line_without_its_newline_counts(tmp_path: Path) -> None:
    """Only the newline was not written any more."""
    path = tmp_path / "a.log"
    path.write_bytes(line("1") + line("2").rstrip())
    assert texts(tail(path)) == ["1", "2"]


def test_the_longest_line_is_one(tmp_path: Path) -> None:
    """Its text is as long as it may be, and all of it escaped; what is longer than any line is not kept in memory."""
    path = tmp_path / "a.log"
    longest = "\x01" * MAX_LOG_TEXT
    assert len(line(longest)) <= LINE_BYTES
    path.write_bytes(line("1") + line(longest) + b"x" * (LINE_BYTES + 2 * BLOCK_BYTES) + b"\n" + line("2"))
    found = tail(path)
    assert (texts(found), found.odd) == (["1", longest, "2"], 1)
    path.write_bytes(line("1") + b"x" * (LINE_BYTES + 2 * BLOCK_BYTES))
    assert (texts(tail(path)), tail(path).odd) == (["1"], 1)


def test_a_file_of_rubbish_is_given_up(tmp_path: Path) -> None:
    """However large it is, no more of it is read than may be."""
    path = tmp_path / "a.log"
    size = LINE_OVERHEAD
    filling = b"x\n" * ((READ_BYTES + 2 * size) // 2)
    path.write_bytes(line("1") + filling[:-2000])
    assert texts(tail(path, size=1 << 20)) == ["1"]
    path.write_bytes(line("1") + filling)
    assert texts(tail(path, size=size)) == []
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert texts(tail(path, path, size=size)) == []


def test_what_is_planted_is_not_read(tmp_path: Path) -> None:
    """Links are not followed, a FIFO is not waited for, a device not touched: each is odd, the next file is read."""
    file = tmp_path / "file"
    file.write_bytes(line("1"))
    link, fifo, gone = tmp_path / "link", tmp_path / "fifo", tmp_path / "gone"
    link.symlink_to(file)
    os.mkfifo(fifo)
    found = tail(link, fifo, Path("/dev/zero"), tmp_path, gone, file)
    assert (texts(found), found.odd) == (["1"], 4)


def test_a_file_that_becomes_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody cuts it while it is read: what is gone is gone, and nothing waits for it."""
    path = tmp_path / "a.log"
    path.write_bytes(line("1"))

    def cut(fd: int, size: int, at: int) -> bytes:
        path.write_bytes(b"")
        return os.read(fd, size)

    monkeypatch.setattr(os, "pread", cut)
    assert texts(tail(path)) == []
