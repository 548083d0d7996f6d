"""A terminal, with a command of ours that has it for its own."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from subprocess import PIPE

import trio

from ..control.serving import Served
from .running import COMMAND, environment

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
"""The other screen of a terminal, and back (xterm's ctlseqs)."""

CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"

CONTROLS = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""Makes the terminal the one that controls the session: it sends signals for Ctrl-C, and when its size changes."""

SEQUENCES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\([A-Z]|[=>])")


class Terminal:
    """The terminal's other side: what is pressed on it, and what it was sent."""

    def __init__(self, ours: int, theirs: int, process: trio.Process) -> None:
        self.ours = ours
        self.theirs = theirs
        self.process = process
        self.sent = ""

    async def until(self, wanted: str) -> str:
        """Read until what came since the last call, without its escapes, has this; returns it."""
        start, seen = len(self.sent), ""
        while wanted not in seen:
            self.sent += await self._read()
            seen = SEQUENCES.sub("", self.sent[start:])
        return seen

    async def until_sent(self, wanted: str) -> None:
        """Read until this was sent, escapes and all."""
        while wanted not in self.sent:
            self.sent += await self._read()

    async def _read(self) -> str:
        await trio.lowlevel.wait_readable(self.ours)
        return os.read(self.ours, 65536).decode()

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.theirs)

    async def end(self) -> tuple[int, str]:
        """Wait for the command's end: its exit code, and what it said on standard error."""
        assert self.process.stderr is not None
        err = b""
        while data := await self.process.stderr.receive_some(65536):
            err += data
        code = await self.process.wait()
        assert b"Traceback" not in err, err
        os.set_blocking(self.ours, False)
        try:
            while data := os.read(self.ours, 65536):
                self.sent += data.decode()
        except BlockingIOError:
            pass
        return code, err.decode()


@asynccontextmanager
async def terminal(
    served: Served, *arguments: str, term: str = "xterm-256color"
) -> AsyncGenerator[Terminal, None]:
    """One of 24 rows and 100 columns, on which the command runs until the end of the block."""
    ours, theirs = os.openpty()
    command: Sequence[str] = [sys.executable, "-c", CONTROLS, *COMMAND, *arguments]
    env = environment(served, {"TERM": term})
    env = {key: value for key, value in env.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = await trio.lowlevel.open_process(
        command, stdin=theirs, stdout=theirs, stderr=PIPE, env=env, start_new_session=True
    )
    try:
        yield Terminal(ours, theirs, process)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()
            os.close(ours)
            os.close(theirs)
