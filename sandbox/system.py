"""What WASI needs of this process: output that becomes log lines, clocks, chance, sleep and exit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NoReturn

from capsuled.proto import loglines
from capsuled.proto.control import LogStream
from capsuled.sandbox.ipc import Ipc
from capsuled.sandbox.logs import Logs
from capsuled.sandbox.wasi import STDERR, STDOUT, LineSplitter

_STREAMS = {STDOUT: (LogStream.STDOUT, loglines.INFO), STDERR: (LogStream.STDERR, loglines.WARN)}


class System:
    """A `wasi.WasiHost`."""

    def __init__(self, ipc: Ipc, logs: Logs, end: Callable[[int], NoReturn]) -> None:
        """`end` ends the process with a guest's exit code."""
        self._ipc = ipc
        self._logs = logs
        self._end = end
        self._splitters = {fd: LineSplitter() for fd in _STREAMS}

    def write(self, fd: int, data: bytes) -> None:
        self._log(fd, self._splitters[fd].feed(data))

    def flush(self) -> None:
        """Log what was written without a newline at its end."""
        for fd, splitter in self._splitters.items():
            self._log(fd, splitter.flush())

    def exit(self, code: int) -> NoReturn:
        self._end(code)

    def sleep(self, seconds: float) -> None:
        self._ipc.sleep(seconds)

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def random(self, length: int) -> bytes:
        return os.urandom(length)

    def _log(self, fd: int, lines: list[bytes]) -> None:
        stream, level = _STREAMS[fd]
        for line in lines:
            self._logs.write(stream, level, line)
