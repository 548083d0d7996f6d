"""Requests and their answers through the router: every way in which one ends, and what nobody may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsuled.proto import records, topics
from capsuled.proto.grants import Grants
from capsuled.proto.records import HISTORY_MESSAGES, MAX_REQUESTS, Down, DownKind, RecordError, UpKind
from capsuled.proto.refusals import Errno
from capsuled.supervisor.backbone.conversations import MAX_WHY
from capsuled.supervisor.backbone.members import Admission
from capsuled.supervisor.backbone.outbox import ANSWERS

from .making import admission, publish, subscribe, unsubscribe
from .test_router import EPOCH, FIRST, Bench

HEARS = ((1, "a.ask", True),)
ASKER, ONE, TWO = 0, 1, 2
LOST = "will not be answered: its receiver has lost it, or has closed its handle"
QUESTION, ANSWER = b"\x18\x14", b"\x18\x15"


def request(
    handle: int = 7, topic: str | bytes = "a.ask", payload: bytes = QUESTION, cause: int = 0
) -> bytes:
    text = topic.encode() if isinstance(topic, str) else topic
    return records.up(UpKind.REQUEST, text, a=handle, b=cause, body=payload)


def reply(seq: int, payload: bytes = ANSWER) -> bytes:
    return records.up(UpKind.REPLY, b=seq, body=payload)


def decline(seq: int, why: bytes = b"not today") -> bytes:
    return records.up(UpKind.DECLINE, why, b=seq)


def lost(*seqs: int) -> bytes:
    return records.up(UpKind.LOST, body=b"".join(seq.to_bytes(8, "big") for seq in seqs))


def give_up(handle: int) -> bytes:
    return records.up(UpKind.GIVE_UP, a=handle)


def bench(responders: int = 1, queue_messages: int = 1024) -> Bench:
    """An asker, and so many who hear `a.ask` with handle 1 and have so long a queue."""
    heard = (admission(1 + n, queue_messages=queue_messages, subscriptions=HEARS) for n in range(responders))
    return Bench(admission(ASKER), *heard)


def asked(made: Bench, index: int = ONE) -> int:
    """The number of the request that a member is sent now."""
    (found,) = [each for each in made.sent(index) if each.kind == DownKind.REQUEST]
    return found.b


class Ended(NamedTuple):
    """How a request has ended for its asker."""

    handle: int
    errno: int
    """0: by the answer."""
    told: str
    """The sentence, or the topic of the answer."""


def ends(made: Bench, index: int = ASKER) -> list[Ended]:
    """What a member is told of its requests now."""
    made.router.due()
    found = list[Ended]()
    for each in made.sent(index):
        if each.kind == DownKind.FAILED:
            found.append(Ended(each.a, each.b, each.text.decode()))
        elif each.kind == DownKind.REPLY:
            found.append(Ended(each.d, 0, each.text.decode()))
    return found


def balance(made: Bench, index: int = ASKER) -> tuple[int, int, int, int]:
    """requests, answered, failed, waiting; they must add up."""
    each = made.figures(index)
    assert each["requests"] == each["answered"] + each["failed"] + each["waiting"]
    return each["requests"], each["answered"], each["failed"], each["waiting"]


# ── what is asked, and what is answered ──────────────────────────────────────────────────────────


def test_a_request_is_routed_and_stamped_as_a_publish_is() -> None:
    """Its responder gets topic, payload, number and time; the asker is told nothing yet."""
    made = bench()
    made.take(ASKER, request())
    introduction, found = made.sent(ONE)
    assert (introduction.text, introduction.body[16:]) == (b"c0", b"p0")
    assert found == Down(DownKind.REQUEST, b"a.ask", introduction.a, FIRST + 1, 1234, 0, QUESTION)
    assert ends(made) == []
    assert balance(made) == (1, 0, 0, 1)
    (only,) = made.figures(ONE)["subscriptions"]
    assert (only["matched"], only["sent"]) == (1, 1)


def test_the_answer_goes_to_the_asker_alone() -> None:
    """On its handle, with a number of its own, named after the request; it counts for no subscription."""
    made = Bench(
        admission(ASKER, subscriptions=((1, "a.*", True),)),
        admission(ONE, subscriptions=HEARS),
        admission(TWO, subscribe=("*",), subscriptions=((1, "*", True), (2, f"reply.{FIRST + 1}", True))),
    )
    made.take(ASKER, request())
    seq = asked(made)
    made.sent(ASKER)
    made.sent(TWO)
    made.take(ONE, reply(seq))
    found = made.sent(ASKER)[-1]
    assert (found.kind, found.d, found.body) == (DownKind.REPLY, 7, ANSWER)
    assert (found.text, found.b) == (b"reply.%d" % seq, seq + 1)
    assert made.sent(TWO) == []
    assert balance(made) == (1, 1, 0, 0)
    assert made.figures(ASKER)["subscriptions"][0]["matched"] == 1


def test_an_answer_carries_the_askers_principal_on() -> None:
    """The source is the responder, on behalf of whom the request was for, who need not be its sender."""
    made = Bench(
        admission(ASKER, subscriptions=((1, "a.first", True),)),
        admission(ONE, subscriptions=HEARS),
        admission(TWO),
    )
    made.take(TWO, publish("a.first"))
    cause = made.messages(ASKER)[0].b
    made.take(ASKER, request(cause=cause))
    seq = asked(made)
    made.take(ONE, reply(seq))
    found = made.sent(ASKER)
    origins = {each.a: each for each in found if each.kind == DownKind.ORIGIN}
    (answer,) = [each for each in found if each.kind == DownKind.REPLY]
    assert (origins[answer.a].text, origins[answer.a].body[16:]) == (b"c1", b"p2")


def test_an_answer_is_a_cause() -> None:
    """What the asker publishes because of it carries the principal on, and the trace is one chain."""
    made = bench()
    made.take(ASKER, request())
    seq = asked(made)
    made.take(ONE, reply(seq))
    made.take(ASKER, publish("a.ask", cause=seq + 1))
    assert made.figures(ASKER)["refused"] == {}
    hops, cut = made.router.notes.traces.chain(seq)
    assert not cut
    assert [(each.seq, each.cause) for each in hops] == [(seq, 0), (seq + 1, seq), (seq + 2, seq + 1)]


def test_so_many_answers_are_causes_and_no_more() -> None:
    """The last `ANSWERS` are; one more and the oldest is not, whatever else was delivered in between."""
    made = bench()
    numbers = list[int]()
    for _ in range(ANSWERS + 1):
        made.take(ASKER, request())
        numbers.append(asked(made) + 1)
        made.take(ONE, reply(numbers[-1] - 1))
        made.sent(ASKER)
    made.take(ASKER, publish("a.x", 0, cause=numbers[0]))
    assert made.figures(ASKER)["refused"] == {"badf": 1}
    made.take(ASKER, publish("a.x", 1, cause=numbers[1]))
    assert made.figures(ASKER)["refused"] == {"badf": 1}


def test_a_request_to_oneself() -> None:
    """A capsule that has subscribed to what it asks gets the request, and may answer it."""
    made = Bench(admission(ASKER, subscriptions=HEARS))
    made.take(ASKER, request())
    made.take(ASKER, reply(asked(made, ASKER)))
    assert ends(made) == [Ended(7, 0, f"reply.{FIRST + 1}")]
    assert balance(made) == (1, 1, 0, 0)


# ── every other end ──────────────────────────────────────────────────────────────────────────────


def test_a_refusal_ends_it_with_the_reason() -> None:
    """The asker is told who declines what, and why."""
    made = bench()
    made.take(ASKER, request())
    made.take(ONE, decline(asked(made)))
    assert ends(made) == [Ended(7, Errno.CONNREFUSED, "c1 declines the request on 'a.ask': not today")]
    assert balance(made) == (1, 0, 1, 0)


@pytest.mark.parametrize("why", [b"\xff" * 10, b"x" * 60_000, "ü".encode() * 2000, b""])
def test_a_reason_is_bounded_and_is_text(why: bytes) -> None:
    """Whatever a worker gives for a reason, the sentence is UTF-8 and has `MAX_WHY` bytes at most."""
    made = bench()
    made.take(ASKER, request())
    made.take(ONE, decline(asked(made), why))
    (ended,) = ends(made)
    assert len(ended.told.encode()) <= MAX_WHY
    assert ended.told.startswith("c1 declines")


def test_the_longest_topic_and_reason_are_told_whole() -> None:
    """What an honest worker may say fits."""
    topic, why = "a." + "x" * (topics.MAX_BYTES - 2), "y" * topics.MAX_BYTES
    name = "n" * 64
    made = Bench(admission(ASKER), admission(ONE, name=name, subscriptions=((1, topic, True),)))
    made.take(ASKER, request(topic=topic))
    made.take(ONE, decline(asked(made), why.encode()))
    assert ends(made)[0].told == f"{name} declines the request on '{topic}': {why}"


@pytest.mark.parametrize(
    ("record", "errno"),
    [
        (request(topic="b.c"), Errno.NOTCAPABLE),
        (request(topic="kernel.x"), Errno.NOTCAPABLE),
        (request(topic="a..b"), Errno.INVAL),
        (request(topic=b"a.\xff"), Errno.ILSEQ),
        (request(topic="a." + "x" * 255), Errno.NAMETOOLONG),
        (request(payload=bytes(11)), Errno.MSGSIZE),
        (request(payload=bytes(11), cause=5), Errno.MSGSIZE),
        (request(cause=5), Errno.BADF),
        (request(cause=FIRST + 1), Errno.BADF),
    ],
)
def test_a_refused_request_is_counted_and_answered(record: bytes, errno: Errno) -> None:
    """The first rule that it breaks is its asker's answer; nobody hears of it, and it takes no number."""
    made = Bench(admission(ASKER, max_payload=10), admission(ONE, subscriptions=HEARS))
    made.take(ASKER, record)
    (ended,) = ends(made)
    assert (ended.handle, ended.errno) == (7, errno)
    assert errno.name.lower() in ended.told
    assert made.figures(ASKER)["refused"] == {errno.name.lower(): 1}
    assert DownKind.REQUEST not in [each.kind for each in made.sent(ONE)]
    assert made.router.seq == FIRST
    assert balance(made) == (1, 0, 1, 0)


def test_a_payload_at_the_limit_is_asked() -> None:
    """One byte less than what is refused."""
    made = Bench(admission(ASKER, max_payload=10), admission(ONE, subscriptions=HEARS))
    made.take(ASKER, request(payload=bytes(10)))
    assert ends(made) == []


def test_nobody_is_subscribed() -> None:
    """It fails at once; a subscriber that has gone is none."""
    made = Bench(admission(ASKER), admission(ONE))
    made.take(ASKER, request())
    assert ends(made) == [Ended(7, Errno.CONNREFUSED, "nobody is subscribed to 'a.ask'")]
    made.take(ONE, subscribe(1, "a.ask"))
    made.take(ONE, unsubscribe(1))
    made.take(ASKER, request())
    assert [each.errno for each in ends(made)] == [Errno.CONNREFUSED]
    assert balance(made) == (2, 0, 2, 0)


def test_the_responder_ends() -> None:
    """Before it has read the request or after it: the asker is told; with several, when the last one ends."""
    made = bench(2)
    made.take(ASKER, request())
    asked(made, ONE)
    made.router.detach(ONE)
    assert ends(made) == []
    made.router.detach(TWO)
    assert ends(made) == [
        Ended(7, Errno.CONNRESET, "the request on 'a.ask' will not be answered: its receiver has ended")
    ]
    assert balance(made) == (1, 0, 1, 0)


def test_the_responder_unsubscribes_before_it_was_sent() -> None:
    """What still waited for it is lost with the subscription, and the asker is told; what was sent may be answered."""
    made = Bench(admission(ASKER), admission(ONE))
    made.take(ONE, subscribe(5, "a.ask"))
    made.sent(ONE)
    made.take(ASKER, request(1))
    first = asked(made)
    made.take(ASKER, request(2))
    made.take(ONE, unsubscribe(5))
    assert [(each.handle, each.errno) for each in ends(made)] == [(2, Errno.CONNRESET)]
    made.take(ONE, reply(first))
    assert [(each.handle, each.errno) for each in ends(made)] == [(1, 0)]
    assert balance(made) == (2, 1, 1, 0)


def test_another_handle_of_the_responder_keeps_it() -> None:
    """A request for two handles of one capsule is not lost with one of them."""
    made = Bench(admission(ASKER), admission(ONE, subscriptions=((1, "a.*", True),)))
    made.take(ONE, subscribe(5, "a.ask"))
    made.take(ASKER, request())
    made.take(ONE, unsubscribe(5))
    assert ends(made) == []
    made.take(ONE, reply(asked(made)))
    assert [each.errno for each in ends(made)] == [0]


def test_its_copy_is_lost_to_a_full_queue() -> None:
    """The newest wins, and the asker of what was pushed out is told; with a second responder it goes on."""
    made = bench(1, queue_messages=2)
    made.take(ASKER, request(1), publish("a.ask", 0), publish("a.ask", 1))
    assert [(each.handle, each.errno) for each in ends(made)] == [(1, Errno.CONNRESET)]
    assert balance(made) == (1, 0, 1, 0)
    made.router.attach(admission(TWO, subscriptions=HEARS), 0.0)
    made.take(ASKER, request(2), publish("a.ask", 2), publish("a.ask", 3))
    assert ends(made) == []
    made.take(TWO, reply(asked(made, TWO)))
    assert [(each.handle, each.errno) for each in ends(made)] == [(2, 0)]


def test_its_copy_is_lost_to_the_total_bound() -> None:
    """The same where all outboxes together are over theirs."""
    made = bench()
    made.take(ASKER, request(1), publish("a.ask", 0, bytes(1000)))
    made.router.bound_total([made.members[ONE].outbox], 1000)
    assert [(each.handle, each.errno) for each in ends(made)] == [(1, Errno.CONNRESET)]
    assert balance(made) == (1, 0, 1, 0)


def test_its_copy_is_lost_in_the_worker() -> None:
    """As if it had been lost here; with a second responder it goes on until that one has lost it too."""
    made = bench(2)
    made.take(ASKER, request())
    seq = asked(made)
    asked(made, TWO)
    made.take(ONE, lost(seq))
    assert ends(made) == []
    made.take(TWO, lost(seq))
    (ended,) = ends(made)
    assert (ended.handle, ended.errno) == (7, Errno.CONNRESET)
    assert ended.told == f"the request on 'a.ask' {LOST}"
    assert balance(made) == (1, 0, 1, 0)
    made.take(ONE, reply(seq))
    assert made.figures(ONE)["refused"] == {"badf": 1}, "it has said that it cannot answer"


def test_several_are_lost_in_the_worker() -> None:
    """One record tells of all; what is over already is late, and one that the other has answered too."""
    made = bench(2)
    made.take(ASKER, request(1), request(2), request(3))
    first, second, third = [each.b for each in made.sent(ONE) if each.kind == DownKind.REQUEST]
    made.sent(TWO)
    made.take(TWO, reply(second), lost(first))
    made.take(ONE, lost(first, second, third))
    assert sorted(ends(made)) == [
        Ended(1, Errno.CONNRESET, "the request on 'a.ask' " + LOST),
        Ended(2, 0, f"reply.{second}"),
    ]
    assert (made.figures(ONE)["late"], made.figures(ONE)["refused"]) == (1, {})
    assert balance(made) == (3, 1, 1, 1)


@pytest.mark.parametrize("size", [0, 1, 7, 9, 8 * records.MAX_LOST + 8])
def test_losses_that_are_malformed(size: int) -> None:
    """Neither parts of a number nor more of them than there may be."""
    made = bench()
    with pytest.raises(
        RecordError, match=f"a record of lost requests has {size} bytes: 8 for each, 1 to 512"
    ):
        made.take(ONE, records.up(UpKind.LOST, body=bytes(size)))
    made.take(ONE, records.up(UpKind.LOST, body=bytes(8 * records.MAX_LOST)))
    assert made.figures(ONE)["late"] == records.MAX_LOST


def test_the_asker_ends() -> None:
    """Its requests end with it, and its last figures say how many waited; an answer to them is late, no offence."""
    made = bench()
    made.take(ASKER, request())
    seq = asked(made)
    last = made.router.detach(ASKER)
    assert (last["requests"], last["answered"], last["failed"], last["waiting"]) == (1, 0, 0, 1)
    made.take(ONE, reply(seq))
    figures = made.figures(ONE)
    assert (figures["late"], figures["refused"]) == (1, {})


def test_one_too_many_gives_up_the_oldest() -> None:
    """`MAX_REQUESTS` wait; the next one ends the first, and its answer is late."""
    made = bench()
    for handle in range(1, MAX_REQUESTS + 1):
        made.take(ASKER, request(handle))
    assert ends(made) == []
    made.take(ASKER, request(99))
    assert [(each.handle, each.errno) for each in ends(made)] == [(1, Errno.CONNRESET)]
    assert balance(made) == (MAX_REQUESTS + 1, 0, 1, MAX_REQUESTS)
    first = made.sent(ONE)[1].b
    made.take(ONE, reply(first))
    assert (made.figures(ONE)["late"], ends(made)) == (1, [])


def test_an_answer_overtakes_what_waits() -> None:
    """The asker's full queue loses none of its answers."""
    made = Bench(
        admission(ASKER, queue_messages=1, subscriptions=((1, "a.x", True),)),
        admission(ONE, subscriptions=HEARS),
    )
    made.take(ASKER, request())
    seq = asked(made)
    made.take(ONE, reply(seq), publish("a.x", 0), publish("a.x", 1), publish("a.x", 2))
    kinds = [each.kind for each in made.sent(ASKER) if each.kind != DownKind.ORIGIN]
    assert kinds == [DownKind.REPLY, DownKind.LAGGED, DownKind.MESSAGE]


def test_an_asker_that_does_not_read_is_not_read() -> None:
    """Answers are not held to its queue; as many bytes of them as its queue may have, and one more makes it deaf."""
    made = Bench(admission(ASKER, queue_bytes=3000), admission(ONE, subscriptions=HEARS))
    head = records.DOWN.size + len(b"reply.%d" % FIRST)
    made.router.introduce(made.members[ASKER], made.members[ONE].origin)
    made.take(ASKER, request(1), request(2))
    made.router.introduce(
        made.members[ASKER], made.router.caused(made.members[ONE], made.members[ASKER].origin, ())
    )
    waits = sum(map(len, made.members[ASKER].outbox.control))
    first, second = [each.b for each in made.sent(ONE) if each.kind == DownKind.REQUEST]
    made.take(ONE, reply(first, bytes(3000 - waits - head)))
    assert not made.members[ASKER].outbox.deaf()
    made.take(ONE, reply(second, b""))
    assert made.members[ASKER].outbox.deaf()
    made.sent(ASKER)
    assert not made.members[ASKER].outbox.deaf()


# ── what nobody may do ───────────────────────────────────────────────────────────────────────────


def test_the_first_answer_wins() -> None:
    """Of two responders the second one is late: it has done nothing wrong, and its answer goes nowhere."""
    made = bench(2)
    made.take(ASKER, request())
    seq = asked(made, ONE)
    asked(made, TWO)
    made.take(TWO, reply(seq, b"\x02"))
    made.take(ONE, reply(seq, b"\x01"))
    assert len(ends(made)) == 1
    assert balance(made) == (1, 1, 0, 0)
    assert [made.figures(n)["late"] for n in (ONE, TWO)] == [1, 0]
    assert [made.figures(n)["refused"] for n in (ONE, TWO)] == [{}, {}]


@pytest.mark.parametrize("again", [reply, decline, lost])
def test_an_answer_that_is_said_again(again: Callable[[int], bytes]) -> None:
    """A replayed reply, and a refusal after it, are refused and counted; the asker has its one answer."""
    made = bench()
    made.take(ASKER, request())
    seq = asked(made)
    made.take(ONE, reply(seq))
    made.take(ONE, again(seq))
    assert len(ends(made)) == 1
    figures = made.figures(ONE)
    assert (figures["late"], figures["refused"]) == (0, {"badf": 1})


@pytest.mark.parametrize("record", [reply, decline, lost])
@pytest.mark.parametrize("seq", [0, FIRST + 1, FIRST + 2, FIRST + 3, (1 << 64) - 1])
def test_a_reply_to_what_is_none_of_its(record: Callable[[int], bytes], seq: int) -> None:
    """A number that another was asked by, one that is no request, and invented ones are refused; nothing is told."""
    made = Bench(
        admission(ASKER),
        admission(ONE, subscriptions=HEARS),
        admission(TWO, subscriptions=((1, "a.x", True),)),
    )
    made.take(ASKER, request(), publish("a.x"))
    made.sent(ONE)
    made.sent(TWO)
    made.take(TWO, record(seq))
    late = seq < FIRST
    assert made.figures(TWO)["refused"] == ({} if late else {"badf": 1})
    assert made.figures(TWO)["late"] == int(late)
    assert ends(made) == []
    assert balance(made) == (1, 0, 0, 1)


@pytest.mark.parametrize("record", [reply, decline, lost])
def test_a_reply_to_what_was_not_delivered_yet(record: Callable[[int], bytes]) -> None:
    """A worker that guesses the number of what waits for it is refused; once it has got it, it may answer."""
    made = bench()
    made.take(ASKER, request())
    made.take(ONE, record(FIRST + 1))
    assert made.figures(ONE)["refused"] == {"badf": 1}
    assert ends(made) == []
    made.take(ONE, reply(asked(made)))
    assert len(ends(made)) == 1


def test_a_reply_to_what_was_lost() -> None:
    """What was pushed out of the queue was not delivered, in this turn or later."""
    made = bench(1, queue_messages=1)
    made.take(ASKER, request(), publish("a.ask"))
    made.take(ONE, reply(FIRST + 1))
    assert made.figures(ONE)["refused"] == {"badf": 1}
    assert [each.errno for each in ends(made)] == [Errno.CONNRESET]
    made.take(ONE, reply(FIRST + 1))
    assert made.figures(ONE)["refused"] == {"badf": 2}
    assert ends(made) == []


def test_a_slow_responder_may_have_got_much_else_meanwhile() -> None:
    """More deliveries than can be causes do not take its request away from it."""
    made = Bench(
        admission(ASKER),
        admission(ONE, queue_messages=10_000, subscriptions=((1, "a.*", True),)),
    )
    made.take(ASKER, request())
    seq = asked(made)
    for n in range(HISTORY_MESSAGES + 64):
        made.take(ASKER, publish("a.x", n))
        made.sent(ONE)
    assert made.members[ONE].outbox.delivered(seq) is None
    made.take(ONE, reply(seq))
    assert [each.errno for each in ends(made)] == [0]


def test_a_reply_that_is_too_large() -> None:
    """It is refused and counted, the request waits on, and a smaller one is its answer."""
    made = Bench(admission(ASKER), admission(ONE, max_payload=10, subscriptions=HEARS))
    made.take(ASKER, request())
    seq = asked(made)
    made.take(ONE, reply(seq, bytes(11)))
    assert made.figures(ONE)["refused"] == {"msgsize": 1}
    assert balance(made) == (1, 0, 0, 1)
    made.take(ONE, reply(seq, bytes(10)))
    assert [each.errno for each in ends(made)] == [0]


def test_an_answer_of_the_last_epoch_is_late() -> None:
    """A request of a backbone that is gone has ended with it; the worker that still answers it is honest."""
    made = bench()
    made.take(ONE, reply(((EPOCH - 1) << records.EPOCH_SHIFT) + 5))
    assert (made.figures(ONE)["late"], made.figures(ONE)["refused"]) == (1, {})


@pytest.mark.parametrize("kind", [11, 255])
def test_there_is_no_such_kind(kind: int) -> None:
    """It is a malformed frame."""
    with pytest.raises(RecordError, match=f"no kind {kind} of record"):
        bench().take(ASKER, records.up(kind))


def test_losses_cost_who_asked() -> None:
    """A loss that is one costs its responder nothing, in messages, bytes or control records: it was paid for."""
    made = Bench(admission(ASKER), admission(ONE, message_rate=1, byte_rate=1, subscriptions=HEARS))
    for handle in range(1, MAX_REQUESTS + 1):
        made.take(ASKER, request(handle))
    made.take(ONE, lost(*(each.b for each in made.sent(ONE) if each.kind == DownKind.REQUEST)))
    member = made.members[ONE]
    assert (member.bucket.wait(), member.control_bucket.wait()) == (0.0, 0.0)
    assert len(ends(made)) == MAX_REQUESTS
    assert made.figures(ONE)["refused"] == {}


@pytest.mark.parametrize(("numbers", "more"), [(1, 0), (16, 0), (17, 1), (512, 31)])
def test_losses_of_nothing_are_charged(numbers: int, more: int) -> None:
    """A message for each 16 numbers of no request, or part of them."""
    made = Bench(admission(ASKER), admission(ONE, message_rate=1))
    made.take(ONE, lost(*[FIRST] * numbers))
    # One is the burst, and each that is over it takes a second.
    assert made.members[ONE].bucket.wait() == pytest.approx(more)


def test_malformed_losses_are_charged() -> None:
    """Two records in a frame, or an empty one, cost a message too: reading them is work."""
    for frame in ((lost(FIRST), lost(FIRST)), (lost(),)):
        made = Bench(admission(ASKER), admission(ONE, message_rate=1))
        for _ in range(3):
            with pytest.raises(RecordError):
                made.take(ONE, *frame)
        assert made.members[ONE].bucket.wait() >= 2.0


def test_who_gives_up_makes_room() -> None:
    """A request that is given up is none that waits: the oldest stays, however many came and went after it."""
    made = bench()
    made.take(ASKER, request(1))
    first = asked(made)
    for handle in range(2, MAX_REQUESTS + 20):
        made.take(ASKER, request(handle), give_up(handle))
    assert ends(made) == []
    made.take(ONE, reply(first))
    assert ends(made) == [Ended(1, 0, f"reply.{first}")]
    assert balance(made) == (MAX_REQUESTS + 19, 1, MAX_REQUESTS + 18, 0)


def test_an_answer_to_what_was_given_up_is_late() -> None:
    """It goes nowhere, and its responder has done nothing wrong."""
    made = bench()
    made.take(ASKER, request(1))
    seq = asked(made)
    made.take(ASKER, give_up(1))
    made.take(ONE, reply(seq))
    assert ends(made) == []
    assert (made.figures(ONE)["late"], made.figures(ONE)["refused"]) == (1, {})


def test_giving_up_what_is_none_changes_nothing() -> None:
    """An answer may be on its way; it is charged, and nobody else's request of that handle ends."""
    made = Bench(admission(ASKER), admission(ONE, subscriptions=HEARS), admission(TWO, message_rate=1))
    made.take(ASKER, request(1))
    made.take(TWO, give_up(1), give_up(1))
    assert balance(made) == (1, 0, 0, 1)
    assert made.members[TWO].bucket.wait() == pytest.approx(1.0)
    assert made.figures(TWO)["refused"] == {}


def test_conversations_are_charged() -> None:
    """A request, a reply and a refusal are as dear as a publish, refused ones too, in bytes and in messages."""
    made = Bench(admission(ASKER, message_rate=2, byte_rate=100), admission(ONE, subscriptions=HEARS))
    made.take(ASKER, request(payload=bytes(100)), reply(5, b""))
    assert made.members[ASKER].bucket.wait() == 0.0
    made.take(ASKER, decline(5))
    assert made.members[ASKER].bucket.wait() == pytest.approx(0.5)
    made.take(ASKER, request(payload=bytes(100)))
    assert made.members[ASKER].bucket.wait() == pytest.approx(1.0)
    assert made.members[ASKER].received == 0


# ── what is retained, and who watches ────────────────────────────────────────────────────────────


def retaining(index: int, *patterns: str) -> Admission:
    """A capsule whose messages are retained; it may say anything below `a` and `kernel`."""
    return replace(admission(index), grants=Grants(("a.*", "kernel.*"), (), patterns))


def retained(made: Bench, index: int) -> list[tuple[bytes, int, bytes]]:
    """Topic, handle and payload of what is handed over to a member now."""
    return [(each.text, each.d, each.body) for each in made.sent(index) if each.kind == DownKind.RETAINED]


def test_a_late_subscriber_gets_it_once() -> None:
    """The last message of each topic that matches, for its handle alone; another handle gets its own, and no second."""
    made = Bench(retaining(ASKER, "a.*"), admission(ONE))
    made.take(ASKER, publish("a.b", 0, b"1"), publish("a.b", 1, b"2"), publish("a.c", 2, b"3"))
    made.take(ONE, subscribe(5, "a.b"))
    assert retained(made, ONE) == [(b"a.b", 5, b"2")]
    made.take(ONE, subscribe(6, "a.*"))
    assert retained(made, ONE) == [(b"a.b", 6, b"2"), (b"a.c", 6, b"3")]
    made.take(ONE, subscribe(6, "a.*"))  # asked again
    assert retained(made, ONE) == []
    for each in made.figures(ONE)["subscriptions"]:
        assert each["matched"] == each["sent"] == (1 if each["handle"] == 5 else 2)
    assert made.figures(ONE)["sent"] == 3


def test_an_interceptor_gets_it_at_attach_behind_the_greeting() -> None:
    """What the manifest subscribes is there before the guest; the greeting comes first, with nothing of it."""
    made = Bench(retaining(ASKER, "a.*"))
    made.take(ASKER, publish("a.b", 0, b"1"))
    made.router.detach(ASKER)  # it outlives who said it
    member = made.router.attach(admission(ONE, subscriptions=((3, "a.*", True),)), 0.0)
    greeting = list(records.split_down(member.outbox.take_greeting(made.router.greet(member))))
    assert [each.kind for each in greeting] == [DownKind.HELLO]
    assert [each.kind for each in made.sent(ONE)] == [DownKind.ORIGIN, DownKind.RETAINED]


def test_it_is_a_message_of_its_own_in_the_ledger() -> None:
    """Under a number above all before it, so that it counts for a subscription that has just begun; it may be lost."""
    made = Bench(retaining(ASKER, "a.*"), admission(ONE, queue_messages=2))
    for n in range(4):
        made.take(ASKER, publish(f"a.t{n}", n))
    made.take(ONE, subscribe(5, "a.*"))
    (only,) = made.figures(ONE)["subscriptions"]
    assert (only["matched"], only["lagged"], only["queued"]) == (4, 2, 2)
    found = made.sent(ONE)
    (since,) = [each.c for each in found if each.kind == DownKind.SUBSCRIBED]
    assert [each.b for each in found if each.kind == DownKind.RETAINED] == [since + 3, since + 4]


def test_it_is_a_cause() -> None:
    """Who has got it may name it, and the principal of its sayer is carried on."""
    made = Bench(retaining(ASKER, "a.*"), admission(ONE), admission(TWO, subscriptions=((1, "a.x", True),)))
    made.take(ASKER, publish("a.b", 0))
    made.take(ONE, subscribe(5, "a.b"))
    (number,) = [each.b for each in made.sent(ONE) if each.kind == DownKind.RETAINED]
    made.take(ONE, publish("a.x", 0, cause=number))
    found = made.sent(TWO)
    principals = {each.a: (each.text, each.body[16:]) for each in found if each.kind == DownKind.ORIGIN}
    assert principals[found[-1].a] == (b"c1", b"p0")


@pytest.mark.parametrize(
    ("patterns", "topic"),
    [(("kernel.*", "*"), "kernel.x"), (("a.x",), "a.b"), ((), "a.b"), (("*",), "kernel.x")],
)
def test_what_is_not_retained(patterns: tuple[str, ...], topic: str) -> None:
    """What no pattern says, and nothing of the supervisor's own, even where the manifest spells it out."""
    made = Bench(retaining(ASKER, *patterns), admission(ONE, subscribe=("a.*", "kernel.*")))
    made.take(ASKER, publish(topic))
    assert made.figures(ASKER)["refused"] == {}
    made.take(ONE, subscribe(5, topic))
    assert retained(made, ONE) == []


def test_a_request_is_not_retained() -> None:
    """Who subscribes later has not been asked."""
    made = Bench(retaining(ASKER, "a.*"), admission(ONE, subscriptions=HEARS), admission(TWO))
    made.take(ASKER, request())
    made.take(TWO, subscribe(5, "a.ask"))
    assert retained(made, TWO) == []


def test_what_the_supervisor_says_is_not_retained() -> None:
    """Nor what the operator does: neither is a capsule with a manifest."""
    made = Bench(retaining(ASKER, "a.*"), admission(ONE))
    made.router.inject("operator", b"a.b", b"\0", 1)
    made.take(ONE, subscribe(5, "a.b"))
    assert retained(made, ONE) == []


def test_what_is_handed_over_is_charged() -> None:
    """A worker that subscribes and unsubscribes for ever to what is large must wait for it, and soon."""
    made = Bench(retaining(ASKER, "a.*"), admission(ONE))
    made.take(ASKER, publish("a.b", 0, bytes(1 << 20)))
    rounds = 0
    while not made.members[ONE].control_bucket.wait():
        made.take(ONE, subscribe(5, "a.b"), unsubscribe(5))
        made.sent(ONE)
        rounds += 1
    assert rounds <= 256 // 18 + 1


def test_watchers_see_requests_and_not_answers() -> None:
    """A request is a message on its topic; an answer is between two."""
    made = bench()
    made.router.notes.watchers.subscribe(b"")
    made.router.notes.watchers.taps[1] = ("*",)
    made.take(ASKER, request())
    made.take(ONE, reply(asked(made)))
    watchers = made.router.notes.watchers
    assert [each.topic for each in watchers.for_spine] == [b"a.ask"]
    assert [each.topic for _, each in watchers.for_taps] == [b"a.ask"]


def test_a_watched_topic_that_is_retained_is_both() -> None:
    """And one that nobody watches is on the shelf alone."""
    made = Bench(retaining(ASKER, "a.*"))
    watchers = made.router.notes.watchers
    watchers.taps[1] = ("a", "b")
    made.take(ASKER, publish("a.b", 0), publish("a.c", 1))
    assert [each.topic for _, each in watchers.for_taps] == [b"a.b"]
    assert made.router.notes.shelves.figures()["c0"]["retained"] == 2


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "ask",
                "reply",
                "decline",
                "lost",
                "give up",
                "read",
                "subscribe",
                "unsubscribe",
                "flood",
                "leave",
            ]
        ),
        st.integers(0, 2),
        st.integers(0, 20),
    ),
    max_size=50,
)


@settings(deadline=None)
@given(STEPS)
def test_every_request_ends_once(steps: list[tuple[str, int, int]]) -> None:
    """Invariant: whatever three capsules do, a request waits or its asker was told once how it ended, and the sums
    are those of what it was told."""
    made = Bench(*(admission(n, queue_messages=3) for n in range(3)))
    handles, told = [0, 0, 0], [list[int](), list[int](), list[int]()]
    given_up = [0, 0, 0]
    newest = 3
    live = {0: 0, 1: 1, 2: 2}
    for what, who, number in steps:
        index = live[who]
        if what == "ask":
            handles[who] += 1
            made.take(index, request(handles[who]))
        elif what == "reply":
            made.take(index, reply(FIRST + number))
        elif what == "decline":
            made.take(index, decline(FIRST + number))
        elif what == "lost":
            made.take(index, lost(FIRST + number, FIRST + number + 1))
        elif what == "give up":
            handle = 1 + number % (handles[who] + 1)
            before = balance(made, index)[2]
            made.take(index, give_up(handle))
            given_up[who] += balance(made, index)[2] - before
        elif what == "subscribe":
            made.take(index, subscribe(1 + number % 3, "a.ask"))
        elif what == "unsubscribe":
            made.take(index, unsubscribe(1 + number % 3))
        elif what == "flood":
            made.take(index, *[publish("a.ask")] * 3)
        elif what == "leave":
            made.router.detach(index)
            live[who], newest = newest, newest + 1
            made.router.attach(admission(live[who], queue_messages=3), 0.0)
            handles[who], told[who], given_up[who] = 0, [], 0
        made.router.due()
        if what == "read":
            told[who] += [each.handle for each in ends(made, index)]
    for who, index in live.items():
        told[who] += [each.handle for each in ends(made, index)]
        requests, answered, failed, _ = balance(made, index)
        assert len(told[who]) == len(set(told[who])) == answered + failed - given_up[who]
        assert requests == handles[who]
