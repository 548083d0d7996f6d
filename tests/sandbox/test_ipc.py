"""Ipc on a scripted edge: what it says to a backbone and when, and what wins when several things are there."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import cbor2
import pytest

from capsuled.proto import records
from capsuled.proto.ledger import Row, Total
from capsuled.proto.order import Order
from capsuled.proto.records import DownKind, Up, UpKind
from capsuled.proto.refusals import Errno, Refusal
from capsuled.sandbox import ipc as ipc_module
from capsuled.sandbox import supervisor as supervisor_module
from capsuled.sandbox.ipc import FLUSH_SECONDS
from capsuled.sandbox.outgoing import MAX_BYTES

from .scripted import EPOCH, FIRST, LIMITS, ORDER, ORIGIN, World

ITEM = b"\x01"
LONG_MS = 60_000


@pytest.fixture
def make_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Order], World]]:
    control, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made: list[World] = []

    def take(fileno: int) -> socket.socket:
        """A worker never closes it; here it is closed at the end."""
        assert fileno == supervisor.fileno()
        return supervisor

    monkeypatch.setattr(supervisor_module, "socket", SimpleNamespace(socket=take))

    def make(order: Order) -> World:
        made.append(World(control, supervisor, order))
        return made[-1]

    with control, supervisor:
        yield make
        for each in made:
            each.edge.close()


@pytest.fixture
def world(make_world: Callable[[Order], World]) -> World:
    """One that a backbone has greeted."""
    made = make_world(ORDER)
    made.greet()
    assert made.ipc.await_greeting()
    assert made.edge.kinds() == [(UpKind.HELLO, 0)]
    return made


def payloads(envelope: bytes) -> list[object]:
    return [message["payload"] for message in cbor2.loads(envelope)["messages"]]


def errno_of(call: Callable[[], object]) -> Errno:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.errno


# ── receive ──────────────────────────────────────────────────────────────────────────────────────


def test_a_message_that_is_there_is_received_at_once(world: World) -> None:
    """And what came with it."""
    handle = world.ipc.subscribe(b"a")
    world.message("a", 1)
    world.message("a", 2)
    assert payloads(world.ipc.receive(handle, LONG_MS, 1000)) == [1, 2]


def test_cancellation_wins_over_a_message(world: World) -> None:
    """It is canceled although a message waits; a poll still has the message."""
    handle = world.ipc.subscribe(b"a")
    world.message("a", 1)
    world.cancel()
    assert errno_of(lambda: world.ipc.receive(handle, LONG_MS, 1000)) is Errno.CANCELED
    assert payloads(world.ipc.poll(handle, 1000)) == [1]


def test_cancellation_that_comes_with_the_message_wins_too(world: World) -> None:
    """It is looked at once more just before the message is taken."""
    handle = world.ipc.subscribe(b"a")
    world.message("a", 1)
    receive = world.edge.receive

    def cancel_then_receive() -> bytes | None:
        if world.edge.coming:
            world.cancel()
        return receive()

    world.edge.receive = cancel_then_receive  # type: ignore[method-assign]
    assert errno_of(lambda: world.ipc.receive(handle, LONG_MS, 1000)) is Errno.CANCELED


def test_the_supervisors_end_is_a_cancellation(world: World) -> None:
    """Nobody is there to wait for: the kill is on its way."""
    handle = world.ipc.subscribe(b"a")
    world.control.close()
    assert errno_of(lambda: world.ipc.receive(handle, LONG_MS, 1000)) is Errno.CANCELED


def test_a_longer_timeout_is_clamped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive of 49 days answers after the longest that is allowed, here a millisecond."""
    monkeypatch.setattr(ipc_module, "MAX_RECV_TIMEOUT_MS", 1)
    handle = world.ipc.subscribe(b"a")
    before = time.monotonic()
    assert payloads(world.ipc.receive(handle, 0xFFFF_FFFF, 1000)) == []
    assert time.monotonic() - before < 20


def test_a_handle_survives_timeouts_and_refusals(world: World) -> None:
    """A message that comes after them is received by it."""
    handle = world.ipc.subscribe(b"a")
    assert payloads(world.ipc.receive(handle, 0, 1000)) == []
    world.message("a", 1)
    assert errno_of(lambda: world.ipc.receive(handle, LONG_MS, 30)) is Errno.NOBUFS
    assert payloads(world.ipc.receive(handle, LONG_MS, 1000)) == [1]


def test_a_sleep_ends_with_the_cancellation(world: World) -> None:
    """It is no error: the guest learns from its next call."""
    world.cancel()
    world.ipc.sleep(3600)


# ── what waits to be sent ────────────────────────────────────────────────────────────────────────


def test_news_of_room_that_a_receive_has_eaten_is_asked_for(world: World) -> None:
    """What waits is sent before the guest waits, though the descriptor will not tell again that there is room."""
    waits: list[str] = []
    world.ipc.before_wait = lambda: waits.append("for ever")
    handle = world.ipc.subscribe(b"a")
    world.edge.kinds()
    world.edge.room, world.edge.room_after_receive = 0, 10
    world.edge.answer = lambda record: self_message(world, record)
    world.ipc.publish(b"a", ITEM, 0)
    assert payloads(world.ipc.receive(handle, 20_000, 1000)) == ["echo"]
    assert waits == []


def self_message(world: World, record: Up) -> None:
    if record.kind == UpKind.PUBLISH:
        world.message("a", "echo")


def test_a_publish_goes_at_once_unless_another_just_went(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first after a receive leaves with its call; what comes in its wake with a later one, when it is due."""
    now = time.monotonic() + 1.0
    monkeypatch.setattr(ipc_module, "time", SimpleNamespace(monotonic=lambda: now))
    handle = world.ipc.subscribe(b"a")
    world.edge.kinds()
    world.message("a", 1)
    world.ipc.receive(handle, LONG_MS, 1000)
    world.ipc.publish(b"b", ITEM, 0)
    assert world.edge.kinds() == [(UpKind.PUBLISH, 0)]
    world.ipc.publish(b"b", ITEM, 0)
    world.ipc.flush_due()
    assert world.edge.kinds() == []
    now += 2 * FLUSH_SECONDS  # and not just as much: floats of a machine's uptime round
    world.ipc.flush_due()
    assert world.edge.kinds() == [(UpKind.PUBLISH, 1)]


def test_without_room_a_publish_is_told_to_try_again(make_world: Callable[[Order], World]) -> None:
    """The bound is exact; the refused one has cost no quota, for there is room for it in the rate later."""
    limits = replace(LIMITS, publish_bytes_per_second=1, publish_messages_per_second=1)
    world = make_world(replace(ORDER, limits=limits))
    world.greet()
    assert world.ipc.await_greeting()
    world.edge.room = 0
    head = records.UP.size + len(b"a")
    payload = cbor2.dumps(bytes(MAX_BYTES - head - 5))
    assert head + len(payload) == MAX_BYTES
    world.ipc.publish(b"a", payload, 0)
    world.ipc.admit(100)
    with pytest.raises(Refusal, match="the backbone takes nothing at the moment: try again") as caught:
        world.ipc.publish(b"a", cbor2.dumps(bytes(98)), 0)
    assert caught.value.errno is Errno.AGAIN
    world.ipc.admit(100)
    assert errno_of(lambda: world.ipc.admit(1)) is Errno.DQUOT
    world.edge.room = 10
    world.ipc.publish(b"a", cbor2.dumps(bytes(98)), 0)
    assert world.page.slots[Total.PUBLISHED] == 2


# ── subscriptions ────────────────────────────────────────────────────────────────────────────────


def test_subscribe_waits_for_the_acknowledgement(world: World) -> None:
    """What was published before its number is not received, what comes after it is."""
    world.seq += 10
    handle = world.ipc.subscribe(b"a.*")
    assert world.edge.kinds() == [(UpKind.SUBSCRIBE, handle)]
    world.seq -= 1
    world.message("a.b", "before")
    world.message("a.b", "after")
    assert payloads(world.ipc.poll(handle, 1000)) == ["after"]


def test_the_backbones_refusal_is_the_guests(world: World) -> None:
    """Its errno and its sentence; the handle is not open, and nothing is left to be ended."""
    world.edge.answer = lambda record: world.say(
        DownKind.SUBSCRIBED, b"not today", a=record.a, b=Errno.NOTCAPABLE
    )
    with pytest.raises(Refusal, match="not today") as caught:
        world.ipc.subscribe(b"a")
    assert caught.value.errno is Errno.NOTCAPABLE
    assert errno_of(lambda: world.ipc.poll(1, 1000)) is Errno.BADF
    assert world.edge.kinds() == [(UpKind.SUBSCRIBE, 1)]


def test_a_backbone_that_does_not_answer_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """again, and the request is taken back; an answer that comes then opens nothing."""
    monkeypatch.setattr(ipc_module, "ACKNOWLEDGE_SECONDS", 0.001)
    world.edge.answer = lambda record: None
    with pytest.raises(Refusal, match="cannot subscribe to 'a': the backbone does not answer") as caught:
        world.ipc.subscribe(b"a")
    assert caught.value.errno is Errno.AGAIN
    world.say(DownKind.SUBSCRIBED, a=1, c=world.seq)
    assert errno_of(lambda: world.ipc.poll(1, 1000)) is Errno.BADF
    world.edge.answer = world.acknowledge
    assert world.ipc.subscribe(b"b") == 2
    assert world.edge.kinds() == [
        (UpKind.SUBSCRIBE, 1),
        (UpKind.UNSUBSCRIBE, 1),
        (UpKind.SUBSCRIBE, 2),
    ]


def test_a_late_refusal_is_not_another_subscriptions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a request that was taken back ends its closing, and reaches nobody."""
    monkeypatch.setattr(ipc_module, "ACKNOWLEDGE_SECONDS", 0.001)
    world.edge.answer = lambda record: None
    assert errno_of(lambda: world.ipc.subscribe(b"a")) is Errno.AGAIN
    world.say(DownKind.SUBSCRIBED, b"no", a=1, b=Errno.NOTCAPABLE)
    world.edge.answer = world.acknowledge
    handle = world.ipc.subscribe(b"a")
    world.message("a", 1)
    assert payloads(world.ipc.poll(handle, 1000)) == [1]
    world.edge.kinds()
    world.greet()
    world.ipc.poll(handle, 1000)
    assert world.edge.kinds() == [(UpKind.HELLO, 0)]


def test_a_cancelled_guest_piles_up_no_requests(world: World) -> None:
    """However often it asks: it is refused before anything is begun."""
    world.cancel()
    for _ in range(100):
        assert errno_of(lambda: world.ipc.subscribe(b"a")) is Errno.CANCELED
    handle = 1
    assert errno_of(lambda: world.ipc.poll(handle, 1000)) is Errno.BADF
    world.ipc.publish(b"a", ITEM, 0)
    world.ipc.say_bye()
    assert [kind for kind, _ in world.edge.kinds()] == [UpKind.PUBLISH, UpKind.BYE]


# ── another backbone ─────────────────────────────────────────────────────────────────────────────


def test_a_successor_is_told_what_its_predecessor_may_not_have_heard(world: World) -> None:
    """First HELLO with the count of publishes, then what has ended, then what was not acknowledged."""
    kept, ended = world.ipc.subscribe(b"kept"), world.ipc.subscribe(b"ended")
    world.ipc.publish(b"a", ITEM, 0)
    world.edge.answer = lambda record: None
    world.ipc.unsubscribe(ended)
    world.edge.kinds()
    greeted = False

    def answer(record: Up) -> None:
        nonlocal greeted
        if not greeted:  # the request is lost with the old one; the new one speaks
            greeted = True
            world.greet(EPOCH + 1)
        elif record.kind == UpKind.SUBSCRIBE:
            world.acknowledge(record)

    world.edge.answer = answer
    asked = world.ipc.subscribe(b"asked")
    assert world.edge.kinds() == [
        (UpKind.SUBSCRIBE, asked),
        (UpKind.HELLO, 0),
        (UpKind.UNSUBSCRIBE, ended),
        (UpKind.SUBSCRIBE, asked),
    ]
    world.message("ended", 1)
    world.message("kept", 2)
    assert payloads(world.ipc.poll(kept, 1000)) == [2]


def test_an_end_that_the_successor_does_not_know_leaves_the_ledger_in_balance(world: World) -> None:
    """It answers nothing, and what comes on that topic is counted for nobody; the page forgets the old sums."""
    handle = world.ipc.subscribe(b"a")
    world.message("a", 1)
    world.ipc.poll(handle, 1000)
    world.edge.answer = lambda record: None
    world.ipc.unsubscribe(handle)
    assert world.claims().closed == Row(0, received=1, delivered=1, dropped=0, queued=0, carried=0)
    world.greet(EPOCH + 1)
    world.message("a", 2)
    world.ipc.sleep(0)
    world.ipc.settle()
    claims = world.claims()
    assert (claims.epoch, claims.received) == (EPOCH + 1, 1)
    assert claims.closed == Row(0, 0, 0, 0, 0, 0)
    assert claims.rows == ()


def test_a_cause_of_an_epoch_that_is_over_is_refused(world: World) -> None:
    """The successor has not sent it and would refuse it unheard."""
    handle = world.ipc.subscribe(b"a")
    cause = world.message("a", 1)
    world.ipc.poll(handle, 1000)
    world.ipc.publish(b"a", ITEM, cause)
    world.greet(EPOCH + 1)
    world.ipc.poll(handle, 1000)
    assert errno_of(lambda: world.ipc.publish(b"a", ITEM, cause)) is Errno.BADF


# ── beginning and end, and the page ──────────────────────────────────────────────────────────────


def test_a_worker_that_is_stopped_before_it_is_greeted_does_not_wait(
    make_world: Callable[[Order], World],
) -> None:
    """False, for there is nobody to serve."""
    world = make_world(ORDER)
    world.cancel()
    assert not world.ipc.await_greeting()


def test_bye_waits_until_all_that_was_published_is_routed(world: World) -> None:
    """Everything is sent before it, and it says how many publishes there were."""
    for _ in range(3):
        world.ipc.publish(b"a", ITEM, 0)
    world.edge.answer = lambda record: world.say(DownKind.BYE, b=3) if record.kind == UpKind.BYE else None
    world.ipc.say_bye()
    assert [each.kind for each in world.edge.sent] == [UpKind.PUBLISH] * 3 + [UpKind.BYE]
    assert world.edge.sent[-1].b == 3
    assert [each.a for each in world.edge.sent[:3]] == [0, 1, 2]


def test_bye_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that is gone holds no process up."""
    monkeypatch.setattr(ipc_module, "BYE_SECONDS", 0.001)
    world.edge.room = 0
    world.ipc.publish(b"a", ITEM, 0)
    world.ipc.say_bye()
    assert world.edge.sent == []


def test_the_page_says_what_each_subscription_has(world: World) -> None:
    """After each call its row balances; a row that was freed and taken again is its new owner's."""
    first, second = world.ipc.subscribe(b"a"), world.ipc.subscribe(b"*")
    world.message("a", 1)
    world.message("b", 2)
    world.ipc.poll(first, 1000)
    rows = {row.handle: row for row in world.claims().rows}
    assert rows == {first: Row(first, 1, 1, 0, 0, 0), second: Row(second, 2, 0, 0, 2, 0)}
    world.ipc.unsubscribe(first)
    third = world.ipc.subscribe(b"c")
    world.message("c", 3)
    world.ipc.poll(third, 1000)
    rows = {row.handle: row for row in world.claims().rows}
    assert rows == {second: Row(second, 3, 0, 0, 3, 0), third: Row(third, 1, 1, 0, 0, 0)}
    assert world.claims().closed == Row(0, 1, 1, 0, 0, 0)


def test_it_is_told_before_each_wait(world: World) -> None:
    """`before_wait` is called when the guest is about to wait, and not when there is nothing to wait for."""
    told: list[int] = []

    def tell() -> None:
        told.append(world.page.slots[Total.WAITING])
        world.cancel()

    world.ipc.before_wait = tell
    handle = world.ipc.subscribe(b"a")
    world.message("a", 1)
    world.ipc.receive(handle, LONG_MS, 1000)
    assert told == []
    assert errno_of(lambda: world.ipc.receive(handle, LONG_MS, 1000)) is Errno.CANCELED
    assert told == [0]
    assert world.page.slots[Total.WAITING] == 0


def test_what_it_waits_for_is_told_to_who_looks_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of a subscription, where it has nothing else to do; an answer, or time, is something."""
    told: set[tuple[bool, bool]] = set()

    def look(_: float | None) -> list[tuple[int, int]]:
        told.add((world.claims().waiting, world.claims().idle))
        return []

    handle = world.ipc.subscribe(b"a")
    asked = world.ipc.request(b"b", ITEM, LONG_MS)
    monkeypatch.setattr(world.ipc, "_poll", SimpleNamespace(poll=look))
    for wait, idle in (
        (lambda: world.ipc.receive(handle, 1, 1000), True),
        (lambda: world.ipc.receive(asked, 1, 1000), False),
        (lambda: world.ipc.sleep(0.001), False),
    ):
        told.clear()
        wait()
        assert told == {(True, idle)}
        assert (world.claims().waiting, world.claims().idle) == (False, False)


@pytest.mark.parametrize("answer", ["reply", "decline"])
def test_an_answer_without_room_can_be_tried_again(world: World, answer: str) -> None:
    """A refused answer leaves the request unanswered: it is answered once there is room, and once only."""
    handle = world.ipc.subscribe(b"a")
    seq = world.message("a", 1, DownKind.REQUEST)
    assert len(cbor2.loads(world.ipc.receive(handle, 1000, 1000))["messages"]) == 1
    world.edge.room = 0
    world.ipc.publish(b"a", cbor2.dumps(bytes(MAX_BYTES - 100)), 0)

    def give() -> None:
        if answer == "reply":
            world.ipc.reply(seq, cbor2.dumps(bytes(200)))
        else:
            world.ipc.decline(seq, bytes(b"x" * 200))

    assert errno_of(give) is Errno.AGAIN
    world.edge.room = 100
    give()
    kind = UpKind.REPLY if answer == "reply" else UpKind.DECLINE
    assert world.edge.kinds()[-1][0] == kind
    assert errno_of(give) is Errno.BADF


def told_lost(world: World) -> list[int]:
    """Numbers of the lost requests that the backbone was told of."""
    bodies = [each.body for each in world.edge.sent if each.kind == UpKind.LOST]
    world.edge.sent.clear()
    return [seq for body in bodies for (seq,) in struct.iter_unpack(">Q", body)]


def losing(world: World, count: int = 1) -> list[int]:
    """Requests that come on a topic which the guest has not subscribed to."""
    return [world.message("b", 1, DownKind.REQUEST) for _ in range(count)]


def test_lost_requests_are_told(world: World) -> None:
    """In the turn in which they are lost; those of another turn a little later, or when the guest waits for long."""
    handle = world.ipc.subscribe(b"a")
    numbers = [world.message("a", 1, DownKind.REQUEST) for _ in range(LIMITS.queue_messages + 2)]
    for _ in range(2):  # more frames than one turn reads
        assert errno_of(lambda: world.ipc.poll(handle, 1)) is Errno.NOBUFS
    assert told_lost(world) == numbers[:2]
    world.ipc.unsubscribe(handle)
    assert told_lost(world) == []
    world.ipc.sleep(2 * ipc_module.LOST_SECONDS)
    assert told_lost(world) == numbers[2:]


@pytest.mark.parametrize("call", ["publish", "flush", "unsubscribe"])
def test_lost_requests_are_told_by_calls_that_read_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A guest that closes the handle and then only publishes, or logs, keeps nobody waiting."""
    monkeypatch.setattr(ipc_module, "FLUSH_SECONDS", 0.0)
    handle, other = world.ipc.subscribe(b"a"), world.ipc.subscribe(b"c")
    seq = world.message("a", 1, DownKind.REQUEST)
    assert errno_of(lambda: world.ipc.poll(handle, 1)) is Errno.NOBUFS
    monkeypatch.setattr(ipc_module, "LOST_SECONDS", 0.0)
    world.ipc._next_report = float("inf")  # pyright: ignore[reportPrivateUsage]
    world.ipc.unsubscribe(handle)
    assert told_lost(world) == []
    world.ipc._next_report = 0.0  # pyright: ignore[reportPrivateUsage]
    if call == "publish":
        world.ipc.publish(b"b", ITEM, 0)
    elif call == "flush":
        world.ipc.flush_due()
    else:
        world.ipc.unsubscribe(other)
    assert told_lost(world) == [seq]


def test_lost_requests_wait_for_room(world: World) -> None:
    """As long as the backbone takes nothing they are kept, in no record yet, and are told when it does."""
    world.ipc.subscribe(b"a")
    world.edge.room = 0
    world.ipc.publish(b"b", ITEM, 0)
    numbers = losing(world, 2)
    world.ipc.sleep(0)
    assert told_lost(world) == []
    world.edge.room = 100
    world.ipc.sleep(0)
    world.ipc.sleep(0)
    assert told_lost(world) == numbers


def test_one_record_tells_of_so_many_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is told in the next; one that is full waits for no time, so that none is forgotten."""
    monkeypatch.setattr(ipc_module, "LOST_SECONDS", 1000.0)
    numbers = losing(world, 3 * records.MAX_LOST)
    for _ in range(1 + len(numbers) // ipc_module.FRAMES_PER_DRAIN):
        world.ipc.sleep(0)
    sizes = [len(each.body) // 8 for each in world.edge.sent if each.kind == UpKind.LOST]
    assert max(sizes) <= records.MAX_LOST
    assert told_lost(world) == numbers[: sum(sizes)]
    assert sum(sizes) > 2 * records.MAX_LOST


# ── a backbone that is gone ──────────────────────────────────────────────────────────────────────


def stale(kind: DownKind, text: bytes = b"", a: int = 0, b: int = 0, c: int = 0, body: bytes = b"") -> bytes:
    """What a backbone of the first epoch has said."""
    return records.control(kind, EPOCH, text, a, b, c, body)


def test_what_a_dead_backbone_said_is_passed_over(world: World) -> None:
    """Read after its successor's greeting, it names no origin, loses no message, ends no handle and no request."""
    handle = world.ipc.subscribe(b"a")
    world.greet(EPOCH + 1)
    world.ipc.poll(handle, 1000)
    asking = world.ipc.request(b"b", ITEM, LONG_MS)
    world.edge.coming += [
        stale(DownKind.ORIGIN, b"liar", ORIGIN, body=bytes(16) + b"liar"),
        stale(DownKind.LAGGED, a=handle, b=7),
        stale(DownKind.SUBSCRIBED, b"no", a=handle, b=Errno.NOTCAPABLE),
        stale(DownKind.UNSUBSCRIBED, a=handle),
        stale(DownKind.FAILED, b"no", a=asking, b=Errno.CONNRESET),
        records.down(DownKind.HELLO, b=EPOCH),
    ]
    seq = world.message("a", 1)
    envelope = cbor2.loads(world.ipc.receive(handle, LONG_MS, 1000))
    assert [(each["source"], each["seq"]) for each in envelope["messages"]] == [("peer", seq)]
    assert envelope["lagged"] == 0
    assert cbor2.loads(world.ipc.poll(asking, 1000))["messages"] == []
    assert world.claims().epoch == EPOCH + 1


def test_an_acknowledgement_of_a_dead_backbone_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor has been asked again, and only that one's answer opens the subscription."""
    monkeypatch.setattr(ipc_module, "ACKNOWLEDGE_SECONDS", 0.001)
    world.edge.answer = lambda record: None
    world.greet(EPOCH + 1)
    world.edge.coming.append(stale(DownKind.SUBSCRIBED, a=1, c=FIRST))
    assert errno_of(lambda: world.ipc.subscribe(b"a")) is Errno.AGAIN


def test_what_has_ended_is_said_again_as_that(world: World) -> None:
    """An end that the last backbone may have heard, or not: both it and the one that waits still name no offence."""
    handle = world.ipc.subscribe(b"a")
    world.edge.room = 0
    world.ipc.unsubscribe(handle)
    world.edge.room_after_receive = 100
    world.edge.answer = lambda record: None
    world.edge.sent.clear()
    world.greet(EPOCH + 1)
    world.ipc.sleep(0)
    world.ipc.sleep(0)
    ends = [each for each in world.edge.sent if each.kind == UpKind.UNSUBSCRIBE]
    assert [(each.a, each.b) for each in ends] == [(handle, records.AGAIN), (handle, EPOCH)]
