"""The socket's file."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capsuled.supervisor.control.listening import MAX_PATH, CannotListen, control_socket


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, and the usual umask."""
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(prefix="control-") as name:
            yield Path(name)
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


GROUP = os.getegid()


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
@pytest.mark.parametrize(
    ("groups", "folder_mode", "socket_mode"),
    [((), 0o700, 0o600), ((GROUP,), 0o755, 0o660), ((GROUP, GROUP + 1), 0o755, 0o666)],
)
def test_modes(folder: Path, groups: tuple[int, ...], folder_mode: int, socket_mode: int, umask: int) -> None:
    """Folder and socket are the user's own, or open as far as the groups need, whatever the umask."""
    path = folder / "run" / "control.sock"
    os.umask(umask)
    with control_socket(path, groups):
        assert (mode(path.parent), mode(path)) == (folder_mode, socket_mode)
        assert mode(path.with_name("control.sock.lock")) == 0o600
        assert path.stat().st_gid == GROUP
        assert connects(path)


def test_a_folder_that_exists_keeps_its_mode(folder: Path) -> None:
    """What the init system has made is taken as it is."""
    folder.chmod(0o750)
    with control_socket(folder / "s"):
        assert mode(folder) == 0o750


def test_it_is_gone_afterwards(folder: Path) -> None:
    """At the end the socket is removed; the lock stays, and can be taken again."""
    path = folder / "s"
    for _ in range(3):
        with control_socket(path):
            assert connects(path)
        assert not path.exists()
        assert path.with_name("s.lock").exists()


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    """What a killed supervisor left behind is no obstacle."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()
    with control_socket(path):
        assert connects(path)


@pytest.mark.parametrize("full", [False, True])
def test_a_living_socket_is_refused(folder: Path, full: bool) -> None:
    """A socket on which something listens is left alone, also when its backlog is full."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as waiting:
        alive.bind(os.fspath(path))
        alive.listen(0)
        if full:
            waiting.connect(os.fspath(path))
            with socket.socket(socket.AF_UNIX) as next_one:
                next_one.setblocking(False)
                assert next_one.connect_ex(os.fspath(path)) == errno.EAGAIN
        with pytest.raises(CannotListen, match="a process answers there: stop it, or choose another"):
            control_socket(path).__enter__()
        assert path.exists()


def test_what_cannot_be_told_is_refused(folder: Path) -> None:
    """A socket of another kind may be in use: it is left alone."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(path))
        with pytest.raises(CannotListen, match=f"cannot tell whether {path} is in use: Protocol wrong type"):
            control_socket(path).__enter__()
    assert path.exists()


def test_a_second_supervisor_is_refused(folder: Path) -> None:
    """While one holds the lock no other goes on, whatever it finds at the path."""
    path = folder / "s"
    with control_socket(path):
        path.unlink()
        with pytest.raises(CannotListen, match=r"another supervisor holds .*s\.lock: stop it, or choose"):
            control_socket(path).__enter__()
        assert not path.exists()


def test_another_ones_socket_is_not_removed(folder: Path) -> None:
    """What somebody else put at the path stays when we leave."""
    path = folder / "s"
    with control_socket(path), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(os.fspath(path))
    assert path.exists()


def test_nothing_stays_when_the_start_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that the socket cannot be given to is an error that names both, and leaves no socket."""

    def not_permitted(path: Path, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = folder / "s"
    monkeypatch.setattr(os, "chown", not_permitted)
    folder.chmod(0o755)
    with pytest.raises(CannotListen, match=f"cannot give {path} to group 4711: Operation not permitted: run"):
        control_socket(path, [4711]).__enter__()
    assert not path.exists()
    with control_socket(path):
        assert connects(path)


def _file_at_the_path(path: Path) -> None:
    path.write_text("mine")


def _link_at_the_path(path: Path) -> None:
    path.symlink_to("/nowhere")


def _link_at_the_lock(path: Path) -> None:
    path.with_name("s.lock").symlink_to("elsewhere")


def _writable_by_all(path: Path) -> None:
    path.parent.chmod(0o777)


def _writable_by_the_group(path: Path) -> None:
    path.parent.chmod(0o770)


def _sticky_as_tmp(path: Path) -> None:
    path.parent.chmod(0o1777)


def _file_for_a_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("no folder")


def _link_for_a_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.symlink_to(path.parent.parent)


def _no_parent(path: Path) -> None:
    path.parent.rmdir()
    path.parent.parent.rmdir()


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (_file_at_the_path, "cannot listen at {path}: something that is no socket is there: move it away"),
        (_link_at_the_path, "cannot listen at {path}: something that is no socket is there: move it away"),
        (_link_at_the_lock, "cannot open {path}.lock: Too many levels of symbolic links"),
        (_writable_by_all, "cannot trust {folder}: others may write there"),
        (_writable_by_the_group, "cannot trust {folder}: others may write there"),
        (_sticky_as_tmp, "cannot trust {folder}: others may write there"),
        (_file_for_a_folder, "cannot use {folder}: it is not a folder: remove it, or choose another"),
        (_link_for_a_folder, "cannot use {folder}: it is not a folder: remove it, or choose another"),
        (_no_parent, "cannot create {folder}: No such file or directory: check"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, prepare: Callable[[Path], None], sentence: str) -> None:
    """A path that cannot be used is refused with what is wrong there, and nothing of it is removed."""
    path = folder / "parent" / "run" / "s"
    path.parent.mkdir(parents=True)
    prepare(path)
    there = path.parent.is_dir() and sorted(path.parent.iterdir())
    with pytest.raises(CannotListen) as refused:
        control_socket(path).__enter__()
    assert str(refused.value).startswith(sentence.format(path=path, folder=path.parent))
    lock = path.with_name("s.lock")
    assert (path.parent.is_dir() and sorted({*path.parent.iterdir()} - {lock})) == (
        there and sorted({*there} - {lock})
    )


def test_a_group_needs_a_folder_that_it_may_enter(folder: Path) -> None:
    """A private folder with a group configured is refused: the group could never get in."""
    folder.chmod(0o700)
    with pytest.raises(
        CannotListen, match=r"cannot let a group in at .*: its mode is 0700: chmod it to 0755"
    ):
        control_socket(folder / "s", [GROUP]).__enter__()


def test_a_strangers_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user is not trusted, whatever its mode."""
    if os.geteuid() == 0:
        os.chown(folder, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
    owner = folder.stat().st_uid
    with pytest.raises(CannotListen, match=rf"others may write there \(owner {owner}, mode 0700\)"):
        control_socket(folder / "s").__enter__()


def test_the_path_is_bounded(folder: Path) -> None:
    """A path as long as the kernel takes is taken; one byte more is refused before anything is made."""
    inside = folder / "d"
    longest = inside / ("s" * (MAX_PATH - len(os.fsencode(inside)) - 1))
    with pytest.raises(CannotListen, match=f"has {MAX_PATH + 1} bytes, a socket's has {MAX_PATH} at most"):
        control_socket(longest.with_name(longest.name + "s")).__enter__()
    assert not inside.exists()
    with control_socket(longest):
        assert connects(longest)
