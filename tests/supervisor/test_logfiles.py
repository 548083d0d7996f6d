"""The capsules' log files: all that is offered is written or counted, and nobody waits for the disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from capsuled.supervisor import logfiles
from capsuled.supervisor.logfiles import LogFiles

from .control.serving import run


def offer(files: LogFiles, capsule: str, *numbers: int, size: int = 0) -> None:
    for number in numbers:
        files.offer(capsule, {"n": number, "message": "x" * size})


def read(path: Path) -> list[Mapping[str, int]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def numbers(path: Path) -> list[int]:
    return [each["n"] for each in read(path)]


def test_each_capsule_has_its_file(tmp_path: Path) -> None:
    """Lines are appended in order, each to its capsule's file, and what was there stays."""

    async def main() -> None:
        for _ in range(2):
            files = LogFiles(tmp_path, 1 << 20, 5)
            offer(files, "a", 1, 2)
            offer(files, "b", 3)
            files.flush()

    run(main)
    assert numbers(tmp_path / "a.log") == [1, 2, 1, 2]
    assert numbers(tmp_path / "b.log") == [3, 3]


def test_a_file_is_rotated_before_it_is_too_large(tmp_path: Path) -> None:
    """No file is larger than its bound, `.1` is the newest of the rotated, and no more than `keep` stay."""

    async def main() -> None:
        files = LogFiles(tmp_path, 1000, 2)
        offer(files, "a", *range(20), size=200)
        files.flush()

    run(main)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    kept = [n for name in ("a.log.2", "a.log.1", "a.log") for n in numbers(tmp_path / name)]
    assert kept == list(range(kept[0], 20))


@pytest.mark.parametrize("size_before", [999, 1000])
def test_the_bound_is_exact(tmp_path: Path, size_before: int) -> None:
    """A line that just fits goes into the file; one byte more, and the file is rotated first."""
    encoded = len(json.dumps({"n": 1, "message": ""}, separators=(",", ":"))) + 1
    (tmp_path / "a.log").write_bytes(b"x" * (size_before - encoded))

    async def main() -> None:
        files = LogFiles(tmp_path, 999, 1)
        offer(files, "a", 1)
        files.flush()

    run(main)
    assert (tmp_path / "a.log.1").exists() == (size_before > 999)


def test_a_line_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    """It is written all the same, and nothing spins."""

    async def main() -> None:
        files = LogFiles(tmp_path, 100, 3)
        offer(files, "a", 1)
        offer(files, "a", 2, size=500)
        offer(files, "a", 3)
        files.flush()

    run(main)
    assert [numbers(tmp_path / name) for name in ("a.log.2", "a.log.1", "a.log")] == [[1], [2], [3]]


def test_none_are_kept_where_none_may_be(tmp_path: Path) -> None:
    """`file_count = 0`: what does not fit any more goes."""

    async def main() -> None:
        files = LogFiles(tmp_path, 100, 0)
        offer(files, "a", *range(9), size=20)
        files.flush()

    run(main)
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]
    assert numbers(tmp_path / "a.log")[-1] == 8


def test_what_the_disk_is_too_slow_for_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bound lines are lost, and the next line that is written says how many."""
    monkeypatch.setattr(logfiles, "WAITING_BYTES", 100)

    async def main() -> None:
        files = LogFiles(tmp_path, 1 << 20, 1)
        offer(files, "a", 1, size=50)
        offer(files, "a", 2, 3, size=50)
        files.flush()
        offer(files, "a", 4)
        files.flush()

    run(main)
    assert [each.get("n", -each.get("lost", 0)) for each in read(tmp_path / "a.log")] == [1, -2, 4]


def test_what_the_disk_refuses_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be written is said once; when it can be again, the first line tells what is missing."""
    (tmp_path / "a.log").mkdir()

    async def main() -> None:
        files = LogFiles(tmp_path, 1 << 20, 1)
        for number in range(3):
            offer(files, "a", number)
            offer(files, "b", number)
            files.flush()
        (tmp_path / "a.log").rmdir()
        offer(files, "a", 3)
        files.flush()
        offer(files, "a", 4)
        files.flush()

    run(main)
    assert [each.get("n", -each.get("lost", 0)) for each in read(tmp_path / "a.log")] == [-3, 3, 4]
    assert numbers(tmp_path / "b.log") == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {tmp_path / 'a.log'}: Is a directory: its lines are lost"
    ]


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs, lines are taken; a cancel waits for the write, and loses nothing that was offered."""
    hanging, go_on = threading.Event(), threading.Event()
    write = LogFiles._write  # pyright: ignore[reportPrivateUsage]

    def slow(self: LogFiles, path: Path, lines: list[bytes]) -> None:
        hanging.set()
        assert go_on.wait(20)
        write(self, path, lines)

    monkeypatch.setattr(LogFiles, "_write", slow)

    async def main() -> None:
        files = LogFiles(tmp_path, 1 << 20, 1)
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            offer(files, "a", 1)
            assert await trio.to_thread.run_sync(hanging.wait, 20)
            offer(files, "a", 2)
            nursery.cancel_scope.cancel()
            go_on.set()
        files.flush()

    run(main)
    assert numbers(tmp_path / "a.log") == [1, 2]


@pytest.mark.parametrize("_attempt", range(10))
def test_a_cancel_that_comes_with_a_line_loses_neither(tmp_path: Path, _attempt: int) -> None:
    """What is offered in the same moment as the end is written: it is taken by nobody who is then cancelled."""

    async def main() -> None:
        files = LogFiles(tmp_path, 1 << 20, 1)
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            await trio.lowlevel.checkpoint()
            offer(files, "a", 1)
            await trio.lowlevel.cancel_shielded_checkpoint()
            nursery.cancel_scope.cancel()
        files.flush()

    run(main)
    assert numbers(tmp_path / "a.log") == [1]
