"""Refusals: the errors that a guest sees."""

from __future__ import annotations

import pytest

from capsuled.proto.refusals import Errno, Refusal

NUMBERS = {
    "AGAIN": 6,
    "BADF": 8,
    "BADMSG": 9,
    "CANCELED": 11,
    "CONNREFUSED": 14,
    "CONNRESET": 15,
    "DQUOT": 19,
    "FAULT": 21,
    "ILSEQ": 25,
    "INVAL": 28,
    "MFILE": 33,
    "MSGSIZE": 35,
    "NAMETOOLONG": 37,
    "NOBUFS": 42,
    "NOENT": 44,
    "NOSYS": 52,
    "PERM": 63,
    "SPIPE": 70,
    "TIMEDOUT": 73,
    "NOTCAPABLE": 76,
}
"""WASI preview 1, in its order: guests are compiled with these numbers."""


def test_numbers_are_those_of_wasi() -> None:
    """Each error has the number that WASI preview 1 gives it, and there is no other error."""
    assert {errno.name: errno.value for errno in Errno} == NUMBERS


def test_a_refusal_carries_errno_sentence_and_size() -> None:
    """What the guest needs is in the refusal: the number, the sentence, and the bytes that would do."""
    refusal = Refusal(Errno.NOBUFS, "the message needs 70 bytes; the buffer has 64", needed=70)
    assert (refusal.errno, refusal.sentence, refusal.needed) == (Errno.NOBUFS, str(refusal), 70)


def test_a_refusal_asks_for_no_bytes_by_itself() -> None:
    """Where no buffer was too small, no size is told."""
    with pytest.raises(Refusal) as caught:
        raise Refusal(Errno.PERM, "the handle 1 is the runtime's")
    assert caught.value.needed == 0
