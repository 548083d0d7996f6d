"""The daemon's folders: made, held by one supervisor at a time, and emptied of what a killed one has left."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o700


class CannotStart(Exception):
    """The daemon cannot start; the message is for the operator."""


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Make `folder` if it is missing, and hold it: flock(2) on the folder itself, so that no file has to stay.

    Raises `CannotStart`, also when another supervisor holds it.
    """
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
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
    """An empty folder that is ours alone, removed at the end. What is in it may go: its parent is `locked`."""
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
