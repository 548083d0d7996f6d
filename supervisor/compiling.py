"""Compiling: a process for each module, watched from its start to its reaping; and what it made, kept.

A module attacks the compiler before it attacks the host. Whatever it does to it (spin, fill memory, crash, fill the
pipe), `compile` answers: with native code, which only a sealed worker runs, or with a sentence.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import NoReturn

import trio

from capsuled.proto import compiling
from capsuled.proto.compiling import CompileOrder
from capsuled.proto.order import Confinement
from capsuled.supervisor import cgroups, spawn
from capsuled.supervisor.blobs import Compiled, Shelf
from capsuled.supervisor.cgroup_layout import Caps
from capsuled.supervisor.cgroups import Group
from capsuled.supervisor.compilation import (
    BOUNDS,
    Bounds,
    Ended,
    Job,
    Key,
    LoadError,
    NotSealed,
    Outcome,
    last_line,
    verdict,
)
from capsuled.supervisor.quantities import MIB
from capsuled.supervisor.spawn import Exit, Process, SpawnError
from capsuled.supervisor.users import NoUserLeft

LOG = logging.getLogger("capsuled.compiling")

COMMAND = (sys.executable, "-I", "-B", "-m", "capsuled.sandbox.compiler")

AT_ONCE = 2
"""Processes at a time: one may hang until its limit, and modules that do not still get their turn beside it."""

KEPT_BYTES = 256 * MIB
"""Of blobs in memory: a hundred of 2.6 MB, which a module of 800 KB makes."""

READ_BYTES = 256 * 1024

COMPILER_CORES = 1.0
"""It has one thread that computes."""

DRAIN_SECONDS = 1.0
"""How long the end of the output is waited for when the process is gone: only one that left its group can hold it."""


class CannotCompile(SpawnError):
    """No compiler was started, or none could be sealed. `status` is that of the one which could not."""

    def __init__(self, found: NotSealed) -> None:
        super().__init__(found.message)
        self.status = found.status


class Compiler:
    """See the module's docstring. `run` it while others `compile`."""

    def __init__(
        self,
        confine: Callable[[], AbstractContextManager[Confinement]],
        group: Callable[[str, Caps], AbstractAsyncContextManager[Group]],
        *,
        bounds: Bounds = BOUNDS,
        at_once: int = AT_ONCE,
        kept_bytes: int = KEPT_BYTES,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        """`confine` gives what each process is told of its confinement, for as long as it lives, and
        `group` a control group for it (`confining`)."""
        self._confine = confine
        self._group = group
        self._bounds = bounds
        self._command = command
        self._slots = trio.CapacityLimiter(at_once)
        self._shelf: Shelf[Key] = Shelf(kept_bytes)
        self._running: dict[Key, _Shared] = {}
        self._nursery: trio.Nursery | None = None
        self.processes = 0
        """Started so far."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Until cancelled; then every process is killed and reaped."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError

    async def compile(self, job: Job, on_turn: Callable[[], None] = lambda: None) -> Compiled | LoadError:
        """Native code of a module: kept from last time, or made in a process of its own. Raises `CannotCompile`.

        The same job is done once, however many ask for it; when all of them are cancelled, so is it. `on_turn` is
        called when nobody else is waited for any longer: what then passes is this module's own time.
        """
        key = await trio.to_thread.run_sync(lambda: job.key)
        kept = self._shelf.get(key)
        if kept is not None:
            on_turn()
            return kept
        shared = self._running.get(key)
        if shared is None:
            assert self._nursery is not None  # `run` has started
            self._running[key] = shared = _Shared()
            self._nursery.start_soon(self._do, key, job, shared)
        shared.asking += 1
        try:
            await shared.turn.wait()
            on_turn()
            await shared.done.wait()
        finally:
            shared.asking -= 1
            if not shared.asking and not shared.done.is_set():
                shared.scope.cancel()
                self._leave(key, shared)  # now: who asks next must not get what was given up
        if isinstance(shared.result, NotSealed):
            raise CannotCompile(shared.result)
        return shared.result

    def forget(self, job: Job) -> None:
        """Compile it anew the next time: what was made of it did not load, as after an update of the engine."""
        self._shelf.forget(job.key)

    async def _do(self, key: Key, job: Job, shared: _Shared) -> None:
        try:
            with shared.scope:
                async with self._slots:
                    shared.turn.set()
                    shared.result = await self._in_process(job)
                    if isinstance(shared.result, Compiled):
                        self._shelf.put(key, shared.result)
        except (OSError, SpawnError, NoUserLeft) as exc:
            shared.result = NotSealed(f"cannot compile: {exc}")
        except Exception as exc:
            # A defect of ours costs this module its start, and not everybody the supervisor.
            LOG.exception("cannot look after a compiler any longer: it has been killed")
            shared.result = NotSealed(
                f"a defect in the supervisor ({type(exc).__name__}): please report what its log says"
            )
        finally:
            shared.turn.set()
            shared.done.set()
            self._leave(key, shared)

    def _leave(self, key: Key, shared: _Shared) -> None:
        if self._running.get(key) is shared:
            del self._running[key]

    async def _in_process(self, job: Job) -> Outcome:
        caps = Caps.beside(self._bounds.memory(len(job.wasm)), COMPILER_CORES)
        self.processes += 1
        with self._confine() as confinement:
            async with self._group(f"compiler-{self.processes}", caps) as group:
                return await self._confined(job, confinement, group)

    async def _confined(self, job: Job, confinement: Confinement, group: Group) -> Outcome:
        size = len(job.wasm)
        order = CompileOrder(
            engine=job.engine,
            module_hash=job.module_hash,
            memory=job.memory,
            process_memory=self._bounds.memory(size),
            cpu_seconds=self._bounds.cpu_seconds,
            confinement=confinement,
            module=job.wasm,
        )
        with ExitStack() as ours, ExitStack() as theirs:
            stdin, its_stdin = _writable_pipe(ours, theirs)
            stdout, its_stdout = _pipe(ours, theirs)
            stderr, its_stderr = _pipe(ours, theirs)
            process = spawn.spawn(
                self._command,
                stdin=its_stdin,
                stdout=its_stdout,
                stderr=its_stderr,
                environment=spawn.WORKER_ENVIRONMENT,
                clones=confinement.namespaces != "none",
            )
            theirs.close()  # or our own copies would keep its pipes open after its end
            output = _Output(
                stdout, self._bounds.output(size), clones=confinement.namespaces != "none", group=group
            )
            printed = _Output(stderr, self._bounds.most_printed)
            feed = partial(_feed, stdin, compiling.encode(order))
            ended = await _watch(process, group, feed, output, printed, self._bounds.seconds)
        if ended.printed:
            LOG.warning("a compiler has printed: %r", last_line(ended.printed))
        return verdict(ended, order, self._bounds)


class _Shared:
    """A job that is being done, for whoever asks."""

    def __init__(self) -> None:
        self.asking = 0
        self.scope = trio.CancelScope()
        self.turn = trio.Event()
        self.done = trio.Event()
        self.result: Outcome = LoadError("it was given up before it was compiled")


class _Output:
    """What comes on one pipe of a compiler."""

    def __init__(self, fd: int, most: int, *, clones: bool = False, group: Group = cgroups.NO_GROUP) -> None:
        """`clones`: the line that tells of a clone comes first, and is not of the data; it is put into `group`."""
        self._fd = fd
        self._group = group
        self._most = most
        self._clones = clones
        self.data = bytearray()
        self.unlimited: OSError | None = None
        """Its clone could not be put into the group: nothing it says is wanted, and the module is not to blame."""
        self.whole = False
        """It came to its end, behind a clone's line where one had to come."""

    @property
    def too_long(self) -> bool:
        return len(self.data) > self._most

    async def read(self, process: Process) -> None:
        """Until its end; when more comes than may, the process is killed and the rest is not read."""
        async with trio.lowlevel.FdStream(os.dup(self._fd)) as pipe:
            while data := await pipe.receive_some(READ_BYTES):
                self.data += data
                if self._clones and not self.data.startswith(compiling.CLONE[: len(self.data)]):
                    # It could not make a clone, and says why: its exit status tells whether that is believed. When it
                    # has said so, whatever it may have started all the same is killed; its status stands by then.
                    with trio.move_on_after(DRAIN_SECONDS):
                        while not self.too_long and (data := await pipe.receive_some(READ_BYTES)):
                            self.data += data
                    process.kill()
                    return
                try:
                    if self._clones:
                        self._follow(process)
                except OSError as exc:
                    self.unlimited = exc
                    process.kill()
                    return
                except ValueError as exc:
                    LOG.error("a compiler is killed: it goes on where we cannot follow: %s", exc)
                    process.kill()
                    return
                if self.too_long:
                    process.kill()
                    return
        self.whole = not self._clones

    def _follow(self, process: Process) -> None:
        found = compiling.split_clone_line(bytes(self.data))
        if found is not None:
            pid, rest = found
            process.follow(pid)
            self._group.join(pid)
            self.data = bytearray(rest)
            self._clones = False


async def _feed(pipe: trio.lowlevel.FdStream, order: bytes) -> None:
    """Write the order, and its end. Whoever has ended before he had read it has said why."""
    with suppress(trio.BrokenResourceError):
        async with pipe:
            await pipe.send_all(order)


async def _watch(
    process: Process,
    group: Group,
    feed: Callable[[], Awaitable[None]],
    output: _Output,
    printed: _Output,
    seconds: float,
) -> Ended:
    """Wait for the end of a compiler, or bring it about. However this ends, the process has been reaped."""
    too_late = False
    try:
        group.join(process.pid)
        async with trio.open_nursery() as talkers:
            talkers.start_soon(feed)  # now: before it is in its group it has no order
            talkers.start_soon(output.read, process)
            talkers.start_soon(printed.read, process)
            ended: Exit | None = None
            with trio.move_on_after(seconds):
                ended = await process.wait()
            if ended is None:
                too_late = True
                process.kill()
                ended = await process.wait()
            talkers.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
    finally:
        if not process.gone:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    if output.unlimited is not None:
        raise output.unlimited
    return Ended(
        status=ended.status,
        signal=ended.signal,
        cpu_seconds=ended.usage.ru_utime + ended.usage.ru_stime,
        output=bytes(output.data),
        whole=output.whole,
        too_long=output.too_long or printed.too_long,
        too_late=too_late,
        printed=bytes(printed.data).decode(errors="replace"),
        oom_kills=group.oom_kills(),
    )


def _writable_pipe(ours: ExitStack, theirs: ExitStack) -> tuple[trio.lowlevel.FdStream, int]:
    """The write end, and the compiler's."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    theirs.callback(os.close, reader)
    pipe = trio.lowlevel.FdStream(writer)
    ours.callback(pipe.close)
    return pipe, reader


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """The read end, which is dup'ed by who wraps it, and the compiler's."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    return reader, writer
