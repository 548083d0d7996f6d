"""What waits for one capsule: its bounds, its frames, and who is told of what is lost."""

from __future__ import annotations

import pytest

from capsuled.proto import records
from capsuled.proto.records import COALESCE_BYTES, HISTORY_MESSAGES, Down, DownKind
from capsuled.supervisor.backbone.members import Route, Subscription
from capsuled.supervisor.backbone.outbox import Outbox, Stamp

HEAD = records.DOWN.size
EPOCH = 5


def subscription(handle: int = 1) -> Subscription:
    return Subscription(0, handle, "a", ("a",), runtime_owned=False, since=0)


def route(*subscriptions: Subscription) -> Route:
    return Route((), {0: dict.fromkeys(subscriptions)})


def put(outbox: Outbox, seq: int, size: int, way: Route) -> None:
    """A message whose record has `size` bytes, as the router puts it in."""
    record = records.down(DownKind.MESSAGE, b=seq, body=bytes(size - HEAD))
    outbox.items.append((record, Stamp(seq, 0, way)))
    outbox.bytes += size
    outbox.overflow()


def frames(outbox: Outbox) -> list[bytes]:
    """All that waits, as it would be sent."""
    found: list[bytes] = []
    while frame := outbox.take_frame():
        found.append(frame)
    return found


def seqs(frame: bytes) -> list[int]:
    return [each.b for each in records.split_down(frame) if each.kind == DownKind.MESSAGE]


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "sizes", "left"),
    [
        (3, 1000, [100] * 3, [1, 2, 3]),
        (3, 1000, [100] * 4, [2, 3, 4]),
        (9, 300, [100] * 3, [1, 2, 3]),
        (9, 300, [100, 100, 101], [2, 3]),
        (9, 300, [100, 100, 300], [3]),
        (9, 300, [100, 5000], [2]),
        (9, 300, [5000], [1]),
        (9, 300, [5000, 100], [2]),
    ],
)
def test_bounds(max_messages: int, max_bytes: int, sizes: list[int], left: list[int]) -> None:
    """At either bound nothing is lost, one past it the oldest is; one message always fits, however large."""
    outbox, mine = Outbox(0, max_messages, max_bytes, epoch=EPOCH), subscription()
    for seq, size in enumerate(sizes, 1):
        put(outbox, seq, size, route(mine))
    lost = len(sizes) - len(left)
    assert [stamp.seq for _, stamp in outbox.items] == left
    assert outbox.bytes == sum(sizes[seq - 1] for seq in left)
    assert (outbox.lost, mine.lagged) == (lost, lost)


def test_a_loss_counts_for_each_subscription_that_it_was_for() -> None:
    """One lost message is one for each handle that it was meant for, and none for the others."""
    outbox = Outbox(0, 1, 1000, epoch=EPOCH)
    one, two, three = subscription(1), subscription(2), subscription(3)
    put(outbox, 1, 100, route(one, two))
    put(outbox, 2, 100, route(two, three))
    put(outbox, 3, 100, route(three))
    assert (outbox.lost, one.lagged, two.lagged, three.lagged) == (2, 1, 2, 1)


def test_the_worker_is_told_of_losses_before_the_next_message() -> None:
    """LAGGED tells the loss in all; it stands before the messages that were left, and is told once."""
    outbox, mine = Outbox(0, 2, 1000, epoch=EPOCH), subscription(7)
    for seq in range(1, 6):
        put(outbox, seq, 100, route(mine))
    (frame,) = frames(outbox)
    first, *rest = records.split_down(frame)
    assert first == Down(DownKind.LAGGED, b"", 7, 3, 0, EPOCH, b"")
    assert [each.b for each in rest] == [4, 5]
    for seq in range(6, 9):
        put(outbox, seq, 100, route(mine))
    (frame,) = frames(outbox)
    first, *_ = records.split_down(frame)
    assert (first.kind, first.b) == (DownKind.LAGGED, 4)
    assert outbox.take_frame() == b""


def test_control_records_overtake_messages() -> None:
    """What answers the worker does not wait behind its messages."""
    outbox = Outbox(0, 9, 1000, epoch=EPOCH)
    put(outbox, 1, 100, route(subscription()))
    outbox.control.append(records.down(DownKind.BYE))
    (frame,) = frames(outbox)
    assert [each.kind for each in records.split_down(frame)] == [DownKind.BYE, DownKind.MESSAGE]


@pytest.mark.parametrize(
    ("control", "sizes", "expected"),
    [
        (0, [COALESCE_BYTES // 2] * 2, [[1, 2]]),
        (0, [COALESCE_BYTES // 2] * 2 + [HEAD], [[1, 2], [3]]),
        (0, [COALESCE_BYTES + 1, 100], [[1], [2]]),
        (0, [100, COALESCE_BYTES + 1, 100], [[1], [2], [3]]),
        (1, [COALESCE_BYTES - HEAD], [[1]]),
        (1, [COALESCE_BYTES - HEAD + 1], [[], [1]]),
        (1, [5 << 20], [[], [1]]),
        (COALESCE_BYTES // HEAD, [100], [[], [1]]),
        (COALESCE_BYTES // HEAD + 1, [100], [[], [1]]),
    ],
)
def test_frames_are_bounded(control: int, sizes: list[int], expected: list[list[int]]) -> None:
    """A frame has `COALESCE_BYTES` at most, control records included, or is a single larger record."""
    outbox = Outbox(0, 99, 99 << 20, epoch=EPOCH)
    outbox.control = [records.down(DownKind.BYE)] * control
    for seq, size in enumerate(sizes, 1):
        put(outbox, seq, size, route(subscription()))
    found = frames(outbox)
    assert [seqs(frame) for frame in found] == expected
    assert all(len(frame) <= COALESCE_BYTES or len(seqs(frame)) == 1 for frame in found)
    kinds = [each.kind for frame in found for each in records.split_down(frame)]
    assert kinds == [DownKind.BYE] * control + [DownKind.MESSAGE] * len(sizes)
    assert (outbox.sent, outbox.bytes, outbox.lost) == (len(sizes), 0, 0)


def test_a_control_record_larger_than_a_frame_travels_alone() -> None:
    """However large one control record is, it is sent."""
    outbox = Outbox(0, 9, 1000, epoch=EPOCH)
    large = records.down(DownKind.ORIGIN, body=bytes(COALESCE_BYTES))
    outbox.control = [records.down(DownKind.BYE), large, records.down(DownKind.BYE)]
    small = records.down(DownKind.BYE)
    assert frames(outbox) == [small, large, small]


def test_a_message_alone_is_not_copied() -> None:
    """One message that waits alone is the very record that all outboxes share."""
    outbox = Outbox(0, 9, 1000, epoch=EPOCH)
    put(outbox, 1, 100, route(subscription()))
    record = outbox.items[0][0]
    assert outbox.take_frame() is record


@pytest.mark.parametrize("per_frame", [1, 3, 1000])
def test_causes_are_found(per_frame: int) -> None:
    """What was sent is found by its sequence number; what only waits, was lost or belongs to others is not."""
    outbox = Outbox(0, 1000, 10 << 20, epoch=EPOCH)
    sent = range(2, 200, 2)  # the odd ones went to others
    for n, seq in enumerate(sent, 1):
        put(outbox, seq, 100, route(subscription()))
        if n % per_frame == 0:
            frames(outbox)
    frames(outbox)
    put(outbox, 200, 100, route(subscription()))
    found = [seq for seq in range(205) if (stamp := outbox.delivered(seq)) is not None and stamp.seq == seq]
    assert found == list(sent)


def test_at_least_the_last_deliveries_are_remembered() -> None:
    """The oldest of `HISTORY_MESSAGES` deliveries is a cause still; one past that it is forgotten."""
    outbox = Outbox(0, 9, 1000, epoch=EPOCH)
    for seq in range(1, HISTORY_MESSAGES + 1):
        put(outbox, seq, 100, route(subscription()))
        frames(outbox)
    assert outbox.delivered(1) is not None
    put(outbox, HISTORY_MESSAGES + 1, 100, route(subscription()))
    frames(outbox)
    assert outbox.delivered(1) is None
    assert outbox.delivered(2) is not None


def test_an_ended_subscription_leaves_nothing_behind() -> None:
    """What waits for it alone is taken out, what waits for another too stays, and no loss is told for it."""
    outbox, ended, other = Outbox(0, 3, 10_000, epoch=EPOCH), subscription(1), subscription(2)
    alone, both = route(ended), route(ended, other)
    for seq, way in enumerate([alone, alone, both, alone, both], 1):
        put(outbox, seq, 100, way)
    assert ended.lagged == 2
    assert outbox.release(ended) == 3
    assert [stamp.seq for _, stamp in outbox.items] == [3, 5]
    assert outbox.bytes == 200
    assert outbox.queued() == {other: 2}
    put(outbox, 6, 100, route(other))
    put(outbox, 7, 100, route(other))
    assert (ended.lagged, other.lagged) == (2, 1)
    (frame,) = frames(outbox)
    told = [each.a for each in records.split_down(frame) if each.kind == DownKind.LAGGED]
    assert told == [2]


def test_cleared() -> None:
    """A cleared outbox holds no message and no memory of one."""
    outbox = Outbox(0, 1, 1000, epoch=EPOCH)
    put(outbox, 1, 100, route(subscription()))
    frames(outbox)
    put(outbox, 2, 100, route(subscription()))
    put(outbox, 3, 100, route(subscription()))
    outbox.control.append(records.down(DownKind.BYE))
    outbox.clear()
    assert (outbox.take_frame(), outbox.delivered(1), outbox.bytes) == (b"", None, 0)
