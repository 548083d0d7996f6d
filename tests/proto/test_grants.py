"""Grants: what a manifest lets a capsule publish and subscribe to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import topics
from capsuled.proto.grants import Grants
from capsuled.proto.subscriptions import Subscriptions

SEGMENTS = st.lists(st.sampled_from(["a", "b", "c", "kernel"]), min_size=1, max_size=4)
PATTERN = st.lists(st.sampled_from(["a", "b", "*", "kernel"]), min_size=1, max_size=4).map(".".join)
PATTERNS = st.lists(PATTERN, max_size=3).map(tuple)


@pytest.mark.parametrize("text", ["a", "a.b", "*", "kernel.a"])
def test_nothing_granted_denies_all(text: str) -> None:
    """An empty list denies every topic and every pattern."""
    assert Grants().publisher(topics.split(text)) is None
    assert Grants().subscriber(topics.split(text)) is None


def test_each_verb_has_its_own_list() -> None:
    """A grant to publish is none to subscribe, and the other way about."""
    grants = Grants(publish=("out.*",), subscribe=("in.*",))
    assert grants.publisher(("out", "a")) == "out.*"
    assert grants.publisher(("in", "a")) is None
    assert grants.subscriber(("in", "a")) == "in.*"
    assert grants.subscriber(("out", "a")) is None


def test_the_grant_that_allows_is_told() -> None:
    """The answer is the first grant that allows, as the manifest has it."""
    grants = Grants(publish=("x", "a.*.c", "a.*"), subscribe=("a.b", "a.*", "*"))
    assert grants.publisher(("a", "b", "c")) == "a.*.c"
    assert grants.publisher(("a", "b")) == "a.*"
    assert grants.subscriber(("a", "*")) == "a.*"
    assert grants.subscriber(("a", "b")) == "a.b"


def test_a_subscription_wider_than_its_grant_is_denied() -> None:
    """A pattern that reaches more than one grant does is denied, whatever it has in common with it."""
    grants = Grants(subscribe=("foo.bar", "foo.bar.*", "foo.*.b"))
    assert grants.subscriber(("foo", "*")) is None
    assert grants.subscriber(("*",)) is None
    assert grants.subscriber(("foo", "x", "b")) == "foo.*.b"


def test_grants_are_not_added_up() -> None:
    """A pattern that only several grants cover together is denied."""
    assert Grants(subscribe=("a.*", "a")).subscriber(("*",)) is None


@pytest.mark.parametrize(
    ("grant", "topic", "allowed"),
    [
        ("*", "kernel.a", False),
        ("*.a", "kernel.a", False),
        ("kernel.*", "kernel.a", True),
        ("kernel", "kernel", True),
    ],
)
def test_only_a_spelled_out_grant_reaches_what_is_reserved(grant: str, topic: str, allowed: bool) -> None:
    """A wildcard grants `kernel` neither for publishing nor for subscribing."""
    grants = Grants(publish=(grant,), subscribe=(grant,))
    assert (grants.publisher(topics.split(topic)) == grant) is allowed
    assert (grants.subscriber(topics.split(topic)) == grant) is allowed


@pytest.mark.parametrize("bad", ["", "a..b", "a" * 257, "a.b.c.d.e.f.g.h.i"])
def test_a_malformed_grant_is_an_error(bad: str) -> None:
    """A malformed grant is told when the manifest is checked, in whichever list it stands."""
    for grants in (Grants(publish=("a", bad)), Grants(subscribe=("a", bad))):
        with pytest.raises(topics.TopicError):
            grants.check()


def test_a_well_formed_grant_passes() -> None:
    """Exact topics, trailing and inner wildcards are all grants."""
    Grants(publish=("a", "a.*", "*.b", "a.*.b", "*.*"), subscribe=("*", "kernel.*")).check()


@given(PATTERNS, PATTERN, SEGMENTS)
def test_nothing_is_delivered_that_is_not_granted(
    granted: tuple[str, ...], asked: str, topic: list[str]
) -> None:
    """Invariant: a subscription that was allowed delivers no topic that none of the grants matches."""
    pattern = topics.split(asked)
    if topics.WILDCARD in pattern[:-1] or Grants(subscribe=granted).subscriber(pattern) is None:
        return
    table = Subscriptions[int]()
    table.add(pattern, 1)
    if table.match(tuple(topic)):
        assert any(topics.matches(topics.split(grant), tuple(topic)) for grant in granted)
