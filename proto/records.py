"""Records: what a worker and the backbone say to each other over the edge.

One ZeroMQ frame carries one or more records, so that a busy edge costs one send and one receive for
many messages. A record is a fixed head, a text and a body; there are no maps on this path:

    worker → backbone   u32 length | u8 kind | u16 text length | u32 a | u64 b | text | body
    backbone → worker   u32 length | u8 kind | u16 text length | u32 a | u64 b | u64 c | u64 d | text | body

Big-endian; the length counts what follows it. What text, a, b, c, d and body mean is the kind's business
and stands beside it. The two directions differ only in the stamps that the backbone adds (c, d).

A worker names neither itself nor anybody else: who it is, is the socket that its frame came in on.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from capsuled.proto import topics

UP = Struct(">IBHIQ")
"""Head of a record from a worker to the backbone."""

DOWN = Struct(">IBHIQQQ")
"""Head of a record from the backbone to a worker."""

COALESCE_RECORDS = 16
"""A worker flushes at this many records: 3 times the throughput of 1, and 64 gain little more."""

COALESCE_BYTES = 48 * 1024
"""A frame is closed once it holds this much, so that one frame's worth of delay stays small."""

MAX_RECORDS = 256
"""Most records in a frame from a worker: far more than an honest one puts into it. A frame of the size that a
large payload may have would hold a quarter of a million, and keep the backbone from everybody else for seconds."""

MAX_REQUESTS = 16
"""Requests of one capsule that may wait for their answers at once."""

HISTORY_MESSAGES = 4096
"""Deliveries that a capsule can name as a cause: at least its last this many."""

AGAIN = (1 << 64) - 1
"""No epoch: what was said to a backbone that may not have heard it."""

MAX_LOST = 512
"""Lost requests in one record: each is looked up."""

ALONE_BYTES = 4 * 1024
"""A record with a larger body travels alone: coalescing would copy it once more for nothing."""

EPOCH_SHIFT = 40
"""The global sequence numbers of an epoch begin above `epoch << EPOCH_SHIFT`, so that none is used twice: at
200 000 publishes a second an epoch uses up its share in two months."""

MAX_EPOCH = (1 << (64 - EPOCH_SHIFT)) - 1
"""Sequence numbers have 64 bits."""

OVERHEAD_BYTES = 4 * 1024
"""How much larger than its payload a frame may be: head, topic, and room for control records."""


def max_frame(max_payload: int) -> int:
    """Largest frame in bytes on the edge of a capsule with this payload limit (ZMQ_MAXMSGSIZE)."""
    return max(max_payload, COALESCE_BYTES + ALONE_BYTES) + OVERHEAD_BYTES


def receive_hwm(max_payload: int) -> int:
    """How many frames ZeroMQ may hold for a receiver: 8 MiB of the largest, within 2 and 64."""
    return min(64, max(2, 8 * 1024 * 1024 // max_payload))


class UpKind(IntEnum):
    """Kinds from a worker to the backbone."""

    PUBLISH = 1
    """text topic, a low 32 bits of the count of publishes before it, b cause (0: none), body payload."""
    SUBSCRIBE = 2
    """text pattern, a handle."""
    UNSUBSCRIBE = 3
    """a handle, b the epoch that it is said in, or `AGAIN`: it may have been heard already."""
    HELLO = 4
    """Answers HELLO. b count of publishes so far."""
    BYE = 5
    """The worker will publish no more. b count of publishes in all."""
    REQUEST = 6
    """A publish that wants an answer. text topic, a handle of the answer, b cause (0: none), body payload."""
    REPLY = 7
    """Answers a request. b its global sequence number, body payload."""
    DECLINE = 8
    """Refuses a request. b its global sequence number, text the sentence why."""
    LOST = 9
    """Requests that came and that the guest will never answer. body their global sequence numbers, 8 bytes each, 1 to
    `MAX_LOST` of them. One record in a frame."""
    GIVE_UP = 10
    """Nobody waits any more for the answer to a request. a the handle of the answer."""


class DownKind(IntEnum):
    """Kinds from the backbone to a worker.

    What a dead backbone has sent may be read after its successor's greeting, since each has a connection of its own.
    So every record tells its epoch: one with a global sequence number by that, and HELLO in b; all others in d, and
    `control` makes those.
    """

    MESSAGE = 1
    """text topic, a origin index, b global sequence number, c time in ms, d cause (0: none), body payload."""
    SUBSCRIBED = 2
    """a handle, b errno (0: subscribed), c the last global sequence number before it, text the sentence of a
    refusal. Messages up to c are not the handle's; of those after it none is missed."""
    ORIGIN = 3
    """Precedes the first message of an origin. a index, text source, body instance (16 bytes), principal."""
    HELLO = 4
    """First record of each connection. b epoch of the backbone, c messages sent here in this epoch."""
    BYE = 5
    """Answers BYE: all that was published before it has been routed. b count received in this epoch."""
    LAGGED = 6
    """a handle, b messages of it that were lost in the backbone, in all; precedes the next message of it."""
    UNSUBSCRIBED = 7
    """a handle. Messages sent before this record count for it, those after it do not, although they may have been
    published earlier: control records overtake the messages that wait."""
    RETAINED = 8
    """The last message of a topic, kept for a later subscriber: like MESSAGE, but d is the one handle that it
    is for."""
    REQUEST = 9
    """Like MESSAGE; its sender waits for an answer."""
    REPLY = 10
    """An answer: like MESSAGE, but d is the asker's handle, and the topic is `reply.` and the request's number."""
    FAILED = 11
    """There will be no answer. a the asker's handle, b errno, text the sentence why."""


_UP_KINDS = frozenset(map(int, UpKind))


class RecordError(ValueError):
    """A frame that is not made of records; the message says where it breaks the format."""


class Up(NamedTuple):
    """A record from a worker."""

    kind: int
    text: bytes
    a: int
    b: int
    body: bytes


class Down(NamedTuple):
    """A record from the backbone."""

    kind: int
    text: bytes
    a: int
    b: int
    c: int
    d: int
    body: bytes


def up(kind: int, text: bytes = b"", a: int = 0, b: int = 0, body: bytes = b"") -> bytes:
    """One record from a worker, encoded."""
    return UP.pack(UP.size - 4 + len(text) + len(body), kind, len(text), a, b) + text + body


def down(
    kind: int, text: bytes = b"", a: int = 0, b: int = 0, c: int = 0, d: int = 0, body: bytes = b""
) -> bytes:
    """One record from the backbone, encoded."""
    return DOWN.pack(DOWN.size - 4 + len(text) + len(body), kind, len(text), a, b, c, d) + text + body


def control(
    kind: int, epoch: int, text: bytes = b"", a: int = 0, b: int = 0, c: int = 0, body: bytes = b""
) -> bytes:
    """One record from the backbone that is no message and no greeting, encoded: what is so in this epoch."""
    return down(kind, text, a, b, c, epoch, body)


def introduced(record: bytes) -> int | None:
    """The origin index that this one record of the backbone tells of, None when it is another kind."""
    _, kind, _, index, *_ = DOWN.unpack_from(record)
    return index if kind == DownKind.ORIGIN else None


def split_up(frame: bytes) -> Iterator[Up]:
    """The records of a worker's frame, in order. Raises `RecordError` where it stops being records.

    For whoever looks at frames. The backbone does the same inline (`Router.take`), on its busiest path.
    """
    position, end, head = 0, len(frame), UP.size
    while position < end:
        if end - position < head:
            raise RecordError(f"{end - position} bytes at {position} are too few for a record's head")
        length, kind, text_length, a, b = UP.unpack_from(frame, position)
        stop = position + 4 + length
        text_at = position + head
        body_at = text_at + text_length
        if stop > end:
            raise RecordError(f"the record at {position} says {length} bytes and has {end - position - 4}")
        if body_at > stop:
            raise RecordError(f"the record at {position} has no room for a text of {text_length} bytes")
        if text_length > topics.MAX_BYTES:
            raise RecordError(f"the text at {position} has {text_length} bytes: {topics.MAX_BYTES} at most")
        if kind not in _UP_KINDS:
            raise RecordError(f"there is no kind {kind} of record from a worker, as stands at {position}")
        yield Up(kind, frame[text_at:body_at], a, b, frame[body_at:stop])
        position = stop


def split_down(frame: bytes) -> Iterator[Down]:
    """The records of the backbone's frame, in order. Raises `RecordError` where it stops being records.

    The backbone is trusted to have made it well: sizes are compared so that a fault shows, kinds are not.
    """
    position, end, head = 0, len(frame), DOWN.size
    while position < end:
        if end - position < head:
            raise RecordError(f"{end - position} bytes at {position} are too few for a record's head")
        length, kind, text_length, a, b, c, d = DOWN.unpack_from(frame, position)
        stop = position + 4 + length
        text_at = position + head
        body_at = text_at + text_length
        if not body_at <= stop <= end:
            rest = end - position - 4
            raise RecordError(
                f"the record at {position} says {length} bytes, {text_length} of text; has {rest}"
            )
        yield Down(kind, frame[text_at:body_at], a, b, c, d, frame[body_at:stop])
        position = stop
