"""The daemon as the control socket sees it: what is refused, what is waited for, what is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from capsuled.proto import ledger
from capsuled.proto.control import Desired, LogStream, State
from capsuled.proto.ledger import Claims, Total
from capsuled.supervisor import clock
from capsuled.supervisor.bus import Bus, BusDown, BusFigures
from capsuled.supervisor.capsule import Capsule, Surroundings
from capsuled.supervisor.catalogue import Catalogue, Entry
from capsuled.supervisor.compiling import Compiler
from capsuled.supervisor.control.operations import (
    AclVerb,
    Conflict,
    Failed,
    NoSuchCapsule,
    ShuttingDown,
    Verb,
    Wait,
    WaitTimedOut,
)
from capsuled.supervisor.exits import Evidence
from capsuled.supervisor.faults import Fault
from capsuled.supervisor.fleet import Fleet, Hooks
from capsuled.supervisor.histories import Histories
from capsuled.supervisor.instance import Ending
from capsuled.supervisor.lifecycle import Effect, Event
from capsuled.supervisor.logbook import LogBook
from capsuled.supervisor.manifest import Limits, parse
from capsuled.supervisor.service import KEPT_EVENTS, Service

from ..support.machines import probed, unconfined
from .control.serving import run

MANIFEST = """
[package]
name = "{name}"
version = "1.0.0"
[component]
file = "m.wasm"
hash = "sha256:{hash}"
[capabilities]
ipc_publish = ["out.*"]
ipc_subscribe = ["in.one"]
"""


class Still(Capsule):
    """A capsule whose effects are not carried out: it goes where a test feeds it to."""

    def _do(self, effect: Effect) -> None:
        if effect is Effect.CONVERGE:
            super()._do(effect)


class Stage:
    """A service of capsules that stand still."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.bus = Bus(1 << 20, 1 << 20)
        self.ended = False
        histories = Histories(Path("/none"))
        self.service = Service(self.bus, histories, probed(), self._end)
        hooks = Hooks(self._nothing, self._never, histories.forget)
        self.fleet = Fleet({}, hooks, nursery)
        self.fleet.faults = (Fault("bad/Capsule.toml", "package.name", "missing"),)
        self.service.lead(self.fleet)
        self._around = Surroundings(
            nursery,
            self.bus,
            Compiler(unconfined().confinement, unconfined().group),
            Path("/none"),
            Path("/none"),
            lambda: 1,
            self.service.event,
            self._forget,
            unconfined(),
            histories,
            self.fleet.capsules,
        )
        self.echo, self.idle = self._capsule("echo"), self._capsule("idle")

    def _end(self) -> None:
        self.ended = True

    def _forget(self, _name: str, _what: object) -> None:
        """Ends and lines go nowhere."""

    def _capsule(self, name: str) -> Capsule:
        read = parse(MANIFEST.format(name=name, hash="0" * 64), "Capsule.toml", Limits(), False)
        made = Still(
            Entry(read, Path("Capsule.toml"), Path("m.wasm")),
            self._around,
            LogBook(name, 10, 1 << 20, self._forget),
        )
        self.fleet.capsules[name] = made
        return made

    def _nothing(self, _: Mapping[str, Path]) -> Catalogue:
        return Catalogue({})

    def _never(self, _: Entry) -> Capsule:
        raise AssertionError("nothing is added")

    async def act(self, verb: Verb, wait: Wait | None = None, timeout: float | None = None) -> State:
        """Do it to `echo`; returns its state then."""
        await self.service.act("echo", verb, wait=wait, timeout=timeout)
        return self.echo.state


def staged(play: Callable[[Stage, trio.Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await play(Stage(nursery), nursery)
            nursery.cancel_scope.cancel()

    run(main)


def test_who_is_not_there() -> None:
    """Every question about a name that no manifest has is refused by it."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        asking: tuple[Callable[[str], object], ...] = (
            stage.service.capsule,
            stage.service.why,
            lambda name: stage.service.logs(name, 1, None),
        )
        for ask in asking:
            with pytest.raises(NoSuchCapsule, match="nobody"):
                ask("nobody")
        with pytest.raises(NoSuchCapsule, match="nobody"):
            await stage.service.act("nobody", Verb.START, wait=None, timeout=None)

    staged(play)


@pytest.mark.parametrize(
    ("verb", "wait"),
    [
        (Verb.START, "down"),
        (Verb.STOP, "ready"),
        (Verb.RESTART, "down"),
        (Verb.KILL, "ready"),
        (Verb.RESET, "down"),
    ],
)
def test_a_request_that_contradicts_itself_changes_nothing(verb: Verb, wait: Wait) -> None:
    """To start and wait until it is down is refused, and it is not started."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        with pytest.raises(Conflict, match="and wait until it is"):
            await stage.act(verb, wait=wait)
        assert (stage.echo.state, stage.echo.desired) == (State.STOPPED, Desired.DOWN)
        assert stage.service.events(None) == []

    staged(play)


def test_without_a_wait_the_change_is_recorded_and_that_is_all() -> None:
    """Each change has an id of its own."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        results = [await stage.service.act("echo", Verb.START, wait=None, timeout=None) for _ in range(2)]
        assert [result.change for result in results] == ["change-1", "change-2"]
        assert [result.done for result in results] == [False, False]
        assert stage.echo.state is State.STARTING

    staged(play)


@pytest.mark.parametrize(
    ("verb", "events"),
    [
        (Verb.START, [Event.READY]),
        (Verb.STOP, [Event.ENDED]),
        (Verb.STOP, [Event.RETRY]),
        (Verb.KILL, [Event.EXHAUSTED]),
        (Verb.RESTART, [Event.ENDED, Event.READY]),
        (Verb.RESTART, [Event.RETRY, Event.RETRY, Event.TIMER, Event.READY]),
    ],
)
def test_what_is_waited_for_is_found(verb: Verb, events: list[Event]) -> None:
    """The wait is over with the last of these events and not before."""

    async def play(stage: Stage, nursery: trio.Nursery) -> None:
        if verb is not Verb.START:
            stage.echo.feed(Event.START)
            stage.echo.feed(Event.READY)
        done = trio.Event()

        async def wait() -> None:
            await stage.act(verb, wait="ready" if verb in (Verb.START, Verb.RESTART) else "down")
            done.set()

        nursery.start_soon(wait)
        for event in events:
            await trio.testing.wait_all_tasks_blocked()
            assert not done.is_set()
            stage.echo.feed(event)
        await done.wait()

    staged(play)


@pytest.mark.parametrize(
    ("verb", "events", "why"),
    [
        (Verb.START, [Event.ENDED], "it is stopped"),
        (Verb.START, [Event.EXHAUSTED], "it is failed"),
        (Verb.START, [Event.STOP], "somebody wants it down now"),
        (Verb.RESTART, [Event.KILL], "somebody wants it down now"),
        (Verb.STOP, [Event.START], "somebody wants it up now"),
        (Verb.KILL, [Event.RESTART], "somebody wants it up now"),
    ],
)
def test_a_wait_in_vain_ends(verb: Verb, events: list[Event], why: str) -> None:
    """What cannot come any more is not waited for until a timeout."""

    async def play(stage: Stage, nursery: trio.Nursery) -> None:
        if verb is not Verb.START:
            stage.echo.feed(Event.START)
            stage.echo.feed(Event.READY)
        done = trio.Event()

        async def wait() -> None:
            with pytest.raises(Failed, match=why):
                await stage.act(verb, wait="ready" if verb in (Verb.START, Verb.RESTART) else "down")
            done.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        for event in events:
            stage.echo.feed(event)
        await done.wait()

    staged(play)


def test_a_wait_has_an_end_of_its_own() -> None:
    """The time is over, the change goes on."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        with pytest.raises(WaitTimedOut, match=r"starting and not ready after 0.05 s"):
            await stage.act(Verb.START, wait="ready", timeout=0.05)
        assert stage.echo.desired is Desired.UP

    staged(play)


def test_who_has_failed_is_not_started() -> None:
    """The refusal says what to do instead, and nothing has changed."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        stage.echo.feed(Event.START)
        stage.echo.feed(Event.EXHAUSTED)
        stage.echo.feed(Event.STOP)
        for verb in (Verb.START, Verb.RESTART):
            with pytest.raises(Conflict, match="reset-failed"):
                await stage.act(verb)
        assert (stage.echo.state, stage.echo.desired) == (State.FAILED, Desired.DOWN)
        assert await stage.act(Verb.RESET) is State.STOPPED

    staged(play)


def test_on_the_way_out_nothing_is_started() -> None:
    """What ends something is still taken."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        stage.service.shutdown()
        assert stage.ended
        stage.service.stopping = True
        for verb in (Verb.START, Verb.RESTART, Verb.RESET):
            with pytest.raises(ShuttingDown):
                await stage.act(verb)
        for verb in (Verb.STOP, Verb.KILL):
            await stage.act(verb)
        assert stage.service.health("alive")[0] is False

    staged(play)


def test_health() -> None:
    """Alive needs the backbone; ready needs each capsule that is wanted up, and names those that are not."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        assert stage.service.health("alive") == (
            False,
            {"healthy": False, "level": "alive", "missing": ["the backbone is being restarted"]},
        )
        stage.echo.feed(Event.START)
        healthy, told = stage.service.health("ready")
        assert not healthy
        assert told["missing"] == ["the backbone is being restarted", "echo is starting"]

    staged(play)


def test_status_counts_and_names() -> None:
    """Every state is counted, none is left out; the manifests that were left out stand there."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        stage.echo.feed(Event.START)
        status = stage.service.status()
        assert status["states"] == {**{state.value: 0 for state in State}, "starting": 1, "stopped": 1}
        assert status["faults"] == [{"file": "bad/Capsule.toml", "key": "package.name", "message": "missing"}]

    staged(play)


@pytest.mark.parametrize(
    ("verb", "topic", "grant"),
    [
        ("publish", "out.x", "out.*"),
        ("publish", "in.one", None),
        ("subscribe", "in.one", "in.one"),
        ("subscribe", "in.two", None),
    ],
)
def test_acl(verb: AclVerb, topic: str, grant: str | None) -> None:
    """Allowed is what a grant says, and that grant is named."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        found = stage.service.acl("echo", verb, topic)
        assert (found["allowed"], found["grant"]) == (grant is not None, grant)

    staged(play)


def test_the_newest_events_are_kept() -> None:
    """One more than `KEPT_EVENTS` pushes the oldest out; `since` takes those from then on."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        for number in range(KEPT_EVENTS + 1):
            stage.service.event({"n": number, "capsule": "echo", "event": "ready"})
        kept = stage.service.events(None)
        assert [kept[0]["n"], kept[-1]["n"], len(kept)] == [1, KEPT_EVENTS, KEPT_EVENTS]
        assert stage.service.events(clock.now()) == []

    staged(play)


def test_the_ledger_without_a_backbone() -> None:
    """It cannot be read, and that says when to try again."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        with pytest.raises(Failed, match=r"cannot read the ledger: .* try again"):
            await stage.service.bus()
        with pytest.raises(BusDown):
            await stage.bus.figures()

    staged(play)


def test_followers_end_with_the_service() -> None:
    """Who follows events or a log gets what waits, and then the end."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        with stage.service.follow_events() as events, stage.service.follow_logs("echo") as lines:
            stage.echo.feed(Event.START)
            stage.echo.book.append(clock.now(), "", LogStream.GUEST, "info", "hello")
            stage.service.close()
            assert b"starting" in await events.receive()
            assert b"hello" in await lines.receive()
            assert (await events.receive(), await lines.receive()) == (b"", b"")

    staged(play)


class Published:
    """What the ledger needs of an instance: its index and the page that it has left."""

    index = 1

    def claims(self) -> Claims:
        slots = [0] * ledger.SLOTS
        slots[Total.PUBLISHED] = 3
        return ledger.claims(slots)


def test_who_ends_while_the_backbone_is_asked_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page was read, and its end is in the sums by the time that the backbone answers: three, and not six."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        instance = Published()

        async def figures() -> BusFigures:
            stage.service.ending("echo", Ending(Evidence(status=0), 0.0, instance.claims(), None))
            stage.echo.instance = None
            return BusFigures(1, {}, {}, {})

        monkeypatch.setattr(stage.echo, "instance", instance)
        monkeypatch.setattr(stage.bus, "figures", figures)
        found = await stage.service.bus()
        capsules = found["capsules"]
        assert isinstance(capsules, list)
        assert [dict(each)["published"] for each in capsules if isinstance(each, dict)] == [3, 0]

    staged(play)


def settled(stage: Stage, nursery: trio.Nursery, *names: str) -> trio.Event:
    done = trio.Event()

    async def settle() -> None:
        await stage.service.settle(names, None)
        done.set()

    nursery.start_soon(settle)
    return done


def test_what_was_reloaded_settles() -> None:
    """Who is wanted up is ready, who is wanted down has no process, and who is gone is waited for no longer."""

    async def play(stage: Stage, nursery: trio.Nursery) -> None:
        stage.echo.feed(Event.START)
        stage.idle.feed(Event.START)
        stage.idle.feed(Event.STOP)
        done = settled(stage, nursery, "echo", "idle", "gone")
        for capsule, event in ((stage.echo, Event.READY), (stage.idle, Event.ENDED)):
            await trio.testing.wait_all_tasks_blocked()
            assert not done.is_set()
            capsule.feed(event)
        await done.wait()

    staged(play)


def test_what_cannot_settle_is_told() -> None:
    """Who has failed will not be ready by itself; who is not there in time is named with its state."""

    async def play(stage: Stage, _: trio.Nursery) -> None:
        stage.echo.feed(Event.START)
        with pytest.raises(WaitTimedOut, match=r"after 0.05 s echo is starting; what was begun goes on"):
            await stage.service.settle(["echo", "idle"], 0.05)
        stage.echo.feed(Event.EXHAUSTED)
        with pytest.raises(Failed, match="cannot wait until echo is ready: it is failed"):
            await stage.service.settle(["idle", "echo"], None)

    staged(play)
