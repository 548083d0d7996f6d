"""Lines on a disk that is full, gone, or full of what somebody has planted: counted, told, and never half a line."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.logdisk import Disk, Lost


def line(number: int, size: int = 0) -> bytes:
    return json.dumps({"n": number, "x": "x" * size}).encode() + b"\n"


def numbers(path: Path) -> list[int]:
    """The lines' numbers; where lines are missing, how many, below zero."""
    found = [json.loads(each) for each in path.read_bytes().splitlines()]
    return [-each["lost"] if "lost" in each else each["n"] for each in found]


@contextmanager
def no_file_beyond(size: int) -> Generator[None, None, None]:
    """As a disk that has room for so much: write(2) is short, and then fails (EFBIG; Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def quiet() -> Generator[None, None, None]:
    """Nothing else is written while there is no room: pytest keeps what is logged in a file."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("over", [0, 1, 10])
def test_what_fits_is_written_and_the_rest_is_counted(tmp_path: Path, over: int) -> None:
    """Of a batch that half fits the whole lines stay, and no half one; the next line tells how many went."""
    disk = Disk(tmp_path, 1 << 20, 1)
    size = len(line(0))
    with no_file_beyond(3 * size + over):
        disk.write("a", [line(n) for n in range(5)])
        assert (tmp_path / "a.log").stat().st_size == 3 * size
        disk.write("a", [line(5), Lost(7)])
    assert numbers(tmp_path / "a.log")[:3] == [0, 1, 2]
    disk.write("a", [line(6)])
    written = numbers(tmp_path / "a.log")
    assert written == [0, 1, 2, -(2 + 1 + 7), 6]
    disk.write("a", [line(7)])
    assert numbers(tmp_path / "a.log")[-1] == 7


@pytest.mark.usefixtures("quiet")
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(200, 2000)), max_size=8), st.integers(0, 300))
def test_no_line_is_neither_there_nor_counted(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int]], size: int
) -> None:
    """Invariant: whatever room there is, each line stands in the file or is counted where it is missing, in order."""
    folder = tmp_path_factory.mktemp("logs")
    disk, next_number = Disk(folder, 1 << 20, 1), 0
    for count, room in batches:
        with no_file_beyond(room):
            disk.write("a", [line(next_number + n, size) for n in range(count)])
        next_number += count
    disk.write("a", [line(next_number)])
    expected = 0
    for number in numbers(folder / "a.log"):
        if number < 0:
            expected -= number
        else:
            assert number == expected
            expected += 1
    assert expected == next_number + 1


def test_half_a_line_of_before_spoils_no_other(tmp_path: Path) -> None:
    """What a killed supervisor has left unfinished is ended by a newline, and the next line is whole."""
    (tmp_path / "a.log").write_bytes(line(0) + b'{"half')
    Disk(tmp_path, 1 << 20, 1).write("a", [line(1)])
    assert (tmp_path / "a.log").read_bytes() == line(0) + b'{"half\n' + line(1)


def test_a_folder_that_has_vanished_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No line is lost, and the supervisor's log says that it was gone."""
    folder = tmp_path / "logs"
    folder.mkdir()
    disk = Disk(folder, 1 << 20, 1)
    disk.write("a", [line(0)])
    shutil.rmtree(folder)
    disk.write("a", [line(1)])
    disk.write("b", [line(2)])
    assert (numbers(folder / "a.log"), numbers(folder / "b.log")) == ([1], [2])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [record.getMessage() for record in caplog.records] == [
        "the folder of the logs had vanished: it is made again"
    ]


def test_a_folder_that_cannot_be_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where all above it is gone as well, lines are counted; they are told when it is back."""
    folder = tmp_path / "state" / "logs"
    disk = Disk(folder, 1 << 20, 1)
    disk.write("a", [line(0)])
    disk.write("a", [line(1)])
    folder.mkdir(parents=True)
    disk.write("a", [line(2)])
    assert numbers(folder / "a.log") == [-2, 2]
    assert "No such file or directory: its lines are lost" in caplog.text


def link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def fifo(path: Path, _elsewhere: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _elsewhere: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [link, fifo, folder])
def test_what_is_planted_is_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: Callable[[Path, Path], None]
) -> None:
    """A link is not followed, a FIFO not waited for; lines are counted until a file can be there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    path = tmp_path / "a.log"
    plant(path, elsewhere)
    disk = Disk(tmp_path, 1 << 20, 1)
    disk.write("a", [line(0)])
    assert elsewhere.read_bytes() == b"mine"
    assert len(caplog.records) == 1
    if plant is folder:
        path.rmdir()
    else:
        path.unlink()
    disk.write("a", [line(1)])
    assert numbers(path) == [-1, 1]


def test_a_rotation_follows_no_link(tmp_path: Path) -> None:
    """What stands where a rotated file belongs is replaced, and not what it points to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (tmp_path / "a.log.1").symlink_to(elsewhere)
    disk = Disk(tmp_path, len(line(0)), 1)
    disk.write("a", [line(0), line(1)])
    assert elsewhere.read_bytes() == b"mine"
    assert not (tmp_path / "a.log.1").is_symlink()
    assert (numbers(tmp_path / "a.log.1"), numbers(tmp_path / "a.log")) == ([0], [1])
