"""The lifecycle: every event in every state, and what no order of events can bring about."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import Desired, State
from capsuled.supervisor import lifecycle
from capsuled.supervisor.lifecycle import TABLE, Effect, Event, Illegal

OPERATOR = (Event.START, Event.STOP, Event.RESTART, Event.KILL, Event.RESET)
GONE = (Event.ENDED, Event.RETRY, Event.EXHAUSTED)
ALIVE = (State.STARTING, State.READY, State.STOPPING)
"""States in which there is a process."""

EXPECTED = """
stopped   start,restart                  starting  spawn
stopped   stop,kill                      stopped
stopped   reset-failed                   stopped   forget
starting  start                          starting
starting  reset-failed                   starting  forget
starting  stop,restart                   stopping  cancel
starting  kill                           stopping  kill
starting  ready                          ready
starting  late,hung                      starting  kill
starting  ended                          stopped
starting  retry                          backoff   schedule
starting  exhausted                      failed
ready     start,ready                    ready
ready     reset-failed                   ready     forget
ready     stop,restart                   stopping  cancel
ready     kill                           stopping  kill
ready     hung                           ready     kill
ready     ended                          stopped
ready     retry                          backoff   schedule
ready     exhausted                      failed
stopping  start,stop,restart             stopping
stopping  ready,late,hung                stopping
stopping  kill                           stopping  kill
stopping  reset-failed                   stopping  forget
stopping  ended,retry,exhausted          stopped   converge
backoff   start,restart,timer            starting  unschedule,spawn
backoff   stop,kill                      stopped   unschedule
backoff   reset-failed                   backoff   forget
failed    stop,kill                      failed
failed    reset-failed                   stopped   forget,converge
"""
"""State, events, next state, effects: written from the contract, not from the table."""


def expected() -> dict[tuple[State, Event], lifecycle.Step]:
    steps: dict[tuple[State, Event], lifecycle.Step] = {}
    for line in EXPECTED.strip().splitlines():
        state, events, after, *rest = line.split()
        effects = tuple(Effect(each) for each in rest[0].split(",")) if rest else ()
        for event in events.split(","):
            steps[State(state), Event(event)] = lifecycle.Step(State(after), effects)
    return steps


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_event_has_its_answer_in_every_state(state: State, event: Event) -> None:
    """A step is the contract's, and what the contract does not have is illegal."""
    wanted = expected().get((state, event))
    if wanted is not None:
        assert lifecycle.step(state, event) == wanted
        return
    with pytest.raises(
        Illegal, match=f"cannot take '{event.value}' for a capsule that is {state.value}"
    ) as raised:
        lifecycle.step(state, event)
    assert (raised.value.state, raised.value.event) == (state, event)


@pytest.mark.parametrize("event", [Event.START, Event.RESTART])
def test_a_failed_capsule_says_how_to_start_it(event: Event) -> None:
    """Who starts a failed capsule is told the next step."""
    with pytest.raises(Illegal, match="reset-failed"):
        lifecycle.step(State.FAILED, event)


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("desired", Desired)
def test_only_the_operator_changes_what_is_desired(event: Event, desired: Desired) -> None:
    """start and restart want it up, stop and kill want it down, and all else leaves it as it is."""
    wanted = {
        Event.START: Desired.UP,
        Event.RESTART: Desired.UP,
        Event.STOP: Desired.DOWN,
        Event.KILL: Desired.DOWN,
    }
    assert lifecycle.desired_after(event, desired) is wanted.get(event, desired)


@pytest.mark.parametrize("state", State)
def test_the_operator_is_always_answered(state: State) -> None:
    """Each of the operator's events is legal in every state, but to start what has failed."""
    illegal = {event for event in OPERATOR if (state, event) not in TABLE}
    assert illegal == ({Event.START, Event.RESTART} if state is State.FAILED else set())


@pytest.mark.parametrize("state", State)
def test_a_process_can_be_gone_where_there_is_one(state: State) -> None:
    """That the process is gone is legal exactly in the states that have a process."""
    assert {event for event in GONE if (state, event) in TABLE} == (set(GONE) if state in ALIVE else set())


@dataclass
class World:
    """What a shell keeps: the state, what is desired, and whether there is a process and an armed timer."""

    state: State = State.STOPPED
    desired: Desired = Desired.DOWN
    process: bool = False
    told_to_end: bool = False
    timer: bool = False
    spawned: int = 0

    def feed(self, event: Event) -> None:
        """What a shell does with an event; raises `Illegal`."""
        taken = lifecycle.step(self.state, event)
        if event in GONE:
            self.process = self.told_to_end = False
        if event is Event.TIMER:
            self.timer = False
        self.state = taken.state
        self.desired = lifecycle.desired_after(event, self.desired)
        for effect in taken.effects:
            self._do(effect)

    def offer(self, event: Event) -> None:
        """Feed `event` if it is legal."""
        with suppress(Illegal):
            self.feed(event)

    def _do(self, effect: Effect) -> None:
        if effect is Effect.SPAWN:
            assert not self.process, "a second process"
            self.process = True
            self.spawned += 1
        elif effect in (Effect.CANCEL, Effect.KILL):
            assert self.process, f"{effect.value} without a process"
            self.told_to_end = True
        elif effect is Effect.SCHEDULE:
            assert not self.timer, "a second timer"
            self.timer = True
        elif effect is Effect.UNSCHEDULE:
            self.timer = False
        elif effect is Effect.CONVERGE and self.desired is Desired.UP:
            self.feed(Event.START)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_state_tells_what_there_is(events: list[Event]) -> None:
    """Invariant: there is a process just in starting, ready and stopping, and a timer just in backoff."""
    world = World()
    for event in events:
        world.offer(event)
        assert world.process == (world.state in ALIVE)
        assert world.timer == (world.state is State.BACKOFF)
        assert world.state is not State.STOPPING or world.told_to_end


@given(st.lists(st.sampled_from(Event), max_size=40), st.sampled_from([Event.STOP, Event.KILL]))
def test_what_is_stopped_stays_stopped(events: list[Event], stop: Event) -> None:
    """Invariant: after a stop or a kill nothing but a start or a restart starts a process."""
    world = World()
    for event in events:
        world.offer(event)
    world.feed(stop)
    before = world.spawned
    for event in events:
        if event in (Event.START, Event.RESTART):
            continue
        world.offer(event)
    assert world.spawned == before


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_a_restart_comes_up_again(events: list[Event]) -> None:
    """Invariant: but for failed, a restart ends in a new process as soon as the old one is gone."""
    world = World()
    for event in events:
        world.offer(event)
    if world.state is State.FAILED:
        return
    before = world.spawned
    world.feed(Event.RESTART)
    if world.state is State.STOPPING:
        world.feed(Event.EXHAUSTED)
    assert world.spawned == before + 1
    assert (world.state, world.desired) == (State.STARTING, Desired.UP)


def test_a_failed_capsule_that_is_wanted_starts_at_its_reset() -> None:
    """reset-failed starts what is desired up, and leaves down what is not."""
    for last, state in ((Event.START, State.STARTING), (Event.STOP, State.STOPPED)):
        world = World()
        world.feed(Event.START)
        world.feed(Event.EXHAUSTED)
        if last is Event.STOP:
            world.feed(Event.STOP)
        world.feed(Event.RESET)
        assert world.state is state


def test_the_diagram_has_every_change() -> None:
    """Each step that changes something is one label of the diagram, and each label is such a step."""
    drawn: set[tuple[str, str, str, str]] = set()
    head, initial, *arrows = lifecycle.diagram().splitlines()
    for arrow in arrows:
        states, _, label = arrow.strip().partition(": ")
        before, after = states.split(" --> ")
        events, _, effects = label.partition(" / ")
        drawn.update((before, event, after, effects) for event in events.split(", "))
    assert (head, initial) == ("stateDiagram-v2", "    [*] --> stopped")
    assert drawn == {
        (state.value, event.value, after.value, ", ".join(effect.value for effect in effects))
        for (state, event), (after, effects) in expected().items()
        if after is not state or effects
    }
