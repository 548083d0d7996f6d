"""Processes: the one module that starts any, waits for them and signals them.

`subprocess.Popen` in the main thread, and not `trio.run_process`: Trio starts processes from a cached thread that
ends when it is idle, and PR_SET_PDEATHSIG follows the *thread*: workers were killed after exactly 10 s (prctl(2)).
Waiting is by pidfd, so that no pid is ever looked up that may be somebody else's by then.

A worker in namespaces of its own is a clone of the process that was started: a child of ours too, in the same session
and group. The group is what holds the two together: whatever dies when, all of it is killed and reaped by it.
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


FOLLOW_SECONDS = 5.0
"""How long it may take until we have read which process the clone is: its word is there before its end."""

REAP_SECONDS = 0.002
"""Between two looks at whether a child that was killed has ended."""


_LIVE: set[Process] = set()
"""Those that are not reaped yet."""


class SpawnError(Exception):
    """A process could not be started; the message says why."""


class Exit(NamedTuple):
    """How a process ended: by status or by signal; and what it used in its whole life."""

    status: int | None
    signal: int | None
    usage: resource.struct_rusage


class Process:
    """A child of ours, the leader of its own session and process group; or the clone that goes on in its place."""

    def __init__(self, child: subprocess.Popen[bytes], *, clones: bool = False) -> None:
        """`clones`: it is to go on in a clone, and its own end with status 0 is not the end. Raises `OSError`; then
        the child is gone."""
        self._child = child
        self._clones = clones
        self.pid = child.pid
        self.group = child.pid
        """Number of its session and process group."""
        self._gone = False
        self._settled = trio.Event()
        """Its clone is known, or it does not matter any more."""
        self._clone_fd: int | None = None
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError:
            child.kill()  # or it would live on, and nobody would wait for it
            child.wait()
            raise
        _LIVE.add(self)

    @property
    def gone(self) -> bool:
        """It has been reaped: its pid may be somebody else's by now."""
        return self._gone

    def follow(self, pid: int) -> None:
        """It goes on in its clone `pid`. Raises ValueError unless that is another child of ours, of the same group."""
        try:
            if (
                self._clone_fd is not None
                or not self._clones
                or os.getpgid(pid) != self.group
                or pid == self.group
            ):
                raise ValueError(f"process {pid} is no clone of it")
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # only whether it is a child
            self._clone_fd = os.pidfd_open(pid)
        except (OSError, OverflowError) as exc:
            raise ValueError(f"process {pid} is no clone of it: {exc}") from exc
        self.pid = pid
        self._settled.set()

    def signal(self, number: signal.Signals) -> None:
        """Signal the process; nothing happens when it has ended. It is not reaped yet, so the pid is its own."""
        if not self._gone:
            with suppress(ProcessLookupError):
                fd = self._pidfd if self._clone_fd is None else self._clone_fd
                signal.pidfd_send_signal(fd, number)

    def kill(self) -> None:
        """SIGKILL to the process and to its whole group: nothing that it may have started stays."""
        self.signal(signal.SIGKILL)
        self._kill_group()
        self._settled.set()

    async def wait(self) -> Exit:
        """Wait for its end, then kill what is left of its group, and reap it. Only one task may wait."""
        await trio.lowlevel.wait_readable(self._pidfd)
        ended = None
        if self._clones and _exited_with_0(self.group):
            # Not reaped yet: while it is there, the number of its group is nobody else's.
            with trio.move_on_after(FOLLOW_SECONDS):
                await self._settled.wait()
            if self._clone_fd is None:
                self._kill_group()
            self._reap(self.group)
            if self._clone_fd is not None:
                await trio.lowlevel.wait_readable(self._clone_fd)
                # Before it is reaped: until then nobody else can get the group's number.
                self._kill_group()
                ended = self._reap(self.pid)
        else:
            self._kill_group()
            ended = self._reap(self.group)
        # What has cloned itself and died before it could say so has left a child that was never told to go on.
        ended = await self._reap_rest() or ended
        self._gone = True
        _LIVE.discard(self)
        os.close(self._pidfd)
        if self._clone_fd is not None:
            os.close(self._clone_fd)
        return ended or Exit(None, signal.SIGKILL, resource.getrusage(resource.RUSAGE_CHILDREN))

    def _reap(self, pid: int) -> Exit:
        _, status, usage = os.wait4(pid, 0)  # it has ended: this does not wait
        if pid == self._child.pid:
            # Or Popen would wait for it again, and complain at its deletion.
            self._child.returncode = os.waitstatus_to_exitcode(status)
        return _exit(status, usage)

    async def _reap_rest(self) -> Exit | None:
        """Kill and reap all children of ours in the group. The end of the last one, None when there was none."""
        last: Exit | None = None
        while self._has_children():
            self._kill_group()
            pid, status, usage = os.wait4(-self.group, os.WNOHANG)  # noqa: ASYNC222  (it does not wait)
            if pid:
                last = _exit(status, usage)
            else:
                await trio.sleep(REAP_SECONDS)  # nothing tells of a process that we have no pidfd of
        return last

    def _has_children(self) -> bool:
        try:
            os.waitid(os.P_PGID, self.group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _kill_group(self) -> None:
        # While a child of ours is in the group, dead or alive, its number is nobody else's.
        if not self._gone and self._has_children():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, signal.SIGKILL)


def _exited_with_0(pid: int) -> bool:
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)


def _exit(status: int, usage: resource.struct_rusage) -> Exit:
    code = os.waitstatus_to_exitcode(status)
    return Exit(None, -code, usage) if code < 0 else Exit(code, None, usage)


def own() -> set[int]:
    """Pids and groups of the processes that are waited for here, and must be reaped by nobody else."""
    return {number for each in _LIVE for number in (each.pid, each.group)}


def spawn(
    command: Collection[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    keep: Collection[int] = (),
    environment: Mapping[str, str] | None = None,
    clones: bool = False,
) -> Process:
    """Start a process that inherits the descriptors given and no others, in a session of its own. `clones`: see there.

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
            ),
            clones=clones,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise SpawnError(f"cannot start {' '.join(list(command)[-2:])}: {exc}") from exc
