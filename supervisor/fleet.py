"""All capsules: made of what the catalogue holds, started in order, stopped in reverse, changed by a reload.

A shell around `reload`, which says what is to be done, and `startorder`, which says in what order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
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

    read: Callable[[], Catalogue]
    """The manifests as they are now; called in a thread."""
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
        self._one_at_a_time = trio.Lock()

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
            found = await trio.to_thread.run_sync(self._hooks.read)
            plan = reload.plan(self._targets(), found)
            if not dry_run:
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
        for name, entry in plan.added.items():
            if name in self._leaving:
                self._nursery.start_soon(self._add_when_it_has_left, name, entry)
            else:
                self.capsules[name] = self._hooks.make(entry)
        for name, capsule in self.capsules.items():
            capsule.after = plan.order.needs.get(name, ())
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
        del self.capsules[capsule.name]
        del self._leaving[capsule.name]
        self._hooks.forget(capsule.name)
        capsule.leave()

    async def _add_when_it_has_left(self, name: str, entry: Entry) -> None:
        """One that was removed a moment ago, and is wanted again."""
        while name in self._leaving:
            await self._leaving[name].changed()
        if name not in self.capsules:
            self.capsules[name] = capsule = self._hooks.make(entry)
            capsule.after = self._order.needs.get(name, ())
            self._start(capsule)

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
        longest: dict[str, float] = {}

        def of(name: str) -> float:
            if name not in longest:
                longest[name] = 0.0
                capsule = self.capsules.get(name)
                own = 0.0 if capsule is None else _patience(capsule)
                longest[name] = own + max(map(of, self._order.dependents(name)), default=0.0)
            return longest[name]

        return max(map(of, self.capsules), default=0.0)

    async def stop(self) -> None:
        """Stop all of them, who imports before who exports; each within its own deadline."""
        async with trio.open_nursery() as nursery:
            for capsule in list(self.capsules.values()):
                dependents = [
                    self.capsules[name]
                    for name in self._order.dependents(capsule.name)
                    if name in self.capsules
                ]
                nursery.start_soon(self._shut_down, capsule, dependents)

    async def _shut_down(self, capsule: Capsule, dependents: list[Capsule]) -> None:
        for each in dependents:
            while not each.down and not self._is_optional(each, capsule):
                await each.changed()
        capsule.shut_down(at_once=False)
        with trio.move_on_after(_patience(capsule)):
            await _until_down(capsule)

    def _is_optional(self, importer: Capsule, provider: Capsule) -> bool:
        """Then it may be part of a circle, and nobody waits for whom."""
        return all(need.optional for need in importer.after if need.provider == provider.name)

    def kill(self) -> None:
        """No process is left behind, whatever happens."""
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
    return capsule.entry.manifest.supervision.stop_timeout + GRACE_SECONDS


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
