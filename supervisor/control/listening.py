"""The socket's file: bound with the right mode, never taken from a living supervisor, removed at the end.

A lock next to the socket is held from before the probe until after the removal, so that of two supervisors
that start at once only one goes on. The lock's file stays: to remove it would let two hold it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

MAX_PATH = 107
"""Bytes of a socket's path: `sun_path` of unix(7) has 108, the last one for the end of the string."""

BACKLOG = 64
"""Connections that wait for accept; as many as are served."""

PRIVATE_FOLDER, SHARED_FOLDER = 0o700, 0o755
PRIVATE_SOCKET, GROUP_SOCKET, OPEN_SOCKET = 0o600, 0o660, 0o666


class CannotListen(Exception):
    """The control socket cannot be opened; the message is for the operator."""


@contextmanager
def control_socket(path: Path, groups: Collection[int] = ()) -> Generator[trio.SocketListener, None, None]:
    """A listener on `path`. `groups` are the gids that the configuration lets in.

    Its folder is created when it is missing, 0700 or with groups 0755; a folder that exists keeps its mode.
    The socket is 0600, with one group 0660, and with several 0666, because a file has one group only: then it
    is the server that keeps the others out, as it does in any case.

    Raises `CannotListen`.
    """
    _check(path)
    _make_folder(path.parent, bool(groups))
    with _lock(path):
        _remove_stale(path)
        sock = _bound(path, groups)
        mark = path.lstat()
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            sock.close()
            _remove_own(path, mark)


def _check(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > MAX_PATH:
        raise CannotListen(
            f"cannot listen at {path}: the path has {size} bytes, a socket's has {MAX_PATH} at most: "
            "choose a shorter runtime folder"
        )


def _make_folder(folder: Path, shared: bool) -> None:
    with _doing(f"create {folder}"):
        try:
            folder.mkdir(SHARED_FOLDER if shared else PRIVATE_FOLDER)
        except FileExistsError:
            pass
        else:
            # mkdir(2) takes the umask's bits away.
            folder.chmod(SHARED_FOLDER if shared else PRIVATE_FOLDER)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise CannotListen(
            f"cannot use {folder}: it is not a folder: remove it, or choose another runtime folder"
        )
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotListen(
            f"cannot trust {folder}: others may write there (owner {found.st_uid}, mode "
            f"{stat.S_IMODE(found.st_mode):04o}) and put a socket of theirs in place of this one: "
            "choose a folder of your own with mode 0700"
        )
    if shared and not found.st_mode & stat.S_IXOTH:
        raise CannotListen(
            f"cannot let a group in at {folder}: its mode is {stat.S_IMODE(found.st_mode):04o}: "
            "chmod it to 0755, or configure no group"
        )


@contextmanager
def _lock(path: Path) -> Generator[None, None, None]:
    file = path.with_name(path.name + ".lock")
    with _doing(f"open {file}"):
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise CannotListen(
                f"cannot listen at {path}: another supervisor holds {file}: "
                "stop it, or choose another runtime folder"
            ) from exc
        try:
            yield
        finally:
            # By hand, for a child that was forked without exec would keep a lock that is merely closed.
            fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens to. Whatever else is there stays, and is an error."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotListen(f"cannot listen at {path}: something that is no socket is there: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Without blocking: a listener whose backlog is full answers EAGAIN, and is alive.
        probe.setblocking(False)
        answer = probe.connect_ex(os.fspath(path))
    if answer == errno.ECONNREFUSED:
        with _doing(f"remove the stale {path}"):
            path.unlink()
    elif answer in (0, errno.EAGAIN):
        raise CannotListen(
            f"cannot listen at {path}: a process answers there: stop it, or choose another runtime folder"
        )
    else:
        raise CannotListen(
            f"cannot tell whether {path} is in use: {os.strerror(answer)}: remove it if it is not"
        )


def _bound(path: Path, groups: Collection[int]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _doing(f"bind {path}"):
            sock.bind(os.fspath(path))
        try:
            _let_in(path, groups)
            # Last: until now connecting is refused, so that the umask's mode never counts.
            sock.listen(BACKLOG)
        except BaseException:
            path.unlink()
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def _let_in(path: Path, groups: Collection[int]) -> None:
    if len(groups) == 1:
        gid = next(iter(groups))
        try:
            os.chown(path, -1, gid)
        except OSError as exc:
            raise CannotListen(
                f"cannot give {path} to group {gid}: {exc.strerror}: run the supervisor as root or as "
                "a member of that group, or configure no group"
            ) from exc
    path.chmod(OPEN_SOCKET if len(groups) > 1 else GROUP_SOCKET if groups else PRIVATE_SOCKET)


def _remove_own(path: Path, mark: os.stat_result) -> None:
    # Not what somebody else put there after removing ours.
    with suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), mark):
            path.unlink()


@contextmanager
def _doing(what: str) -> Generator[None, None, None]:
    try:
        yield
    except OSError as exc:
        raise CannotListen(f"cannot {what}: {exc.strerror}: check the folder's owner and mode") from exc
