"""The capsules' log files: all that is offered is written or counted, and nobody waits for the disk."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest
import trio

from capsuled.proto.control import LogStream
from capsuled.supervisor import logfiles, logline
from capsuled.supervisor.control import shapes
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.logdisk import Disk, Item
from capsuled.supervisor.logfiles import LogFiles, Recall

from .control.serving import run


def offer(files: LogFiles, capsule: str, *numbers: int, size: int = 0) -> None:
    for number in numbers:
        files.offer(capsule, {"n": number, "message": "x" * size})


def read(path: Path) -> list[Mapping[str, int]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def numbers(path: Path) -> list[int]:
    """The lines' numbers; where lines are missing, how many, below zero."""
    return [-each["lost"] if "lost" in each else each["n"] for each in read(path)]


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
    (tmp_path / "a.log").write_bytes(b"\n".rjust(size_before - encoded, b"x"))

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
    assert numbers(tmp_path / "a.log") == [1, -2, 4]


def test_what_the_disk_refuses_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be written is said once; when it can be again, the first line tells what is missing."""
    (tmp_path / "a.log").mkdir()
    caplog.set_level(logging.INFO, "capsuled.logs")

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
    assert numbers(tmp_path / "a.log") == [-3, 3, 4]
    assert numbers(tmp_path / "b.log") == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {tmp_path / 'a.log'}: Is a directory: its lines are lost",
        "lines are written again",
    ]


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs, lines are taken; a cancel waits for the write, and loses nothing that was offered."""
    hanging, go_on = threading.Event(), threading.Event()
    write = Disk.write

    def slow(self: Disk, capsule: str, items: Sequence[Item]) -> None:
        hanging.set()
        assert go_on.wait(20)
        write(self, capsule, items)

    monkeypatch.setattr(Disk, "write", slow)

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


NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def line(text: str, capsule: str = "a") -> JsonObject:
    return logline.make(NOON, capsule, "1f", LogStream.GUEST, "info", text).shape


def session(folder: Path, *texts: str, max_bytes: int = 1 << 20, keep: int = 5) -> None:
    """One supervisor writes these lines, and ends."""
    files = LogFiles(folder, max_bytes, keep)
    files.begin("a")
    for text in texts:
        files.offer("a", line(text))
    files.flush()


async def recalled(recall: Recall, lines: int = 1000, size: int = 1 << 20) -> list[object]:
    found = await recall(lines, size)
    assert found is not None
    return [each.shape["message"] for each in found]


def test_what_was_before_comes_back(tmp_path: Path) -> None:
    """The newest lines of the supervisors before this one, and none of its own, whenever they are asked for."""

    async def main() -> None:
        session(tmp_path, "1", "2")
        session(tmp_path, "3")
        files = LogFiles(tmp_path, 1 << 20, 5)
        recall = files.begin("a")
        files.offer("a", line("4"))
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            assert await recalled(recall) == ["1", "2", "3"]
            files.offer("a", line("5"))
            assert await recalled(recall) == ["1", "2", "3"]
            assert await recalled(recall, lines=2) == ["2", "3"]
            again = files.begin("a")  # as for a capsule that was taken out and put back
            assert await recalled(again) == ["1", "2", "3", "4", "5"]
            assert await recalled(files.begin("unknown")) == []
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("rotations", [0, 1, 2, 3, 4])
def test_what_was_before_comes_back_after_rotations(tmp_path: Path, rotations: int) -> None:
    """While the files that hold it are there, it is found in them, whatever they are called by now."""
    size = len(shapes.line(line("000")))

    async def main() -> None:
        session(tmp_path, *(f"{n:03}" for n in range(6)), max_bytes=4 * size, keep=3)
        files = LogFiles(tmp_path, 4 * size, 3)
        recall = files.begin("a")
        # Two of four stand in the current file: two more fill it, and each four from then on rotate.
        for number in range(2 + 4 * rotations):
            files.offer("a", line(f"{100 + number}"))
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            kept = {0: 6, 1: 6, 2: 6, 3: 2, 4: 0}[rotations]
            assert await recalled(recall) == [f"{n:03}" for n in range(6 - kept, 6)]
            nursery.cancel_scope.cancel()

    run(main)


def test_files_that_somebody_else_has_cut(tmp_path: Path) -> None:
    """What stands in another file by that name, or in one that was cut, is not taken for what was before."""

    async def main() -> None:
        session(tmp_path, "1", "2")
        files = LogFiles(tmp_path, 1 << 20, 5)
        recall = files.begin("a")
        files.offer("a", line("3"))
        files.flush()
        (tmp_path / "a.log").write_bytes(b"")
        files.offer("a", line("4"))
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            assert await recalled(recall) == []
            nursery.cancel_scope.cancel()

    run(main)


def test_a_disk_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is told after a while that it does not, and the next time what it said."""
    go_on = threading.Event()
    write = Disk.write

    def slow(self: Disk, capsule: str, items: Sequence[Item]) -> None:
        assert go_on.wait(20)
        write(self, capsule, items)

    async def main() -> None:
        session(tmp_path, "1")
        monkeypatch.setattr(Disk, "write", slow)
        monkeypatch.setattr(logfiles, "RECALL_SECONDS", 0.05)
        files = LogFiles(tmp_path, 1 << 20, 5)
        recall = files.begin("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            assert await recall(10, 1 << 20) is None
            go_on.set()
            monkeypatch.setattr(logfiles, "RECALL_SECONDS", 20.0)
            assert await recalled(recall) == ["1"]
            nursery.cancel_scope.cancel()

    run(main)


def test_odd_lines_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no line of the log is passed over, and said once for all of them."""

    async def main() -> None:
        session(tmp_path, "1")
        with (tmp_path / "a.log").open("ab") as file:
            file.write(b"rubbish\n" + shapes.line(line("somebody else's", "b")) + b'{"half')
        session(tmp_path, "2")
        files = LogFiles(tmp_path, 1 << 20, 5)
        recall = files.begin("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            assert await recalled(recall) == ["1", "2"]
            nursery.cancel_scope.cancel()

    run(main)
    (record,) = caplog.records
    assert vars(record)["fields"] == {"capsule": "a", "count": 3}
