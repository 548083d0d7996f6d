"""The descriptors that a worker inherits, and the supervisor's ends of them.

All are made here and none by the worker, so that it needs neither a path nor the call that makes one. Those that hold
content are memory files, sealed where they must not change: memfd_create(2), fcntl(2) F_ADD_SEALS.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from capsuled.proto import ledger, order
from capsuled.proto.ledger import Claims

_SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_FIXED_SIZE = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

READ_TRIES = 3
"""A worker writes its page in microseconds: one that is found in the middle so often was stopped or has died there."""


class Ledger:
    """A worker's ledger page, read only on this side."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, ledger.BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._slots = memoryview(self._map).cast("Q")

    def claims(self) -> Claims | None:
        """What it says now; None when the worker was found in the middle of an update each time."""
        for _ in range(READ_TRIES):
            found = ledger.read(self._slots)
            if found is not None:
                return found
        return None

    def close(self) -> None:
        self._slots.release()
        self._map.close()


class Ends(NamedTuple):
    """The supervisor's ends."""

    control: socket.socket
    log: socket.socket
    stdout: int
    stderr: int
    ledger: Ledger


class Inherited(NamedTuple):
    """The worker's ends; to be closed here once it has been started."""

    stdout: int
    stderr: int
    numbers: order.Descriptors

    def to_keep(self) -> tuple[int, ...]:
        return (
            self.numbers.module,
            self.numbers.edge,
            self.numbers.control,
            self.numbers.log,
            self.numbers.ledger,
        )


@contextmanager
def make(
    name: str, blob: bytes, edge: Path, worker_ends: ExitStack
) -> Generator[tuple[Ends, Inherited], None, None]:
    """All descriptors of one worker. Its own ends are closed by `worker_ends`, ours and the edge's file at exit.

    Raises `OSError`.
    """
    with ExitStack() as ours:
        module = _memory_file(f"capsuled-{name}-module", blob, worker_ends)
        page_fd = os.memfd_create(f"capsuled-{name}-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        worker_ends.callback(os.close, page_fd)
        os.ftruncate(page_fd, ledger.BYTES)
        fcntl.fcntl(page_fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
        page = Ledger(page_fd)
        ours.callback(page.close)
        listener = worker_ends.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(os.fspath(edge))
        ours.callback(_unlink, edge)
        control, worker_control = _packets(ours, worker_ends)
        log, worker_log = _packets(ours, worker_ends)
        stdout, worker_stdout = _pipe(ours, worker_ends)
        stderr, worker_stderr = _pipe(ours, worker_ends)
        numbers = order.Descriptors(
            module=module,
            edge=listener.fileno(),
            control=worker_control.fileno(),
            log=worker_log.fileno(),
            ledger=page_fd,
        )
        yield Ends(control, log, stdout, stderr, page), Inherited(worker_stdout, worker_stderr, numbers)


def order_file(data: bytes, worker_ends: ExitStack) -> int:
    """A sealed memory file with the launch order."""
    return _memory_file("capsuled-order", data, worker_ends)


def _memory_file(name: str, content: bytes, closed_by: ExitStack) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    closed_by.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALED)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _packets(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    mine, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.callback(mine.close)
    theirs.callback(worker.close)
    mine.setblocking(False)
    return mine, worker


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """The read end is dup'ed by who wraps it; both originals are closed here."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    return reader, writer


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
