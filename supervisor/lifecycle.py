"""The lifecycle of a capsule: one table, state × event → state and effects.

What is *observed* moves through the states below. What is *desired* is kept apart, so that a stop during a
backoff, or a start while it is stopping, is no special case: each such event changes what is desired, and a
capsule that has come to rest is started again when `up` is desired (`Effect.CONVERGE`).

    stopped    no process, and none is due
    starting   a process, whose guest has not said that it is ready; or none yet, since what it imports is not there
    ready      a process, whose guest serves
    stopping   a process that has been told to end; that it is gone is not known yet
    backoff    no process; a timer runs until the next start
    failed     no process; it has failed too often, and only the operator or a new manifest ends that

Who calls `step` carries out the effects in their order, and feeds what then happens back as events. Three
events say that the process is gone. The restart policy chooses between them, and this table obeys.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from capsuled.proto.control import Desired, State


class Event(str, Enum):
    """What can happen to a capsule."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    KILL = "kill"
    RESET = "reset-failed"

    READY = "ready"
    """Its guest has said that it is ready."""
    LATE = "late"
    """Its guest has not said so in time."""
    HUNG = "hung"
    """The watchdog has lost its patience."""

    ENDED = "ended"
    """The process is gone, and stays so by its restart policy."""
    RETRY = "retry"
    """The process is gone, and is started again after a pause."""
    EXHAUSTED = "exhausted"
    """The process is gone, and it was one failure too many."""

    TIMER = "timer"
    """The pause before the next start is over."""


class Effect(str, Enum):
    """What has to be done. Whoever does it must not fail silently: each ends in an event."""

    SPAWN = "spawn"
    """Start a process. Where that fails it is gone at once: `ENDED`, `RETRY` or `EXHAUSTED` follows."""
    CANCEL = "cancel"
    """Begin the stop ladder: cancel, TERM, KILL, each with its deadline."""
    KILL = "kill"
    SCHEDULE = "schedule"
    """Arm the timer of the backoff."""
    UNSCHEDULE = "unschedule"
    FORGET = "forget"
    """Forget earlier failures and begin the backoff anew."""
    CONVERGE = "converge"
    """Feed `START` if `up` is desired now."""


class Step(NamedTuple):
    """The state after an event, and what has to be done in this order."""

    state: State
    effects: tuple[Effect, ...] = ()


class Illegal(Exception):
    """An event that cannot happen in a state. Nothing has changed."""

    def __init__(self, state: State, event: Event) -> None:
        if state is State.FAILED and event in (Event.START, Event.RESTART):
            why = "it has failed too often. See `capsulectl why`, then let it begin anew by `reset-failed`"
        else:
            why = "there is no such step. Its caller has lost track of the process or of the timer"
        super().__init__(f"cannot take '{event.value}' for a capsule that is {state.value}: {why}")
        self.state = state
        self.event = event


TABLE: Mapping[tuple[State, Event], Step] = {
    # stopped
    (State.STOPPED, Event.START): Step(State.STARTING, (Effect.SPAWN,)),
    (State.STOPPED, Event.RESTART): Step(State.STARTING, (Effect.SPAWN,)),
    (State.STOPPED, Event.STOP): Step(State.STOPPED),
    (State.STOPPED, Event.KILL): Step(State.STOPPED),
    (State.STOPPED, Event.RESET): Step(State.STOPPED, (Effect.FORGET,)),
    # starting
    (State.STARTING, Event.START): Step(State.STARTING),
    (State.STARTING, Event.RESET): Step(State.STARTING, (Effect.FORGET,)),
    (State.STARTING, Event.STOP): Step(State.STOPPING, (Effect.CANCEL,)),
    (State.STARTING, Event.RESTART): Step(State.STOPPING, (Effect.CANCEL,)),
    (State.STARTING, Event.KILL): Step(State.STOPPING, (Effect.KILL,)),
    (State.STARTING, Event.READY): Step(State.READY),
    # Not `stopping`: what is late or hung was not told to end, and what follows is its restart policy's
    # business.
    (State.STARTING, Event.LATE): Step(State.STARTING, (Effect.KILL,)),
    (State.STARTING, Event.HUNG): Step(State.STARTING, (Effect.KILL,)),
    (State.STARTING, Event.ENDED): Step(State.STOPPED),
    (State.STARTING, Event.RETRY): Step(State.BACKOFF, (Effect.SCHEDULE,)),
    (State.STARTING, Event.EXHAUSTED): Step(State.FAILED),
    # ready
    (State.READY, Event.START): Step(State.READY),
    (State.READY, Event.RESET): Step(State.READY, (Effect.FORGET,)),
    (State.READY, Event.STOP): Step(State.STOPPING, (Effect.CANCEL,)),
    (State.READY, Event.RESTART): Step(State.STOPPING, (Effect.CANCEL,)),
    (State.READY, Event.KILL): Step(State.STOPPING, (Effect.KILL,)),
    (State.READY, Event.READY): Step(State.READY),  # the guest may say it as often as it likes
    (State.READY, Event.HUNG): Step(State.READY, (Effect.KILL,)),
    (State.READY, Event.ENDED): Step(State.STOPPED),
    (State.READY, Event.RETRY): Step(State.BACKOFF, (Effect.SCHEDULE,)),
    (State.READY, Event.EXHAUSTED): Step(State.FAILED),
    # stopping
    (State.STOPPING, Event.START): Step(State.STOPPING),
    (State.STOPPING, Event.STOP): Step(State.STOPPING),
    (State.STOPPING, Event.RESTART): Step(State.STOPPING),
    (State.STOPPING, Event.KILL): Step(State.STOPPING, (Effect.KILL,)),
    (State.STOPPING, Event.RESET): Step(State.STOPPING, (Effect.FORGET,)),
    # These three may have been under way when it was told to end; the ladder is quicker than any of them.
    (State.STOPPING, Event.READY): Step(State.STOPPING),
    (State.STOPPING, Event.LATE): Step(State.STOPPING),
    (State.STOPPING, Event.HUNG): Step(State.STOPPING),
    # The operator's word goes before the policy's: it was told to end, so only what is desired brings it
    # back.
    (State.STOPPING, Event.ENDED): Step(State.STOPPED, (Effect.CONVERGE,)),
    (State.STOPPING, Event.RETRY): Step(State.STOPPED, (Effect.CONVERGE,)),
    (State.STOPPING, Event.EXHAUSTED): Step(State.STOPPED, (Effect.CONVERGE,)),
    # backoff
    (State.BACKOFF, Event.START): Step(State.STARTING, (Effect.UNSCHEDULE, Effect.SPAWN)),
    (State.BACKOFF, Event.RESTART): Step(State.STARTING, (Effect.UNSCHEDULE, Effect.SPAWN)),
    (State.BACKOFF, Event.TIMER): Step(State.STARTING, (Effect.UNSCHEDULE, Effect.SPAWN)),
    (State.BACKOFF, Event.STOP): Step(State.STOPPED, (Effect.UNSCHEDULE,)),
    (State.BACKOFF, Event.KILL): Step(State.STOPPED, (Effect.UNSCHEDULE,)),
    (State.BACKOFF, Event.RESET): Step(State.BACKOFF, (Effect.FORGET,)),
    # failed
    (State.FAILED, Event.STOP): Step(State.FAILED),
    (State.FAILED, Event.KILL): Step(State.FAILED),
    (State.FAILED, Event.RESET): Step(State.STOPPED, (Effect.FORGET, Effect.CONVERGE)),
}
"""Every legal step. What is not here is `Illegal`."""


def step(state: State, event: Event) -> Step:
    """What `event` makes of a capsule in `state`. Raises `Illegal`."""
    found = TABLE.get((state, event))
    if found is None:
        raise Illegal(state, event)
    return found


def desired_after(event: Event, desired: Desired) -> Desired:
    """What the operator wants after `event`: only the operator's own events change it.

    Ask only when `step` has taken the event: what is refused changes nothing.
    """
    if event in (Event.START, Event.RESTART):
        return Desired.UP
    if event in (Event.STOP, Event.KILL):
        return Desired.DOWN
    return desired


def diagram() -> str:
    """`TABLE` as a Mermaid state diagram: events, and behind the slash what they have done.

    Steps that change nothing are left out.
    """
    arrows: dict[tuple[State, Step], list[str]] = {}
    for (state, event), taken in TABLE.items():
        if taken != Step(state):
            arrows.setdefault((state, taken), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {State.STOPPED.value}"]
    for (state, taken), events in arrows.items():
        done = " / " + ", ".join(effect.value for effect in taken.effects) if taken.effects else ""
        lines.append(f"    {state.value} --> {taken.state.value}: {', '.join(events)}{done}")
    return "\n".join(lines) + "\n"
