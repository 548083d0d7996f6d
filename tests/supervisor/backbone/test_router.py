"""From a frame on a member's edge to the outboxes of the subscribers: every check, every stamp, every count."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsuled.proto import ledger, records, topics
from capsuled.proto.grants import Grants
from capsuled.proto.records import Down, DownKind, RecordError, UpKind
from capsuled.proto.refusals import Errno
from capsuled.supervisor.backbone.figures import Figures
from capsuled.supervisor.backbone.members import CONTROL_RATE, MAX_ROUTES, Admission, Member
from capsuled.supervisor.backbone.outbox import MAX_CONTROL
from capsuled.supervisor.backbone.router import Router

from .making import admission, publish, subscribe, unsubscribe

EPOCH = 3
FIRST = EPOCH << records.EPOCH_SHIFT
"""The sequence number before the first."""


class Bench:
    """A router and its members, with a clock that stands."""

    def __init__(self, *admissions: Admission) -> None:
        self.told: list[tuple[int, list[tuple[int, str, bool]]]] = []
        self.router = Router(EPOCH, lambda index, table: self.told.append((index, table)))
        self.members = [self.router.attach(each, 0.0) for each in admissions]

    def take(self, index: int, *parts: bytes, now: float = 0.0) -> int:
        return self.router.take(self.router.members[index], b"".join(parts), now, 1234)

    def sent(self, index: int) -> list[Down]:
        """What is sent to a member now."""
        outbox, found = self.router.members[index].outbox, list[Down]()
        while frame := outbox.take_frame():
            found += records.split_down(frame)
        return found

    def messages(self, index: int) -> list[Down]:
        return [each for each in self.sent(index) if each.kind == DownKind.MESSAGE]

    def answer(self, index: int, record: bytes) -> Down:
        """The only record that is sent in answer to one."""
        self.take(index, record)
        (found,) = self.sent(index)
        return found

    def figures(self, index: int) -> Figures:
        return self.router.figures(self.router.members[index])


def pair() -> Bench:
    """Member 0, and member 1 that has subscribed to `a.*` with handle 1."""
    return Bench(admission(0), admission(1, subscriptions=((1, "a.*", True),)))


# ── publish ──────────────────────────────────────────────────────────────────────────────────────

LONGEST = "a." + "x" * (topics.MAX_BYTES - 2)
DEEPEST = "a" + ".b" * (topics.MAX_SEGMENTS - 1)


@pytest.mark.parametrize("topic", ["a.b", "a.*.c", LONGEST, DEEPEST, "a.ü"])
def test_a_granted_topic_is_routed(topic: str) -> None:
    """A topic within all limits and under a grant reaches the subscriber; a `*` in it is a literal."""
    bench = pair()
    bench.take(0, publish(topic))
    assert [each.text.decode() for each in bench.messages(1)] == [topic]
    assert bench.figures(0)["refused"] == {}


@pytest.mark.parametrize(
    ("topic", "errno"),
    [
        (LONGEST + "x", Errno.NAMETOOLONG),
        (b"\xff" * (topics.MAX_BYTES + 1), Errno.NAMETOOLONG),
        (b"a.\xff", Errno.ILSEQ),
        (b"\xff..", Errno.ILSEQ),
        ("", Errno.INVAL),
        (".a", Errno.INVAL),
        ("a.", Errno.INVAL),
        ("a..b", Errno.INVAL),
        (DEEPEST + ".b", Errno.INVAL),
        ("b..c", Errno.INVAL),
        ("a", Errno.NOTCAPABLE),
        ("b.c", Errno.NOTCAPABLE),
        ("ab.c", Errno.NOTCAPABLE),
        ("kernel.x", Errno.NOTCAPABLE),
    ],
)
def test_a_refused_topic_is_counted_and_goes_nowhere(topic: str | bytes, errno: Errno) -> None:
    """What the worker should have refused is refused here, by the first rule that it breaks."""
    bench = Bench(admission(0), admission(1, subscribe=("*",), subscriptions=((1, "*", True),)))
    bench.take(0, publish(topic))
    assert bench.sent(1) == []
    assert bench.figures(0)["refused"] == {errno.name.lower(): 1}
    assert bench.router.seq == FIRST


@pytest.mark.parametrize("grants", [(), ("*",)])
def test_nothing_but_its_own_name_opens_what_is_reserved(grants: tuple[str, ...]) -> None:
    """Without grants nothing is published, and `*` does not reach `kernel`."""
    bench = Bench(admission(0, publish=grants))
    bench.take(0, publish("kernel.x"))
    assert bench.figures(0)["refused"] == {"notcapable": 1}


def test_payload_at_the_limit_and_one_past_it() -> None:
    """A payload of `max_payload` passes, one byte more does not."""
    bench = Bench(admission(0, max_payload=10), admission(1, subscriptions=((1, "a.*", True),)))
    bench.take(0, publish("a.b", 0, bytes(10)), publish("a.b", 1, bytes(11)))
    assert [len(each.body) for each in bench.messages(1)] == [10]
    assert bench.figures(0)["refused"] == {"msgsize": 1}


def test_the_grant_comes_before_the_size() -> None:
    """A payload that is too large on a topic without a grant is refused for the grant."""
    bench = Bench(admission(0, max_payload=10))
    bench.take(0, publish("b.c", 0, bytes(11)))
    assert bench.figures(0)["refused"] == {"notcapable": 1}


def test_stamps() -> None:
    """A message carries topic and payload as they came, the next global number, the time, and who it is from."""
    bench = pair()
    bench.take(0, publish("a.b", 0, b"one"), publish("a.c", 1, b"two"))
    introduction, *messages = bench.sent(1)
    assert introduction == Down(DownKind.ORIGIN, b"c0", 0, 0, 0, EPOCH, bytes(16) + b"p0")
    assert messages == [
        Down(DownKind.MESSAGE, b"a.b", 0, FIRST + 1, 1234, 0, b"one"),
        Down(DownKind.MESSAGE, b"a.c", 0, FIRST + 2, 1234, 0, b"two"),
    ]


def test_an_origin_is_introduced_once() -> None:
    """Each subscriber is told once who an origin is, however many topics and connections follow."""
    bench = pair()
    for count in range(3):
        bench.take(0, publish(f"a.{count}", count))
    kinds = [each.kind for each in bench.sent(1)]
    assert kinds == [DownKind.ORIGIN] + [DownKind.MESSAGE] * 3


def test_an_instance_has_its_own_origin() -> None:
    """After a capsule's restart its messages are told apart from the last instance's."""
    bench = pair()
    bench.take(0, publish("a.b"))
    bench.router.detach(0)
    bench.router.attach(admission(7, name="c0", principal="p0"), 0.0)
    bench.take(7, publish("a.b"))
    introduced = [
        (each.a, each.text, each.body[15]) for each in bench.sent(1) if each.kind == DownKind.ORIGIN
    ]
    assert [text for _, text, _ in introduced] == [b"c0", b"c0"]
    assert [instance for _, _, instance in introduced] == [0, 7]
    assert introduced[0][0] != introduced[1][0]


def test_fan_out() -> None:
    """A message reaches everyone whose pattern matches, once per member, its publisher included, nobody else."""
    tables: list[tuple[tuple[int, str, bool], ...]] = [
        ((1, "a.*", True),),
        ((1, "a.b", True), (2, "a.*", True), (3, "a.c", True)),
        ((1, "a.b.*", True),),
        ((1, "a.c", True),),
        (),
    ]
    bench = Bench(*(admission(index, subscriptions=table) for index, table in enumerate(tables)))
    bench.take(0, publish("a.b"))
    assert [len(bench.messages(index)) for index in range(5)] == [1, 1, 0, 0, 0]
    counts = [each["matched"] for each in bench.figures(1)["subscriptions"]]
    assert counts == [1, 1, 0]


def test_publishing_where_nobody_listens_succeeds() -> None:
    """A message that nobody has subscribed to is routed, to nobody."""
    bench = Bench(admission(0))
    bench.take(0, publish("a.b"))
    figures = bench.figures(0)
    assert (figures["published"], figures["received"], figures["refused"]) == (1, 1, {})


def test_the_oldest_are_lost_and_counted_exactly() -> None:
    """A subscriber that takes nothing keeps the newest; what it lost and what it has make up all."""
    bench = Bench(admission(0), admission(1, queue_messages=5, subscriptions=((1, "a.*", True),)))
    for count in range(12):
        bench.take(0, publish("a.b", count, bytes([count])))
    figures = bench.figures(1)
    assert (figures["queued"], figures["lost"], figures["sent"]) == (5, 7, 0)
    found = bench.sent(1)
    assert [each.b for each in found if each.kind == DownKind.LAGGED] == [7]
    assert [each.body[0] for each in found if each.kind == DownKind.MESSAGE] == [7, 8, 9, 10, 11]


def test_a_topic_over_the_bound_of_cached_routes() -> None:
    """A publisher of more topics than are cached is routed and counted as ever."""
    bench = pair()
    for count in range(MAX_ROUTES + 1):
        bench.take(0, publish(f"a.t{count}", count))
    assert len(bench.members[0].routes) == 1
    (only,) = bench.figures(1)["subscriptions"]
    assert only["matched"] == MAX_ROUTES + 1


# ── causes ───────────────────────────────────────────────────────────────────────────────────────


def chain() -> tuple[Bench, int]:
    """Member 0 has caused member 1, which has been sent the message with the returned number; 2 listens."""
    listening = ((1, "a.*", True),)
    bench = Bench(admission(0), admission(1, subscriptions=listening), admission(2, subscriptions=listening))
    bench.take(0, publish("a.b"))
    (message,) = bench.messages(1)
    bench.sent(2)
    return bench, message.b


def test_a_cause_carries_its_principal_on() -> None:
    """What a received message causes is published by the capsule, for the principal of the cause."""
    bench, cause = chain()
    bench.take(1, publish("a.c", cause=cause))
    *introductions, message = bench.sent(2)
    origins = {each.a: each for each in introductions}
    assert (origins[message.a].text, origins[message.a].body[16:]) == (b"c1", b"p0")
    assert message.d == cause


def test_without_a_cause_it_is_its_own_principal() -> None:
    """After a caused message the next one without a cause is the capsule's own again."""
    bench, cause = chain()
    bench.take(1, publish("a.c", 0, cause=cause), publish("a.c", 1))
    found = bench.sent(2)
    principals = {each.a: each.body[16:] for each in found if each.kind == DownKind.ORIGIN}
    assert [principals[each.a] for each in found if each.kind == DownKind.MESSAGE] == [b"p0", b"p1"]


def test_a_principal_goes_through_a_chain() -> None:
    """A cause of a cause still carries the first principal on."""
    bench, cause = chain()
    bench.take(1, publish("a.c", cause=cause))
    (second,) = bench.messages(2)
    bench.sent(1)
    bench.take(2, publish("a.d", cause=second.b))
    found = bench.sent(1)
    names = [(each.text, each.body[16:]) for each in found if each.kind == DownKind.ORIGIN]
    assert (b"c2", b"p0") in names


@pytest.mark.parametrize("invented", [1, FIRST, FIRST + 2, (1 << 64) - 1])
def test_an_invented_cause_is_refused(invented: int) -> None:
    """A number that was never sent to the capsule is no cause, and the publish goes nowhere."""
    bench, _ = chain()
    bench.take(1, publish("a.c", cause=invented))
    assert bench.messages(2) == []
    assert bench.figures(1)["refused"] == {"badf": 1}


def test_anothers_message_is_no_cause() -> None:
    """A message that was sent to others, or waits and was not sent yet, cannot be named."""
    bench, cause = chain()
    bench.take(0, publish("a.c", 1, cause=cause))
    assert bench.figures(0)["refused"] == {"badf": 1}
    bench.take(0, publish("a.d", 2))
    bench.take(1, publish("a.e", cause=bench.router.seq))
    assert bench.figures(1)["refused"] == {"badf": 1}


def test_a_cause_outlives_its_publisher() -> None:
    """The principal of a message is carried on although the capsule that sent it is gone."""
    bench, cause = chain()
    bench.router.detach(0)
    bench.take(1, publish("a.c", cause=cause))
    *introductions, message = bench.sent(2)
    assert {each.a: each.body[16:] for each in introductions}[message.a] == b"p0"


# ── subscriptions ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "errno", "sentence"),
    [
        ("a.b", 0, ""),
        ("a.*", 0, ""),
        (LONGEST, 0, ""),
        (LONGEST + "x", Errno.NAMETOOLONG, "257 bytes: 256 at most"),
        (b"\xff" * 257, Errno.NAMETOOLONG, "257 bytes: 256 at most"),
        (b"a.\xff", Errno.ILSEQ, "not UTF-8"),
        ("a..b", Errno.INVAL, "empty segment"),
        (DEEPEST, 0, ""),
        (DEEPEST + ".b", Errno.INVAL, "9 segments"),
        ("a.*.b", Errno.INVAL, "wildcard before its last segment"),
        ("*.a", Errno.INVAL, "wildcard before its last segment"),
        ("*", Errno.NOTCAPABLE, "'*' is not granted"),
        ("a", Errno.NOTCAPABLE, "'a' is not granted"),
        ("kernel.x", Errno.NOTCAPABLE, "'kernel.x' is not granted"),
    ],
)
def test_subscribe(pattern: str | bytes, errno: int, sentence: str) -> None:
    """A subscription is acknowledged, or refused by the first rule that it breaks, in a sentence."""
    bench = Bench(admission(0))
    answer = bench.answer(0, subscribe(5, pattern))
    assert (answer.kind, answer.a, answer.b) == (DownKind.SUBSCRIBED, 5, errno)
    assert sentence in answer.text.decode()
    stands = [each["handle"] for each in bench.figures(0)["subscriptions"]]
    assert stands == ([] if errno else [5])
    assert len(bench.told) == (0 if errno else 1)
    assert bench.figures(0)["refused"] == ({Errno(errno).name.lower(): 1} if errno else {})


def test_the_last_subscription_and_one_more() -> None:
    """A capsule has `MAX_SUBSCRIPTIONS` at most, interceptors included; one that ends makes room."""
    bench = Bench(admission(0, subscriptions=((1, "a.*", True),)))
    answers = [bench.answer(0, subscribe(n, f"a.b{n}")) for n in range(2, ledger.MAX_SUBSCRIPTIONS + 2)]
    assert [each.b for each in answers] == [0] * (ledger.MAX_SUBSCRIPTIONS - 1) + [Errno.MFILE]
    bench.answer(0, unsubscribe(2))
    assert bench.answer(0, subscribe(999, "a.x")).b == 0


@pytest.mark.parametrize("handle", [0, 1])
def test_a_handle_in_use_or_none(handle: int) -> None:
    """A handle that stands for another pattern, and 0, are refused."""
    bench = Bench(admission(0, subscriptions=((1, "a.*", True),)))
    assert bench.answer(0, subscribe(handle, "a.b")).b == Errno.BADF


def test_the_supervisor_is_told_before_the_worker_is() -> None:
    """A frame that changes the subscriptions has them told once, as they are then, before any answer is sent."""
    bench = Bench(admission(0, subscriptions=((1, "a.*", True),)))
    bench.take(0, subscribe(2, "a.b"), subscribe(3, "a.c"), unsubscribe(2), subscribe(4, "b.c"))
    assert bench.told == [(0, [(1, "a.*", True), (3, "a.c", False)])]
    kinds = [(each.kind, each.a) for each in bench.sent(0)]
    assert kinds == [
        (DownKind.SUBSCRIBED, 2),
        (DownKind.SUBSCRIBED, 3),
        (DownKind.UNSUBSCRIBED, 2),
        (DownKind.SUBSCRIBED, 4),
    ]


def test_the_acknowledgement_says_from_where_on_messages_count() -> None:
    """Messages up to the number in SUBSCRIBED are not the handle's, all after it are; asked again it is the same."""
    bench = Bench(admission(0), admission(1))
    bench.take(1, subscribe(1, "a.b"))
    bench.take(0, publish("a.b", 0), publish("a.c", 1))
    bench.take(1, subscribe(2, "a.*"))
    bench.take(0, publish("a.b", 2))
    since = {each.a: each.c for each in bench.sent(1) if each.kind == DownKind.SUBSCRIBED}
    assert since == {1: FIRST, 2: FIRST + 2}
    matched = [each["matched"] for each in bench.figures(1)["subscriptions"]]
    assert matched == [2, 1]
    again = bench.answer(1, subscribe(2, "a.*"))
    assert (again.kind, again.b, again.c) == (DownKind.SUBSCRIBED, 0, FIRST + 2)
    assert len(bench.figures(1)["subscriptions"]) == 2


def test_after_the_acknowledgement_nothing_is_missed() -> None:
    """A route that was cached before the subscription does not hide it, nor does one keep an ended one alive."""
    bench = Bench(admission(0), admission(1))
    bench.take(0, publish("a.b", 0))
    bench.take(1, subscribe(1, "a.b"))
    bench.take(0, publish("a.b", 1))
    assert len(bench.messages(1)) == 1
    bench.take(1, unsubscribe(1))
    bench.take(0, publish("a.b", 2))
    assert bench.messages(1) == []


@pytest.mark.parametrize(("handle", "code"), [(1, "perm"), (2, "badf")])
def test_unsubscribe_refused(handle: int, code: str) -> None:
    """The runtime's handle is not the guest's to end, and an unknown one is none; neither is answered."""
    bench = Bench(admission(0, subscriptions=((1, "a.*", True),)))
    bench.take(0, unsubscribe(handle))
    assert bench.sent(0) == []
    assert bench.figures(0)["refused"] == {code: 1}
    assert len(bench.figures(0)["subscriptions"]) == 1


@pytest.mark.parametrize("said", [EPOCH - 1, EPOCH + 1, records.AGAIN])
def test_an_end_that_may_have_been_heard(said: int) -> None:
    """Said to another backbone, or again: no offence, and answered, so that its worker forgets the handle."""
    bench = Bench(admission(0))
    answer = bench.answer(0, records.up(UpKind.UNSUBSCRIBE, a=7, b=said))
    assert (answer.kind, answer.a) == (DownKind.UNSUBSCRIBED, 7)
    figures = bench.figures(0)
    assert (figures["late"], figures["refused"]) == (1, {})


def test_unsubscribe_takes_what_waits_off_the_account() -> None:
    """What was sent before UNSUBSCRIBED counts for the handle; what waits then does not, nor its later loss."""
    bench = Bench(admission(0), admission(1, queue_messages=3, subscriptions=((9, "a.x", True),)))
    bench.take(1, subscribe(1, "a.*"))
    bench.take(0, publish("a.b", 0), publish("a.b", 1))
    assert len(bench.messages(1)) == 2
    bench.take(0, *(publish("a.x", count) for count in range(2, 7)))
    (_, opened) = bench.figures(1)["subscriptions"]
    assert (opened["matched"], opened["lagged"], opened["queued"], opened["sent"]) == (7, 2, 3, 2)
    bench.take(1, unsubscribe(1))
    figures = bench.figures(1)
    assert (figures["closed_matched"], figures["closed_lagged"]) == (4, 2)
    bench.take(0, publish("a.x", 7))
    figures = bench.figures(1)
    assert (figures["closed_matched"], figures["closed_lagged"], figures["lost"]) == (4, 2, 3)
    found = bench.sent(1)
    assert [each.a for each in found if each.kind == DownKind.LAGGED] == [9]
    assert [each.kind for each in found][-3:] == [DownKind.MESSAGE] * 3


def test_a_handle_used_again_begins_with_nothing() -> None:
    """Losses of an ended subscription are not told to the one that has its handle after it."""
    bench = Bench(admission(0), admission(1, queue_messages=1))
    bench.take(1, subscribe(1, "a.*"))
    bench.take(0, publish("a.b", 0), publish("a.b", 1))
    bench.take(1, unsubscribe(1), subscribe(1, "a.b"))
    assert DownKind.LAGGED not in [each.kind for each in bench.sent(1)]
    (only,) = bench.figures(1)["subscriptions"]
    assert (only["matched"], only["lagged"], only["queued"], only["sent"]) == (0, 0, 0, 0)
    assert bench.figures(1)["queued"] == 0


# ── hello, bye, and what was lost on the way ─────────────────────────────────────────────────────


def test_greeting() -> None:
    """The first record of a connection tells the epoch, before anything that waits already."""
    bench = pair()
    bench.take(0, publish("a.b"))
    bench.router.greet(bench.members[1])
    first, *_ = bench.sent(1)
    assert (first.kind, first.b, first.c) == (DownKind.HELLO, EPOCH, 0)


@pytest.mark.parametrize(
    ("begin", "counts", "end", "missing"),
    [
        (0, [0, 1, 2], 3, 0),
        (5, [5, 6], 7, 0),
        (0, [2, 3], 4, 2),
        (0, [0, 3], 4, 2),
        (0, [0], 5, 4),
        ((1 << 32) - 1, [(1 << 32) - 1, 0], (1 << 32) + 1, 0),
        ((1 << 32) - 2, [0], (1 << 32) + 1, 2),
        ((1 << 40) + 3, [3], (1 << 40) + 4, 0),
    ],
)
def test_missing(begin: int, counts: list[int], end: int, missing: int) -> None:
    """What the worker has counted and the backbone never read is counted, at the next publish or at BYE."""
    bench = Bench(admission(0))
    bench.take(0, records.up(UpKind.HELLO, b=begin))
    for count in counts:
        bench.take(0, publish("a.b", count))
    answer = bench.answer(0, records.up(UpKind.BYE, b=end))
    assert answer == Down(DownKind.BYE, b"", 0, len(counts), 0, EPOCH, b"")
    assert bench.figures(0)["missing"] == missing


def test_a_worker_that_never_said_hello_misses_nothing() -> None:
    """The first count that is heard is where counting begins."""
    bench = Bench(admission(0))
    bench.take(0, publish("a.b", 77), publish("a.b", 78))
    assert bench.figures(0)["missing"] == 0


def test_bye_is_answered_after_what_came_before_it() -> None:
    """When BYE is answered, all publishes before it have been routed; the answer counts refused ones too."""
    bench = pair()
    bench.take(0, publish("a.b", 0), publish("b.c", 1), records.up(UpKind.BYE, b=2))
    assert [each.b for each in bench.sent(0)] == [2]
    assert len(bench.messages(1)) == 1


# ── frames that are none ─────────────────────────────────────────────────────────────────────────

GOOD = publish("a.b")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (b"\0", "1 bytes at 22 are too few"),
        (GOOD[: records.UP.size - 1], "18 bytes at 22 are too few"),
        (GOOD[:-1], "the record at 22 says"),
        (records.UP.pack(2**32 - 1, 1, 0, 0, 0), "says 4294967295 bytes"),
        (records.UP.pack(records.UP.size - 4, 1, 1, 0, 0), "1 of them text"),
        (records.UP.pack(0, 1, 0, 0, 0), "says 0 bytes"),
        (records.up(0), "no kind 0"),
        (records.up(11), "no kind 11"),
    ],
)
def test_malformed(bad: bytes, sentence: str) -> None:
    """A frame that stops being records is an error that says where; what stood before it has been done."""
    assert len(GOOD) == 22 + 1
    bench = pair()
    with pytest.raises(RecordError, match=sentence.replace("22", str(len(GOOD)))):
        bench.take(0, GOOD, bad)
    assert len(bench.messages(1)) == 1


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_anything_may_come(frame: bytes) -> None:
    """Invariant: whatever bytes a worker sends, they are records or a `RecordError`, and they are charged."""
    bench = Bench(admission(0, message_rate=5))
    (member,) = bench.members
    before = tokens(member)
    with suppress(RecordError):
        bench.take(0, frame)
    assert tokens(member) < before


def tokens(member: Member) -> int:
    """How many more publishes and control records, together, the member may send before it must wait."""
    found = 0
    for bucket in (copy(member.bucket), copy(member.control_bucket)):
        while not bucket.wait():
            bucket.charge(0, 1, 0.0)
            found += 1
    return found


def test_records_of_a_frame_are_bounded() -> None:
    """A frame of `MAX_RECORDS` records is taken; one past it is malformed, although it has room for more."""
    bench = Bench(admission(0))
    assert bench.take(0, *(publish("a.b", n) for n in range(records.MAX_RECORDS))) == records.MAX_RECORDS
    with pytest.raises(RecordError, match=f"more than {records.MAX_RECORDS} records"):
        bench.take(0, *(publish("a.b", n) for n in range(records.MAX_RECORDS + 1)))
    assert bench.figures(0)["published"] == 2 * records.MAX_RECORDS


# ── rates ────────────────────────────────────────────────────────────────────────────────────────


class Rate(NamedTuple):
    byte_rate: int
    message_rate: int
    payloads: list[int]
    wait: float


@pytest.mark.parametrize(
    "rate",
    [
        Rate(100, 10, [100], 0.0),
        Rate(100, 10, [101], 0.01),
        Rate(100, 10, [250], 1.5),
        Rate(1000, 3, [1, 1, 1], 0.0),
        Rate(1000, 3, [1, 1, 1, 1], 1 / 3),
        Rate(0, 0, [1], 0.0),
        Rate(0, 0, [1, 1], 1.0),
    ],
)
def test_a_rate_is_charged(rate: Rate) -> None:
    """One second's worth is the burst; what is over it must be waited for. No rate is below one."""
    bench = Bench(admission(0, byte_rate=rate.byte_rate, message_rate=rate.message_rate))
    bench.take(0, *(publish("a.b", n, bytes(size)) for n, size in enumerate(rate.payloads)))
    assert bench.members[0].bucket.wait() == pytest.approx(rate.wait)
    assert bench.members[0].control_bucket.wait() == 0.0


def test_what_is_refused_is_charged_too() -> None:
    """A worker that sends what it should have refused pays for it."""
    bench = Bench(admission(0, message_rate=1))
    bench.take(0, publish("b.c", 0), publish("b.c", 1))
    assert bench.members[0].bucket.wait() == pytest.approx(1.0)


@pytest.mark.parametrize("frame", [subscribe(1, "b"), unsubscribe(1), records.up(UpKind.HELLO), b""])
def test_control_records_have_a_rate(frame: bytes) -> None:
    """`CONTROL_RATE` frames of control records, or of nothing, are free of waiting, and one more is not."""
    bench = Bench(admission(0))
    member = bench.members[0]
    for _ in range(CONTROL_RATE):
        bench.take(0, frame)
    assert member.control_bucket.wait() == 0.0
    bench.take(0, frame)
    assert member.control_bucket.wait() == pytest.approx(1 / CONTROL_RATE)


def test_the_control_rate_refills_while_the_worker_publishes() -> None:
    """A worker that has waited for its control records is not made to wait for them at its next publish."""
    bench = Bench(admission(0))
    bench.take(0, *[unsubscribe(1)] * records.MAX_RECORDS)
    bench.take(0, *[unsubscribe(1)] * records.MAX_RECORDS)
    assert bench.members[0].control_bucket.wait() == pytest.approx(1.0)
    bench.take(0, publish("a.b"), now=1.001)
    assert bench.members[0].control_bucket.wait() == 0.0


def test_deaf() -> None:
    """A worker for which `MAX_CONTROL` answers wait is not to be read, one answer less and it is."""
    bench = Bench(admission(0))
    for _ in range(MAX_CONTROL - 1):
        bench.take(0, subscribe(1, "b"))
    assert not bench.members[0].outbox.deaf()
    bench.take(0, subscribe(1, "b"))
    assert bench.members[0].outbox.deaf()
    bench.sent(0)
    assert not bench.members[0].outbox.deaf()


# ── all outboxes together, and the end ───────────────────────────────────────────────────────────


def test_all_outboxes_together_are_bounded() -> None:
    """The oldest of the fullest are lost until the sum holds; each keeps its last message."""
    bench = Bench(admission(0), *(admission(n, subscriptions=((1, "a.*", True),)) for n in (1, 2)))
    bench.take(1, unsubscribe(1))
    outboxes = [member.outbox for member in bench.members]
    for count in range(4):
        bench.take(0, publish("a.b", count, bytes(100)))
    bench.sent(1)
    bench.take(0, publish("a.b", 4, bytes(100)))
    one = outboxes[1].bytes
    assert [each.bytes // one for each in outboxes] == [0, 1, 5]
    bench.router.bound_total(outboxes, 6 * one)
    assert [each.lost for each in outboxes] == [0, 0, 0]
    bench.router.bound_total(outboxes, 6 * one - 1)
    assert [each.lost for each in outboxes] == [0, 0, 1]
    bench.router.bound_total(outboxes, 1)
    assert [(each.lost, len(each.items)) for each in outboxes] == [(0, 0), (0, 1), (4, 1)]


def test_detach() -> None:
    """The last figures say what was still queued; afterwards nothing is routed there, and nothing is kept."""
    bench = pair()
    for count in range(3):
        bench.take(0, publish("a.b", count))
    outbox = bench.members[1].outbox
    figures = bench.router.detach(1)
    assert figures["queued"] == 3
    assert figures["subscriptions"] == [
        {
            "handle": 1,
            "pattern": "a.*",
            "runtime_owned": True,
            "matched": 3,
            "lagged": 0,
            "queued": 3,
            "sent": 0,
        }
    ]
    bench.take(0, publish("a.b", 3))
    assert not outbox.items
    assert bench.figures(0)["published"] == 4


def test_a_publisher_that_is_detached_has_its_counts_settled() -> None:
    """What a capsule has published before it was let go stays counted at its subscribers."""
    bench = pair()
    bench.take(0, publish("a.b"))
    bench.router.detach(0)
    (only,) = bench.figures(1)["subscriptions"]
    assert only["matched"] == 1


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────

TOPICS = ("a.b", "a.c", "a.b.c")
PATTERNS = ("a.*", "a.b", "a.b.*", "a.c", "b.c")

STEPS = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 2), st.sampled_from(TOPICS)),
    st.tuples(
        st.just("subscribe"), st.integers(0, 2), st.tuples(st.integers(1, 4), st.sampled_from(PATTERNS))
    ),
    st.tuples(st.just("unsubscribe"), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.just("send"), st.integers(0, 2), st.just(None)),
    st.tuples(st.just("bound"), st.just(0), st.integers(0, 500)),
)


class Reader:
    """What a worker counts from the records it is sent, by what they are promised to mean."""

    def __init__(self) -> None:
        self.handles: dict[int, tuple[topics.Segments, int]] = {}
        self.asked: dict[int, str] = {}
        self.got: dict[int, int] = {}
        self.lagged: dict[int, int] = {}
        self.ended = 0
        self.last = 0

    def read(self, record: Down) -> None:
        if record.kind == DownKind.SUBSCRIBED and not record.b and record.a not in self.handles:
            self.handles[record.a] = topics.split(self.asked[record.a]), record.c
            self.got[record.a] = self.lagged[record.a] = 0
        elif record.kind == DownKind.UNSUBSCRIBED:
            del self.handles[record.a]
            self.ended += self.got.pop(record.a)
        elif record.kind == DownKind.LAGGED:
            self.lagged[record.a] = record.b
        elif record.kind == DownKind.MESSAGE:
            assert record.b > self.last
            self.last = record.b
            for handle, (pattern, since) in self.handles.items():
                if record.b > since and topics.matches(pattern, topics.split(record.text.decode())):
                    self.got[handle] += 1


@settings(deadline=None)  # how long it takes is not the question, and the machine is shared
@given(st.lists(STEPS, max_size=60))
def test_ledger(steps: list[tuple[str, int, object]]) -> None:
    """Invariant: for each subscription at any moment matched = lagged + queued + sent, and a worker that reads
    all that is sent counts the same: what was sent of each, what was lost of each, and of ended ones together."""
    bench = Bench(*(admission(index, queue_messages=3, queue_bytes=300) for index in range(3)))
    readers = [Reader() for _ in range(3)]
    for name, index, value in steps:
        match name, value:
            case "publish", str(topic):
                bench.take(index, publish(topic, bench.members[index].next_count or 0))
            case "subscribe", (int(handle), str(pattern)):
                if not any(each["handle"] == handle for each in bench.figures(index)["subscriptions"]):
                    readers[index].asked[handle] = pattern
                    bench.take(index, subscribe(handle, pattern))
                    # Read at once, so that `asked` is what the answer is about.
                    for record in bench.sent(index):
                        readers[index].read(record)
            case "unsubscribe", int(handle):
                bench.take(index, unsubscribe(handle))
            case "send", _:
                frame = bench.members[index].outbox.take_frame()
                for record in records.split_down(frame):
                    readers[index].read(record)
            case _, int(most):
                bench.router.bound_total([each.outbox for each in bench.members], most)
            case _:
                raise AssertionError(name)
        for figures in bench.router.all_figures():
            assert_consistent(figures)
    for index, reader in enumerate(readers):
        for record in bench.sent(index):
            reader.read(record)
        figures = bench.figures(index)
        assert {each["handle"]: each["sent"] for each in figures["subscriptions"]} == reader.got
        assert {each["handle"]: each["lagged"] for each in figures["subscriptions"]} == {
            handle: reader.lagged[handle] for handle in reader.handles
        }
        assert figures["closed_matched"] - figures["closed_lagged"] == reader.ended


def assert_consistent(figures: Figures) -> None:
    sums = 0
    for each in figures["subscriptions"]:
        counts = (each["matched"], each["lagged"], each["queued"], each["sent"])
        assert all(count >= 0 for count in counts)
        assert each["matched"] == each["lagged"] + each["queued"] + each["sent"]
        assert each["queued"] <= figures["queued"]
        sums += each["sent"]
    # Each message that was sent was for one subscription at least.
    assert sums + figures["closed_matched"] - figures["closed_lagged"] >= figures["sent"]


# ── who a message comes from, when many have come and gone ───────────────────────────────────────


MANY = 64
"""Few, so that they are looked through often."""


class Hearing:
    """A worker that tells sources apart as it was told to."""

    def __init__(self) -> None:
        self.told: dict[int, bytes] = {}

    def hear(self, found: list[Down]) -> list[tuple[bytes, bytes]]:
        """Of each message, whom it comes from by what was told, and its payload."""
        said: list[tuple[bytes, bytes]] = []
        for each in found:
            if each.kind == DownKind.ORIGIN:
                self.told[each.a] = each.body[:16]
            elif each.kind in (DownKind.MESSAGE, DownKind.RETAINED, DownKind.REQUEST):
                said.append((self.told[each.a], each.body))
        return said


@pytest.mark.parametrize("reads_every", [1, 7, 5000])
def test_instances_come_and_go_for_ever(reads_every: int) -> None:
    """What is known of them is bounded, and no message is ever another one's, however long it has waited."""
    bench = Bench(admission(0, subscriptions=((1, "a.*", True),), queue_messages=500))
    bench.router.origins.many = MANY
    hearing, count = Hearing(), 3000
    for index in range(1, count):
        bench.router.attach(admission(index, name="same"), 0.0)
        bench.take(index, publish("a.b", 0, index.to_bytes(16, "big")))
        bench.router.detach(index)
        if index % reads_every == 0:
            assert all(source == payload for source, payload in hearing.hear(bench.sent(0)))
    assert all(source == payload for source, payload in hearing.hear(bench.sent(0)))
    # What was delivered lately can be a cause still: here it is all of it, but for what was lost.
    lost = bench.members[0].outbox.lost
    assert len(bench.router.origins) <= max(MANY, 2 * (count - lost))


def test_what_nobody_names_is_forgotten() -> None:
    """As often as instances come and go: no more are known than twice those that had to be kept, or that are many."""
    bench = Bench(admission(0, subscriptions=((1, "a.b", True),)))
    bench.router.origins.many = MANY
    for index in range(1, 2000):
        bench.router.attach(admission(index), 0.0)
        bench.take(index, publish("a.other"))
        bench.router.detach(index)
        assert len(bench.router.origins) <= MANY
    assert len(bench.members[0].known_origins) == 0


def test_who_does_not_read_piles_up_no_introductions() -> None:
    """Of others that come, speak and go as many wait for him as messages do, and not one for each that ever came."""
    bench = Bench(admission(0, subscriptions=((1, "a.*", True),), queue_messages=2))
    bench.router.origins.many = MANY
    for index in range(1, 2000):
        bench.router.attach(admission(index, name="same"), 0.0)
        bench.take(index, publish("a.b", 0, index.to_bytes(16, "big")))
        bench.router.detach(index)
        assert len(bench.members[0].outbox.control) <= 2 * MANY
    assert Hearing().hear(bench.sent(0)) == [(each.to_bytes(16, "big"),) * 2 for each in (1998, 1999)]


def test_what_is_kept_of_somebody_keeps_his_name() -> None:
    """A retained message, a request that waits and a chain of causes name whoever has ended, and nobody else."""
    bench = Bench(
        admission(0, subscriptions=((1, "a.x", True),)),
        replace(admission(1, name="sayer"), grants=Grants(("a.*",), ("a.*",), ("a.kept",))),
        admission(2, subscriptions=((1, "a.ask", True),)),
    )
    bench.router.origins.many = MANY
    bench.take(1, publish("a.kept", 0), publish("a.x", 1))
    (cause,) = bench.messages(0)
    bench.take(0, publish("a.y", 0, cause=cause.b))
    bench.take(0, records.up(UpKind.REQUEST, b"a.ask", a=5, body=b"\0"))
    bench.router.detach(1)
    for index in range(3, 3 + 3 * MANY):
        bench.router.attach(admission(index), 0.0)
        bench.take(index, publish("a.z", 0))
        bench.router.detach(index)
    bench.router.attach(admission(9999), 0.0)
    bench.take(9999, subscribe(5, "a.kept"))
    assert Hearing().hear(bench.sent(9999)) == [((1).to_bytes(16, "big"), b"\0")]
    assert Hearing().hear(bench.sent(2)) == [((0).to_bytes(16, "big"), b"\0")]
    hops, _ = bench.router.notes.traces.chain(cause.b)
    assert [bench.router.origin(hop.origin).name for hop in hops] == ["sayer", "c0"]
    assert len(bench.router.origins) <= 2 * MANY
