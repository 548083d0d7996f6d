"""The daemon: everything it needs, opened in the order of starting and closed in the reverse.

    folders (and their locks) → control socket's file → control groups → logs and histories → backbone → compilers
        → control server → capsules

A second signal, or a deadline that has passed, ends it at once: every process is killed, and waited for no longer than
the kernel takes.
"""

from __future__ import annotations

import grp
import itertools
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from capsuled.proto.control import Level
from capsuled.supervisor import catalogue, cgroups, folders, modes, notify, probe, reaper
from capsuled.supervisor.bus import Bus
from capsuled.supervisor.capsule import Capsule, Surroundings
from capsuled.supervisor.catalogue import Catalogue, Entry
from capsuled.supervisor.cgroups import Groups
from capsuled.supervisor.compiling import Compiler
from capsuled.supervisor.configuration import Configuration
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.control import server
from capsuled.supervisor.control.access import Access
from capsuled.supervisor.control.listening import control_socket
from capsuled.supervisor.control.operations import ShuttingDown
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.fleet import Fleet, Hooks
from capsuled.supervisor.folders import CannotStart
from capsuled.supervisor.histories import Histories
from capsuled.supervisor.logs import Logs
from capsuled.supervisor.modes import Mode
from capsuled.supervisor.notify import NOBODY, Notifier, Told
from capsuled.supervisor.service import Service

LOG = logging.getLogger("capsuled")

END_SECONDS = 10.0
"""Until all is gone after the capsules: the backbone's end, and a machine that is busy."""

_ENDING = (signal.SIGTERM, signal.SIGINT)


async def run(
    using: Configuration,
    found: Catalogue,
    *,
    insecure: bool = False,
    told: Told = NOBODY,
    ready_fd: int | None = None,
) -> None:
    """Supervise the capsules that were `found` until a signal or a request to shut down. Raises `CannotStart`.

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
        control_groups = stack.enter_context(cgroups.opened(cgroups.holder(using.runtime_dir.absolute())))
        confining = await _confining(using, control_groups, insecure=insecure)
        try:
            async with _in_background(logs.run), _in_background(histories.run), _in_background(reaper.run):
                await _supervise(
                    using, found, listener, groups, edges, spine, logs, histories, confining, notifier
                )
        finally:
            histories.flush()
            logs.flush()


async def _supervise(
    using: Configuration,
    found: Catalogue,
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
    service = Service(bus, histories, confining.probed, ending.set)
    capsules: dict[str, Capsule] = {}

    def happened(event: JsonObject) -> None:
        service.event(event)
        notifier.changed()

    async with trio.open_nursery() as nursery:
        await nursery.start(_signals, ending, serving, nursery, lambda: _reload(service, notifier))
        async with _in_background(bus.run), _in_background(compiler.run), _in_background(service.sampler.run):
            serve = partial(server.serve, counts=service.connections)
            await nursery.start(serve, listener, service, Access(os.getuid(), groups))
            async with trio.open_nursery() as capsules_nursery:
                around = Surroundings(
                    nursery=capsules_nursery,
                    bus=bus,
                    compiler=compiler,
                    edges=edges,
                    secrets=using.secrets_dir,
                    next_index=partial(next, itertools.count(1)),
                    on_event=happened,
                    on_ending=service.ending,
                    confining=confining,
                    histories=histories,
                    others=capsules,
                )

                def make(entry: Entry) -> Capsule:
                    return Capsule(entry, around, logs.book(entry.manifest.package.name))

                def read(known: Mapping[str, Path]) -> Catalogue:
                    return catalogue.load(using.capsules, using, known=known)

                hooks = Hooks(read, make, histories.forget)
                fleet = Fleet(capsules, hooks, capsules_nursery)
                service.lead(fleet)
                bus.on_fault = partial(_tell_fault, fleet)
                await nursery.start(notifier.run, fleet.summary)
                try:
                    LOG.info(
                        "started: pid %d, %d capsules, %s",
                        os.getpid(),
                        len(found.entries),
                        using.control.path,
                    )
                    fleet.begin(found)
                    serving.set()
                    notifier.ready()
                    notifier.changed()
                    if using.watch:
                        nursery.start_soon(fleet.watch, partial(catalogue.look, using.capsules), using.watch)
                    await ending.wait()
                    LOG.info("stopping %d capsules", len(capsules))
                    service.stopping = True
                    notifier.stopping(fleet.stop_seconds + END_SECONDS)
                    await fleet.stop()
                finally:
                    # Also when we are cancelled: no process is left behind, whatever happened.
                    service.stopping = True
                    notifier.stopping(END_SECONDS)
                    fleet.kill()
            service.close()
        nursery.cancel_scope.cancel()
    LOG.info("stopped")


async def _reload(service: Service, notifier: Notifier) -> None:
    """As the control socket does it; what is wrong with a manifest stands in the log."""
    with notifier.reloading(), suppress(ShuttingDown):
        await service.reload(dry_run=False)
    notifier.changed()


async def _confining(using: Configuration, control_groups: Groups, *, insecure: bool) -> Confining:
    """What this machine can hold, and must. Raises `CannotStart` where it is not enough."""
    users = using.isolation.numbers()
    try:
        probed = await probe.probe(users[0], control_groups)
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
    return Confining(probed, users, control_groups)


async def _signals(
    ending: trio.Event,
    serving: trio.Event,
    all_of_it: trio.Nursery,
    reload: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """TERM and INT end gracefully, the second one at once; so does the first while there is nothing to be graceful to.
    HUP reloads, also one that a closed terminal sends."""
    with trio.open_signal_receiver(*_ENDING, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP:
                LOG.info("SIGHUP: the manifests are read again")
                all_of_it.start_soon(reload)
            elif ending.is_set():
                LOG.warning("%s again: everything is killed", signal.Signals(number).name)
                all_of_it.cancel_scope.cancel()
            elif not serving.is_set():
                LOG.warning("%s: given up before it has started", signal.Signals(number).name)
                all_of_it.cancel_scope.cancel()
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


def _tell_fault(fleet: Fleet, index: int, message: str) -> None:
    """What a worker did that no honest one does stands in its capsule's log: it may have been taken over."""
    if (capsule := fleet.of_instance(index)) is not None:
        capsule.say("error", f"the backbone refuses its worker: {message}")


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
