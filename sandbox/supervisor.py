"""The control descriptor: reports to the supervisor, cancellation from it.

A sequenced-packet socket, so that one packet is one report. The worker needs no thread and no signal handler to
hear that it is being stopped: whatever blocks polls this descriptor too, and looks at it first.
"""

from __future__ import annotations

import os
import select
import socket
import time
from math import ceil
from typing import NoReturn

from capsuled.proto import reports
from capsuled.proto.reports import Cancel, Cloned, Ended, Proceed, Report


class Supervisor:
    """The supervisor, as a worker sees it."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._killed_at: float | None = None
        self._poll = select.poll()  # cheaper than a recv that raises, and this is asked twice in each receive
        self._poll.register(fd, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def report(self, report: Report) -> None:
        """Tell. A supervisor that does not listen any more is no reason to fail: it is about to kill this process."""
        try:
            self._socket.send(reports.encode(report))
        except (BlockingIOError, ConnectionError):
            return

    def cloned(self, pid: int) -> None:
        """Tell that the worker goes on in this process. Raises `OSError`: then nobody would know of it."""
        self._socket.send(reports.encode(Cloned(pid)))

    def await_proceed(self) -> None:
        """Wait until the supervisor knows of the clone that this is. Raises `OSError` when it is gone."""
        while True:
            self._poll.poll()
            packet = self._socket.recv(reports.MAX_BYTES)
            if not packet:
                raise OSError("the supervisor is gone")
            message = reports.decode(packet)
            if isinstance(message, Cancel):
                self._killed_at = time.monotonic() + message.deadline
            elif isinstance(message, Proceed):
                return

    def cancelled(self) -> bool:
        """Whether this capsule is being stopped. Reads what has arrived; never blocks."""
        if self._killed_at is None and self._poll.poll(0):
            self._listen()
        return self._killed_at is not None

    def left_ms(self) -> int:
        """Milliseconds until this process is killed, at least 1; 0 while it may run."""
        if not self.cancelled() or self._killed_at is None:
            return 0
        return max(1, ceil((self._killed_at - time.monotonic()) * 1000))

    def _listen(self) -> None:
        while True:
            try:
                packet = self._socket.recv(reports.MAX_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:
                # The supervisor is gone and the kernel's SIGKILL is on its way.
                self._killed_at = time.monotonic()
                return
            message = reports.decode(packet)
            if isinstance(message, Cancel):
                self._killed_at = time.monotonic() + message.deadline
                return

    def end(self, ended: Ended) -> NoReturn:
        """The last report, and the end of this process, without a step back into the engine or the interpreter."""
        self.report(ended)
        os._exit(ended.code & 0xFF if ended.how == "exit" else reports.STATUS[ended.how])
