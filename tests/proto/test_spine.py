"""What stands in the spine's frames, and which prefix stands for which topics."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import spine, topics
from capsuled.proto.spine import Stamps

STAMPS = Stamps("echo", bytes(range(16)), "alice", 7, 1234, 0)


def test_frames() -> None:
    """The topic with its NUL, a map of stamps, and the payload as it came, well-formed or not."""
    topic, stamps, payload = spine.frames(b"a.b", STAMPS, b"\xff")
    assert (topic, payload) == (b"a.b\0", b"\xff")
    assert cbor2.loads(stamps) == {
        "source": "echo",
        "instance": bytes(range(16)),
        "principal": "alice",
        "seq": 7,
        "time": 1234,
    }


def test_a_cause_is_stamped_where_there_is_one() -> None:
    """0 is no cause, and no key."""
    assert cbor2.loads(spine.frames(b"a", STAMPS._replace(cause=5), b"")[1])["cause"] == 5


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [("a", b"a\0"), ("a.b", b"a.b\0"), ("a.*", b"a."), ("a.b.*", b"a.b."), ("*", b""), ("a*", b"a*\0")],
)
def test_prefix(pattern: str, prefix: bytes) -> None:
    """An exact topic ends in a NUL, a subtree in its dot; `*` alone is everything."""
    assert spine.prefix(pattern) == prefix


@pytest.mark.parametrize("pattern", ["", "a..b", "a.*.b", "a\0", "x" * (topics.MAX_BYTES + 1)])
def test_what_has_no_prefix(pattern: str) -> None:
    """What nobody may subscribe to is an error that says so."""
    with pytest.raises(topics.TopicError):
        spine.prefix(pattern)


SEGMENT = st.sampled_from(["a", "b", "ab", "kernel", "ü"])
TOPIC = st.lists(SEGMENT, min_size=1, max_size=topics.MAX_SEGMENTS)


@given(TOPIC, TOPIC, st.booleans())
def test_a_prefix_is_the_matcher(topic: list[str], pattern: list[str], subtree: bool) -> None:
    """Invariant: on the wire a prefix and the pattern match alike, but that the empty one reaches `kernel` too."""
    if subtree:
        pattern = [*pattern[: topics.MAX_SEGMENTS - 1], topics.WILDCARD]
    wire, *_ = spine.frames(".".join(topic).encode(), STAMPS, b"")
    assert wire.startswith(spine.prefix(".".join(pattern))) == topics.matches(tuple(pattern), tuple(topic))
