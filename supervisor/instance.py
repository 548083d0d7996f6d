"""One instance of a capsule: a worker process from its start to its reaping, and what it leaves as evidence.

A shell: it starts, listens, signals and waits. What follows from an end is decided elsewhere (`exits`, `restart`,
`lifecycle`). Whatever the worker does or is, `run` ends: by the process's own end, or by the kill at the end
of the stop ladder.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from capsuled.proto import order as orders
from capsuled.proto import reports
from capsuled.proto.control import LogStream, Reason
from capsuled.proto.ledger import Claims
from capsuled.proto.order import Confinement, Interceptor, Order, WorkerLimits
from capsuled.proto.reports import Cancel, Cloned, Ended, How, Listening, Proceed, Ready, Report, Started
from capsuled.supervisor import clock, descriptors, exits, isolation, output, spawn
from capsuled.supervisor.backbone.members import Admission
from capsuled.supervisor.blobs import Compiled
from capsuled.supervisor.bus import Bus, Figures
from capsuled.supervisor.cgroup_layout import Caps
from capsuled.supervisor.cgroups import Group
from capsuled.supervisor.compilation import Job, LoadError
from capsuled.supervisor.compiling import CannotCompile, Compiler
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.descriptors import Ends, Inherited
from capsuled.supervisor.exits import Evidence, Intent
from capsuled.supervisor.isolation import Expected
from capsuled.supervisor.logbook import LogBook
from capsuled.supervisor.manifest import Manifest
from capsuled.supervisor.modes import Layer
from capsuled.supervisor.spawn import Process, SpawnError
from capsuled.supervisor.users import NoUserLeft

LOG = logging.getLogger("capsuled.instance")

MAX_REPORTS = 16
"""An honest worker sends five. One that has been taken over could keep us busy with them for ever."""

DRAIN_SECONDS = 1.0
"""How long the last output of a process that is gone is waited for. Only a process that has left its group could hold
the pipes open, and it must not hold up the rest."""


@dataclass(frozen=True)
class Ending:
    """What an instance leaves."""

    evidence: Evidence
    ready_seconds: float
    """How long it was ready; 0.0 when it never was."""
    claims: Claims | None
    """Its ledger page at the end; None when there was no process."""
    figures: Figures | None
    """The backbone's last word on it; None when it was not attached, or that backbone has died too."""


class Instance:
    """See the module's docstring. `run` it once."""

    def __init__(
        self,
        manifest: Manifest,
        wasm: bytes,
        config: Mapping[str, bytes],
        edges: Path,
        index: int,
        bus: Bus,
        compiler: Compiler,
        confining: Confining,
        book: LogBook,
        on_report: Callable[[Instance, Report], None],
        *,
        standby: bool = False,
    ) -> None:
        """`config` has the manifest's values as CBOR items, secrets read. `on_report` is told what the worker
        reports while it lives, each as it comes. `standby`: another instance of the capsule serves still."""
        self.manifest = manifest
        self.id = uuid.uuid4()
        self.index = index
        """Number of this instance at the backbone, never used again."""
        self._job = Job(
            manifest.component.engine, manifest.component.hash or "", manifest.limits.memory, wasm
        )
        self._config = config
        self._edge = edges / f"{index:08x}"
        self._bus = bus
        self._compiler = compiler
        self.turn = trio.Event()
        """Nobody else's module is waited for any longer: from here on the time that passes is its own."""
        self._told_to_end = trio.Event()
        self._confining = confining
        self._book = book
        self._on_report = on_report
        self._standby = standby
        self._process: Process | None = None
        self._ends: Ends | None = None
        self._intent: Intent | None = None
        self._killed = False
        self._report: Ended | None = None
        self._ready_at: float | None = None
        self._attached = False
        self.engine: str | None = None
        self._stopping = trio.Event()
        self._expected: Expected | None = None

    @property
    def attached(self) -> bool:
        """Whether it has listened, so that the backbone knows it."""
        return self._attached

    @property
    def pid(self) -> int | None:
        """None before there is a process, and once it has been reaped."""
        return self._process.pid if self._process is not None and not self._process.gone else None

    def layers(self) -> dict[str, Layer]:
        """What confines it now, seen from outside; nothing when there is no process."""
        if self.pid is None or self._expected is None:
            return {}
        return isolation.observe(self.pid, self._expected)

    def claims(self) -> Claims | None:
        """What its ledger page says now; None when there is no process, or the page is in the middle of an update."""
        return self._ends.ledger.claims() if self._ends is not None else None

    def _cut(self) -> int | None:
        claims = self.claims()
        return claims.logs_cut if claims is not None else None

    # ── what is done to it ───────────────────────────────────────────────────────────────────────

    def stop(self, intent: Intent) -> None:
        """Begin the stop ladder: cancel, TERM at half of the stop timeout, KILL at its end."""
        if self._intent is None:
            self._intent = intent
        self._stopping.set()
        self._told_to_end.set()

    def kill(self, intent: Intent) -> None:
        """SIGKILL, now. The intent is recorded before the signal: ours is never confused with another's."""
        self._intent = intent
        self._kill()

    def _kill(self) -> None:
        self._killed = True
        self._told_to_end.set()
        if self._process is not None:
            self._process.kill()

    # ── its life ─────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> Ending:
        """From nothing to nothing. Raises nothing.

        Run it shielded: it ends when the process does, and who wants that kills it.
        """
        try:
            try:
                compiled = await self._compile()
            except CannotCompile as exc:
                return _not_compiled("unsealed", str(exc), exc.status)
            if compiled is None:
                limit = self.manifest.supervision.ready_timeout
                return Ending(Evidence(intent=self._intent, ready_timeout=limit), 0.0, None, None)
            if isinstance(compiled, LoadError):
                return _not_compiled("load-error", compiled.message, reports.STATUS["load-error"])
            # Native code that cannot be written any more is no data (RLIMIT_DATA), but it is memory.
            memory = self.manifest.limits.process_memory + len(compiled.blob)
            caps = Caps.beside(memory, self.manifest.limits.cpu)
            async with self._confining.group(f"{self.index:x}", caps) as group:
                with (
                    ExitStack() as worker_ends,
                    self._confining.confinement() as confinement,
                    descriptors.make(
                        self.manifest.package.name, compiled.blob, self._edge, worker_ends
                    ) as made,
                ):
                    return await self._run(*made, worker_ends, confinement, group, compiled.engine)
        except (OSError, SpawnError, NoUserLeft) as exc:
            return Ending(Evidence(spawn_error=str(exc)), 0.0, None, None)
        except Exception as exc:
            # A defect of ours costs this instance its life, and not everybody the supervisor.
            LOG.exception(
                "cannot look after %s any longer: its process is killed", self.manifest.package.name
            )
            told = f"a defect in the supervisor ({type(exc).__name__}): please report what its log says"
            return Ending(Evidence(spawn_error=told), 0.0, None, None)

    async def _compile(self) -> Compiled | LoadError | None:
        """Native code of the module, or why there is none; None when this instance is told to end first.

        Raises `CannotCompile`.
        """
        found: Compiled | LoadError | None = None
        failed: CannotCompile | None = None

        async def compile_it(scope: trio.CancelScope) -> None:
            nonlocal found, failed
            try:
                found = await self._compiler.compile(self._job, self.turn.set)
            except CannotCompile as exc:
                failed = exc  # raised below, not out of the nursery, which would wrap it
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(compile_it, nursery.cancel_scope)
            await self._told_to_end.wait()
            nursery.cancel_scope.cancel()
        if self._told_to_end.is_set():
            return None
        if failed is not None:
            raise failed
        return found

    async def _run(
        self,
        ends: Ends,
        inherited: Inherited,
        worker_ends: ExitStack,
        confinement: Confinement,
        group: Group,
        engine: str,
    ) -> Ending:
        order = descriptors.order_file(
            orders.encode(self._order(inherited, confinement, engine)), worker_ends
        )
        if self._intent is not None:
            return Ending(Evidence(intent=self._intent), 0.0, None, None)
        process = spawn.spawn(
            spawn.WORKER,
            stdin=order,
            stdout=inherited.stdout,
            stderr=inherited.stderr,
            keep=inherited.to_keep(),
            environment=spawn.WORKER_ENVIRONMENT,
            clones=confinement.namespaces != "none",
        )
        self._expected = Expected(process.group, confinement, isolation.NOT_CLONED, group)
        worker_ends.close()  # or our own copies would keep its sockets and pipes open after its end
        self._process, self._ends = process, ends
        try:
            group.join(process.pid)
            return await self._live(process, ends, group)
        except Exception:
            process.kill()
            if not process.gone:
                await process.wait()
            if self._attached:
                await self._bus.detach(self.index)
            raise
        finally:
            self._process = self._ends = None

    async def _live(self, process: Process, ends: Ends, group: Group) -> Ending:
        limits = self.manifest.limits
        intake = output.Intake(self._write, limits.log_bytes_per_second)
        async with trio.open_nursery() as listeners, trio.open_nursery() as ladder:
            listeners.start_soon(self._listen, ends.control)
            listeners.start_soon(output.read_lines, ends.log, intake)
            for fd, stream in ((ends.stdout, LogStream.STDOUT), (ends.stderr, LogStream.STDERR)):
                listeners.start_soon(output.read_stream, os.dup(fd), stream, intake)
            ladder.start_soon(self._ladder, ends.control)
            ladder.start_soon(output.watch_cuts, intake, self._cut)
            ended = await process.wait()
            # Now, for what is done to it from here on was not what ended it.
            intent, killed, ready_seconds = self._intent, self._killed, self._ready_seconds()
            ladder.cancel_scope.cancel()
            intake.end()
            listeners.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
        claims = ends.ledger.claims()
        intake.tell_cut(claims.logs_cut if claims is not None else 0)
        intake.finish()
        if claims is not None:
            claims = claims._replace(logs_cut=claims.logs_cut + intake.cut)
        figures = await self._bus.detach(self.index) if self._attached else None
        evidence = Evidence(
            intent=intent,
            report=self._report,
            status=ended.status,
            signal=ended.signal,
            oom_kills=group.oom_kills(),
            cpu_seconds=ended.usage.ru_utime + ended.usage.ru_stime,
            max_rss=ended.usage.ru_maxrss * 1024,
            killed_by_us=killed,
            cpu_limit=int(limits.cpu_time),
            process_memory=limits.process_memory,
            ready_timeout=self.manifest.supervision.ready_timeout,
            watchdog=self.manifest.supervision.watchdog,
            stop_timeout=self.manifest.supervision.stop_timeout,
        )
        if exits.reason(evidence) is Reason.LOAD_ERROR:
            # What was compiled does not load here, as after an update of the engine: next time it is made anew.
            self._compiler.forget(self._job)
        return Ending(evidence, ready_seconds, claims, figures)

    def _ready_seconds(self) -> float:
        return 0.0 if self._ready_at is None else trio.current_time() - self._ready_at

    async def _ladder(self, control: socket.socket) -> None:
        """Cancel → TERM at the half → KILL at the end. Cancelled when the process is gone."""
        await self._stopping.wait()
        timeout = self.manifest.supervision.stop_timeout
        try:
            control.send(reports.encode(Cancel(timeout)))
        except OSError as exc:
            # Its buffer is full or it has hung up: it does not listen, and the next steps do not ask.
            LOG.debug("cannot cancel %s: %s", self.manifest.package.name, exc)
        await trio.sleep(timeout / 2)
        if self._process is not None:
            self._process.signal(signal.SIGTERM)
        await trio.sleep(timeout / 2)
        self._kill()

    async def _listen(self, control: socket.socket) -> None:
        """Take reports until the worker's end of the control socket is closed."""
        with trio.socket.from_stdlib_socket(control.dup()) as packets:
            for _ in range(MAX_REPORTS):
                try:
                    packet = await packets.recv(reports.MAX_BYTES + 1)  # or a longer one would be cut to it
                except ConnectionError:
                    return
                if not packet:
                    return
                try:
                    report = reports.decode(packet)
                except reports.ReportError as exc:
                    self._say("warn", f"the worker has sent what is no report ({exc}): it is killed")
                    self._kill()
                    return
                if not isinstance(report, Cancel | Proceed):
                    self._heard(report)
            self._say(
                "warn", f"the worker has sent {MAX_REPORTS} reports, an honest one sends five: it is killed"
            )
            self._kill()

    def _heard(self, report: Report) -> None:
        if isinstance(report, Cloned):
            self._follow(report.pid)
        elif isinstance(report, Listening):
            if not self._attached and self._process is not None:
                self._attached = True
                self._bus.attach(self._admission(self._process.pid))
        elif isinstance(report, Started):
            self.engine = report.engine
        elif isinstance(report, Ready):
            if self._ready_at is None:
                self._ready_at = trio.current_time()
        else:
            self._report = report
        if isinstance(report, Started) and self.manifest.supervision.ready == "started":
            self._ready_at = trio.current_time()
        self._on_report(self, report)

    def _follow(self, pid: int) -> None:
        """Its clone waits until it is known, and its namespaces have been seen: later they may not be looked at."""
        if self._process is None or self._ends is None or self._expected is None:
            return
        try:
            self._process.follow(pid)
            self._expected.group.join(pid)
        except ValueError as exc:
            self._say("warn", f"the worker names a process that is not its own ({exc}): it is killed")
            self._kill()
            return
        except OSError as exc:
            self._say("error", f"cannot limit the worker by its control group ({exc}): it is killed")
            self._kill()
            return
        self._expected = self._expected._replace(namespaces=isolation.namespaces(pid))
        try:
            self._ends.control.send(reports.encode(Proceed()))
        except OSError as exc:  # it has just ended
            LOG.debug("cannot tell %s to proceed: %s", self.manifest.package.name, exc)

    def _write(self, stream: LogStream, level: str, text: str) -> None:
        self._book.append(clock.now(), self.id.hex, stream, level, text)

    def _say(self, level: str, text: str) -> None:
        self._write(LogStream.SUPERVISOR, level, text)

    # ── what it is told, and what the backbone is told of it ─────────────────────────────────────

    def _order(self, inherited: Inherited, confinement: Confinement, engine: str) -> Order:
        manifest, limits = self.manifest, self.manifest.limits
        return Order(
            name=manifest.package.name,
            instance=self.id.bytes,
            engine=engine,
            descriptors=inherited.numbers,
            limits=WorkerLimits(
                memory=limits.memory,
                process_memory=limits.process_memory,
                cpu_time=int(limits.cpu_time),
                open_files=limits.open_files,
                max_payload=limits.max_payload,
                largest_payload=self._bus.largest_payload,
                publish_bytes_per_second=limits.publish_bytes_per_second,
                publish_messages_per_second=limits.publish_messages_per_second,
                queue_messages=limits.queue_messages,
                queue_bytes=limits.queue_bytes,
                log_bytes_per_second=limits.log_bytes_per_second,
            ),
            grants=manifest.grants,
            confinement=confinement,
            interceptors=self._interceptors(),
            config=self._config,
        )

    def _interceptors(self) -> tuple[Interceptor, ...]:
        """The manifest's, already in the order of their priority; their handles are the first ones."""
        return tuple(
            Interceptor(handle, each.event, each.action)
            for handle, each in enumerate(self.manifest.interceptors, 1)
        )

    def _admission(self, pid: int) -> Admission:
        manifest, limits = self.manifest, self.manifest.limits
        user = None if self._expected is None else self._expected.confinement.user
        uid, gid = (os.getuid(), os.getgid()) if user is None else (user, user)
        return Admission(
            index=self.index,
            name=manifest.package.name,
            instance=self.id.bytes,
            principal=manifest.package.principal,
            path=os.fspath(self._edge),
            peer=f"{uid}:{gid}:{pid}",
            grants=manifest.grants,
            max_payload=limits.max_payload,
            publish_bytes_per_second=limits.publish_bytes_per_second,
            publish_messages_per_second=limits.publish_messages_per_second,
            queue_messages=limits.queue_messages,
            queue_bytes=limits.queue_bytes,
            subscriptions=tuple((each.handle, each.pattern, True) for each in self._interceptors()),
            standby=self._standby,
        )


def _not_compiled(how: How, message: str, status: int | None) -> Ending:
    """As if the worker had found it: nobody should have to know in which process a module is looked at."""
    if status is None:
        return Ending(Evidence(spawn_error=message), 0.0, None, None)
    return Ending(Evidence(report=Ended(how, message=reports.cut(message)), status=status), 0.0, None, None)
