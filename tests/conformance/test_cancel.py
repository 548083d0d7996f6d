"""Being stopped: three results of a receive, and what a guest may still do until its deadline."""

from __future__ import annotations

from collections.abc import Iterator

import cbor2
import pytest

from capsuled.proto.refusals import Errno

from ..support.guests import Program, buffer, text
from .stage import Stage, stage, tell

STOP_TIMEOUT_S = 60

ITEM = text(cbor2.dumps("x"))


class Cast:
    """A guest that waits until it is stopped, and then tries everything."""

    def __init__(self, stage: Stage) -> None:
        program = Program()
        handle = program.call("ipc_subscribe", text("a"))
        other = program.call("ipc_subscribe", text("b"))
        self.runs = program.call("cancelled")
        self.timeout = program.call("ipc_recv", handle, 1, buffer(1000))
        program.call("ipc_publish", text("a"), ITEM)
        self.message = program.call("ipc_recv", handle, 20_000, buffer(1000))
        self.waiting = program.call("ready")
        self.canceled = tell(program, "ipc_recv", handle, 60_000, buffer(1000))
        self.left = [program.call("cancelled") for _ in range(2)]
        self.published = program.call("ipc_publish", text("a"), ITEM)
        # It has been read from the edge when the other topic's message has: from here on it is there.
        program.call("ipc_publish", text("b"), ITEM)
        program.raw("(loop $there")
        program.call("ipc_poll", other, buffer(1000, 4096), quiet=True)
        program.raw("(br_if $there (i32.eq (i32.load8_u (i32.const 4106)) (i32.const 0x80))))")
        self.wins = [program.call("ipc_recv", handle, timeout, buffer(1000)) for timeout in (60_000, 0)]
        self.polled = program.call("ipc_poll", handle, buffer(1000))
        self.subscribe = tell(program, "ipc_subscribe", text("a"))
        self.caused = program.call("ipc_publish_caused", text("a"), ITEM, 1)
        self.unsubscribe = [program.call("ipc_unsubscribe", handle) for _ in range(2)]
        self.interceptors = program.call("ipc_interceptors", buffer(100))
        self.config = program.call("config_get", text("key"), buffer(100))
        self.random = program.call("random", 4096, 16)
        self.ready = program.call("ready")
        self.logged = program.call("log", 2, text("bye"))
        program.call("ipc_publish", text("last"), ITEM)
        self.actor = stage.add(
            "stopped",
            program,
            publish=["a", "b", "last"],
            subscribe=["a", "b"],
            supervision=f"stop_timeout = {STOP_TIMEOUT_S}",
            more='[config]\nkey = "value"',
        )
        # A witness hears what it says last.
        program = Program()
        heard = program.call("ipc_subscribe", text("last"))
        program.call("ready")
        self.heard = program.call("ipc_recv", heard, 60_000, buffer(1000))
        self.witness = stage.add("witness", program, subscribe=["last"], supervision="")


@pytest.fixture(scope="module")
def guests(engine: str) -> Iterator[Cast]:
    with stage(engine) as made:
        made_cast = Cast(made)
        made.start()
        made.daemon.wait("witness", lambda capsule: capsule["ready"])
        made_cast.actor.value(made_cast.waiting)
        answer = made.daemon.act("stopped", "stop", wait="down")
        assert answer.status == 200, answer.value
        yield made_cast


def test_message_timeout_and_cancellation_are_three_results(guests: Cast) -> None:
    """An envelope with the message, an envelope without one, and an error: a guest can tell them apart."""
    assert guests.actor.payloads(guests.timeout) == []
    assert guests.actor.payloads(guests.message) == ["x"]
    result, sentence = guests.actor.told(guests.canceled)
    assert result == -Errno.CANCELED
    assert sentence == "this capsule is being stopped"


def test_cancelled_tells_the_time_that_is_left(guests: Cast) -> None:
    """0 while it may run, then milliseconds, fewer than the stop timeout and never 0."""
    assert guests.actor.value(guests.runs) == 0
    first, second = (guests.actor.value(each) for each in guests.left)
    assert STOP_TIMEOUT_S * 1000 >= first >= second >= 1


def test_cancellation_wins_over_a_message(guests: Cast) -> None:
    """With a message in the queue a receive says canceled, whatever its timeout; the message stays for a poll."""
    assert guests.actor.value(guests.published) == 0
    assert [guests.actor.value(each) for each in guests.wins] == [-Errno.CANCELED] * 2
    assert guests.actor.payloads(guests.polled) == ["x"]


def test_a_cancelled_guest_may_call_all_that_does_not_wait(guests: Cast) -> None:
    """Only what waits is refused: the handle lives on, and everything else answers as ever."""
    result, _ = guests.actor.told(guests.subscribe)
    assert result == -Errno.CANCELED
    assert guests.actor.value(guests.caused) == -Errno.BADF
    assert [guests.actor.value(each) for each in guests.unsubscribe] == [0, -Errno.BADF]
    assert guests.actor.item(guests.interceptors) == []
    assert guests.actor.item(guests.config) == "value"
    assert [guests.actor.value(each) for each in (guests.random, guests.ready, guests.logged)] == [0, 0, 0]


def test_what_it_publishes_last_arrives(guests: Cast) -> None:
    """A guest that returns after its cancellation has ended in order, and its last message is not lost."""
    assert guests.witness.payloads(guests.heard) == ["x"]
    ended = guests.actor.ended()
    assert (ended["reason"], ended["status"]) == ("cancelled", 0)
