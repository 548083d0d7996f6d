"""subscribe and unsubscribe: patterns, grants, handles and their limit, as guests see them."""

from __future__ import annotations

from typing import NamedTuple

import cbor2
import pytest

from capsuled.proto.ledger import MAX_SUBSCRIPTIONS
from capsuled.proto.refusals import Errno

from ..support.guests import Argument, Program, buffer, text
from .stage import MEET, Stage, Told, meet_first, meet_second, tell

OUTSIDE = 0xFFFF_0000
"""An address that no guest here has."""

GRANTS = ["foo.*", "in.*.c", "one"]

EIGHT = "foo.b.c.d.e.f.g.h"

INTERCEPTORS = '[[interceptor]]\nevent = "i.a"\naction = "a"\n[[interceptor]]\nevent = "i.b"\naction = "b"'


class Refused(NamedTuple):
    """Arguments of a subscribe, the errno that it answers, and what the sentence must hold."""

    arguments: tuple[Argument, ...]
    errno: Errno
    sentence: str


INNER = "has a wildcard before its last segment: subscribe to an exact topic or to one that ends in '.*'"

REFUSED = {
    "257 bytes": Refused(
        (text("foo." + "x" * 253),), Errno.NAMETOOLONG, "subscribe to 257 bytes: a topic or pattern has 256"
    ),
    "not UTF-8": Refused((text(b"foo.\xff"),), Errno.ILSEQ, "is not UTF-8"),
    "empty": Refused((text(""),), Errno.INVAL, "'' has an empty segment"),
    "a leading dot": Refused((text(".foo"),), Errno.INVAL, "'.foo' has an empty segment"),
    "a trailing dot": Refused((text("foo."),), Errno.INVAL, "'foo.' has an empty segment"),
    "a doubled dot": Refused((text("foo..a"),), Errno.INVAL, "'foo..a' has an empty segment"),
    "nine segments": Refused((text(f"{EIGHT}.i"),), Errno.INVAL, "has 9 segments: 8 at most"),
    "an inner wildcard": Refused((text("foo.*.b"),), Errno.INVAL, f"'foo.*.b' {INNER}"),
    "a leading wildcard": Refused((text("*.b"),), Errno.INVAL, f"'*.b' {INNER}"),
    "two wildcards": Refused((text("*.*"),), Errno.INVAL, f"'*.*' {INNER}"),
    "not granted": Refused(
        (text("x.y"),),
        Errno.NOTCAPABLE,
        "subscribe to 'x.y' is not granted: ipc_subscribe = ['foo.*', 'in.*.c', 'one']",
    ),
    "the stem of a subtree": Refused((text("foo"),), Errno.NOTCAPABLE, "'foo'"),
    "everything": Refused((text("*"),), Errno.NOTCAPABLE, "'*'"),
    "a subtree of an exact grant": Refused((text("one.*"),), Errno.NOTCAPABLE, "'one.*'"),
    "a subtree of an inner wildcard": Refused((text("in.*"),), Errno.NOTCAPABLE, "'in.*'"),
    "a subtree below an inner wildcard": Refused((text("in.a.*"),), Errno.NOTCAPABLE, "'in.a.*'"),
    "an outside pattern": Refused((OUTSIDE, 3), Errno.FAULT, f"3 bytes at {OUTSIDE}"),
    # Two rules broken: the first of them answers.
    "length before the range": Refused((OUTSIDE, 257), Errno.NAMETOOLONG, "257 bytes"),
    "length before UTF-8": Refused((text(b"\xff" * 257),), Errno.NAMETOOLONG, "257 bytes"),
    "UTF-8 before form": Refused((text(b"..\xff"),), Errno.ILSEQ, "not UTF-8"),
    "form before the wildcard": Refused((text("foo..*.b"),), Errno.INVAL, "empty segment"),
    "the wildcard before the grant": Refused((text("x.*.b"),), Errno.INVAL, INNER),
    "segments before the grant": Refused((text("x." + EIGHT),), Errno.INVAL, "9 segments"),
}

ALLOWED = {
    "256 bytes": "foo." + "x" * 252,
    "eight segments": EIGHT,
    "below a subtree": "foo.bar",
    "the granted subtree itself": "foo.*",
    "a subtree below it": "foo.bar.*",
    "what an inner wildcard covers": "in.a.c",
    "an exact grant": "one",
    "a star that is part of a literal": "foo.a*",
}

ITEM = text(cbor2.dumps(1))


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        self._patterns(stage)
        self._kernel(stage)
        self._handles(stage)
        self._many(stage)

    def _patterns(self, stage: Stage) -> None:
        program = Program()
        self.refused: dict[str, Told] = {
            name: tell(program, "ipc_subscribe", *case.arguments) for name, case in REFUSED.items()
        }
        self.allowed = {
            name: program.call("ipc_subscribe", text(pattern)) for name, pattern in ALLOWED.items()
        }
        literal = self.allowed["a star that is part of a literal"]
        for topic in ("foo.ab", "foo.a*", "foo.a.b"):
            program.call("ipc_publish", text(topic), text(cbor2.dumps(topic)))
        self.literal = program.call("ipc_recv", literal, 20_000, buffer(1000))
        self.asker = stage.add("asker", program, publish=["foo.*"], subscribe=GRANTS)

    def _kernel(self, stage: Stage) -> None:
        """`star` may have everything but the kernel's, `spells` what is below `kernel`; a third speaks of it."""
        star = Program()
        all_of_it = star.call("ipc_subscribe", text("*"))
        self.star_refused = [
            tell(star, "ipc_subscribe", text(pattern)) for pattern in ("kernel.*", "kernel", "kernel.x")
        ]
        after = star.call("ipc_subscribe", text("after"))
        meet_second(star)
        star.call("ipc_recv", after, 20_000, buffer(1000), quiet=True)
        self.star_received = star.call("ipc_poll", all_of_it, buffer(20_000))
        self.star = stage.add("star", star, publish=MEET, subscribe=["*"])
        speaker = Program()
        kernel = speaker.call("ipc_subscribe", text("kernel.*"))
        news = speaker.call("ipc_subscribe", text("kernel.news"))
        meet_first(speaker)
        speaker.call("ipc_publish", text("kernel.news"), ITEM)
        speaker.call("ipc_publish", text("after"), ITEM)
        self.spelled = speaker.call("ipc_recv", news, 20_000, buffer(1000))
        # The supervisor's own events may be among these.
        self.subtree = speaker.call("ipc_poll", kernel, buffer(29_000))
        self.speaker = stage.add(
            "speaker",
            speaker,
            publish=["kernel.*", "after", *MEET],
            subscribe=["kernel.*", *MEET],
        )

    def _handles(self, stage: Stage) -> None:
        program = Program()
        self.opened = [program.call("ipc_subscribe", text("foo.a")) for _ in range(3)]
        first, second, third = self.opened
        self.interceptor = tell(program, "ipc_unsubscribe", 1)
        self.unknown = [tell(program, "ipc_unsubscribe", handle) for handle in (0, 99, 0xFFFF_FFFF)]
        self.unknown += [
            tell(program, "ipc_poll", 99, buffer(100)),
            tell(program, "ipc_recv", 99, 0, buffer(100)),
        ]
        program.call("ipc_publish", text("foo.a"), ITEM)
        program.call("ipc_recv", third, 20_000, buffer(1000))
        self.queued = program.call("ipc_poll", first, buffer(1000))
        self.ended = program.call("ipc_unsubscribe", second)
        self.ended_again = [
            program.call("ipc_unsubscribe", second),
            program.call("ipc_poll", second, buffer(100)),
            program.call("ipc_recv", second, 0, buffer(100)),
        ]
        self.reopened = program.call("ipc_subscribe", text("foo.a"))
        self.fresh = program.call("ipc_poll", self.reopened, buffer(100))
        self.handles = stage.add(
            "handles", program, publish=["foo.a"], subscribe=["foo.a"], more=INTERCEPTORS
        )

    def _many(self, stage: Stage) -> None:
        """All that it may have, two interceptors among them; then one more, and one in the place of another."""
        program = Program()
        self.many = [program.call("ipc_subscribe", text(f"foo.{i}")) for i in range(MAX_SUBSCRIPTIONS - 2)]
        self.too_many = tell(program, "ipc_subscribe", text("foo.more"))
        self.grant_first = program.call("ipc_subscribe", text("x"))
        self.places: list[Told] = []
        for handle in self.many[:3]:
            program.call("ipc_unsubscribe", handle)
            self.places.append(tell(program, "ipc_subscribe", text("foo.more")))
            self.places.append(tell(program, "ipc_subscribe", text("foo.more")))
        self.crowd = stage.add("crowd", program, subscribe=["foo.*"], more=INTERCEPTORS)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_subscribe_says_the_first_rule_that_it_breaks(guests: Cast, name: str) -> None:
    """Each refusal has the errno of the first rule that is broken, and a sentence with the rule and the value."""
    result, sentence = guests.asker.told(guests.refused[name])
    assert result == -REFUSED[name].errno
    assert REFUSED[name].sentence in sentence


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_grant_covers_is_allowed(guests: Cast, name: str) -> None:
    """A pattern at a limit, and one that a grant covers wholly, get a handle."""
    assert guests.asker.value(guests.allowed[name]) == 1 + list(ALLOWED).index(name)


def test_a_star_within_a_segment_is_a_literal(guests: Cast) -> None:
    """`foo.a*` receives what is published on `foo.a*`, and nothing else."""
    assert guests.asker.payloads(guests.literal) == ["foo.a*"]


def test_a_wildcard_reaches_no_topic_of_the_kernel(guests: Cast) -> None:
    """`*` covers no pattern below `kernel` and receives nothing from there; `kernel.*` does both."""
    for told in guests.star_refused:
        result, sentence = guests.star.told(told)
        assert result == -Errno.NOTCAPABLE
        assert "is not granted: ipc_subscribe = ['*']" in sentence
    heard = {message["topic"] for message in guests.star.envelope(guests.star_received)["messages"]}
    assert "after" in heard
    assert not [topic for topic in heard if topic.startswith("kernel")]
    assert guests.speaker.payloads(guests.spelled) == [1]
    assert "kernel.news" in {
        message["topic"] for message in guests.speaker.envelope(guests.subtree)["messages"]
    }


def test_handles_are_positive_and_increase(guests: Cast) -> None:
    """They begin behind the interceptors', and one that is gone is not given again."""
    assert [guests.handles.value(each) for each in guests.opened] == [3, 4, 5]
    assert guests.handles.value(guests.reopened) == 6


def test_an_interceptor_cannot_be_ended(guests: Cast) -> None:
    """The handle is the runtime's: perm."""
    result, sentence = guests.handles.told(guests.interceptor)
    assert result == -Errno.PERM
    assert sentence == "the runtime owns the subscription 1: it ends with the capsule"


def test_an_unknown_handle_is_refused_by_number(guests: Cast) -> None:
    """Ending, polling and receiving say badf and which handle that was."""
    for told, handle in zip(guests.unknown, (0, 99, 0xFFFF_FFFF, 99, 99), strict=True):
        assert guests.handles.told(told) == (-Errno.BADF, f"there is no subscription {handle}")


def test_unsubscribe_ends_the_handle_and_drops_its_queue(guests: Cast) -> None:
    """It is gone for every call, and a new subscription to the same topic begins empty."""
    assert guests.handles.payloads(guests.queued) == [1]
    assert guests.handles.value(guests.ended) == 0
    assert [guests.handles.value(each) for each in guests.ended_again] == [-Errno.BADF] * 3
    assert guests.handles.payloads(guests.fresh) == []


def test_128_subscriptions_are_the_most_interceptors_included(guests: Cast) -> None:
    """126 beside two interceptors stand, the next is mfile; whoever ends one has room for one at once."""
    assert [guests.crowd.value(each) for each in guests.many] == list(range(3, MAX_SUBSCRIPTIONS + 1))
    result, sentence = guests.crowd.told(guests.too_many)
    assert result == -Errno.MFILE
    assert sentence == "cannot subscribe to 'foo.more': 128 subscriptions are the most"
    assert guests.crowd.value(guests.grant_first) == -Errno.NOTCAPABLE
    results = [guests.crowd.value(each.result) for each in guests.places]
    assert results == [129, -Errno.MFILE, 130, -Errno.MFILE, 131, -Errno.MFILE]
