"""What is retained: the last message of a topic, bounded, and what had to go is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import topics
from capsuled.supervisor.backbone.retained import MAX_TOPICS, Retained, Shelves

ROOM = 1 << 20


def message(topic: str, payload: bytes = b"\0") -> Retained:
    return Retained(0, 1, topic.encode(), topics.split(topic), payload)


def kept(shelves: Shelves, pattern: str) -> list[bytes]:
    return [each.topic for each in shelves.matching(topics.split_subscribable(pattern))]


def test_the_last_one_of_a_topic() -> None:
    """An earlier message is replaced, which is no eviction; the topic is the newest then."""
    shelves = Shelves()
    for topic, payload in (("a.b", b"1"), ("a.c", b"2"), ("a.b", b"333")):
        shelves.keep("echo", message(topic, payload), ROOM)
    assert kept(shelves, "a.*") == [b"a.c", b"a.b"]
    assert [each.payload for each in shelves.matching(("a", "b"))] == [b"333"]
    assert shelves.figures()["echo"] == {"retained": 2, "retained_bytes": 4, "retained_evicted": 0}


def test_so_many_topics_and_one_more() -> None:
    """`MAX_TOPICS` are kept; one more and the one that was silent for longest goes, counted."""
    shelves = Shelves()
    for n in range(MAX_TOPICS):
        shelves.keep("echo", message(f"a.t{n}"), ROOM)
    shelves.keep("echo", message("a.t0"), ROOM)  # not silent any more
    assert shelves.figures()["echo"]["retained_evicted"] == 0
    shelves.keep("echo", message("a.more"), ROOM)
    assert kept(shelves, "a.t1") == []
    assert kept(shelves, "a.t0") == [b"a.t0"]
    assert shelves.figures()["echo"] == {
        "retained": MAX_TOPICS,
        "retained_bytes": MAX_TOPICS,
        "retained_evicted": 1,
    }


def test_so_many_bytes_and_one_more() -> None:
    """As many bytes as allowed are kept; one more, and as many of the oldest go as it takes."""
    shelves = Shelves()
    for topic in ("a.b", "a.c", "a.d"):
        shelves.keep("echo", message(topic, bytes(10)), 30)
    assert shelves.figures()["echo"]["retained"] == 3
    shelves.keep("echo", message("a.e", bytes(11)), 30)
    assert kept(shelves, "a.*") == [b"a.d", b"a.e"]
    assert shelves.figures()["echo"] == {"retained": 2, "retained_bytes": 21, "retained_evicted": 2}


def test_one_always_fits() -> None:
    """A message larger than the bound is kept alone: it was allowed to be published."""
    shelves = Shelves()
    shelves.keep("echo", message("a.b"), 5)
    shelves.keep("echo", message("a.c", bytes(100)), 5)
    assert kept(shelves, "*") == [b"a.c"]


def test_each_capsule_has_a_shelf_of_its_own() -> None:
    """One that fills its own pushes nobody else's out; the same topic of two capsules is kept twice."""
    shelves = Shelves()
    shelves.keep("echo", message("a.b", b"e"), ROOM)
    for n in range(MAX_TOPICS + 5):
        shelves.keep("loud", message(f"a.t{n}"), ROOM)
    shelves.keep("loud", message("a.b", b"l"), ROOM)
    assert [each.payload for each in shelves.matching(("a", "b"))] == [b"e", b"l"]
    assert shelves.figures()["echo"]["retained_evicted"] == 0
    assert "nobody" not in shelves.figures()


@pytest.mark.parametrize(("pattern", "looked"), [("a.b", 2), ("a.*", 5), ("*", 5)])
def test_what_a_subscription_costs(pattern: str, looked: int) -> None:
    """An exact topic is looked up on each shelf; for a subtree each message is looked at."""
    shelves = Shelves()
    for n in range(4):
        shelves.keep("echo", message(f"a.t{n}"), ROOM)
    shelves.keep("other", message("a.b"), ROOM)
    assert shelves.looked_through(topics.split_subscribable(pattern)) == looked


NAMES = st.sampled_from(["a", "a.b", "a.b.c", "b", "kernel.x"])


@given(st.lists(st.tuples(NAMES, st.integers(0, 20)), max_size=30), st.integers(1, 40))
def test_the_bytes_are_those_of_what_is_kept(said: list[tuple[str, int]], bound: int) -> None:
    """Invariant: a shelf holds its bound or one message, each topic's last one, and what matches is the matcher's."""
    shelves, last = Shelves(), dict[str, bytes]()
    for topic, size in said:
        last[topic] = bytes(size)
        shelves.keep("echo", message(topic, last[topic]), bound)
        found = shelves.figures()["echo"]
        assert found["retained_bytes"] <= bound or found["retained"] == 1
    everything = {
        each.topic.decode(): each.payload for p in (("*",), ("kernel", "*")) for each in shelves.matching(p)
    }
    assert sum(map(len, everything.values())) == sum(
        each["retained_bytes"] for each in shelves.figures().values()
    )
    assert all(last[topic] == payload for topic, payload in everything.items())
    for pattern in ("a", "a.*", "a.b.*", "b"):
        segments = topics.split_subscribable(pattern)
        matching = {topic for topic in everything if topics.matches(segments, topics.split(topic))}
        assert {each.decode() for each in kept(shelves, pattern)} == matching
