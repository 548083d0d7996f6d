"""The ledger page: counters that a worker keeps where the supervisor can read them at any time.

A page of unsigned 64-bit slots in memory that both have mapped. It answers when the guest spins, when its
process is stopped, and after it has crashed, all of which a request to the worker would not. What it says is
the worker's claim and no more: the backbone counts its own side, and the two are compared.

    slots 0 …              `Total`s of the capsule
    slots ROWS + 8·i …     row i: one open subscription (`Column`s); handle 0 means the row is free

The counts of messages received are those of one epoch of the backbone, so that they can be compared with its
own. What stood in a queue when the epoch began is *carried*:

    carried + received = delivered + dropped + queued
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from capsuled.proto.refusals import Errno

MAX_SUBSCRIPTIONS = 128
"""Most subscriptions of one capsule, its interceptors included."""

MAX_INTERCEPTORS = 64
"""Most interceptors of one capsule; more, and it does not load."""


class Total(IntEnum):
    """Slots that count for the whole capsule."""

    VERSION = 0
    """Odd while the worker is in the middle of an update."""
    EPOCH = 1
    """Epoch of the backbone that the worker was last greeted by."""
    PUBLISHED = 2
    """Publishes accepted from the guest."""
    RECEIVED = 3
    """Messages read from the edge in this epoch."""
    CLOSED_RECEIVED = 4
    """Of subscriptions that the guest has ended, in this epoch: received …"""
    CLOSED_DELIVERED = 5
    CLOSED_DROPPED = 6
    CLOSED_LEFT = 7
    """… and left in the queue when it ended."""
    LOGS_CUT = 8
    """Log lines that were over the rate or found no room."""
    HOST_CALLS = 9
    """Host calls of the guest, the one that is running included."""
    MEMORY = 10
    """Bytes of the guest's linear memory, brought up to date before each wait."""
    MALFORMED = 11
    """Messages whose payload was not well-formed: their publisher's worker does not do what ours do. They
    are counted as dropped."""
    CLOSED_CARRIED = 12
    """Of subscriptions that the guest has ended: carried into this epoch."""
    WAITING = 13
    """What the guest waits for in a host call, see `Waits`: it is alive, however long that takes."""
    REFUSED = 16
    """First of the slots that count refusals, one for each `Errno`, in its order."""


class Column(IntEnum):
    """Slots of a row."""

    HANDLE = 0
    RECEIVED = 1
    """Put into this subscription's queue or dropped from it, in this epoch."""
    DELIVERED = 2
    DROPPED = 3
    QUEUED = 4
    CARRIED = 5
    """Stood in the queue when this epoch began."""


ERRNOS: tuple[Errno, ...] = tuple(Errno)
ERRNO_SLOT: dict[Errno, int] = {errno: Total.REFUSED + i for i, errno in enumerate(ERRNOS)}

ROWS = 64
"""Slot of the first row."""
ROW_SLOTS = 8
SLOTS = ROWS + MAX_SUBSCRIPTIONS * ROW_SLOTS
BYTES = (SLOTS * 8 + 4095) // 4096 * 4096


class Row(NamedTuple):
    """A worker's claim about one open subscription."""

    handle: int
    received: int
    delivered: int
    dropped: int
    queued: int
    carried: int


class Waits(IntEnum):
    """What a guest waits for."""

    FOR_NOTHING = 0
    FOR_SOMETHING = 1
    """Time, an answer to a request, the backbone."""
    FOR_MESSAGES = 2
    """Of a subscription: it has nothing else to do."""


class Claims(NamedTuple):
    """A worker's claims about itself, read from its page."""

    epoch: int
    published: int
    received: int
    closed: Row
    logs_cut: int
    host_calls: int
    memory: int
    malformed: int
    waiting: bool
    idle: bool
    """Waiting for messages, and for nothing else."""
    refused: dict[str, int]
    rows: tuple[Row, ...]


def read(slots: Sequence[int]) -> Claims | None:
    """The claims on a page, or None when the worker was in the middle of an update: read again."""
    copy = list(slots)
    if copy[Total.VERSION] % 2 or copy[Total.VERSION] != slots[Total.VERSION]:
        return None
    return claims(copy)


def claims(copy: Sequence[int]) -> Claims:
    """The claims in a copy of a page that nobody writes to any more."""
    rows = tuple(
        Row(*copy[at : at + len(Column)]) for at in range(ROWS, SLOTS, ROW_SLOTS) if copy[at + Column.HANDLE]
    )
    return Claims(
        epoch=copy[Total.EPOCH],
        published=copy[Total.PUBLISHED],
        received=copy[Total.RECEIVED],
        closed=Row(
            0,
            copy[Total.CLOSED_RECEIVED],
            copy[Total.CLOSED_DELIVERED],
            copy[Total.CLOSED_DROPPED],
            copy[Total.CLOSED_LEFT],
            copy[Total.CLOSED_CARRIED],
        ),
        logs_cut=copy[Total.LOGS_CUT],
        host_calls=copy[Total.HOST_CALLS],
        memory=copy[Total.MEMORY],
        malformed=copy[Total.MALFORMED],
        waiting=copy[Total.WAITING] != Waits.FOR_NOTHING,
        idle=copy[Total.WAITING] == Waits.FOR_MESSAGES,
        refused={errno.name.lower(): copy[slot] for errno, slot in ERRNO_SLOT.items() if copy[slot]},
        rows=rows,
    )
