"""All capsules: made of what the catalogue holds, started in order, stopped in reverse, changed by a reload.

A shell around `reload`, which says what is to be done, and `startorder`, which says in what order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple, NoReturn

import trio

from capsuled.proto.control import State
from capsuled.supervisor import ownlog, reload, startorder
from capsuled.supervisor.capsule import Capsule
from capsuled.supervisor.catalogue import Catalogue, Entry
from capsuled.supervisor.faults import Fault
from capsuled.supervisor.lifecycle import Event
from capsuled.supervisor.reload import Plan
from capsuled.supervisor.startorder import Order

LOG = logging.getLogger("capsuled.fleet")

GRACE_SECONDS = 2.0
"""On top of a stop timeout: after a kill a process is gone within milliseconds."""


class Hooks(NamedTuple):
    """What a fleet needs of the daemon."""

    read: Callable[[Mapping[str, Path]], Catalogue]
    """The manifests as they are now, where those of the capsules that there are come first; called in a thread."""
    make: Callable[[Entry], Capsule]
    forget: Callable[[str], None]
    """A capsule is there no more: nothing needs to be remembered of it."""


class Fleet:
    """See the module's docstring."""

    def __init__(self, capsules: dict[str, Capsule], hooks: Hooks, nursery: trio.Nursery) -> None:
        """`capsules` is filled and emptied here, and looked at by others."""
        self.capsules = capsules
        self.faults: tuple[Fault, ...] = ()
        """What is wrong with manifests, as they were read last."""
        self._hooks = hooks
        self._nursery = nursery
        self._order: Order = startorder.order({})
        self._leaving: dict[str, Capsule] = {}
        """Removed, and not down yet."""
        self._returning: dict[str, Entry] = {}
        """Wanted again, and waiting until their namesakes have left."""
        self._one_at_a_time = trio.Lock()
        self._stopping = False
        """Nothing is started any more."""

    # ── starting and changing ────────────────────────────────────────────────────────────────────

    def begin(self, found: Catalogue) -> None:
        """Start what there is, each when what it imports from is ready."""
        plan = reload.plan({}, found)
        for fault in plan.faults:
            LOG.error("left out: %s", fault)
        self._apply(plan)

    async def reload(self, *, dry_run: bool) -> Plan:
        """Read the manifests again, and set going what follows from them; with `dry_run` only say what would."""
        async with self._one_at_a_time:
            known = {name: entry.manifest_path for name, entry in self._targets().items()}
            found = await trio.to_thread.run_sync(self._hooks.read, known)
            plan = reload.plan(self._targets(), found)
            if not dry_run and not self._stopping:
                LOG.info("reload", extra=ownlog.fields(**_counts(plan)))
                for fault in plan.faults:
                    LOG.error("%s", fault)
                self._apply(plan)
        return plan

    def _targets(self) -> Mapping[str, Entry]:
        return {name: capsule.target for name, capsule in self.capsules.items() if name not in self._leaving}

    def _apply(self, plan: Plan) -> None:
        """All of it in one go: nobody sees half of it."""
        self.faults = plan.faults
        self._order = plan.order
        for name in plan.removed:
            self._leaving[name] = self.capsules[name]
            self._nursery.start_soon(self._remove, self.capsules[name])
        self._returning = {name: entry for name, entry in plan.added.items() if name in self._leaving}
        for name, entry in plan.added.items():
            if name not in self._leaving:
                self.capsules[name] = self._hooks.make(entry)
        for name, capsule in self.capsules.items():
            # One that goes on with its old manifest goes on with what that imports.
            capsule.after = plan.order.needs.get(name, capsule.after)
            capsule.look_again()
        for name in plan.added:
            if name not in self._leaving:
                self._start(self.capsules[name])
        for name, change in plan.changed.items():
            self.capsules[name].change(change.entry)

    def _start(self, capsule: Capsule) -> None:
        if capsule.state is not State.FAILED:  # as the last supervisor has left it
            capsule.feed(Event.START)

    async def _remove(self, capsule: Capsule) -> None:
        capsule.feed(Event.STOP)
        await _until_down(capsule)
        name = capsule.name
        del self.capsules[name]
        del self._leaving[name]
        self._hooks.forget(name)
        if (entry := self._returning.pop(name, None)) is not None and not self._stopping:
            self.capsules[name] = returned = self._hooks.make(entry)
            returned.after = self._order.needs.get(name, ())
            self._start(returned)
        capsule.leave()

    async def watch(self, look: Callable[[], object], seconds: float) -> NoReturn:
        """Reload when `look`, called in a thread, sees something else: once it has seen the same twice, for files are
        not written in one moment."""
        known = before = await trio.to_thread.run_sync(look)
        while True:
            await trio.sleep(seconds)
            seen = await trio.to_thread.run_sync(look)
            if seen == before and seen != known:
                known = seen
                await self.reload(dry_run=False)
            before = seen

    # ── stopping ─────────────────────────────────────────────────────────────────────────────────

    @property
    def stop_seconds(self) -> float:
        """How long `stop` may take: the longest way from who imports to who exports, each with its own timeout."""
        dependents = self._dependents()
        until: dict[str, float] = {}
        for name in _in_order(dependents):
            before = max((until[each] for each in dependents[name]), default=0.0)
            until[name] = before + _patience(self.capsules[name])
        return max(until.values(), default=0.0)

    async def stop(self) -> None:
        """Stop all of them, who imports before who exports; each within its own deadline."""
        self._stopping = True
        dependents = self._dependents()
        over = {name: trio.Event() for name in dependents}
        async with trio.open_nursery() as nursery:
            for name, own in dependents.items():
                nursery.start_soon(
                    self._shut_down, self.capsules[name], [over[each] for each in own], over[name]
                )

    async def _shut_down(self, capsule: Capsule, before: list[trio.Event], over: trio.Event) -> None:
        for each in before:
            await each.wait()
        capsule.shut_down(at_once=False)
        with trio.move_on_after(_patience(capsule)):
            await _until_down(capsule)
        over.set()

    def _dependents(self) -> dict[str, list[str]]:
        """Who starts after each capsule, and stops before it. In case of a circle nobody waits: an old manifest that
        goes on may make one with a new one."""
        found: dict[str, list[str]] = {name: [] for name in self.capsules}
        for name, capsule in self.capsules.items():
            for need in capsule.after:
                if need.provider in found:
                    found[need.provider].append(name)
        try:
            _in_order(found)
        except CycleError:
            return {name: [] for name in self.capsules}
        return found

    def kill(self) -> None:
        """No process is left behind, whatever happens."""
        self._stopping = True
        for capsule in self.capsules.values():
            capsule.shut_down(at_once=True)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    def is_leaving(self, name: str) -> bool:
        """Whether it was removed, and is not gone yet."""
        return name in self._leaving

    def of_instance(self, index: int) -> Capsule | None:
        """Whose instance has this number at the backbone."""
        for capsule in self.capsules.values():
            if any(instance.index == index for instance in capsule.instances):
                return capsule
        return None

    def summary(self) -> str:
        """For the init system's status: numbers and names of states, and no word of a guest's."""
        states = Counter(each.state for each in self.capsules.values())
        told = ", ".join(f"{states[state]} {state.value}" for state in State if states[state])
        return f"{len(self.capsules)} capsules" + (f": {told}" if told else "")


def _patience(capsule: Capsule) -> float:
    """What runs may be of an older manifest than the one that it is to be."""
    manifests = [capsule.entry.manifest, *(each.manifest for each in capsule.instances)]
    return max(each.supervision.stop_timeout for each in manifests) + GRACE_SECONDS


def _in_order(dependents: Mapping[str, list[str]]) -> list[str]:
    """Each behind its dependents. Raises `CycleError`."""
    return list(TopologicalSorter(dependents).static_order())


async def _until_down(capsule: Capsule) -> None:
    while not capsule.down:
        await capsule.changed()


def _counts(plan: Plan) -> dict[str, int]:
    return {
        "added": len(plan.added),
        "removed": len(plan.removed),
        "changed": len(plan.changed),
        "unchanged": len(plan.unchanged),
        "kept": len(plan.kept),
        "faults": len(plan.faults),
    }
