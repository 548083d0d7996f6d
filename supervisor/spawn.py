"""Processes: the one module that starts any, waits for them and signals them.

`subprocess.Popen` in the main thread, and not `trio.run_process`: Trio starts processes from a cached thread that
ends when it is idle, and PR_SET_PDEATHSIG follows the *thread*: workers were killed after exactly 10 s (prctl(2)).
Waiting is by pidfd, so that no pid is ever looked up that may be somebody else's by then.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import NamedTuple

import trio

WORKER = (sys.executable, "-I", "-B", "-m", "capsuled.sandbox")
"""-I: neither the environment nor the working folder can put a module in the way. -B: it could not write one."""

BACKBONE = (sys.executable, "-I", "-B", "-m", "capsuled.supervisor.backbone")

WORKER_ENVIRONMENT: Mapping[str, str] = {"RAYON_NUM_THREADS": "1"}
"""Nothing of ours is inherited. wasmer's compiler starts a thread for each core otherwise."""


class SpawnError(Exception):
    """A process could not be started; the message says why."""


class Exit(NamedTuple):
    """How a process ended: by status or by signal; and what it used in its whole life."""

    status: int | None
    signal: int | None
    usage: resource.struct_rusage


class Process:
    """A child of ours, the leader of its own session and process group."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        """Raises `OSError`; then the child is gone."""
        self._child = child
        self.pid = child.pid
        self._gone = False
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError:
            child.kill()  # or it would live on, and nobody would wait for it
            child.wait()
            raise

    @property
    def gone(self) -> bool:
        """It has been reaped: its pid may be somebody else's by now."""
        return self._gone

    def signal(self, number: signal.Signals) -> None:
        """Signal the process; nothing happens when it has ended. It is not reaped yet, so the pid is its own."""
        if not self._gone:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL to the process and to its whole group: nothing that it may have started stays."""
        self.signal(signal.SIGKILL)
        self._kill_group()

    async def wait(self) -> Exit:
        """Wait for its end, then kill what is left of its group, and reap it. Only one task may wait."""
        await trio.lowlevel.wait_readable(self._pidfd)
        # Before it is reaped: until then nobody else can get its number.
        self._kill_group()
        _, status, usage = os.wait4(self.pid, 0)  # noqa: ASYNC222  (it has ended: this does not wait)
        self._gone = True
        os.close(self._pidfd)
        code = os.waitstatus_to_exitcode(status)
        self._child.returncode = code  # or Popen would wait for it again, and complain at its deletion
        return Exit(None, -code, usage) if code < 0 else Exit(code, None, usage)

    def _kill_group(self) -> None:
        if not self._gone:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def spawn(
    command: Collection[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    keep: Collection[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a process that inherits the descriptors given and no others, in a session of its own.

    Call it in the main thread: see the module's docstring. Raises `SpawnError`.
    """
    try:
        return Process(
            subprocess.Popen(
                list(command),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(keep),
                env=dict(environment or {}),
                cwd="/",
                start_new_session=True,
            )
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise SpawnError(f"cannot start {' '.join(list(command)[-2:])}: {exc}") from exc
