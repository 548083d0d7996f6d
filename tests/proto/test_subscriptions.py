"""Subscriptions: which subscribers a topic reaches."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import topics
from capsuled.proto.subscriptions import Subscriptions
from capsuled.proto.topics import Segments

SEGMENT = st.sampled_from(["a", "b", "kernel"])
TOPIC = st.lists(SEGMENT, min_size=1, max_size=8).map(tuple)
HEAD = st.lists(SEGMENT, max_size=7)
PATTERN = TOPIC | HEAD.map(lambda head: (*head, "*"))
CHANGES = st.lists(st.tuples(st.booleans(), PATTERN, st.integers(0, 3)), max_size=30)


@given(CHANGES, TOPIC)
def test_match_is_the_matcher(changes: list[tuple[bool, Segments, int]], topic: Segments) -> None:
    """Invariant: after any adding and removing a topic reaches those whose pattern `matches` it, once."""
    table = Subscriptions[tuple[Segments, int]]()
    present: set[tuple[Segments, int]] = set()
    for adding, pattern, number in changes:
        if adding:
            table.add(pattern, (pattern, number))
            present.add((pattern, number))
        elif (pattern, number) in present:
            table.remove(pattern, (pattern, number))
            present.remove((pattern, number))
        else:
            with pytest.raises(KeyError):
                table.remove(pattern, (pattern, number))
    found = table.match(topic)
    assert len(found) == len(set(found))
    assert set(found) == {each for each in present if topics.matches(each[0], topic)}


def test_order_is_exact_first_then_the_widest() -> None:
    """Exact subscribers come first, then those of the widest subtree, each in the order of their adding."""
    table = Subscriptions[str]()
    for pattern, name in (("a.*", "narrow"), ("*", "wide"), ("a.b", "first"), ("a.b", "second")):
        table.add(topics.split(pattern), name)
    assert table.match(("a", "b")) == ["first", "second", "wide", "narrow"]


def test_adding_twice_is_adding_once() -> None:
    """A subscriber that is there already stands in its place, and one removal takes it away."""
    table = Subscriptions[str]()
    for name in ("x", "y", "x"):
        table.add(("a",), name)
    assert table.match(("a",)) == ["x", "y"]
    table.remove(("a",), "x")
    assert table.match(("a",)) == ["y"]


@pytest.mark.parametrize("last", ["b", "*"])
def test_an_emptied_pattern_takes_no_memory(last: str) -> None:
    """Any number of patterns may come and go: after its last subscriber nothing is left of one."""
    table = Subscriptions[str]()
    tracemalloc.start()
    try:
        for number in range(1000):
            table.add((str(number), last), "x")
            table.remove((str(number), last), "x")
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 10_000


@pytest.mark.parametrize("pattern", ["a.b", "a.*", "*"])
def test_a_subscriber_is_removed_once(pattern: str) -> None:
    """Removing who is not there raises KeyError and leaves those who are."""
    table = Subscriptions[str]()
    table.add(topics.split(pattern), "x")
    with pytest.raises(KeyError):
        table.remove(topics.split(pattern), "y")
    assert table.match(("a", "b")) == ["x"]
    table.remove(topics.split(pattern), "x")
    with pytest.raises(KeyError):
        table.remove(topics.split(pattern), "x")
    assert table.match(("a", "b")) == []


def test_reserved_topics_are_not_reached_by_a_wildcard() -> None:
    """`*` alone receives nothing of `kernel`, also not the topic `kernel` itself."""
    table = Subscriptions[str]()
    table.add(("*",), "all")
    table.add(("kernel", "*"), "kernel")
    assert table.match(("kernel",)) == []
    assert table.match(("kernel", "a")) == ["kernel"]
    assert table.match(("a", "kernel")) == ["all"]


@pytest.mark.parametrize("pattern", ["*.a", "a.*.b", "*.*"])
def test_an_inner_wildcard_is_refused(pattern: str) -> None:
    """What the table could not match is not let in."""
    with pytest.raises(topics.NotSubscribable):
        Subscriptions[str]().add(topics.split(pattern), "x")
