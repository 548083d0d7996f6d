"""The daemon's folders: made, held by one supervisor at a time, and emptied of what a killed one has left."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from capsuled.supervisor.control.listening import MAX_PATH

PRIVATE, SHARED = 0o700, 0o755

EDGE_BYTES = len("/00000000")
"""Of the name of a socket in its folder, see `instance`."""


class CannotStart(Exception):
    """The daemon cannot start; the message is for the operator."""


@contextmanager
def locked(folder: Path, mode: int = PRIVATE) -> Generator[None, None, None]:
    """Make `folder` if it is missing, and hold it: flock(2) on the folder itself, so that no file has to stay.

    A folder that exists keeps its mode. Raises `CannotStart`, also when another supervisor holds it.
    """
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)  # mkdir(2) takes the umask's bits away
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise CannotStart(
            f"cannot use {folder}: {exc.strerror}: make it, or choose another in capsuled.toml"
        ) from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise CannotStart(
            f"cannot use {folder}: another supervisor holds it: stop that one, or choose another folder"
        ) from exc
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def fresh(folder: Path) -> Generator[Path, None, None]:
    """An empty folder for sockets that is ours alone, removed at the end.

    What is in it may go: its parent is `locked`. Raises `CannotStart`.
    """
    if (size := len(os.fsencode(folder)) + EDGE_BYTES) > MAX_PATH:
        raise CannotStart(
            f"cannot make sockets in {folder}: their paths have {size} bytes, {MAX_PATH} at most may be: "
            "choose a shorter runtime_dir"
        )
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=PRIVATE)
    except OSError as exc:
        raise CannotStart(
            f"cannot make {folder}: {exc.strerror}: empty it, or choose another runtime_dir"
        ) from exc
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def made(folder: Path) -> Path:
    """A folder that stays."""
    try:
        folder.mkdir(mode=PRIVATE, exist_ok=True)
    except OSError as exc:
        raise CannotStart(f"cannot make {folder}: {exc.strerror}: choose another state_dir") from exc
    return folder
