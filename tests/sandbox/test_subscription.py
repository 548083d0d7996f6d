"""One handle: what its queue keeps, what a take hands over, and that its counts balance."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import envelopes
from capsuled.proto.refusals import Errno, Refusal
from capsuled.sandbox.subscription import NOT_YET, Message, Subscription

EMPTY = envelopes.envelope([], 0, 0)
MIB = 1024 * 1024
ROOM = 1 << 40


def subscription(max_messages: int = 1024, max_bytes: int = 10 * MIB) -> Subscription:
    return Subscription(
        1,
        "a",
        ("a",),
        runtime_owned=False,
        row=0,
        max_messages=max_messages,
        max_bytes=max_bytes,
        lost_requests=[],
    )


def message(number: int, size: int = 10, payload_bytes: int = 1) -> Message:
    """One that is `size` bytes of the envelope: a byte string, so that the envelope can be decoded."""
    body = number.to_bytes(4, "big").ljust(size - 3, b"\0")
    return Message(b"\x59" + len(body).to_bytes(2, "big") + body, payload_bytes, number)


def numbers(messages: list[Message]) -> list[int]:
    return [each.seq for each in messages]


def balances(found: Subscription) -> bool:
    return found.carried + found.received == found.delivered + found.dropped + len(found.queue)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(8, 60)),
            st.tuples(st.just("refuse"), st.just(0)),
            st.tuples(st.just("take"), st.integers(0, 200)),
            st.tuples(st.just("lose"), st.just(0)),
            st.tuples(st.just("epoch"), st.just(0)),
        ),
        max_size=60,
    ),
    st.integers(1, 5),
    st.integers(8, 150),
)
def test_every_message_is_accounted_for(
    steps: list[tuple[str, int]], max_messages: int, max_bytes: int
) -> None:
    """Invariant: carried + received = delivered + dropped + queued; what is queued is within its bounds, in order
    and whole."""
    found = subscription(max_messages, max_bytes)
    taken: list[int] = []
    told = 0
    for number, (step, size) in enumerate(steps):
        if step == "put":
            found.received += 1
            before = found.bytes
            assert found.put(message(number, size)) == found.bytes - before
        elif step == "refuse":
            found.received += 1
            found.refuse()
        elif step == "lose" and found.queue:
            found.lose_oldest()
        elif step == "epoch":
            found.begin_epoch()
        elif step == "take":
            try:
                messages, envelope = found.take(size)
            except Refusal as exc:
                if exc.needed <= size:
                    raise
                continue
            assert len(envelope) <= size
            assert cbor2.loads(envelope)["messages"] == [cbor2.loads(each.encoded) for each in messages]
            told += cbor2.loads(envelope)["dropped"]
            taken += numbers(messages)
        assert balances(found)
        assert found.bytes == sum(len(each.encoded) for each in found.queue)
        assert len(found.queue) <= max_messages
        assert len(found.queue) <= 1 or found.bytes <= max_bytes
    assert taken == sorted(set(taken))


def test_nothing_belongs_to_it_before_it_is_acknowledged() -> None:
    """Every sequence number is below the one that it begins with."""
    assert subscription().since == NOT_YET > 2**64 - 1


def test_the_oldest_is_lost_to_the_count() -> None:
    """Three places: the fourth message costs the first, and that is told once."""
    found = subscription(max_messages=3)
    for number in range(3):
        found.put(message(number))
    assert found.dropped == 0
    found.put(message(3))
    messages, envelope = found.take(ROOM)
    assert numbers(messages) == [1, 2, 3]
    assert cbor2.loads(envelope)["dropped"] == 1
    assert cbor2.loads(found.take(ROOM)[1]) == {"messages": [], "dropped": 0, "lagged": 0}


def test_the_oldest_is_lost_to_the_bytes() -> None:
    """Bytes of the encoded messages count: exactly the bound stays, one more costs the first."""
    found = subscription(max_bytes=30)
    for number in range(3):
        found.put(message(number, 10))
    assert (len(found.queue), found.bytes, found.dropped) == (3, 30, 0)
    assert found.put(message(3, 11)) == 11 - 20
    assert (numbers(list(found.queue)), found.bytes, found.dropped) == ([2, 3], 21, 2)


def test_one_message_always_fits_its_queue() -> None:
    """However large it is: it was allowed to be published. It costs all that were there."""
    found = subscription(max_bytes=30)
    found.put(message(0, 10))
    found.put(message(1, 1000))
    assert numbers(list(found.queue)) == [1]
    found.put(message(2, 10))
    assert numbers(list(found.queue)) == [2]
    assert found.dropped == 2


@pytest.mark.parametrize("count", [1, 23, 24, 255, 256, 65_535, 65_536])
def test_a_take_fills_exactly_what_it_is_given(count: int) -> None:
    """Where the head of the list grows as well as elsewhere: all that fit are taken, and not one byte too many."""
    found = subscription(max_messages=70_000, max_bytes=ROOM)
    for number in range(count + 1):
        found.put(message(number, 10))
    exact = len(envelopes.envelope([message(number, 10).encoded for number in range(count)], 0, 0))
    messages, envelope = found.take(exact)
    assert (len(messages), len(envelope)) == (count, exact)
    assert len(found.queue) == 1

    found = subscription(max_messages=70_000, max_bytes=ROOM)
    for number in range(count + 1):
        found.put(message(number, 10))
    if count > 1:
        messages, envelope = found.take(exact - 1)
        assert len(messages) == count - 1
        assert len(envelope) < exact


def test_a_first_message_that_does_not_fit_is_refused_and_stays() -> None:
    """With the bytes that it needs; the counts are not reset, since nobody was told."""
    found = subscription()
    found.put(message(0, 100))
    found.refuse()
    found.lag(300)
    needed = len(envelopes.envelope([message(0, 100).encoded], 1, 300))
    with pytest.raises(Refusal, match=f"has {needed - 1} bytes: the first message needs {needed}") as refused:
        found.take(needed - 1)
    assert (refused.value.errno, refused.value.needed) == (Errno.NOBUFS, needed)
    messages, envelope = found.take(needed)
    assert numbers(messages) == [0]
    assert len(envelope) == needed
    assert (cbor2.loads(envelope)["dropped"], cbor2.loads(envelope)["lagged"]) == (1, 300)


def test_an_empty_envelope_needs_its_own_bytes() -> None:
    """Also where nothing waits."""
    found = subscription()
    assert found.take(len(EMPTY)) == ([], EMPTY)
    with pytest.raises(Refusal, match=f"an empty envelope needs {len(EMPTY)}"):
        found.take(len(EMPTY) - 1)


def test_a_drain_has_its_budget_of_payload() -> None:
    """Exactly 10 MiB of payload go in one drain, whatever would fit the buffer; one byte more waits."""
    for last, taken in ((1, 3), (2, 2)):
        found = subscription()
        for number, size in enumerate((envelopes.MAX_DRAIN_BYTES - 2, 1, last)):
            found.put(message(number, 10, size))
        found.bytes += envelopes.MAX_DRAIN_BYTES  # as if they were encoded in full
        assert len(found.take(ROOM)[0]) == taken


def test_lag_is_the_news_in_a_running_total() -> None:
    """The backbone tells a total; what was told already is not told again, and an epoch begins at nothing."""
    found = subscription()
    found.lag(3)
    found.lag(3)
    found.lag(5)
    assert cbor2.loads(found.take(ROOM)[1])["lagged"] == 5
    found.lag(7)
    found.begin_epoch()
    found.lag(4)
    assert cbor2.loads(found.take(ROOM)[1])["lagged"] == 6


def test_an_epoch_carries_over_what_is_queued() -> None:
    """What waits and what the guest was not told of yet stay; the counts begin anew."""
    found = subscription(max_messages=2)
    for number in range(3):
        found.received += 1
        found.put(message(number))
    found.begin_epoch()
    assert (found.carried, found.received, found.delivered, found.dropped) == (2, 0, 0, 0)
    messages, envelope = found.take(ROOM)
    assert numbers(messages) == [1, 2]
    assert cbor2.loads(envelope)["dropped"] == 1
    assert balances(found)
