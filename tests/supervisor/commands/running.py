"""capsulectl as a real process, against the real server in this one."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

import trio

from ..control.serving import Served

COMMAND = (sys.executable, "-m", "capsuled.supervisor.commands.capsulectl")


EVIL = "\x1b]0;evil\x07\x9b2J\u202e\n"
"""What a terminal would obey: a title, a C1 control, a change of direction, a new line."""

SHOWN = "\\x1b]0;evil\\x07\\x9b2J\\u202e\\n"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def environment(served: Served | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, with UTF-8 and the server's socket."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CAPSULED_", "XDG_"))}
    socket = {} if served is None else {"CAPSULED_SOCKET": os.fspath(served.path)}
    return {**kept, "PYTHONUTF8": "1", **socket, **(more or {})}


async def ctl(served: Served | None, *arguments: str, env: Mapping[str, str] | None = None) -> Ran:
    """Run it to its end."""
    done = await trio.run_process(
        [*COMMAND, *arguments],
        stdin=DEVNULL,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(served, env),
    )
    out, err = (done.stdout or b"").decode(), (done.stderr or b"").decode()
    assert "Traceback" not in err, err
    return Ran(done.returncode, out, err)


class Running:
    """One that goes on, with the lines that it prints."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._rest = b""

    async def line(self) -> str:
        """The next line, without its end. AssertionError at the end of the output."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            data = await self.process.stdout.receive_some(65536)
            assert data, "no more output"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def close_output(self) -> None:
        """Read no more, as `head` does when it has enough."""
        assert self.process.stdout is not None
        await self.process.stdout.aclose()

    async def end(self) -> Ran:
        """Wait for its end; the output is what `line` has not returned."""
        assert self.process.stderr is not None
        err = b""
        while data := await self.process.stderr.receive_some(65536):
            err += data
        code = await self.process.wait()
        out = self._rest
        if self.process.stdout is not None:
            try:
                while data := await self.process.stdout.receive_some(65536):
                    out += data
            except trio.ClosedResourceError:
                pass
        assert b"Traceback" not in err, err
        return Ran(code, out.decode(), err.decode())


@asynccontextmanager
async def running(
    served: Served, *arguments: str, stdout: int = PIPE, env: Mapping[str, str] | None = None
) -> AsyncGenerator[Running, None]:
    """It, until the end of the block; then it is killed if it still runs."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *arguments], stdin=DEVNULL, stdout=stdout, stderr=PIPE, env=environment(served, env)
    )
    try:
        yield Running(process)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()
