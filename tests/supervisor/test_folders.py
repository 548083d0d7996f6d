"""The daemon's folders: one supervisor holds them, and what a killed one has left is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capsuled.supervisor import folders
from capsuled.supervisor.control.listening import MAX_PATH
from capsuled.supervisor.folders import EDGE_BYTES, PRIVATE, SHARED, CannotStart


@pytest.mark.parametrize("mode", [PRIVATE, SHARED])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_missing_folder_is_made(tmp_path: Path, mode: int, umask: int) -> None:
    """With its parents, and with the mode that was asked for, whatever the umask."""
    folder = tmp_path / "deep" / "er"
    before = os.umask(umask)
    try:
        with folders.locked(folder, mode):
            assert folder.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    assert folder.is_dir()


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """The operator's choice is not changed."""
    tmp_path.chmod(0o750)
    with folders.locked(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o750


def test_only_one_holds_it(tmp_path: Path) -> None:
    """The second is refused with a sentence; when the first has let go, it may."""
    held = f"^cannot use {tmp_path}: another supervisor holds it: stop"
    with folders.locked(tmp_path):
        for _ in range(2):  # who was refused has let nothing go
            with pytest.raises(CannotStart, match=held), folders.locked(tmp_path):
                pytest.fail("held twice")
    with folders.locked(tmp_path):
        pass


def test_a_lock_leaves_no_descriptor(tmp_path: Path) -> None:
    """Neither held and let go, nor refused."""
    before = os.listdir("/proc/self/fd")
    with folders.locked(tmp_path), pytest.raises(CannotStart), folders.locked(tmp_path):
        pytest.fail("held twice")
    assert os.listdir("/proc/self/fd") == before


def test_what_cannot_be_a_folder(tmp_path: Path) -> None:
    """A file in its place is named, with the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="Not a directory"), folders.locked(tmp_path / "file"):
        pytest.fail("a file was held")
    with pytest.raises(CannotStart, match="Not a directory"), folders.locked(tmp_path / "file" / "below"):
        pytest.fail("a folder below a file was held")


def test_a_fresh_folder_is_empty_and_gone_at_the_end(tmp_path: Path) -> None:
    """What was left there goes first, and all goes at the end."""
    edges = tmp_path / "edges"
    (edges / "deeper").mkdir(parents=True)
    (edges / "deeper" / "file").touch()
    with folders.fresh(edges):
        assert os.listdir(edges) == []
        assert edges.stat().st_mode & 0o777 == PRIVATE
        (edges / "socket").touch()
    assert not edges.exists()


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    """Nobody has us empty a folder by putting a symlink to it in the way."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").touch()
    (tmp_path / "edges").symlink_to(target)
    with pytest.raises(CannotStart, match="cannot make"), folders.fresh(tmp_path / "edges"):
        pytest.fail("the symlink was taken")
    assert (target / "file").exists()


def test_the_longest_path_for_sockets(tmp_path: Path) -> None:
    """A folder whose sockets' paths just fit is taken; one byte more, and it is refused with both numbers."""
    room = MAX_PATH - EDGE_BYTES - len(os.fsencode(tmp_path)) - 1
    with folders.fresh(tmp_path / ("e" * room)) as longest:
        assert len(os.fsencode(longest / "00000000")) == MAX_PATH
    too_long = f"have {MAX_PATH + 1} bytes, {MAX_PATH} at most"
    with pytest.raises(CannotStart, match=too_long), folders.fresh(tmp_path / ("e" * (room + 1))):
        pytest.fail("no socket fits there")


def test_a_folder_that_stays(tmp_path: Path) -> None:
    """Made when it is missing, taken when it is there, refused when something else is."""
    assert folders.made(tmp_path / "logs") == folders.made(tmp_path / "logs")
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="choose another state_dir"):
        folders.made(tmp_path / "file")
