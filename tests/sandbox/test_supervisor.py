"""The control descriptor while the worker waits to be known."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from capsuled.proto import reports
from capsuled.proto.reports import Cancel, Cloned, Proceed
from capsuled.sandbox.supervisor import Supervisor


class Closed(Supervisor):
    """One that can be closed, which a worker never does."""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Supervisor]]:
    """The supervisor's end, and the worker's."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = Closed(theirs.detach())
    with mine:
        yield mine, worker
        worker.close()


def test_the_clone_is_told(ends: tuple[socket.socket, Supervisor]) -> None:
    """One packet, with its pid."""
    mine, worker = ends
    worker.cloned(4711)
    assert reports.decode(mine.recv(reports.MAX_BYTES)) == Cloned(4711)


def test_it_goes_on_when_it_is_told_to(ends: tuple[socket.socket, Supervisor]) -> None:
    """It is not cancelled by that."""
    mine, worker = ends
    mine.send(reports.encode(Proceed()))
    worker.await_proceed()
    assert not worker.cancelled()


def test_a_stop_that_comes_first_is_remembered(ends: tuple[socket.socket, Supervisor]) -> None:
    """A capsule that is stopped while it starts goes on to where it can end by itself, and knows of it there."""
    mine, worker = ends
    mine.send(reports.encode(Cancel(5.0)))
    mine.send(reports.encode(Proceed()))
    worker.await_proceed()
    assert worker.cancelled()
    assert 0 < worker.left_ms() <= 5000


def test_a_supervisor_that_has_gone(ends: tuple[socket.socket, Supervisor]) -> None:
    """Waiting ends with an error, which is a step that fails."""
    mine, worker = ends
    mine.close()
    with pytest.raises(OSError, match="the supervisor is gone"):
        worker.await_proceed()


def test_nobody_can_be_told(ends: tuple[socket.socket, Supervisor]) -> None:
    """A clone of which nobody could know is an error too."""
    mine, worker = ends
    mine.close()
    with pytest.raises(OSError, match="Broken pipe"):
        worker.cloned(1)


def test_a_process_with_threads_is_not_cloned() -> None:
    """It would have one of them and the locks of all: the step fails before anything is done."""
    code = (
        "import threading\n"
        "from capsuled.sandbox import namespaces\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "try:\n    namespaces.enter(True, print)\nexcept OSError as exc:\n    print(exc)\n"
    )
    made = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert made.stdout == "there are 2 threads already: a clone would have one of them\n"
