"""One capsule: what is wanted of it, what it does, and the tasks that carry the lifecycle's effects out.

A shell around three rules: `lifecycle` says what an event makes of it, `exits` why an instance ended, `restart`
whether another one follows. `feed` is the way in, is synchronous, and does all of a step before anything else can
happen. A new manifest comes in by `change`: while the capsule serves, a successor is started beside the instance that
there is, takes over when it is ready, and the old one reads what it has got and is cancelled.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import trio

from capsuled.proto.control import Desired, LogStream, Reason, State
from capsuled.proto.reports import Ready, Report, Started
from capsuled.supervisor import (
    accounts,
    catalogue,
    clock,
    exits,
    history,
    lifecycle,
    ownlog,
    restart,
    secrets,
    succession,
)
from capsuled.supervisor.bus import Bus
from capsuled.supervisor.catalogue import Entry
from capsuled.supervisor.compiling import Compiler
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.control.shapes import Json, JsonObject
from capsuled.supervisor.exits import Evidence, Intent
from capsuled.supervisor.histories import Histories
from capsuled.supervisor.history import ExitRecord, History
from capsuled.supervisor.instance import Ending, Instance
from capsuled.supervisor.lifecycle import Effect, Event
from capsuled.supervisor.logbook import LogBook
from capsuled.supervisor.restart import NO_FAILURE, Budget, Next
from capsuled.supervisor.startorder import Need
from capsuled.supervisor.watchdog import Watchdog

LOG = logging.getLogger("capsuled.capsule")

LAST_LINES = 10
"""Log lines that an end keeps as evidence: the ring may have lost them by the time that somebody asks."""

LINE_CHARACTERS = 500
"""That are kept of each of them, at most: sixteen ends of every capsule are written again and again."""


@dataclass(frozen=True)
class Surroundings:
    """What a capsule needs of the daemon."""

    nursery: trio.Nursery
    bus: Bus
    compiler: Compiler
    edges: Path
    secrets: Path
    next_index: Callable[[], int]
    on_event: Callable[[JsonObject], None]
    on_ending: Callable[[str, Ending], None]
    confining: Confining
    histories: Histories
    others: Mapping[str, Capsule]
    """All capsules by name, itself among them."""


class Capsule:
    """See the module's docstring."""

    def __init__(self, entry: Entry, surroundings: Surroundings, book: LogBook) -> None:
        self.entry = entry
        self.name = entry.manifest.package.name
        self.book = book
        self.desired = Desired.DOWN
        self.state = State.STOPPED
        self.since = clock.now()
        self.instance: Instance | None = None
        self.after: tuple[Need, ...] = ()
        """What it starts after."""
        self.successor: Instance | None = None
        """An instance of `target` that is not ready yet, while the present one serves."""
        self.target = entry
        """What it is to be: `entry`, or that of its successor."""
        self.not_succeeded = ""
        """Why its last successor did not take over; empty: there was none, or it did, or is about to."""
        self._retiring: list[Instance] = []
        """Instances that have been succeeded, or given up before that, and have not ended yet."""
        self._waiting: trio.CancelScope | None = None
        """While it waits for what it starts after."""
        self.next_attempt_at: datetime | None = None
        self.exits: deque[ExitRecord] = deque(maxlen=history.KEPT_EXITS)
        """The newest first."""
        self._around = surroundings
        self.budget = Budget(restart.policy(entry.manifest.supervision))
        self._delay = 0.0
        self._timer: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._stop_intent = Intent.STOP
        self._kill_for = Intent.NOT_READY
        self._recall(surroundings.histories.read(self.name))

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    def feed(self, event: Event) -> None:
        """Take an event: a step of the lifecycle with all its effects. Raises `lifecycle.Illegal`, changing nothing."""
        step = lifecycle.step(self.state, event)
        self.desired = lifecycle.desired_after(event, self.desired)
        if step.state is not self.state:
            self.state, self.since = step.state, clock.now()
            self._tell(step.state.value)
        if event in (Event.STOP, Event.KILL, Event.RESTART):
            self._end_others(at_once=event is Event.KILL)
        for effect in step.effects:
            self._do(effect)
        self._wake()

    def change(self, entry: Entry) -> None:
        """Be another one from now on: at once where nothing runs, by a successor where it serves."""
        self._abandon()
        self.target = entry
        self.not_succeeded = ""
        if self.state is State.READY:
            if entry != self.entry:
                self._begin_succession()
            return
        self._adopt()
        if self.state is State.FAILED:
            self.feed(Event.RESET)  # a new manifest is a new beginning
        elif self.state is State.BACKOFF or (self.state is State.STOPPED and self.desired is Desired.UP):
            self.feed(Event.START)
        elif self.state is State.STARTING:
            self.feed(Event.RESTART)
        self._wake()

    def shut_down(self, *, at_once: bool) -> None:
        """Stop it because the supervisor ends."""
        self._stop_intent = Intent.SHUTDOWN
        self.feed(Event.STOP)
        if at_once:
            for instance in self.instances:
                instance.kill(Intent.SHUTDOWN)

    def leave(self) -> None:
        """It is there no more, and nobody waits for it or follows it any longer."""
        self.book.followers.close()
        self._wake()

    def say(self, level: str, message: str) -> None:
        """A line of the supervisor's in its log."""
        self.book.append(clock.now(), self.instance_id or "", LogStream.SUPERVISOR, level, message)

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────

    async def changed(self) -> None:
        """Wait until anything about it has changed."""
        await self._changed.wait()

    @property
    def down(self) -> bool:
        """No process, and none comes by itself."""
        return self.state in (State.STOPPED, State.FAILED) and not self._retiring

    @property
    def awaited(self) -> Capsule | None:
        """The capsule that it has to wait for before it is started."""
        for need in self.after:
            provider = self._around.others.get(need.provider)
            if provider is None or provider.state is State.READY:
                continue
            if provider.state is State.STARTING or not need.optional:
                return provider
        return None

    def look_again(self) -> None:
        """Something has changed that whoever waits for it has to know: what it starts after, say."""
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ── effects ──────────────────────────────────────────────────────────────────────────────────

    def _do(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.CANCEL:
                if self.instance is not None:
                    self.instance.stop(self._stop_intent)
                elif self._waiting is not None:
                    self._waiting.cancel()
            case Effect.KILL:
                if self.instance is not None:
                    self.instance.kill(self._kill_intent())
                elif self._waiting is not None:
                    self._waiting.cancel()
            case Effect.SCHEDULE:
                self._timer = trio.CancelScope()
                self.next_attempt_at = clock.now() + timedelta(seconds=self._delay)
                self._around.nursery.start_soon(self._back_off, self._delay, self._timer)
            case Effect.UNSCHEDULE:
                self.next_attempt_at = None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            case Effect.FORGET:
                self.budget.forget()
                self._remember()
            case Effect.CONVERGE:
                if self.desired is Desired.UP:
                    self.feed(Event.START)

    def _kill_intent(self) -> Intent:
        # The table knows three ways to a kill; only the operator's goes by way of `stopping`.
        return Intent.OPERATOR_KILL if self.state is State.STOPPING else self._kill_for

    def _spawn(self) -> None:
        self._kill_for = Intent.NOT_READY
        if self.awaited is None:
            self._start()
        else:
            self._waiting = trio.CancelScope()
            self._around.nursery.start_soon(self._wait_and_start, self._waiting)

    async def _wait_and_start(self, waiting: trio.CancelScope) -> None:
        with waiting:
            while (provider := self.awaited) is not None:
                await provider.changed()
        self._waiting = None
        if waiting.cancel_called:
            self.feed(Event.ENDED)  # told to end before there was anything that could
        else:
            self._start()

    def _start(self) -> None:
        try:
            self.instance = self._made(self.entry)
        except (catalogue.CannotRead, secrets.SecretUnreadable) as exc:
            # The end follows as an event of its own, for this may still be inside the step that spawns.
            self._around.nursery.start_soon(self._fail_to_start, str(exc))
            return
        self._remember()
        self._around.nursery.start_soon(self._live, self.instance)

    def _made(self, entry: Entry, *, standby: bool = False) -> Instance:
        """A new instance. Raises `CannotRead` and `SecretUnreadable`."""
        around = self._around
        return Instance(
            entry.manifest,
            catalogue.read_module(entry),
            secrets.resolve(entry.manifest.config, around.secrets, self.name),
            around.edges,
            around.next_index(),
            around.bus,
            around.compiler,
            around.confining,
            self.book,
            self._heard,
            standby=standby,
        )

    async def _fail_to_start(self, error: str) -> None:
        self._ended(Ending(Evidence(spawn_error=error), 0.0, None, None), "")

    async def _live(self, instance: Instance) -> None:
        async with trio.open_nursery() as watchers:
            # An end that the daemon's own end brings about is waited for and told, too: who cancels us kills it.
            watchers.cancel_scope.shield = True
            watchers.start_soon(self._expect_ready, instance)
            if instance.manifest.supervision.watchdog:
                watchers.start_soon(self._watch, instance)
            ending = await instance.run()
            watchers.cancel_scope.cancel()
        self._around.on_ending(self.name, ending)
        if instance is self.instance:
            self.instance = None
            self._ended(ending, instance.id.hex)
        else:
            self._ended_beside(ending, instance)

    async def _expect_ready(self, instance: Instance) -> None:
        """Kill what is not ready in time. It does not pay for the modules of others that are compiled before it."""
        await instance.turn.wait()
        await trio.sleep(instance.manifest.supervision.ready_timeout)
        if instance is self.successor:
            instance.kill(Intent.NOT_READY)
        elif instance is self.instance and self.state is State.STARTING:
            self.feed(Event.LATE)

    async def _watch(self, instance: Instance) -> None:
        """Kill what burns CPU for too long without a host call."""
        watchdog = Watchdog(instance.manifest.supervision.watchdog)
        while True:
            await trio.sleep(watchdog.interval)
            # Before its guest has started it is we who compute: what takes too long then is `ready_timeout`'s affair.
            if instance.engine is not None and watchdog.hung(
                instance.pid, instance.claims(), trio.current_time()
            ):
                if instance is self.instance:
                    self._kill_for = Intent.WATCHDOG
                    self.feed(Event.HUNG)
                else:
                    instance.kill(Intent.WATCHDOG)
                return

    async def _back_off(self, delay: float, timer: trio.CancelScope) -> None:
        with timer:
            await trio.sleep(delay)
            self._timer = None
            self.feed(Event.TIMER)

    # ── what comes back ──────────────────────────────────────────────────────────────────────────

    def _heard(self, instance: Instance, report: Report) -> None:
        # A worker may report whatever it likes: only what this instance can mean is taken.
        ready = instance.manifest.supervision.ready
        if not (
            (isinstance(report, Ready) and ready == "guest")
            or (isinstance(report, Started) and ready == "started")
        ):
            return
        if instance is self.instance:
            self.feed(Event.READY)
        elif instance is self.successor and instance.attached:
            self._succeed(instance)

    def _ended(self, ending: Ending, instance: str) -> None:
        reason = exits.reason(ending.evidence)
        attempt = self.budget.attempt
        is_new = self.target is not self.entry  # then its successor is not waited for: the next start is one
        self._abandon()
        self._adopt()
        verdict = self.budget.ended(reason, ending.ready_seconds, trio.current_time(), random.random())
        self._record(
            ending,
            reason,
            instance,
            {"attempt": attempt, "then": restart.follows(verdict, self.budget.policy)},
        )
        self._delay = verdict.delay
        self.feed(
            {Next.STAY: Event.ENDED, Next.RETRY: Event.RETRY, Next.EXHAUSTED: Event.EXHAUSTED}[verdict.next]
        )
        if is_new and self.state is State.FAILED:
            self.feed(Event.RESET)
        elif is_new and self.state is State.STOPPED and self.desired is Desired.UP:
            self.feed(Event.START)
        self._remember()

    def _record(self, ending: Ending, reason: Reason, instance: str, follows: JsonObject) -> None:
        evidence: dict[str, Json] = {
            **exits.describe(ending.evidence, reason),
            "ready_seconds": round(ending.ready_seconds, 3),
            **follows,
            "bus": accounts.counters(ending.claims, ending.figures),
            "last_lines": [
                str(line["message"])[:LINE_CHARACTERS]
                for line in self.book.last(LAST_LINES)
                if line["instance"] == instance
            ],
        }
        record = ExitRecord(clock.now(), instance, reason, evidence)
        self.exits.appendleft(record)
        message = evidence.get("message") or evidence.get("trap") or ""
        self.book.append(
            record.time,
            instance,
            LogStream.SUPERVISOR,
            "info" if reason in NO_FAILURE else "warn",
            f"ended: {reason.value}" + (f": {message}" if message else ""),
        )
        self._tell(
            "exited", instance, reason=reason.value, **{k: v for k, v in evidence.items() if k in _TOLD}
        )

    def _tell(self, event: str, instance: str | None = None, **facts: Json) -> None:
        told: JsonObject = {
            "time": clock.rfc3339(clock.now()),
            "event": event,
            "capsule": self.name,
            "instance": instance if instance is not None else self.instance_id,
            "state": self.state.value,
            "reason": None,
            **facts,
        }
        own = ("capsule", "instance")
        shown = {
            key: value for key, value in told.items() if value is not None and (key in own or key in facts)
        }
        LOG.info(event, extra=ownlog.fields(**shown))
        self._around.on_event(told)

    @property
    def instance_id(self) -> str | None:
        return self.instance.id.hex if self.instance is not None else None

    # ── one instance after another without a gap ─────────────────────────────────────────────────

    @property
    def instances(self) -> list[Instance]:
        """All that there are: the one that serves, its successor, and those that were succeeded."""
        return [each for each in (self.instance, self.successor, *self._retiring) if each is not None]

    def _begin_succession(self) -> None:
        try:
            self.successor = self._made(self.target, standby=True)
        except (catalogue.CannotRead, secrets.SecretUnreadable) as exc:
            self._not_succeeded(Ending(Evidence(spawn_error=str(exc)), 0.0, None, None), "")
            return
        self._tell("upgrading", version=self.target.manifest.package.version)
        self._around.nursery.start_soon(self._live, self.successor)

    def _succeed(self, new: Instance) -> None:
        """The successor is ready: between two messages it gets what the old one has subscribed to."""
        old = self.instance
        self.instance, self.successor = new, None
        for older in self._retiring:
            older.kill(Intent.STOP)  # there are two at a time, and not one for each reload
        if old is not None:
            self._around.bus.succeed(new.index, old.index)
            self._retiring.append(old)
            self._around.nursery.start_soon(self._retire, old)
        self._adopt()
        self._tell("upgraded", version=self.entry.manifest.package.version)
        self._remember()
        self._wake()

    async def _retire(self, old: Instance) -> None:
        await succession.drain(old, self._around.bus, old.manifest.supervision.stop_timeout)
        old.stop(Intent.STOP)

    def _ended_beside(self, ending: Ending, instance: Instance) -> None:
        """The end of one that did not serve, at that time."""
        if instance is self.successor:
            self.successor = None
            self._not_succeeded(ending, instance.id.hex)
            return
        self._retiring.remove(instance)
        then = "another instance serves" if self.instance is not None else "it was not the one that served"
        self._record(ending, exits.reason(ending.evidence), instance.id.hex, {"then": then})
        self._remember()
        self._wake()

    def _not_succeeded(self, ending: Ending, instance: str) -> None:
        """The successor did not get ready: the old one stays, and the next reload tries again."""
        self.target = self.entry
        reason = exits.reason(ending.evidence)
        self.not_succeeded = reason.value
        self._record(ending, reason, instance, {"then": "the instance before it goes on"})
        self._tell("upgrade-failed", instance, reason=reason.value)
        self._remember()
        self._wake()

    def _abandon(self) -> None:
        """Give up a successor that is not ready."""
        if self.successor is not None:
            self._retiring.append(self.successor)
            self.successor.stop(Intent.STOP)
            self.successor = None

    def _end_others(self, *, at_once: bool) -> None:
        """Somebody wants it down, or anew: as its newest manifest has it, the next time."""
        self._abandon()
        self._adopt()
        for instance in self._retiring:
            if at_once:
                instance.kill(Intent.OPERATOR_KILL)
            else:
                instance.stop(self._stop_intent)

    def _adopt(self) -> None:
        self.entry = self.target
        self.budget.policy = restart.policy(self.entry.manifest.supervision)

    # ── what outlives the supervisor ─────────────────────────────────────────────────────────────

    @property
    def fingerprint(self) -> str:
        return history.fingerprint(self.entry.manifest, self.entry.module)

    def _recall(self, past: History) -> None:
        """Go on where the last supervisor has stopped."""
        self.budget.restore(past.attempt, past.ages, trio.current_time())
        self.exits.extend(past.exits)
        if past.running:
            lost = exits.describe(Evidence(), Reason.SUPERVISOR_LOST)
            told = {"message": "its supervisor ended without a word, and it with it"}
            record = ExitRecord(clock.now(), past.running, Reason.SUPERVISOR_LOST, {**lost, **told})
            self.exits.appendleft(record)
        if past.failed == self.fingerprint:
            self.state, self.desired = State.FAILED, Desired.UP
        if past.running or past.failed:
            self._remember()

    def _remember(self) -> None:
        self._around.histories.write(self.name, self._history)

    def _history(self) -> History:
        return History(
            attempt=self.budget.attempt,
            ages=self.budget.ages(trio.current_time()),
            failed=self.fingerprint if self.state is State.FAILED else "",
            running=self.instance_id or "",
            exits=tuple(self.exits),
        )


_TOLD = ("status", "signal", "trap", "message", "limit", "value", "killed")
"""Evidence that an event carries too; the rest is a question away."""
