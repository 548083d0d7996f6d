"""The daemon as the control socket sees it: what `control.operations.Operations` promises, from the daemon's state."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import trio

from capsuled.proto import payloads, topics
from capsuled.proto._version import __version__
from capsuled.proto.control import Desired, Reason, State
from capsuled.supervisor import clock, diagnostic, lifecycle, metrics, modes
from capsuled.supervisor.accounts import Accounts
from capsuled.supervisor.bus import Bus, BusDown
from capsuled.supervisor.capsule import Capsule
from capsuled.supervisor.control.counts import Counts
from capsuled.supervisor.control.operations import (
    REACHED_BY,
    AclVerb,
    ActResult,
    Conflict,
    Failed,
    HealthLevel,
    NoSuchCapsule,
    Refused,
    ShuttingDown,
    Verb,
    Wait,
    WaitTimedOut,
)
from capsuled.supervisor.control.shapes import Json, JsonObject
from capsuled.supervisor.control.streams import Broadcast, Follower
from capsuled.supervisor.fleet import Fleet
from capsuled.supervisor.histories import Histories
from capsuled.supervisor.instance import Ending
from capsuled.supervisor.lifecycle import Event
from capsuled.supervisor.metrics import CapsuleFacts, Facts
from capsuled.supervisor.modes import Probed
from capsuled.supervisor.usage import NOTHING, Sampler, Target
from capsuled.supervisor.view import capsule_shape, next_sentence, own_processes, target

KEPT_EVENTS = 1000
"""Lifecycle events in memory, of all capsules together."""

EVENTS: Mapping[Verb, Event] = {
    Verb.START: Event.START,
    Verb.STOP: Event.STOP,
    Verb.RESTART: Event.RESTART,
    Verb.KILL: Event.KILL,
    Verb.RESET: Event.RESET,
}


class Service:
    """See the module's docstring."""

    def __init__(self, bus: Bus, histories: Histories, probed: Probed, shutdown: Callable[[], None]) -> None:
        self._probed = probed
        self._capsules: Mapping[str, Capsule] = {}
        self._fleet: Fleet | None = None
        self._bus = bus
        self._histories = histories
        self._shutdown = shutdown
        self._started = trio.current_time()
        self._changes = 0
        self._events: deque[tuple[datetime, JsonObject]] = deque(maxlen=KEPT_EVENTS)
        self._followers = Broadcast()
        self._accounts = Accounts()
        self._exits: defaultdict[str, Counter[str]] = defaultdict(Counter[str])
        self.connections = Counts()
        self.sampler = Sampler(self._targets)
        self.stopping = False
        """No capsule is started any more."""

    # ── what the daemon tells it ─────────────────────────────────────────────────────────────────

    def lead(self, fleet: Fleet) -> None:
        """These are the capsules that it is asked for."""
        self._fleet, self._capsules = fleet, fleet.capsules

    def event(self, event: JsonObject) -> None:
        self._events.append((clock.now(), event))
        self._followers.publish(event)
        if event["event"] == "exited":
            self._exits[str(event["capsule"])][str(event["reason"])] += 1
        for topic, fields in kernel_events(event):
            self._bus.tell(topic, payloads.encode(fields))

    def ending(self, capsule: str, ending: Ending) -> None:
        self._accounts.end(capsule, self._bus.epoch, ending.claims, ending.figures)

    def close(self) -> None:
        """Nothing happens any more: end what is followed."""
        self._followers.close()
        self._bus.close()
        for capsule in self._capsules.values():
            capsule.book.followers.close()

    # ── Operations ───────────────────────────────────────────────────────────────────────────────

    def status(self) -> JsonObject:
        states = Counter(capsule.state.value for capsule in self._capsules.values())
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime": round(trio.current_time() - self._started, 3),
            "states": {state.value: states[state.value] for state in State},
            "mode": modes.mode(self._probed).value,
            "isolation": {name: layer._asdict() for name, layer in self._probed.layers.items()},
            "engines": _engines(),
            "faults": [
                {"file": each.file, "key": each.key, "message": each.sentence}
                for each in (*(() if self._fleet is None else self._fleet.faults), *self._histories.faults)
            ],
            "backbone": {
                "pid": self._bus.pid,
                "up": self._bus.up,
                "epoch": self._bus.epoch,
                "restarts": self._bus.restarts,
            },
        }

    def capsules(self) -> Sequence[JsonObject]:
        capsules = [self._capsules[name] for name in sorted(self._capsules)]
        return [capsule_shape(each, self._usage(each)) for each in capsules]

    def capsule(self, name: str) -> JsonObject:
        return self._shape(self._find(name))

    async def act(self, name: str, verb: Verb, *, wait: Wait | None, timeout: float | None) -> ActResult:
        capsule = self._find(name)
        if wait is not None and wait != REACHED_BY[verb]:
            raise Conflict(
                f"cannot {verb.value} {name} and wait until it is {wait}: wait for {REACHED_BY[verb]}"
            )
        if self._is_leaving(name) and verb not in (Verb.STOP, Verb.KILL):
            raise Conflict(
                f"cannot {verb.value} {name}: its manifest is gone and it is being stopped: put that back, and reload"
            )
        if self.stopping and verb not in (Verb.STOP, Verb.KILL):
            raise ShuttingDown(f"cannot {verb.value} {name}: the supervisor shuts down")
        try:
            capsule.feed(EVENTS[verb])
        except lifecycle.Illegal as exc:
            raise Conflict(f"cannot {verb.value} {name}: {exc}", {"state": capsule.state.value}) from exc
        self._changes += 1
        change = f"change-{self._changes}"
        if wait is not None:
            await self._wait(capsule, wait, timeout)
        return ActResult(change, self._shape(capsule), wait is not None)

    async def reload(self, *, dry_run: bool) -> JsonObject:
        if self._fleet is None or self._ends():
            raise ShuttingDown("cannot reload: the supervisor shuts down, or has not started yet")
        plan = await self._fleet.reload(dry_run=dry_run)
        if self._ends() and not dry_run:
            raise ShuttingDown("cannot reload: the supervisor shuts down")
        return plan.shape(dry_run=dry_run)

    async def settle(self, names: Sequence[str], timeout: float | None) -> None:
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            for name in names:
                while (capsule := self._capsules.get(name)) is not None and (
                    self._is_leaving(name) or not _settled(capsule)
                ):
                    await capsule.changed()
            return
        waited = [
            f"{name} is {self._capsules[name].state.value}"
            for name in names
            if name in self._capsules and (self._is_leaving(name) or not _is_settled(self._capsules[name]))
        ]
        raise WaitTimedOut(
            f"cannot wait any longer: after {timeout:g} s {', '.join(waited)}; what was begun goes on"
        )

    def _ends(self) -> bool:
        return self.stopping

    def _is_leaving(self, name: str) -> bool:
        return self._fleet is not None and self._fleet.is_leaving(name)

    async def recall_logs(self, name: str) -> None:
        await self._find(name).book.recall()

    def logs(self, name: str, lines: int, since: datetime | None) -> Sequence[JsonObject]:
        return self._find(name).book.last(lines, since)

    @contextmanager
    def follow_logs(self, name: str) -> Generator[Follower, None, None]:
        with self._find(name).book.followers.follow() as follower:
            yield follower

    def why(self, name: str) -> JsonObject:
        capsule = self._find(name)
        exits: list[Json] = [record.shape() for record in capsule.exits]
        return {
            "name": name,
            "state": capsule.state.value,
            "exits": exits,
            "next": next_sentence(capsule),
        }

    async def bus(self) -> JsonObject:
        # The pages first: see supervisor/balance.py.
        claims = {
            name: [(instance.index, instance.claims()) for instance in capsule.instances]
            for name, capsule in self._capsules.items()
        }
        try:
            figures = await self._bus.figures()
        except BusDown as exc:
            raise Failed(f"cannot read the ledger: {exc}: try again in a second") from exc
        # Whose instance has ended meanwhile is in the sums already, and must not be counted twice.
        live = {instance.index for capsule in self._capsules.values() for instance in capsule.instances}
        claims = {name: [each for each in own if each[0] in live] for name, own in claims.items()}
        document = self._accounts.document(claims, figures, sorted(self._capsules))
        return {**document, "spine": {**figures.spine, "unpublished": self._bus.unpublished}}

    async def publish(self, topic: str, payload: bytes) -> int:
        try:
            return await self._bus.publish(topic, payload)
        except BusDown as exc:
            raise Failed(f"cannot publish on '{topic}': {exc}: try again in a second") from exc

    @contextmanager
    def tap(self, pattern: str) -> Generator[Follower, None, None]:
        with self._bus.tap(pattern) as follower:
            yield follower

    async def trace(self, seq: int) -> JsonObject:
        try:
            found = await self._bus.trace(seq)
        except BusDown as exc:
            raise Failed(f"cannot trace {seq}: {exc}: try again in a second") from exc
        hops: list[Json] = [diagnostic.hop(each) for each in found["hops"]]
        return {"id": seq, "hops": hops, "cut": bool(found["cut"])}

    def acl(self, capsule: str, verb: AclVerb, topic: str) -> JsonObject:
        grants = self._find(capsule).entry.manifest.grants
        segments = topics.split(topic)
        grant = grants.publisher(segments) if verb == "publish" else grants.subscriber(segments)
        return {
            "capsule": capsule,
            "verb": verb,
            "topic": topic,
            "allowed": grant is not None,
            "grant": grant,
        }

    async def metrics(self) -> str:
        try:
            bus = await self.bus()
        except Failed:
            bus = None  # the rest is worth the more
        return metrics.text(metrics.families(self._facts(bus)))

    def health(self, level: HealthLevel) -> tuple[bool, JsonObject]:
        missing: list[Json] = []
        if not self._bus.up:
            missing.append("the backbone is being restarted")
        if level == "ready":
            missing += [
                f"{name} is {capsule.state.value}"
                for name, capsule in sorted(self._capsules.items())
                if capsule.desired is Desired.UP
                and capsule.state is not State.READY
                and not _has_done(capsule)
            ]
        if self.stopping:
            missing.append("the supervisor shuts down")
        return not missing, {"healthy": not missing, "level": level, "missing": missing}

    def events(self, since: datetime | None) -> Sequence[JsonObject]:
        return [event for time, event in self._events if since is None or time >= since]

    @contextmanager
    def follow_events(self) -> Generator[Follower, None, None]:
        with self._followers.follow() as follower:
            yield follower

    def shutdown(self) -> None:
        self._shutdown()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _targets(self) -> Iterator[Target]:
        for capsule in self._capsules.values():
            if found := target(capsule):
                yield found

    def _usage(self, capsule: Capsule) -> JsonObject:
        found = target(capsule)
        return NOTHING if found is None else self.sampler.last(found).shape()

    def _shape(self, capsule: Capsule) -> JsonObject:
        """One capsule, with what it uses at this moment."""
        found = target(capsule)
        return capsule_shape(capsule, NOTHING if found is None else self.sampler.now(found).shape())

    def _facts(self, bus: JsonObject | None) -> Facts:
        return Facts(
            version=__version__,
            mode=modes.mode(self._probed).value,
            uptime=trio.current_time() - self._started,
            processes=own_processes(self._bus.pid),
            capsules=[
                CapsuleFacts(
                    name=name,
                    state=capsule.state,
                    wanted=capsule.desired is Desired.UP,
                    attempt=capsule.budget.attempt,
                    usage=self._usage(capsule),
                    memory_limit=capsule.entry.manifest.limits.memory,
                    process_memory_limit=capsule.entry.manifest.limits.process_memory,
                    exits=self._exits[name],
                )
                for name, capsule in sorted(self._capsules.items())
            ],
            backbone_up=self._bus.up,
            backbone_restarts=self._bus.restarts,
            connections=self.connections,
            bus=bus,
        )

    def _find(self, name: str) -> Capsule:
        if name not in self._capsules:
            raise NoSuchCapsule(name)
        return self._capsules[name]

    async def _wait(self, capsule: Capsule, wait: Wait, timeout: float | None) -> None:
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            while not _reached(capsule, wait):
                if refusal := _hopeless(capsule, wait):
                    raise refusal
                await capsule.changed()
            return
        raise WaitTimedOut(
            f"cannot wait any longer for {capsule.name}: it is {capsule.state.value} and not {wait} after "
            f"{timeout:g} s; what was begun goes on",
            {"state": capsule.state.value},
        )


LIMITS_MET = {
    Reason.MEMORY: "memory",
    Reason.CPU_TIME: "cpu_time",
    Reason.OOM: "process_memory",
    Reason.NOT_READY: "ready_timeout",
    Reason.WATCHDOG: "watchdog",
}
"""Reasons that are a limit's, by its name in the manifest."""


def kernel_events(event: JsonObject) -> list[tuple[str, JsonObject]]:
    """What the supervisor publishes of an event, by topic: ``kernel.lifecycle.<name>.<state>`` for a change of
    state, ``kernel.limits.<name>.<limit>`` for an end that a limit has caused."""
    name, happened = event["capsule"], event["event"]
    fields = {key: value for key, value in event.items() if value is not None}
    if happened != "exited":
        return [(f"{topics.RESERVED}.lifecycle.{name}.{happened}", fields)]
    limit = next((limit for reason, limit in LIMITS_MET.items() if reason.value == event["reason"]), None)
    return [] if limit is None else [(f"{topics.RESERVED}.limits.{name}.{limit}", fields)]


def _is_settled(capsule: Capsule) -> bool:
    """It is as it is wanted, or has done what it was wanted for."""
    if capsule.desired is Desired.DOWN:
        return capsule.down
    return _has_done(capsule) or (capsule.state is State.READY and capsule.successor is None)


def _has_done(capsule: Capsule) -> bool:
    """It has ended well, and its restart policy leaves it at that."""
    return capsule.state is State.STOPPED and bool(capsule.exits) and capsule.exits[0].reason is Reason.OK


def _settled(capsule: Capsule) -> bool:
    """Raises `Failed` when it cannot become so any more."""
    if capsule.not_succeeded:
        raise Failed(
            f"cannot change {capsule.name}: its new instance did not get ready, for {capsule.not_succeeded}: the one "
            f"before it goes on: `capsulectl why {capsule.name}` tells more",
            {"capsule": capsule.name, "reason": capsule.not_succeeded},
        )
    if _is_settled(capsule):
        return True
    if capsule.desired is Desired.UP and (refusal := _hopeless(capsule, "ready")):
        raise refusal
    return False


def _reached(capsule: Capsule, wait: Wait) -> bool:
    return capsule.down if wait == "down" else capsule.state is State.READY


def _hopeless(capsule: Capsule, wait: Wait) -> Refused | None:
    """Why what is waited for cannot come any more."""
    if wait == "down":
        if capsule.desired is Desired.UP:
            return Failed(f"cannot wait until {capsule.name} is down: somebody wants it up now")
        return None
    if capsule.state is State.STARTING and (provider := capsule.awaited) is not None and provider.down:
        return Failed(
            f"cannot wait until {capsule.name} is ready: it imports from {provider.name}, which is "
            f"{provider.state.value}: start that first"
        )
    if capsule.desired is Desired.DOWN:
        return Failed(f"cannot wait until {capsule.name} is ready: somebody wants it down now")
    if capsule.state in (State.FAILED, State.STOPPED):
        ended = capsule.exits[0].reason.value if capsule.exits else "unknown"
        return Failed(
            f"cannot wait until {capsule.name} is ready: it is {capsule.state.value}, its last end was "
            f"{ended}: `capsulectl why {capsule.name}` tells more",
            {"state": capsule.state.value, "reason": ended},
        )
    return None


def _engines() -> dict[str, Json]:
    """What the workers can run. Asked of the installed packages, for no engine is loaded into this process."""
    return {name: _engine(name) for name in ("wasmer", "wasmtime")}


def _engine(name: str) -> dict[str, Json]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return {"available": False, "why": f"the package {name} is not installed"}
    if name == "wasmer" and sys.version_info >= (3, 11):
        return {"available": False, "why": "its binding needs CPython 3.10"}
    return {"available": True, "version": version}
