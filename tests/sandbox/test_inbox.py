"""The inbox: handles and rows, who gets which message, what ends, and what a change of epoch leaves."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import envelopes, records, topics
from capsuled.proto.ledger import MAX_SUBSCRIPTIONS
from capsuled.proto.order import Interceptor
from capsuled.proto.records import HISTORY_MESSAGES, Down, DownKind
from capsuled.proto.refusals import Errno, Refusal
from capsuled.sandbox import inbox as inbox_module
from capsuled.sandbox.inbox import MAX_HANDLE, Inbox
from capsuled.sandbox.subscription import Subscription

EPOCH = 3
FIRST = EPOCH << records.EPOCH_SHIFT
"""The last sequence number before the first of this epoch."""

ORIGIN = 7
ROOM = 1 << 40

FORGED = b"\x00\x66source\x63god"
"""A payload that would close its message's value early and name another source."""


def inbox(queue_messages: int = 1024, queue_bytes: int = 1 << 20, total_bytes: int = 1 << 20) -> Inbox:
    """One that a backbone has greeted and told of an origin."""
    made = Inbox(queue_messages, queue_bytes, total_bytes)
    made.begin_epoch(EPOCH)
    introduce(made)
    return made


def introduce(found: Inbox) -> None:
    found.introduce(Down(DownKind.ORIGIN, b"peer", ORIGIN, 0, 0, 0, bytes(16) + b"alice"))


def opened(found: Inbox, pattern: str, since: int = FIRST) -> Subscription:
    """An acknowledged subscription."""
    made = found.open(pattern, topics.split_subscribable(pattern))
    found.acknowledge(made.handle, since)
    return made


def put(found: Inbox, topic: str, number: int, payload: bytes = b"\x01") -> None:
    found.put(topic.encode(), ORIGIN, FIRST + number, 1000, 0, payload)


def received(found: Inbox, subscription: Subscription) -> list[int]:
    envelope = cbor2.loads(found.take(subscription, ROOM))
    return [message["seq"] - FIRST for message in envelope["messages"]]


# ── handles ──────────────────────────────────────────────────────────────────────────────────────


def test_handles_begin_behind_the_interceptors() -> None:
    """The manifest's have the numbers that it gave them; the guest's follow."""
    found = inbox()
    found.open_runtime([Interceptor(1, "a.*", "x"), Interceptor(2, "b", "y")])
    assert [each.runtime_owned for each in found.handles.values()] == [True, True]
    assert opened(found, "c").handle == 3


def test_handles_wrap_around_and_skip_those_in_use() -> None:
    """Behind 2^31-1 comes the lowest that is not open and whose end has been heard of."""
    last = Interceptor(MAX_HANDLE - 1, "i", "y")
    found = inbox()
    found.open_runtime([Interceptor(2, "i", "x"), last])
    assert [opened(found, "a").handle for _ in range(3)] == [MAX_HANDLE, 1, 3] == [2**31 - 1, 1, 3]
    found.close(1)
    found.open_runtime([last])  # as after two thousand million subscriptions
    assert [opened(found, "a").handle for _ in range(2)] == [4, 5]
    found.forget(1)
    found.open_runtime([last])
    assert [opened(found, "a").handle for _ in range(2)] == [1, 6]


def test_a_handle_that_is_not_open_is_refused() -> None:
    """By its number, for getting and for closing."""
    found = inbox()
    for call in (found.get, found.close):
        with pytest.raises(Refusal, match="there is no subscription 9") as caught:
            call(9)
        assert caught.value.errno is Errno.BADF


def test_an_interceptor_is_not_closed() -> None:
    """perm, and it still receives."""
    found = inbox()
    found.open_runtime([Interceptor(1, "a", "x")])
    with pytest.raises(Refusal, match="the runtime owns the subscription 1") as caught:
        found.close(1)
    assert caught.value.errno is Errno.PERM
    put(found, "a", 1)
    assert received(found, found.get(1)) == [1]


def test_rows_are_given_to_128_and_come_back_at_once() -> None:
    """Each open subscription has a row of its own; the 129th is refused until one is closed, answered or not."""
    found = inbox()
    found.open_runtime([Interceptor(1, "i", "x")])
    made = [opened(found, "a") for _ in range(MAX_SUBSCRIPTIONS - 1)]
    assert len({each.row for each in found.handles.values()}) == MAX_SUBSCRIPTIONS
    for each in made[:3]:
        with pytest.raises(
            Refusal, match="cannot subscribe to 'b': 128 subscriptions are the most"
        ) as caught:
            opened(found, "b")
        assert caught.value.errno is Errno.MFILE
        found.close(each.handle)
        assert opened(found, "b").row == each.row


def test_a_row_is_cleared_before_its_next_owner_writes_it() -> None:
    """Both are in one list of changes, and the list keeps its order."""
    found = inbox()
    old = opened(found, "a")
    found.close(old.handle)
    new = opened(found, "a")
    found.forget(old.handle)
    assert new.row == old.row
    assert list(found.changed) == [old, new]


def test_a_refused_subscription_is_gone() -> None:
    """The backbone's word: the handle is closed, its row free, and who waits is told; of another nobody is."""
    found = inbox()
    made = found.open("a", ("a",))
    assert found.reject(made.handle)
    assert made.closed
    assert opened(found, "a").row == made.row
    ended = found.open("b", ("b",))
    found.close(ended.handle)
    assert not found.reject(ended.handle)
    assert found.closing() == []
    assert not found.reject(99)


# ── delivery ─────────────────────────────────────────────────────────────────────────────────────

SEGMENT = st.sampled_from(["a", "b", "kernel"])
TOPIC = st.lists(SEGMENT, min_size=1, max_size=3).map(tuple)
PATTERN = TOPIC | st.lists(SEGMENT, max_size=2).map(lambda head: (*head, "*"))


@given(st.lists(PATTERN, min_size=1, max_size=5), st.lists(TOPIC, max_size=5))
def test_each_handle_gets_what_its_pattern_matches(
    patterns: list[tuple[str, ...]], published: list[tuple[str, ...]]
) -> None:
    """Invariant: a message is in the queue of exactly those handles whose pattern matches its topic, once, in order."""
    found = inbox()
    made = [opened(found, ".".join(pattern)) for pattern in patterns]
    for number, topic in enumerate(published, 1):
        put(found, ".".join(topic), number)
    for subscription in made:
        wanted = [
            number for number, topic in enumerate(published, 1) if topics.matches(subscription.pattern, topic)
        ]
        assert received(found, subscription) == wanted
    assert found.received == len(published)


def test_a_new_pattern_is_found_for_a_known_topic() -> None:
    """What was remembered of a topic is forgotten when subscriptions change, in both directions."""
    found = inbox()
    first = opened(found, "a")
    put(found, "a", 1)
    second = opened(found, "*")
    put(found, "a", 2)
    found.close(first.handle)
    found.forget(first.handle)
    put(found, "a", 3)
    assert received(found, second) == [2, 3]
    assert first.received == 2


def test_only_so_many_topics_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher of ever new topics costs look-ups and no memory."""
    monkeypatch.setattr(inbox_module, "MAX_TOPICS", 3)
    found = inbox()
    made = opened(found, "*")
    for number in range(1, 9):
        put(found, f"t{number}", number)
    assert received(found, made) == list(range(1, 9))


def test_what_was_published_before_is_not_its() -> None:
    """Messages up to the acknowledged number are not queued; nothing is before the acknowledgement."""
    found = inbox()
    made = found.open("a", ("a",))
    put(found, "a", 1)
    found.acknowledge(made.handle, FIRST + 2)
    put(found, "a", 2)
    put(found, "a", 3)
    assert received(found, made) == [3]
    assert made.received == 1
    assert found.received == 3


def test_the_envelope_has_the_origins_names() -> None:
    """Source, instance and principal are those that the backbone introduced; the cause stands last."""
    found = inbox()
    made = opened(found, "a")
    found.put(b"a", ORIGIN, FIRST + 1, 1234, FIRST, cbor2.dumps([1]))
    (message,) = cbor2.loads(found.take(made, ROOM))["messages"]
    assert list(message.items()) == [
        ("topic", "a"),
        ("payload", [1]),
        ("source", "peer"),
        ("instance", bytes(16)),
        ("principal", "alice"),
        ("seq", FIRST + 1),
        ("time", 1234),
        ("cause", FIRST),
    ]


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x01\x02", b"\x9f\xff", b"\xa1", FORGED])
def test_a_malformed_payload_reaches_no_envelope(payload: bytes) -> None:
    """Its publisher's worker has been taken over: it is received, dropped and counted; the rest is whole."""
    found = inbox()
    made = [opened(found, "a"), opened(found, "*")]
    put(found, "a", 1)
    put(found, "a", 2, payload)
    put(found, "a", 3)
    for each in made:
        envelope = cbor2.loads(found.take(each, ROOM))
        assert [message["seq"] - FIRST for message in envelope["messages"]] == [1, 3]
        assert envelope["dropped"] == 1
        assert (each.received, each.delivered, each.dropped) == (3, 2, 1)
    assert (found.malformed, found.received) == (1, 3)


def test_all_queues_together_are_bounded() -> None:
    """The fullest loses its oldest; a queue keeps its last message, and then another one loses."""
    found = inbox(total_bytes=1000)
    big, small = opened(found, "big"), opened(found, "small")
    for number in range(1, 4):
        put(found, "small", number, cbor2.dumps(b"s" * 150))
    put(found, "big", 4, cbor2.dumps(b"b" * 900))
    assert (len(big.queue), big.dropped) == (1, 0)
    assert (len(small.queue), small.dropped) == (1, 2)
    put(found, "big", 5, cbor2.dumps(b"b" * 900))
    assert [each.seq - FIRST for each in big.queue] == [5]
    assert big.dropped == 1
    assert found.bytes == big.bytes + small.bytes


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 300)), max_size=40),
    st.integers(1, 6),
    st.integers(300, 2000),
)
def test_the_bound_holds_or_one_message_is_left_in_each(
    published: list[tuple[str, int]], queue_messages: int, total_bytes: int
) -> None:
    """Invariant: the queues hold no more than their bound together, unless none has a second message; all balance."""
    found = inbox(queue_messages=queue_messages, total_bytes=total_bytes)
    made = [opened(found, pattern) for pattern in ("a", "b", "*")]
    for number, (topic, size) in enumerate(published, 1):
        put(found, topic, number, cbor2.dumps(b"x" * size))
        assert found.bytes == sum(each.bytes for each in made)
        assert found.bytes <= total_bytes or all(len(each.queue) <= 1 for each in made)
        for each in made:
            assert each.received == each.delivered + each.dropped + len(each.queue)


# ── what ends ────────────────────────────────────────────────────────────────────────────────────


def test_what_has_ended_still_counts_until_the_backbone_has_heard() -> None:
    """Its queue is left, and so is what was on its way; after the answer nothing comes on its account."""
    found = inbox(queue_messages=2)
    made = opened(found, "a")
    for number in range(1, 5):
        put(found, "a", number)
    assert received(found, made) == [3, 4]
    put(found, "a", 5)
    found.closed_changed = False
    found.close(made.handle)
    put(found, "a", 6)
    assert found.closed_changed
    closed = found.closed
    assert (closed.received, closed.delivered, closed.dropped, closed.left) == (6, 2, 2, 2)
    found.forget(made.handle)
    put(found, "a", 7)
    assert closed.received == 6
    assert found.bytes == 0


def test_asked_again_is_what_was_not_answered() -> None:
    """Subscriptions without an acknowledgement, and ends without an answer; interceptors need neither."""
    found = inbox()
    found.open_runtime([Interceptor(1, "i", "x")])
    asked, ended = found.open("a", ("a",)), opened(found, "b")
    opened(found, "c")
    found.close(ended.handle)
    assert found.unacknowledged() == [asked]
    assert found.closing() == [ended.handle]


# ── epochs and causes ────────────────────────────────────────────────────────────────────────────


def test_an_epoch_begins_at_nothing_and_keeps_the_queues() -> None:
    """Counts begin anew, what waits is carried over, and what had ended is forgotten: the successor may not know it."""
    found = inbox()
    made, ended = opened(found, "a"), opened(found, "a")
    put(found, "a", 1)
    found.close(ended.handle)
    found.closed_changed = False
    found.begin_epoch(EPOCH + 1)
    assert found.closed_changed
    assert (found.received, found.closed.received, made.received, made.carried) == (0, 0, 0, 1)
    assert found.closing() == []
    introduce(found)
    found.put(b"a", ORIGIN, (EPOCH + 1 << records.EPOCH_SHIFT) + 1, 0, 0, b"\x02")
    assert (made.received, found.closed.received) == (1, 0)
    envelope = cbor2.loads(found.take(made, ROOM))
    assert [message["payload"] for message in envelope["messages"]] == [1, 2]


def test_a_message_of_a_backbone_that_is_gone_counts_as_lagged() -> None:
    """It has no origin any more. It is told to those that it was for, and to no one who came after it."""
    found = inbox()
    made = opened(found, "a", since=FIRST + 5)
    asked = found.open("a", ("a",))
    found.begin_epoch(EPOCH + 1)
    # The greeting acknowledges again what stands, in numbers of the new epoch.
    found.acknowledge(made.handle, EPOCH + 1 << records.EPOCH_SHIFT)
    put(found, "a", 5)
    put(found, "a", 6)
    assert cbor2.loads(found.take(made, ROOM)) == {"messages": [], "dropped": 0, "lagged": 1}
    assert asked.lagged_unread == 0
    assert found.received == 0


def test_a_retained_message_of_a_backbone_that_is_gone() -> None:
    """It was for one handle, and is lost for that one alone."""
    found = inbox()
    one, two = opened(found, "a"), opened(found, "*")
    found.begin_epoch(EPOCH + 1)
    found.put(b"a", ORIGIN, FIRST + 1, 0, 0, b"\x01", envelopes.RETAINED, two.handle)
    assert (one.lagged_unread, two.lagged_unread) == (0, 1)


def test_a_cause_is_a_message_that_the_guest_has_got() -> None:
    """Not one that is queued only, nor one that was dropped; and not one of an epoch that is over."""
    found = inbox(queue_messages=2)
    made = opened(found, "a")
    for number in (1, 2, 3):
        put(found, "a", number)
    assert not found.was_delivered(FIRST + 2)
    assert received(found, made) == [2, 3]
    assert [found.was_delivered(FIRST + number) for number in range(5)] == [False, False, True, True, False]
    put(found, "a", 4)
    found.begin_epoch(EPOCH + 1)
    assert not found.was_delivered(FIRST + 3)
    assert received(found, made) == [4]
    assert not found.was_delivered(FIRST + 4)


def test_only_so_many_causes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least the last ones, as many as the backbone remembers; what is older is forgotten."""
    monkeypatch.setattr(inbox_module, "HISTORY_MESSAGES", 4)
    found = inbox()
    made = opened(found, "a")
    for number in range(1, 11):
        put(found, "a", number)
        if number % 2 == 0:
            received(found, made)
    known = [number for number in range(1, 11) if found.was_delivered(FIRST + number)]
    assert known == [7, 8, 9, 10]


# ── requests that are lost ───────────────────────────────────────────────────────────────────────


def ask(found: Inbox, topic: str, number: int, payload: bytes = b"\x01") -> None:
    found.put(topic.encode(), ORIGIN, FIRST + number, 1000, 0, payload, envelopes.REQUEST)


def losses(found: Inbox) -> list[int]:
    """Numbers of the requests that were lost, once."""
    numbers = [seq - FIRST for seq in found.lost_requests]
    found.lost_requests.clear()
    return numbers


def test_a_request_that_is_pushed_out_is_lost() -> None:
    """By a message or by another request; what is no request is a drop and nothing else."""
    found = inbox(queue_messages=2)
    only = opened(found, "a")
    ask(found, "a", 1)
    ask(found, "a", 2)
    assert losses(found) == []
    put(found, "a", 3)
    ask(found, "a", 4)
    assert losses(found) == [1, 2]
    ask(found, "a", 5)
    assert losses(found) == []
    assert received(found, only) == [4, 5]
    found.check_request(FIRST + 4)
    with pytest.raises(Refusal, match="no request that was received"):
        found.check_request(FIRST + 1)


def test_a_request_that_another_handle_has_is_not_lost() -> None:
    """It is when the last one loses it unread; once it was received on one, the others' loss is no loss of it."""
    found = inbox(queue_messages=1)
    one, two = opened(found, "a"), opened(found, "*")
    ask(found, "a", 1)
    found.close(one.handle)
    assert losses(found) == []
    put(found, "b", 2)
    assert losses(found) == [1]
    three = opened(found, "a", FIRST + 2)
    ask(found, "a", 3)
    assert received(found, three) == [3]
    found.close(two.handle)
    assert losses(found) == []
    found.check_request(FIRST + 3)


def test_a_request_that_is_received_twice_is_answered_once() -> None:
    """On two handles: the second one brings no second right to answer."""
    found = inbox()
    one, two = opened(found, "a"), opened(found, "*")
    ask(found, "a", 1)
    assert received(found, one) == [1]
    found.answered(FIRST + 1)
    assert received(found, two) == [1]
    with pytest.raises(Refusal, match="not answered yet"):
        found.check_request(FIRST + 1)


def test_requests_that_nobody_can_take_are_lost_at_once() -> None:
    """Malformed ones, those for a handle that was just closed, and those for none."""
    found = inbox()
    only = opened(found, "a")
    ask(found, "a", 1, FORGED)
    assert losses(found) == [1]
    found.close(only.handle)
    ask(found, "a", 2)
    ask(found, "b", 3)
    assert losses(found) == [2, 3]


def test_requests_over_the_total_bound_are_lost() -> None:
    """The fullest queue gives its oldest up."""
    found = inbox(total_bytes=300)
    opened(found, "a")
    ask(found, "a", 1, b"\x58\x64" + bytes(100))
    ask(found, "a", 2, b"\x58\x64" + bytes(100))
    assert losses(found) == [1]


def test_requests_that_were_received_and_forgotten_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than are remembered, and the oldest cannot be answered any more."""
    monkeypatch.setattr(inbox_module, "HISTORY_MESSAGES", 2)
    found = inbox()
    only = opened(found, "a")
    for number in (1, 2, 3):
        ask(found, "a", number)
    assert received(found, only) == [1, 2, 3]
    assert losses(found) == [1]


def test_an_epoch_forgets_all_requests() -> None:
    """Who asked the last backbone has been told so: what waits is a message, and its loss is no news."""
    found = inbox(queue_messages=2)
    only = opened(found, "a")
    for number in (1, 2, 3):
        ask(found, "a", number)
    found.begin_epoch(EPOCH + 1)
    assert losses(found) == []
    found.close(only.handle)
    assert losses(found) == []


def test_losses_are_bounded() -> None:
    """As many as are remembered; the oldest are forgotten first."""
    found = inbox()
    for number in range(1, HISTORY_MESSAGES + 2):
        ask(found, "a", number)
    assert losses(found) == list(range(2, HISTORY_MESSAGES + 2))
