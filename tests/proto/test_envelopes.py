"""Envelopes: what a guest gets from a receive."""

from __future__ import annotations

from typing import NamedTuple

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import envelopes, items

INSTANCE = bytes(range(16))
U64 = st.integers(0, 2**64 - 1)


class Sent(NamedTuple):
    """What goes into one message."""

    topic: str
    item: object
    source: str
    principal: str
    seq: int
    time: int
    cause: int

    def encode(self) -> bytes:
        source = envelopes.source_part(self.source.encode(), INSTANCE, self.principal.encode())
        payload = cbor2.dumps(self.item)
        return envelopes.message(self.topic.encode(), payload, source, self.seq, self.time, self.cause)

    def expected(self) -> dict[str, object]:
        fields: dict[str, object] = {
            "topic": self.topic,
            "payload": self.item,
            "source": self.source,
            "instance": INSTANCE,
            "principal": self.principal,
            "seq": self.seq,
            "time": self.time,
        }
        return {**fields, "cause": self.cause} if self.cause else fields


ITEM: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | U64 | st.text(max_size=30) | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAME = st.text(max_size=70)
SENT = st.lists(st.builds(Sent, NAME, ITEM, NAME, NAME, U64, U64, st.just(0) | U64), max_size=30)


@given(SENT, U64, U64)
def test_a_decoder_reads_what_was_put_in(sent: list[Sent], dropped: int, lagged: int) -> None:
    """Invariant: an envelope is one item, which a decoder reads as the documented map, keys in order."""
    built = envelopes.envelope([each.encode() for each in sent], dropped, lagged)
    items.check(built)
    decoded = cbor2.loads(built)
    expected = [each.expected() for each in sent]
    assert decoded == {"messages": expected, "dropped": dropped, "lagged": lagged}
    assert list(decoded) == ["messages", "dropped", "lagged"]
    assert [list(each) for each in decoded["messages"]] == [list(each) for each in expected]


@given(SENT, U64, U64)
def test_overhead_is_exact(sent: list[Sent], dropped: int, lagged: int) -> None:
    """Invariant: an envelope has the size of its messages and of what `overhead` says, to the byte."""
    messages = [each.encode() for each in sent]
    built = envelopes.envelope(messages, dropped, lagged)
    assert len(built) == sum(map(len, messages)) + envelopes.overhead(len(messages), dropped, lagged)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 1024])
def test_overhead_at_each_size_of_count(count: int) -> None:
    """The head of the list grows with its number, and `overhead` with it."""
    built = envelopes.envelope([b"\xa0"] * count, 0, 0)
    assert len(built) == count + envelopes.overhead(count, 0, 0)


def test_message_byte_by_byte() -> None:
    """A message is a map of seven with definite lengths and its keys in the documented order."""
    source = envelopes.source_part(b"s", INSTANCE, b"p")
    assert envelopes.message(b"a.b", b"\x81\x05", source, 24, 1000, 0) == b"".join(
        (
            b"\xa7",
            *(b"\x65topic", b"\x63a.b"),
            *(b"\x67payload", b"\x81\x05"),
            *(b"\x66source", b"\x61s"),
            *(b"\x68instance", b"\x50" + INSTANCE),
            *(b"\x69principal", b"\x61p"),
            *(b"\x63seq", b"\x18\x18"),
            *(b"\x64time", b"\x19\x03\xe8"),
        )
    )


def test_caused_message_byte_by_byte() -> None:
    """A message with a cause is a map of eight, and the cause is last."""
    source = envelopes.source_part(b"s", INSTANCE, b"p")
    plain = envelopes.message(b"a", b"\x00", source, 1, 2, 0)
    caused = envelopes.message(b"a", b"\x00", source, 1, 2, 23)
    assert caused == b"\xa8" + plain[1:] + b"\x65cause" + b"\x17"


def test_envelope_byte_by_byte() -> None:
    """An envelope is a map of three with definite lengths and its keys in the documented order."""
    assert envelopes.envelope([b"\xa0", b"\xa0"], 1, 256) == b"".join(
        (b"\xa3", b"\x68messages", b"\x82\xa0\xa0", b"\x67dropped", b"\x01", b"\x66lagged", b"\x19\x01\x00")
    )


def test_an_empty_queue() -> None:
    """The answer to a poll that finds nothing is an empty list and two zeros."""
    assert cbor2.loads(envelopes.envelope([], 0, 0)) == {"messages": [], "dropped": 0, "lagged": 0}


@pytest.mark.parametrize(
    ("value", "head"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (2**8 - 1, "18ff"),
        (2**8, "190100"),
        (2**16 - 1, "19ffff"),
        (2**16, "1a00010000"),
        (2**32 - 1, "1affffffff"),
        (2**32, "1b0000000100000000"),
        (2**64 - 1, "1bffffffffffffffff"),
    ],
)
@pytest.mark.parametrize("major", range(8))
def test_heads_are_shortest(major: int, value: int, head: str) -> None:
    """On both sides of each border of size a head has its shortest form, for each major type."""
    expected = bytearray.fromhex(head)
    expected[0] |= major << 5
    assert envelopes.head(major, value) == expected


@pytest.mark.parametrize("value", [2**64, -1])
def test_a_head_holds_no_more_than_64_bits(value: int) -> None:
    """A number below zero or over 64 bits has no head."""
    with pytest.raises(ValueError, match=r"does not fit|range"):
        envelopes.head(0, value)


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256])
def test_texts_at_each_size(size: int) -> None:
    """A text of any size is read back by a general decoder."""
    assert cbor2.loads(envelopes.text(b"x" * size)) == "x" * size
