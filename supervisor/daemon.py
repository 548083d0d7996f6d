"""The daemon: everything it needs, opened in the order of starting and closed in the reverse.

    folders (and their locks) → control socket's file → control groups → log files → backbone → compilers
        → control server → capsules

A second signal, or a deadline that has passed, ends it at once: every process is killed, nothing is waited for.
"""

from __future__ import annotations

import grp
import itertools
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from capsuled.proto.control import Level, State
from capsuled.supervisor import cgroups, folders, modes, notify, probe, reaper
from capsuled.supervisor.bus import Bus
from capsuled.supervisor.capsule import Capsule, Surroundings
from capsuled.supervisor.catalogue import Catalogue
from capsuled.supervisor.cgroups import Groups
from capsuled.supervisor.compiling import Compiler
from capsuled.supervisor.configuration import Configuration
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.control import server
from capsuled.supervisor.control.access import Access
from capsuled.supervisor.control.listening import control_socket
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.folders import CannotStart
from capsuled.supervisor.histories import Histories
from capsuled.supervisor.lifecycle import Event
from capsuled.supervisor.logs import Logs
from capsuled.supervisor.modes import Mode
from capsuled.supervisor.notify import NOBODY, Notifier, Told
from capsuled.supervisor.service import Service

LOG = logging.getLogger("capsuled")

GRACE_SECONDS = 2.0
"""On top of the longest stop timeout: after a kill a process is gone within milliseconds."""

END_SECONDS = 10.0
"""Until all is gone after the longest stop timeout: that grace, the backbone's end, and a machine that is busy."""

_ENDING = (signal.SIGTERM, signal.SIGINT)


async def run(
    using: Configuration,
    catalogue: Catalogue,
    *,
    insecure: bool = False,
    told: Told = NOBODY,
    ready_fd: int | None = None,
) -> None:
    """Supervise the catalogue's capsules until a signal or a request to shut down. Raises `CannotStart`.

    `told` and `ready_fd`: the init system that wants to hear of it, see `notify`.
    """
    groups = _groups(using)
    with ExitStack() as stack:
        notifier = stack.enter_context(notify.opened(told, ready_fd))
        shared = bool(groups) and using.control.path.parent == using.runtime_dir
        stack.enter_context(folders.locked(using.runtime_dir, folders.SHARED if shared else folders.PRIVATE))
        if not _same(using.state_dir, using.runtime_dir):
            stack.enter_context(folders.locked(using.state_dir))
        listener = stack.enter_context(control_socket(using.control.path, groups))
        edges = stack.enter_context(folders.fresh(using.runtime_dir / "edges"))
        spine = stack.enter_context(folders.fresh(using.runtime_dir / "spine"))
        logs = Logs(using.log, folders.made(using.state_dir / "logs"))
        histories = Histories(folders.made(using.state_dir / "histories"))
        own = stack.enter_context(cgroups.opened(cgroups.holder(using.runtime_dir.absolute())))
        confining = await _confining(using, own, insecure=insecure)
        try:
            async with _in_background(logs.run), _in_background(histories.run), _in_background(reaper.run):
                await _supervise(
                    using, catalogue, listener, groups, edges, spine, logs, histories, confining, notifier
                )
        finally:
            histories.flush()
            logs.flush()


async def _supervise(
    using: Configuration,
    catalogue: Catalogue,
    listener: trio.SocketListener,
    groups: dict[int, Level],
    edges: Path,
    spine: Path,
    logs: Logs,
    histories: Histories,
    confining: Confining,
    notifier: Notifier,
) -> None:
    ending, serving = trio.Event(), trio.Event()
    bus = Bus(using.limits.total_queue_bytes, using.limits.max_payload, str(spine))
    compiler = Compiler(confining.confinement, confining.group)
    service = Service(bus, catalogue.faults, confining.probed, ending.set)
    capsules: list[Capsule] = []

    def happened(event: JsonObject) -> None:
        service.event(event)
        notifier.changed()

    async with trio.open_nursery() as nursery:
        await nursery.start(_signals, ending, serving, nursery.cancel_scope)
        await nursery.start(notifier.run, lambda: _summary(capsules))
        async with _in_background(bus.run), _in_background(compiler.run), _in_background(service.sampler.run):
            serve = partial(server.serve, counts=service.connections)
            await nursery.start(serve, listener, service, Access(os.getuid(), groups))
            async with trio.open_nursery() as capsules_nursery:
                capsules += _capsules(
                    using,
                    catalogue,
                    service,
                    happened,
                    bus,
                    compiler,
                    edges,
                    logs,
                    histories,
                    confining,
                    capsules_nursery,
                )
                bus.on_fault = _fault_teller(capsules)
                try:
                    LOG.info(
                        "started: pid %d, %d capsules, %s", os.getpid(), len(capsules), using.control.path
                    )
                    serving.set()
                    notifier.ready()
                    notifier.changed()
                    for capsule in capsules:
                        if capsule.state is not State.FAILED:  # as the last supervisor has left it
                            capsule.feed(Event.START)
                    await ending.wait()
                    LOG.info("stopping %d capsules", len(capsules))
                    service.stopping = True
                    notifier.stopping(_longest(capsules) + END_SECONDS)
                    await _stop(capsules)
                finally:
                    # Also when we are cancelled: no process is left behind, whatever happened.
                    service.stopping = True
                    notifier.stopping(END_SECONDS)
                    for capsule in capsules:
                        capsule.shut_down(at_once=True)
            service.close()
        nursery.cancel_scope.cancel()
    LOG.info("stopped")


async def _confining(using: Configuration, own: Groups, *, insecure: bool) -> Confining:
    """What this machine can hold, and must. Raises `CannotStart` where it is not enough."""
    users = using.isolation.numbers()
    try:
        probed = await probe.probe(users[0], own)
    except probe.CannotProbe as exc:
        raise CannotStart(f"cannot find out how capsules can be isolated: {exc}") from exc
    if refusal := modes.refusal(probed, using.isolation.required, insecure=insecure):
        raise CannotStart(refusal)
    mode = modes.mode(probed)
    missing = [name for name in modes.LAYERS if not probed.held(name)]
    LOG.log(
        logging.INFO if mode < Mode.C else logging.WARNING,
        "isolation: mode %s, %s%s",
        mode.value,
        modes.LOST[mode],
        f"; missing: {', '.join(missing)}" if missing else "",
    )
    return Confining(probed, users, own)


async def _stop(capsules: Collection[Capsule]) -> None:
    """Stop all of them, each within its own deadline."""
    for capsule in capsules:
        capsule.shut_down(at_once=False)
    with trio.move_on_after(_longest(capsules) + GRACE_SECONDS):
        for capsule in capsules:
            while not capsule.down:
                await capsule.changed()


def _longest(capsules: Collection[Capsule]) -> float:
    """The longest stop timeout."""
    return max((each.entry.manifest.supervision.stop_timeout for each in capsules), default=0.0)


def _summary(capsules: Collection[Capsule]) -> str:
    """For the init system's status: numbers and names of states, and no word of a guest's."""
    states = Counter(each.state for each in capsules)
    told = ", ".join(f"{states[state]} {state.value}" for state in State if states[state])
    return f"{len(capsules)} capsules" + (f": {told}" if told else "")


async def _signals(
    ending: trio.Event,
    serving: trio.Event,
    at_once: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """TERM and INT end gracefully, the second one at once; so does the first while there is nothing to be graceful to.

    HUP is taken, so that a closed terminal ends nothing.
    """
    with trio.open_signal_receiver(*_ENDING, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP:
                LOG.warning("SIGHUP: manifests are not read again in this version; restart the supervisor")
            elif ending.is_set():
                LOG.warning("%s again: everything is killed", signal.Signals(number).name)
                at_once.cancel()
            elif not serving.is_set():
                LOG.warning("%s: given up before it has started", signal.Signals(number).name)
                at_once.cancel()
            else:
                LOG.info("%s: shutting down", signal.Signals(number).name)
                ending.set()


@asynccontextmanager
async def _in_background(run: Callable[..., Awaitable[object]]) -> AsyncGenerator[None, None]:
    """A task that has started when the block begins, and is cancelled when it ends."""
    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


def _capsules(
    using: Configuration,
    catalogue: Catalogue,
    service: Service,
    happened: Callable[[JsonObject], None],
    bus: Bus,
    compiler: Compiler,
    edges: Path,
    logs: Logs,
    histories: Histories,
    confining: Confining,
    nursery: trio.Nursery,
) -> list[Capsule]:
    index = itertools.count(1)
    around = Surroundings(
        nursery,
        bus,
        compiler,
        edges,
        using.secrets_dir,
        lambda: next(index),
        happened,
        service.ending,
        confining,
        histories,
    )
    made: list[Capsule] = []
    for name, entry in catalogue.entries.items():
        capsule = Capsule(entry, around, logs.book(name))
        service.add(capsule)
        made.append(capsule)
    return made


def _fault_teller(capsules: list[Capsule]) -> Callable[[int, str], None]:
    """What a worker did that no honest one does stands in its capsule's log: it may have been taken over."""

    def tell(index: int, message: str) -> None:
        for capsule in capsules:
            if capsule.instance is not None and capsule.instance.index == index:
                capsule.say("error", f"the backbone refuses its worker: {message}")

    return tell


def _same(one: Path, other: Path) -> bool:
    """A lock on a folder keeps out even who holds it already, under whatever name."""
    return one.exists() and other.exists() and one.samefile(other)


def _groups(using: Configuration) -> dict[int, Level]:
    found: dict[int, Level] = {}
    for name, level in using.control.groups.items():
        try:
            found[grp.getgrnam(name).gr_gid] = level
        except KeyError as exc:
            raise CannotStart(
                f"cannot let group '{name}' in: there is no such group: create it, or take it out of [control]"
            ) from exc
    return found
