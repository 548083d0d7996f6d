"""The token bucket: how much a capsule may publish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.bucket import Bucket

MANY = 1e9
"""A rate that is never reached, where a test is about the other one."""


def admitted(bucket: Bucket, size: int, now: float, most: int = 10_000) -> int:
    """How many takes of `size` in a row are admitted."""
    count = 0
    while count < most and bucket.admits(size, now):
        count += 1
    return count


@pytest.mark.parametrize(("rates", "size"), [((100.0, MANY), 10), ((MANY, 10.0), 1)])
def test_burst_is_one_second(rates: tuple[float, float], size: int) -> None:
    """A full bucket gives one second's worth at once, and not one more, in bytes and in messages."""
    bucket = Bucket(*rates, now=0.0)
    assert admitted(bucket, size, 0.0) == 10
    assert not bucket.admits(size, 0.0)


def test_waiting_longer_saves_no_more() -> None:
    """After an hour of silence the burst is still one second's worth."""
    bucket = Bucket(100.0, MANY, now=0.0)
    assert admitted(bucket, 10, 0.0) == 10
    assert admitted(bucket, 10, 3600.0) == 10


def test_no_edge_lets_twice_the_rate_pass() -> None:
    """No two bursts meet at the edge of a window: just after one only what has refilled is given."""
    bucket = Bucket(100.0, MANY, now=0.0)
    assert admitted(bucket, 10, 0.96875) == 10
    assert admitted(bucket, 10, 1.03125) == 0
    assert admitted(bucket, 10, 1.46875) == 5


def test_a_refused_take_costs_nothing() -> None:
    """However often it is refused, what refills is there: in bytes and in messages."""
    by_bytes, by_messages = Bucket(100.0, MANY, now=0.0), Bucket(MANY, 4.0, now=0.0)
    assert admitted(by_bytes, 100, 0.0) == 1
    assert admitted(by_messages, 1, 0.0) == 4
    for _ in range(1000):
        assert not by_bytes.admits(50, 0.25)
        assert not by_messages.admits(1, 0.125)
    assert by_bytes.admits(50, 0.5)
    assert by_messages.admits(1, 0.25)


def test_what_is_given_back_can_be_taken_again() -> None:
    """A charge of negative figures undoes a take, and never fills the bucket over its burst."""
    bucket = Bucket(100.0, 2.0, now=0.0)
    assert bucket.admits(100, 0.0)
    bucket.charge(-100, -1, 0.0)
    bucket.charge(-100, -1, 0.0)
    assert admitted(bucket, 50, 0.0) == 2
    assert not bucket.admits(0, 0.0)
    by_bytes = Bucket(100.0, MANY, now=0.0)
    by_bytes.charge(-100, 0, 0.0)
    assert admitted(by_bytes, 50, 0.0) == 2


def test_a_take_refused_for_its_bytes_costs_no_message() -> None:
    """When the bytes do not suffice the messages stay: nothing is taken by halves."""
    bucket = Bucket(100.0, 2.0, now=0.0)
    assert bucket.admits(60, 0.0)
    assert not bucket.admits(60, 0.0)
    assert bucket.admits(40, 0.0)


def test_a_payload_over_the_burst_passes_once_and_is_paid_for() -> None:
    """A payload of three seconds' worth passes a full bucket, and the next one when it is full again."""
    bucket = Bucket(100.0, MANY, now=0.0)
    assert bucket.admits(300, 0.0)
    assert not bucket.admits(1, 2.0)
    assert bucket.admits(1, 2.25)
    assert not bucket.admits(300, 3.0)
    assert bucket.admits(300, 3.25)


def test_a_rate_below_one_message_a_second_is_held() -> None:
    """At half a message per second one passes every two seconds."""
    bucket = Bucket(MANY, 0.5, now=0.0)
    assert bucket.admits(1, 0.0)
    assert not bucket.admits(1, 1.75)
    assert bucket.admits(1, 2.0)
    assert not bucket.admits(1, 3.75)


def test_time_that_stands_or_steps_back_refills_nothing() -> None:
    """Only time that passes refills; a `now` before the last one gives nothing and takes nothing."""
    bucket = Bucket(100.0, MANY, now=10.0)
    assert admitted(bucket, 10, 10.0) == 10
    assert not bucket.admits(10, 5.0)
    assert not bucket.admits(10, 10.0)
    assert admitted(bucket, 10, 10.5) == 5


@pytest.mark.parametrize(
    ("size", "messages", "wait"),
    [(100, 1, 0.0), (150, 1, 0.5), (300, 1, 2.0), (0, 10, 0.0), (0, 15, 0.5), (150, 40, 3.0)],
)
def test_wait_is_the_time_until_neither_is_owed(size: int, messages: int, wait: float) -> None:
    """What was charged beyond the burst is waited for, the longer of both kinds, and no longer."""
    bucket = Bucket(100.0, 10.0, now=0.0)
    bucket.charge(size, messages, 0.0)
    assert bucket.wait() == wait
    bucket.charge(0, 0, wait)
    assert bucket.wait() == 0.0


@pytest.mark.parametrize("rates", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_a_rate_of_nothing_is_refused(rates: tuple[float, float]) -> None:
    """A bucket that would never refill cannot be made."""
    with pytest.raises(ValueError, match="must be over 0"):
        Bucket(*rates, now=0.0)


@given(
    st.integers(1, 1000),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 64)), min_size=1, max_size=60),
)
def test_total_over_time_is_bounded(byte_rate: int, message_rate: int, takes: list[tuple[int, int]]) -> None:
    """Invariant: between any two takes no more passes than the rate times that span, plus one burst.

    The burst is one second's worth, or a single larger payload.
    """
    bucket, now = Bucket(byte_rate, message_rate, now=0.0), 0.0
    passed: list[tuple[float, int]] = []
    for size, sixtyfourths in takes:
        now += sixtyfourths / 64  # exact in binary
        if bucket.admits(size, now):
            passed.append((now, size))
    for i, (begin, _) in enumerate(passed):
        total, largest = 0, byte_rate
        for count, (at, size) in enumerate(passed[i:], 1):
            total, largest = total + size, max(largest, size)
            assert total <= byte_rate * (at - begin) + largest
            assert count <= message_rate * (at - begin) + message_rate
