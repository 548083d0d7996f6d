"""Outgoing: records gathered into frames, in order, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import records
from capsuled.proto.records import UpKind
from capsuled.sandbox.outgoing import MAX_BYTES, Outgoing

HEAD = records.UP.size


def record(number: int, size: int) -> bytes:
    """A publish of `size` bytes in all."""
    return records.up(UpKind.PUBLISH, b"", number, 0, bytes(size - HEAD))


def control(number: int, size: int = HEAD) -> bytes:
    """One that is no publish, as a reply is, of `size` bytes in all."""
    return records.up(UpKind.REPLY, b"", number, 0, bytes(size - HEAD))


def drain(found: Outgoing) -> list[list[tuple[int, int]]]:
    """Kinds and numbers of the records of each frame, in the order of sending."""
    frames: list[list[tuple[int, int]]] = []
    while (frame := found.peek()) is not None:
        frames.append([(each.kind, each.a) for each in records.split_up(frame)])
        found.sent_first()
    return frames


SIZES = st.integers(HEAD, 60) | st.integers(4000, 4200) | st.integers(4000, 20_000)


@given(st.lists(st.tuples(st.booleans(), SIZES), max_size=60), st.integers(1, 70))
def test_order_is_kept_and_frames_are_bounded(steps: list[tuple[bool, int]], every: int) -> None:
    """Invariant: records leave in the order in which they came; a frame has at most 16, and at most 48 KiB and one
    record, or is one record of its own; `bytes` is what waits, `sent` the publishes that have left."""
    found = Outgoing()
    put: list[tuple[int, int]] = []
    left: list[tuple[int, int]] = []
    waiting: list[int] = []
    for number, (publishing, size) in enumerate(steps):
        data = record(number, size) if publishing else control(number, size)
        if publishing:
            found.publish(data)
        else:
            found.control(data)
        waiting.append(len(data))
        put.append((UpKind.PUBLISH if publishing else UpKind.REPLY, number))
        assert found.bytes == sum(waiting)
        if number % every == 0:
            left += _send_all(found)
            waiting = []
    left += _send_all(found)
    assert left == put
    assert found.bytes == 0
    assert found.sent == sum(publishing for publishing, _ in steps)


def _send_all(found: Outgoing) -> list[tuple[int, int]]:
    left: list[tuple[int, int]] = []
    while (frame := found.peek()) is not None:
        parts = [(each.kind, each.a) for each in records.split_up(frame)]
        assert len(parts) <= records.COALESCE_RECORDS
        assert len(parts) == 1 or len(frame) <= records.COALESCE_BYTES + records.ALONE_BYTES
        left += parts
        found.sent_first()
    return left


def test_a_frame_is_full_at_16_records() -> None:
    """The sixteenth says so; the seventeenth is in another frame."""
    found = Outgoing()
    assert [found.publish(record(number, HEAD)) for number in range(17)] == [False] * 15 + [True, False]
    assert [len(frame) for frame in drain(found)] == [16, 1]


def test_a_frame_is_full_at_48_kib() -> None:
    """The record that reaches it says so, and is still in it."""
    found = Outgoing()
    size = 4096
    assert [found.publish(record(number, size)) for number in range(12)] == [False] * 11 + [True]
    assert [len(frame) for frame in drain(found)] == [12]


@pytest.mark.parametrize(("size", "alone"), [(records.ALONE_BYTES, False), (records.ALONE_BYTES + 1, True)])
def test_a_large_record_travels_alone(size: int, alone: bool) -> None:
    """It closes the frame before it, and what follows begins another."""
    found = Outgoing()
    found.publish(record(0, HEAD))
    assert found.publish(record(1, size)) is alone
    found.publish(record(2, HEAD))
    assert [len(frame) for frame in drain(found)] == ([1, 1, 1] if alone else [3])


def test_control_records_fill_frames_too() -> None:
    """However many there are: the backbone takes no frame of any number."""
    found = Outgoing()
    for number in range(40):
        found.control(control(number))
    assert [len(frame) for frame in drain(found)] == [16, 16, 8]
    assert found.sent == 0


def test_an_answer_to_hello_goes_first() -> None:
    """Before all that waits, whether its frame is closed or not; of several the last one given is the first."""
    found = Outgoing()
    for number in range(17):
        found.publish(record(number, HEAD))
    assert found.peek() is not None
    found.control_first(control(100))
    found.control_first(control(101))
    frames = drain(found)
    assert frames[:2] == [[(UpKind.REPLY, 101)], [(UpKind.REPLY, 100)]]
    assert [number for frame in frames[2:] for _, number in frame] == list(range(17))
    assert found.bytes == 0


def test_what_waits_is_bounded() -> None:
    """Exactly the bound has room and one byte more has none; an empty one has room for anything."""
    found = Outgoing()
    assert found.has_room(MAX_BYTES * 20)
    found.publish(record(0, 1000))
    assert found.has_room(MAX_BYTES - 1000)
    assert not found.has_room(MAX_BYTES - 999)
    drain(found)
    assert found.has_room(MAX_BYTES * 20)


def test_a_frame_that_was_not_sent_is_given_again() -> None:
    """Peeking takes nothing, and what is added meanwhile does not change it."""
    found = Outgoing()
    found.publish(record(0, HEAD))
    first = found.peek()
    found.publish(record(1, HEAD))
    assert found.peek() == first
    assert found.sent == 0
    assert [len(frame) for frame in drain(found)] == [1, 1]
    assert found.sent == 2
