"""publish: limits, the order of its checks, grants, quota, stamps and causes, as guests see them."""

from __future__ import annotations

import time
from typing import NamedTuple

import cbor2
import pytest

from capsuled.proto import envelopes
from capsuled.proto.refusals import Errno

from ..support.guests import Argument, Program, Result, blob, buffer, text
from .stage import MEET, Stage, Told, meet_first, meet_second, tell

MAX_PAYLOAD = 1000
"""`max_payload` of the guest that is refused things."""

OUTSIDE = 0xFFFF_0000
"""An address that no guest here has."""

GOOD = text(cbor2.dumps(1))

NINE = ".".join("pabcdefgh")
"""Nine segments."""


class Refused(NamedTuple):
    """Arguments of a publish, the errno that it answers, and what the sentence must hold."""

    arguments: tuple[Argument, ...]
    errno: Errno
    sentence: str


REFUSED = {
    "a topic of 257 bytes": Refused(
        (text("p." + "x" * 255), GOOD), Errno.NAMETOOLONG, "publish to 257 bytes: a topic or pattern has 256"
    ),
    "a topic that is not UTF-8": Refused((text(b"p.\xff"), GOOD), Errno.ILSEQ, "is not UTF-8"),
    "an empty topic": Refused((text(""), GOOD), Errno.INVAL, "'' has an empty segment"),
    "a leading dot": Refused((text(".p"), GOOD), Errno.INVAL, "'.p' has an empty segment"),
    "a trailing dot": Refused((text("p."), GOOD), Errno.INVAL, "'p.' has an empty segment"),
    "a doubled dot": Refused((text("p..a"), GOOD), Errno.INVAL, "'p..a' has an empty segment"),
    "nine segments": Refused((text(NINE), GOOD), Errno.INVAL, f"'{NINE}' has 9 segments: 8 at most"),
    "what is not granted": Refused(
        (text("x.y"), GOOD),
        Errno.NOTCAPABLE,
        "publish to 'x.y' is not granted: ipc_publish = ['p.*', 'exact', 'one.*.end']",
    ),
    "below an exact grant": Refused((text("exact.x"), GOOD), Errno.NOTCAPABLE, "'exact.x'"),
    "the stem of a subtree grant": Refused((text("p"), GOOD), Errno.NOTCAPABLE, "'p'"),
    "two segments where one may be": Refused((text("one.a.b.end"), GOOD), Errno.NOTCAPABLE, "'one.a.b.end'"),
    "max_payload and one": Refused(
        (text("p.a"), blob(MAX_PAYLOAD + 1)), Errno.MSGSIZE, "a payload of 1001 bytes: max_payload is 1000"
    ),
    "a payload of nothing": Refused((text("p.a"), text("")), Errno.BADMSG, "not one well-formed CBOR item"),
    "a cut item": Refused((text("p.a"), text(b"\x42\x01")), Errno.BADMSG, "ends too early"),
    "two items": Refused((text("p.a"), text(b"\x01\x02")), Errno.BADMSG, "1 bytes stand behind it"),
    "an indefinite length": Refused((text("p.a"), text(b"\x9f\xff")), Errno.BADMSG, "indefinite"),
    "a tag": Refused((text("p.a"), text(b"\xc1\x01")), Errno.BADMSG, "tags are not accepted"),
    "a topic outside the memory": Refused((OUTSIDE, 3, GOOD), Errno.FAULT, f"3 bytes at {OUTSIDE}"),
    "a payload outside the memory": Refused((text("p.a"), OUTSIDE, 3), Errno.FAULT, f"3 bytes at {OUTSIDE}"),
    # Two rules broken: the first of them answers.
    "length before the range": Refused((OUTSIDE, 257, GOOD), Errno.NAMETOOLONG, "257 bytes"),
    "length before UTF-8": Refused((text(b"\xff" * 257), GOOD), Errno.NAMETOOLONG, "257 bytes"),
    "UTF-8 before form": Refused((text(b"..\xff"), GOOD), Errno.ILSEQ, "not UTF-8"),
    "form before segments": Refused((text("a." * 9), GOOD), Errno.INVAL, "empty segment"),
    "segments before the grant": Refused((text("x." + NINE), GOOD), Errno.INVAL, "10 segments"),
    "the grant before the size": Refused((text("x"), blob(MAX_PAYLOAD + 1)), Errno.NOTCAPABLE, "'x'"),
    "the grant before the payload's range": Refused((text("x"), OUTSIDE, 3), Errno.NOTCAPABLE, "'x'"),
    "the size before the payload's range": Refused(
        (text("p.a"), OUTSIDE, MAX_PAYLOAD + 1), Errno.MSGSIZE, "1001 bytes"
    ),
    "the range before CBOR": Refused((text("p.a"), OUTSIDE, 0), Errno.FAULT, f"0 bytes at {OUTSIDE}"),
}

ALLOWED: dict[str, tuple[Argument, ...]] = {
    "a topic of 256 bytes": (text("p." + "x" * 254), GOOD),
    "eight segments": (text(NINE[:-2]), GOOD),
    "max_payload exactly": (text("p.a"), blob(MAX_PAYLOAD)),
    "an exact grant": (text("exact"), GOOD),
    "one segment for an inner wildcard": (text("one.a.end"), GOOD),
    "deep below a subtree grant": (text("p.a.b.c"), GOOD),
}

FIRST = 4096
"""Address of an envelope."""


def seq_at(topic: str, payload: object, source: str, principal: str) -> int:
    """Where in an envelope the eight bytes of its first message's `seq` stand; an epoch's numbers need all eight."""
    origin = envelopes.source_part(source.encode(), bytes(16), principal.encode())
    message = envelopes.message(topic.encode(), cbor2.dumps(payload), origin, 1 << 40, 1 << 40, 0)
    return len(b"\xa3\x68messages\x81") + message.index(b"\x63seq\x1b") + 5


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        self._refused(stage)
        self._over_rate(stage)
        self._messages(stage)
        self._computes(stage)
        self._kernel(stage)
        self._causes(stage)

    def _refused(self, stage: Stage) -> None:
        """One byte a second: whatever had been taken for a refusal, the last publish would be refused too."""
        program = Program()
        self.refused: dict[str, Told] = {
            name: tell(program, "ipc_publish", *case.arguments) for name, case in REFUSED.items()
        }
        self.uncaused = tell(program, "ipc_publish_caused", text("p.a"), GOOD, 12345)
        self.caused_by_0 = tell(program, "ipc_publish_caused", text("p.a"), GOOD, 0)
        self.paid = program.call("ipc_publish", text("p.a"), blob(MAX_PAYLOAD))
        self.over_rate = tell(program, "ipc_publish", text("p.a"), GOOD)
        self.size_before_rate = program.call("ipc_publish", text("p.a"), blob(MAX_PAYLOAD + 1))
        self.rate_before_cbor = program.call("ipc_publish", text("p.a"), text(b"\xff"))
        self.poor = stage.add(
            "poor",
            program,
            publish=["p.*", "exact", "one.*.end"],
            limits=f"max_payload = {MAX_PAYLOAD}\npublish_bytes_per_second = 1",
        )
        program = Program()
        self.allowed = {name: program.call("ipc_publish", *case) for name, case in ALLOWED.items()}
        self.rich = stage.add(
            "rich",
            program,
            publish=["p.*", "exact", "one.*.end"],
            limits=f"max_payload = {MAX_PAYLOAD}",
        )

    def _over_rate(self, stage: Stage) -> None:
        """One message a second, which is refused whatever it weighs."""
        program = Program()
        self.one = program.call("ipc_publish", text("a"), GOOD)
        self.two = tell(program, "ipc_publish", text("a"), GOOD)
        self.slow = stage.add("slow", program, publish=["a"], limits="publish_messages_per_second = 1")

    def _messages(self, stage: Stage) -> None:
        """It hears itself, and nobody else does."""
        program = Program()
        self.unheard = program.call("ipc_publish", text("echo.nobody"), GOOD)
        handle = program.call("ipc_subscribe", text("echo.*"))
        self.before = program.call("clock_ms")
        self.received: list[Result] = []
        for number in range(3):
            program.call("ipc_publish", text("echo.a"), text(cbor2.dumps({"n": number})))
            self.received.append(program.call("ipc_recv", handle, 20_000, buffer(1000)))
        self.after = program.call("clock_ms")
        program.call("ipc_recv", handle, 60_000, buffer(10_000))
        self.echo = stage.add(
            "echo", program, publish=["echo.*"], subscribe=["echo.*"], principal="echo@example"
        )

    def _computes(self, stage: Stage) -> None:
        """It answers, and then computes for a while without a call."""
        program = Program()
        handle = program.call("ipc_subscribe", text("busy"))
        program.call("ipc_publish", text("busy"), GOOD)
        program.call("ipc_recv", handle, 20_000, buffer(1000))
        self.answering = program.call("clock_ms")
        program.call("ipc_publish", text("busy"), GOOD, quiet=True)
        program.loop(300_000_000, program.part())
        self.computed = program.call("clock_ms")
        self.answer = program.call("ipc_recv", handle, 20_000, buffer(1000))
        self.busy = stage.add("busy", program, publish=["busy"], subscribe=["busy"])

    def _kernel(self, stage: Stage) -> None:
        """`*` reaches nothing that is the supervisor's own; its name spelled out does."""
        program = Program()
        self.wild = [program.call("ipc_publish", text(topic), GOOD) for topic in ("a", "a.b", "kernelx")]
        self.reserved = [
            tell(program, "ipc_publish", text(topic), GOOD) for topic in ("kernel", "kernel.x", "kernel.x.y")
        ]
        self.star = stage.add("star", program, publish=["*"])
        program = Program()
        self.spelled = [
            program.call("ipc_publish", text(topic), GOOD) for topic in ("kernel.x", "kernel.y.z", "kernel")
        ]
        self.spells = stage.add("spells", program, publish=["kernel.*"])

    def _causes(self, stage: Stage) -> None:
        """`boss` asks on behalf of alice, `clerk` passes it on and says because of what; `boss` hears that."""
        clerk = Program()
        handle = clerk.call("ipc_subscribe", text("ask"))
        meet_second(clerk)
        self.asked = clerk.call("ipc_recv", handle, 20_000, buffer(4096, FIRST))
        self.cause = clerk.big_endian(FIRST + seq_at("ask", "please", "boss", "alice"))
        self.next_cause = clerk.load(f"local.get $r{self.cause.number} i64.const 1 i64.add")
        self.foreign = tell(clerk, "ipc_publish_caused", text("answer"), GOOD, self.next_cause)
        self.passed_on = clerk.call("ipc_publish_caused", text("answer"), GOOD, self.cause)
        self.own = clerk.call("ipc_publish", text("answer"), GOOD)
        boss = Program()
        answers = boss.call("ipc_subscribe", text("answer"))
        meet_first(boss)
        boss.call("ipc_publish", text("ask"), text(cbor2.dumps("please")))
        # Room for one of them only: both may be there.
        self.answered = [boss.call("ipc_recv", answers, 20_000, buffer(200)) for _ in range(2)]
        self.clerk = stage.add("clerk", clerk, publish=["answer", *MEET], subscribe=["ask", *MEET])
        self.boss = stage.add(
            "boss", boss, publish=["ask", *MEET], subscribe=["answer", *MEET], principal="alice"
        )


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_publish_says_the_first_rule_that_it_breaks(guests: Cast, name: str) -> None:
    """Each refusal has the errno of the first rule that is broken, and a sentence with the rule and the value."""
    result, sentence = guests.poor.told(guests.refused[name])
    assert result == -REFUSED[name].errno
    assert REFUSED[name].sentence in sentence


@pytest.mark.parametrize("name", ALLOWED)
def test_a_limit_itself_is_allowed(guests: Cast, name: str) -> None:
    """What is exactly at a limit, or just granted, is published, though nobody listens."""
    assert guests.rich.value(guests.allowed[name]) == 0


def test_a_refused_publish_costs_no_quota(guests: Cast) -> None:
    """After all these refusals the bucket, which refills with a byte a second, is still full: one publish passes."""
    assert guests.poor.value(guests.paid) == 0


def test_over_the_rate_is_a_refusal_that_names_the_rate(guests: Cast) -> None:
    """The next one is over the rate, in bytes as in messages, and the sentence says which rate that is."""
    result, sentence = guests.poor.told(guests.over_rate)
    assert result == -Errno.DQUOT
    assert "over the rate of 1 bytes and" in sentence
    assert guests.slow.value(guests.one) == 0
    result, sentence = guests.slow.told(guests.two)
    assert result == -Errno.DQUOT
    assert "1 messages a second" in sentence


def test_the_rate_is_asked_after_the_size_and_before_the_payload(guests: Cast) -> None:
    """Over the rate, a payload that is too large is still too large, and one that is no CBOR is over the rate."""
    assert guests.poor.value(guests.size_before_rate) == -Errno.MSGSIZE
    assert guests.poor.value(guests.rate_before_cbor) == -Errno.DQUOT


def test_a_cause_that_was_not_delivered_is_refused(guests: Cast) -> None:
    """An invented cause, 0, and the number after a delivered one are no causes."""
    for actor, told, number in (
        (guests.poor, guests.uncaused, "12345"),
        (guests.poor, guests.caused_by_0, "0"),
        (guests.clerk, guests.foreign, str(guests.clerk.value(guests.next_cause))),
    ):
        result, sentence = actor.told(told)
        assert result == -Errno.BADF
        assert f"the message {number} was not delivered" in sentence


def test_a_caused_message_carries_the_principal_of_its_cause(guests: Cast) -> None:
    """Its principal is the cause's, its cause the cause's number; the next one has the sender's own, and no cause."""
    (asked,) = guests.clerk.envelope(guests.asked)["messages"]
    assert (asked["source"], asked["principal"]) == ("boss", "alice")
    assert asked["seq"] == guests.clerk.value(guests.cause)
    assert guests.clerk.value(guests.passed_on) == guests.clerk.value(guests.own) == 0
    (caused,), (own,) = (guests.boss.envelope(each)["messages"] for each in guests.answered)
    assert (caused["source"], caused["principal"], caused["cause"]) == ("clerk", "alice", asked["seq"])
    assert list(caused)[-1] == "cause"
    assert (own["source"], own["principal"]) == ("clerk", "clerk")
    assert "cause" not in own


def test_nobody_listening_is_no_error(guests: Cast) -> None:
    """A publish that nobody has subscribed to succeeds, and later subscribers do not get it."""
    assert guests.echo.value(guests.unheard) == 0
    assert guests.echo.payloads(guests.received[0]) == [{"n": 0}]


def test_a_capsule_receives_what_it_publishes_with_the_hosts_stamps(guests: Cast) -> None:
    """Source, instance, principal, a growing number and the time are the host's; the payload is the guest's."""
    messages = [guests.echo.envelope(each)["messages"][0] for each in guests.received]
    assert [message["payload"] for message in messages] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert {message["source"] for message in messages} == {"echo"}
    assert {message["principal"] for message in messages} == {"echo@example"}
    instance = guests.echo.shown()["instance"]
    assert {message["instance"].hex() for message in messages} == {instance}
    numbers = [message["seq"] for message in messages]
    assert numbers == sorted(set(numbers))
    for message in messages:
        assert guests.echo.value(guests.before) <= message["time"] <= guests.echo.value(guests.after)
    assert abs(guests.echo.value(guests.after) - time.time() * 1000) < 600_000


def test_a_publish_does_not_wait_for_the_next_call(guests: Cast) -> None:
    """What a guest publishes after a receive is on its way while it computes, and not only when it has."""
    answering, computed = guests.busy.value(guests.answering), guests.busy.value(guests.computed)
    (message,) = guests.busy.envelope(guests.answer)["messages"]
    assert computed - answering > 20
    assert message["time"] < computed


def test_a_wildcard_grant_does_not_reach_the_kernels_topics(guests: Cast) -> None:
    """`*` grants every topic but those whose first segment is `kernel`; `kernel.*` grants those below it."""
    assert [guests.star.value(each) for each in guests.wild] == [0, 0, 0]
    for told in guests.reserved:
        result, sentence = guests.star.told(told)
        assert result == -Errno.NOTCAPABLE
        assert "is not granted: ipc_publish = ['*']" in sentence
    assert [guests.spells.value(each) for each in guests.spelled] == [0, 0, -Errno.NOTCAPABLE]
