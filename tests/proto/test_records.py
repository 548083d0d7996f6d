"""Records: the frames between a worker and the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import payloads, records, topics
from capsuled.proto.records import Down, DownKind, RecordError, Up, UpKind

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
TEXT, BODY = st.binary(max_size=topics.MAX_BYTES), st.binary(max_size=40)
UPS = st.lists(st.builds(Up, st.sampled_from(UpKind), TEXT, U32, U64, BODY), max_size=5)
DOWNS = st.lists(st.builds(Down, st.sampled_from(DownKind), TEXT, U32, U64, U64, U64, BODY), max_size=5)

UP = Up(UpKind.PUBLISH, b"room.7", 7, 9, b"\x01\x02")
DOWN = Down(DownKind.MESSAGE, b"room.7", 3, 11, 13, 17, b"\x01\x02")

SPLITS: list[tuple[Callable[[bytes], Iterator[Up | Down]], bytes, int]] = [
    (records.split_up, records.up(*UP), records.UP.size),
    (records.split_down, records.down(*DOWN), records.DOWN.size),
]
"""For each direction: how it is read, one record, and the size of its head."""

both_directions = pytest.mark.parametrize(("split", "record", "head"), SPLITS, ids=["up", "down"])


def with_fields(record: bytes, length: int, text_length: int) -> bytes:
    """The record with other lengths in its head than it has."""
    return Struct(">I").pack(length) + record[4:5] + Struct(">H").pack(text_length) + record[7:]


def test_up_has_the_documented_bytes() -> None:
    """A worker's record is length, kind, text length, a, b, text and body, big-endian."""
    assert records.up(UpKind.PUBLISH, b"ab", 3, 4, b"xyz") == bytes.fromhex(
        "00000014 01 0002 00000003 0000000000000004 6162 78797a"
    )


def test_down_has_the_documented_bytes() -> None:
    """The backbone's record is length, kind, text length, a, b, c, d, text and body, big-endian."""
    assert records.down(DownKind.MESSAGE, b"ab", 3, 4, 5, 6, b"xyz") == bytes.fromhex(
        "00000024 01 0002 00000003 0000000000000004 0000000000000005 0000000000000006 6162 78797a"
    )


@given(UPS)
def test_up_round_trip(sent: list[Up]) -> None:
    """Invariant: however many records a worker puts into a frame, they are read as they were and in order."""
    assert list(records.split_up(b"".join(records.up(*each) for each in sent))) == sent


@given(DOWNS)
def test_down_round_trip(sent: list[Down]) -> None:
    """Invariant: however many records the backbone puts into a frame, they are read as they were."""
    assert list(records.split_down(b"".join(records.down(*each) for each in sent))) == sent


@both_directions
def test_an_empty_frame_has_no_records(
    split: Callable[[bytes], Iterator[Up | Down]], record: bytes, head: int
) -> None:
    """Nothing is in nothing; a record without text and body is one all the same."""
    assert list(split(b"")) == []
    assert len(list(split(with_fields(record[:head], head - 4, 0)))) == 1


@both_directions
def test_a_frame_cut_anywhere_is_refused(
    split: Callable[[bytes], Iterator[Up | Down]], record: bytes, head: int
) -> None:
    """Cut at any byte, a frame gives the whole records before the cut and raises where the cut one stands."""
    frame = record + record
    for size in range(len(frame)):
        reading = split(frame[:size])
        whole, rest = divmod(size, len(record))
        assert [len(next(reading).text) for _ in range(whole)] == [6] * whole
        if rest:
            with pytest.raises(RecordError, match=f"at {whole * len(record)} "):
                next(reading)
        else:
            assert next(reading, None) is None


@both_directions
@pytest.mark.parametrize(
    ("longer", "text_length"),
    [(1, 6), (2**32 - 1 - 100, 6), (0, 9), (0, 65535), (-1, 8), (-8, 6), (-9, 0)],
    ids=["by one", "by far", "text by one", "text by far", "text over body", "no room", "no head"],
)
def test_lengths_that_disagree_are_refused(
    split: Callable[[bytes], Iterator[Up | Down]], record: bytes, head: int, longer: int, text_length: int
) -> None:
    """A record that its frame cannot hold, or that cannot hold its head and text, raises."""
    with pytest.raises(RecordError, match="the record at 0 "):
        list(split(with_fields(record, len(record) - 4 + longer, text_length)))


@both_directions
def test_a_length_of_nothing_ends_the_reading(
    split: Callable[[bytes], Iterator[Up | Down]], record: bytes, head: int
) -> None:
    """A frame of zeros is refused at once, not read for ever."""
    with pytest.raises(RecordError):
        list(split(bytes(10 * head)))


def test_a_text_is_bounded() -> None:
    """A worker's topic or pattern of 256 bytes is read, and one of a byte more is refused."""
    longest = b"a" * topics.MAX_BYTES
    assert [each.text for each in records.split_up(records.up(UpKind.SUBSCRIBE, longest))] == [longest]
    with pytest.raises(RecordError, match="has 257 bytes: 256 at most"):
        list(records.split_up(records.up(UpKind.SUBSCRIBE, longest + b"a")))


@pytest.mark.parametrize("kind", [0, len(UpKind) + 1, 255])
def test_a_kind_that_no_worker_sends_is_refused(kind: int) -> None:
    """The numbers next to the kinds of a worker's record raise."""
    with pytest.raises(RecordError, match=f"no kind {kind} "):
        list(records.split_up(records.up(kind)))


@given(st.binary(max_size=80))
def test_whatever_a_worker_sends_ends_in_records_or_a_refusal(frame: bytes) -> None:
    """Invariant: any bytes are records that make up the frame, or raise RecordError and nothing else."""
    try:
        read = list(records.split_up(frame))
    except RecordError:
        return
    assert b"".join(records.up(*each) for each in read) == frame


@pytest.mark.parametrize("max_payload", [1, 4096, 52 * 1024, 1024 * 1024, payloads.MAX_BYTES])
def test_the_largest_frames_fit(max_payload: int) -> None:
    """A payload of exactly the limit alone, and the fullest coalesced frame, are within the frame limit."""
    topic = b"a" * topics.MAX_BYTES
    for head in (records.UP.size, records.DOWN.size):
        alone = head + len(topic) + max_payload
        last = head + len(topic) + min(max_payload, records.ALONE_BYTES)
        assert alone <= records.max_frame(max_payload)
        assert records.COALESCE_BYTES - 1 + last <= records.max_frame(max_payload)


@pytest.mark.parametrize(
    ("max_payload", "frame"), [(1, 56 * 1024), (52 * 1024, 56 * 1024), (1024 * 1024, 1028 * 1024)]
)
def test_frame_limit(max_payload: int, frame: int) -> None:
    """A frame may be 4 KiB over the payload limit, and never less than a coalesced frame needs."""
    assert records.max_frame(max_payload) == frame


@pytest.mark.parametrize(
    ("max_payload", "frames"),
    [
        (1, 64),
        (128 * 1024, 64),
        (128 * 1024 + 1, 63),
        (1024 * 1024, 8),
        (4 * 1024 * 1024, 2),
        (payloads.MAX_BYTES, 2),
    ],
)
def test_frames_held_by_zeromq(max_payload: int, frames: int) -> None:
    """ZeroMQ holds 8 MiB of the largest payloads, but 2 at least and 64 at most."""
    assert records.receive_hwm(max_payload) == frames
