"""The files of histories: read with care, replaced as a whole, tried again when the disk has refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from capsuled.supervisor import histories as module
from capsuled.supervisor.histories import AGAIN_SECONDS, Histories
from capsuled.supervisor.history import History

from .control.serving import run

THREE = History(attempt=3)


def written(folder: Path, capsule: str = "echo", what: History = THREE) -> None:
    files = Histories(folder)
    files.write(capsule, lambda: what)
    files.flush()


def test_what_was_written_is_read_by_the_next(tmp_path: Path) -> None:
    """In a folder that is made; nothing but the file is left in it, which nobody else may read."""
    folder = tmp_path / "made"
    written(folder)
    assert Histories(folder).read("echo") == THREE
    assert Histories(folder).read("other") == History()
    assert [each.name for each in folder.iterdir()] == ["echo.json"]
    Histories(folder).forget("never")
    files = Histories(folder)
    files.forget("echo")
    files.flush()
    assert list(folder.iterdir()) == []


def written_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_folder(path: Path) -> None:
    path.mkdir()


def nonsense(path: Path) -> None:
    path.write_bytes(b"\0" * 100)


@pytest.mark.parametrize("make", [a_fifo, a_link, a_folder, nonsense])
def test_what_cannot_be_read_is_put_aside(
    make: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, with the file; the next history has its place."""
    assert callable(make)
    make(tmp_path / "echo.json")
    assert Histories(tmp_path).read("echo") == History()
    assert f"cannot read {tmp_path / 'echo.json'}" in caplog.text
    written(tmp_path)
    assert Histories(tmp_path).read("echo") == THREE
    assert (tmp_path / "echo.bad").exists() or (tmp_path / "echo.bad").is_symlink()


def test_what_the_disk_refuses_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, nobody waits for it, and another's is written meanwhile."""
    full = True
    replace = module._replace  # pyright: ignore[reportPrivateUsage]

    def refuse(path: Path, data: bytes) -> None:
        if full and path.stem == "echo":
            raise OSError(28, "No space left on device")
        replace(path, data)

    monkeypatch.setattr(module, "_replace", refuse)

    async def main() -> None:
        nonlocal full
        files = Histories(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(files.run)
            files.write("echo", lambda: THREE)
            files.write("other", lambda: THREE)
            await trio.sleep(3.5 * AGAIN_SECONDS)
            assert written_in(tmp_path) == ["other.json"]
            assert caplog.text.count("No space left on device: it is tried again") == 1
            (fault,) = files.faults
            assert (fault.file, "No space left on device" in fault.sentence) == (
                str(tmp_path / "echo.json"),
                True,
            )
            full = False
            await trio.sleep(1.5 * AGAIN_SECONDS)
            assert files.faults == []
            nursery.cancel_scope.cancel()

    run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert Histories(tmp_path).read("echo") == THREE


def test_half_a_file_is_never_there(tmp_path: Path) -> None:
    """One that cannot be written whole leaves the old one, and nothing beside it."""
    written(tmp_path)
    (tmp_path / "echo.new").mkdir()  # where the new one would be written first
    (tmp_path / "echo.new" / "x").mkdir()
    files = Histories(tmp_path)
    files.write("echo", lambda: History(attempt=9))
    files.flush()
    assert Histories(tmp_path).read("echo") == THREE
