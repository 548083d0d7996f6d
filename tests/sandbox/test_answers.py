"""Answers to requests: each handle has one, or one failure, and then it is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import cbor2
import pytest

from capsuled.proto import envelopes, records
from capsuled.proto.records import MAX_REQUESTS, DownKind, UpKind
from capsuled.proto.refusals import Errno, Refusal
from capsuled.sandbox import supervisor as supervisor_module
from capsuled.sandbox.answers import Answers

from .scripted import EPOCH, FIRST, ORDER, ORIGIN, World

SOURCE = envelopes.source_part(b"peer", bytes(16), b"alice")
ENCODED = envelopes.message(b"reply.5", b"\x18\x2a", SOURCE, 6, 1000, 5)
ROOM = 1 << 20


def waiting(handle: int = 3, deadline: float = 10.0) -> Answers:
    """One request that waits."""
    answers = Answers()
    answers.open(handle, "ask.it", deadline)
    return answers


def refusal(answers: Answers, handle: int = 3, cap: int = ROOM, now: float = 0.0) -> Refusal:
    with pytest.raises(Refusal) as caught:
        answers.take(handle, cap, now)
    return caught.value


def test_an_answer_is_received_once() -> None:
    """It comes in an envelope like any message; then the handle is gone."""
    answers = waiting()
    assert answers.answer(3, 6, ENCODED)
    (message,) = cbor2.loads(answers.take(3, ROOM, 0.0))["messages"]
    assert (message["topic"], message["payload"], message["cause"]) == ("reply.5", 42, 5)
    assert 3 not in answers


def test_a_failure_is_received_once() -> None:
    """It is the refusal of the receive; then the handle is gone."""
    answers = waiting()
    answers.fail(3, Errno.CONNREFUSED, "declined")
    assert refusal(answers).sentence == "declined"
    assert 3 not in answers


@pytest.mark.parametrize(("now", "over"), [(9.999, False), (10.0, True)])
def test_its_time_ends_it(now: float, over: bool) -> None:
    """Before the deadline the envelope is empty and the handle stays; at the deadline it is a refusal, and gone."""
    answers = waiting()
    assert answers.waiting[3].over(now) is over
    if over:
        found = refusal(answers, now=now)
        assert (found.errno, found.sentence) == (
            Errno.TIMEDOUT,
            "the request on 'ask.it' was not answered in time",
        )
    else:
        assert cbor2.loads(answers.take(3, ROOM, now)) == {"messages": [], "dropped": 0, "lagged": 0}
    assert (3 in answers) is not over


def test_an_answer_that_is_there_is_not_late() -> None:
    """What came in time is received after the deadline too: the guest was slow, not the answer."""
    answers = waiting()
    answers.answer(3, 6, ENCODED)
    assert cbor2.loads(answers.take(3, ROOM, 99.0))["messages"]


def test_a_buffer_that_is_too_small_takes_nothing() -> None:
    """One byte less than what is needed is refused, told how much, and the answer stays; with it it comes."""
    answers = waiting()
    answers.answer(3, 6, ENCODED)
    found = refusal(answers, cap=0)
    assert found.errno is Errno.NOBUFS
    assert refusal(answers, cap=found.needed - 1).needed == found.needed
    assert len(answers.take(3, found.needed, 0.0)) == found.needed


def test_a_buffer_too_small_for_an_empty_envelope() -> None:
    """The same where there is no answer yet."""
    answers = waiting()
    needed = refusal(answers, cap=1).needed
    assert refusal(answers, cap=needed - 1).errno is Errno.NOBUFS
    assert len(answers.take(3, needed, 0.0)) == needed
    assert 3 in answers


def test_so_many_wait_and_no_more() -> None:
    """`MAX_REQUESTS` wait, as many as the backbone holds; one more is refused until one has ended."""
    answers = Answers()
    for handle in range(MAX_REQUESTS):
        answers.open(handle, "ask.it", 10.0)
    with pytest.raises(Refusal, match="16 requests wait already: receive their answers first") as caught:
        answers.open(99, "ask.it", 10.0)
    assert caught.value.errno is Errno.MFILE
    assert 99 not in answers
    answers.forget(0)
    answers.open(99, "ask.it", 10.0)


def test_an_answer_for_nobody() -> None:
    """To a handle that the guest has given up, or that has failed, it changes nothing."""
    answers = waiting()
    answers.forget(3)
    assert not answers.answer(3, 6, ENCODED)
    answers = waiting()
    answers.fail(3, Errno.CONNRESET, "gone")
    assert not answers.answer(3, 6, ENCODED)
    assert refusal(answers).sentence == "gone"


def test_a_failure_after_the_answer_changes_nothing() -> None:
    """A restart of the backbone fails what waits, and not what has been answered."""
    answers = waiting()
    answers.open(4, "ask.other", 10.0)
    answers.answer(3, 6, ENCODED)
    answers.fail_all(Errno.CONNRESET, "the backbone was restarted")
    assert cbor2.loads(answers.take(3, ROOM, 0.0))["messages"]
    assert refusal(answers, 4).errno is Errno.CONNRESET


def test_a_handle_that_was_given_up_is_none() -> None:
    """KeyError for the second time."""
    answers = waiting()
    answers.forget(3)
    with pytest.raises(KeyError):
        answers.forget(3)


# ── with the worker around them ──────────────────────────────────────────────────────────────────


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A worker that a backbone, played by the test, has greeted."""
    control, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def take(fileno: int) -> socket.socket:
        """A worker never closes it; here it is closed at the end."""
        assert fileno == supervisor.fileno()
        return supervisor

    monkeypatch.setattr(supervisor_module, "socket", SimpleNamespace(socket=take))
    with control, supervisor:
        made = World(control, supervisor, ORDER)
        made.greet()
        assert made.ipc.await_greeting()
        yield made
        made.edge.close()


def ask(world: World) -> int:
    """The handle of a request that the backbone has been asked."""
    handle = world.ipc.request(b"ask.it", b"\x01", 10_000)
    assert world.edge.sent[-1].kind == UpKind.REQUEST
    return handle


def told(world: World, handle: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        world.ipc.receive(handle, 10_000, ROOM)
    return caught.value


def say_answer(world: World, handle: int, payload: bytes) -> None:
    record = records.down(DownKind.REPLY, b"reply.5", ORIGIN, FIRST + 6, 1000, handle, payload)
    world.edge.coming.append(record)


def test_a_malformed_answer_is_a_failure(world: World) -> None:
    """What a responder's worker sends that is no CBOR reaches no guest: the asker is told what is wrong with it."""
    handle = ask(world)
    say_answer(world, handle, b"\x00\x66source\x63god")
    found = told(world, handle)
    assert found.errno is Errno.BADMSG
    assert found.sentence.startswith("the answer is ")
    assert told(world, handle).errno is Errno.BADF


def test_an_answer_is_a_cause_once_it_is_received(world: World) -> None:
    """Not before: the guest has not seen it."""
    handle = ask(world)
    say_answer(world, handle, b"\x02")
    with pytest.raises(Refusal, match="was not delivered here lately"):
        world.ipc.publish(b"a", b"\x01", FIRST + 6)
    world.ipc.receive(handle, 10_000, ROOM)
    world.ipc.publish(b"a", b"\x01", FIRST + 6)


def test_a_change_of_epoch_ends_what_waits(world: World) -> None:
    """The next backbone knows nothing of it: connreset at once, and an answer that comes all the same is nobody's."""
    handle = ask(world)
    world.greet(EPOCH + 1)
    say_answer(world, handle, b"\x02")
    assert told(world, handle).errno is Errno.CONNRESET


def gave_up(world: World) -> list[int]:
    return [each.a for each in world.edge.sent if each.kind == UpKind.GIVE_UP]


def test_what_nobody_waits_for_is_given_up(world: World) -> None:
    """Once its time is over, or when the guest ends its handle: the backbone keeps no place for it. Not one that was
    answered, or failed."""
    answered, ended = ask(world), ask(world)
    late = world.ipc.request(b"ask.it", b"\x01", 0)
    say_answer(world, answered, b"\x02")
    world.ipc.poll(answered, ROOM)
    assert gave_up(world) == []
    world.ipc.unsubscribe(ended)
    assert gave_up(world) == [ended]
    assert told(world, late).errno is Errno.TIMEDOUT
    assert gave_up(world) == [ended, late]
    failed = ask(world)
    world.greet(EPOCH + 1)
    assert told(world, failed).errno is Errno.CONNRESET
    assert gave_up(world) == [ended, late]


def test_cancellation_ends_the_waiting_and_not_the_request(world: World) -> None:
    """canceled, and the answer that is there is still taken by a poll, which does not block."""
    handle = ask(world)
    world.cancel()
    say_answer(world, handle, b"\x02")
    assert told(world, handle).errno is Errno.CANCELED
    assert cbor2.loads(world.ipc.poll(handle, ROOM))["messages"][0]["payload"] == 2


def test_a_refused_request_costs_no_quota_and_no_handle(world: World) -> None:
    """What is no CBOR, and one request too many, are refused before anything is sent."""
    with pytest.raises(Refusal) as caught:
        world.ipc.request(b"ask.it", b"\xff", 10_000)
    assert caught.value.errno is Errno.BADMSG
    handles = [ask(world) for _ in range(MAX_REQUESTS)]
    world.edge.sent.clear()
    with pytest.raises(Refusal, match="16 requests wait already"):
        world.ipc.request(b"ask.it", b"\x01", 10_000)
    assert world.edge.sent == []
    world.ipc.unsubscribe(handles[0])
    assert ask(world) not in handles
