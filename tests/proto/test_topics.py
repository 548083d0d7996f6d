"""Topics and patterns: the one grammar and the one matcher."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TypedDict, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import topics
from capsuled.proto.topics import Segments

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Match(TypedDict):
    pattern: str
    topic: str
    matches: bool


class Malformed(TypedDict):
    text: str


class Covers(TypedDict):
    grant: str
    request: str
    allowed: bool


class Table(TypedDict):
    match: list[Match]
    malformed: list[Malformed]
    covers: list[Covers]


VECTORS = Path(__file__).resolve().parents[1] / "vectors/topics.toml"
TABLE = cast("Table", tomllib.loads(VECTORS.read_text()))


def reference(pattern: Segments, topic: Segments) -> bool:
    """What the grammar says, by another way than the matcher's: a regular expression over the whole text."""
    one = r"[^.]+"
    parts = [one if segment == "*" else re.escape(segment) for segment in pattern]
    if pattern[-1] == "*":
        parts[-1] = rf"{one}(\.{one})*"
    found = re.fullmatch(r"\.".join(parts), ".".join(topic)) is not None
    return found and (topic[0] != "kernel" or pattern[0] == "kernel")


def texts(alphabet: tuple[str, ...], longest: int) -> Iterator[Segments]:
    for length in range(1, longest + 1):
        yield from product(alphabet, repeat=length)


TOPICS = st.lists(st.sampled_from(["a", "b", "ab", "kernel", "*"]), min_size=1, max_size=8).map(tuple)


@pytest.mark.parametrize("row", TABLE["match"], ids=lambda row: f"{row['pattern']} {row['topic']}")
def test_matches_the_truth_table(row: Match) -> None:
    """A pattern matches the topics that the table says, and no other."""
    pattern, topic = topics.split(row["pattern"]), topics.split(row["topic"])
    assert topics.matches(pattern, topic) is row["matches"]
    assert reference(pattern, topic) is row["matches"]


@pytest.mark.parametrize("row", TABLE["covers"], ids=lambda row: f"{row['grant']} {row['request']}")
def test_covers_the_truth_table(row: Covers) -> None:
    """A grant covers the requests that the table says, and no other."""
    assert topics.covers(topics.split(row["grant"]), topics.split(row["request"])) is row["allowed"]


@pytest.mark.parametrize("text", ["\0", "a\0", "a.b\0c", "a.*.\0"])
def test_a_nul_is_malformed(text: str) -> None:
    """A NUL ends a topic on the spine, where `a.b\\0c` would reach the subscriber of exactly `a.b`."""
    with pytest.raises(topics.Malformed, match="NUL"):
        topics.split(text)


@pytest.mark.parametrize("text", [row["text"] for row in TABLE["malformed"]])
def test_an_empty_segment_is_malformed(text: str) -> None:
    """A leading, trailing or doubled dot is refused, and so is an empty text; the sentence names the text."""
    with pytest.raises(topics.Malformed, match="empty segment") as caught:
        topics.split(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("pattern_length", range(1, 9))
@pytest.mark.parametrize("topic_length", range(1, 9))
def test_lengths_are_compared_by_counting(pattern_length: int, topic_length: int) -> None:
    """Neither is matched by a mere prefix of the other; only a trailing wildcard takes more than it has."""
    names = tuple("abcdefgh")
    pattern, topic = names[:pattern_length], names[:topic_length]
    assert topics.matches(pattern, topic) is (pattern_length == topic_length)
    assert topics.covers(pattern, topic) is (pattern_length == topic_length)
    tail = (*pattern[:-1], "*")
    assert topics.matches(tail, topic) is (topic_length >= pattern_length)
    inner = ("*", *pattern[1:])
    if pattern_length > 1:
        assert topics.matches(inner, topic) is (pattern_length == topic_length)


@given(TOPICS, TOPICS)
def test_matches_as_the_reference(pattern: Segments, topic: Segments) -> None:
    """Invariant: the matcher and a regular expression made from the pattern agree."""
    assert topics.matches(pattern, topic) is reference(pattern, topic)


def test_covers_is_inclusion() -> None:
    """A grant covers a request exactly when it matches every topic that the request matches."""
    # "z" stands in no pattern, and topics are longer than patterns by one: both stand for everything else.
    domain = list(texts(("a", "kernel", "z"), 4))
    reach = {
        pattern: frozenset(topic for topic in domain if topics.matches(pattern, topic))
        for pattern in texts(("a", "kernel", "*"), 3)
    }
    wrong = [
        (grant, request)
        for grant, granted in reach.items()
        for request, requested in reach.items()
        if topics.covers(grant, request) is not (requested <= granted)
    ]
    assert wrong == []


@given(TOPICS, TOPICS, TOPICS)
def test_a_covered_request_reaches_only_what_is_granted(
    grant: Segments, request: Segments, topic: Segments
) -> None:
    """Invariant: what a covered request matches, its grant matches."""
    if topics.covers(grant, request) and topics.matches(request, topic):
        assert topics.matches(grant, topic)


@given(TOPICS)
def test_every_pattern_covers_itself(pattern: Segments) -> None:
    """Invariant: a request that is its grant is allowed."""
    assert topics.covers(pattern, pattern)


@given(TOPICS, TOPICS)
def test_only_a_spelled_out_pattern_reaches_what_is_reserved(pattern: Segments, rest: Segments) -> None:
    """Invariant: a topic under `kernel` is matched only by a pattern whose first segment is `kernel`."""
    if topics.matches(pattern, (topics.RESERVED, *rest)) or topics.covers(pattern, (topics.RESERVED, *rest)):
        assert pattern[0] == topics.RESERVED


@pytest.mark.parametrize(
    ("grant", "request_"),
    [
        ("*", "kernel"),
        ("*", "kernel.a"),
        ("*.*", "kernel.a"),
        ("*.a", "kernel.a"),
        ("kernel.*", "*"),
        ("kernel", "*"),
    ],
)
def test_no_wildcard_stands_for_kernel(grant: str, request_: str) -> None:
    """A wildcard neither matches nor covers `kernel`, and a grant for it does not cover a wildcard."""
    assert not topics.covers(topics.split(grant), topics.split(request_))
    assert not topics.matches(topics.split(grant), topics.split(request_))


@pytest.mark.parametrize("segment", ["a", "ü"])
def test_bytes_are_bounded(segment: str) -> None:
    """256 bytes of UTF-8 are taken, a byte more is too long, and the sentence says both sizes."""
    longest = segment * (topics.MAX_BYTES // len(segment.encode()))
    assert topics.split(longest) == (longest,)
    with pytest.raises(topics.TooLong, match=r"has 257 bytes.*256 at most"):
        topics.split(longest + "a")


def test_segments_are_bounded() -> None:
    """Eight segments are taken; nine are malformed, and the sentence says both numbers."""
    assert topics.split("a.b.c.d.e.f.g.h") == tuple("abcdefgh")
    with pytest.raises(topics.Malformed, match="has 9 segments: 8 at most"):
        topics.split("a.b.c.d.e.f.g.h.i")


def test_length_is_checked_before_form() -> None:
    """Of a text that is too long and malformed too, its length is told."""
    with pytest.raises(topics.TooLong):
        topics.split("." * (topics.MAX_BYTES + 1))


def test_emptiness_is_checked_before_the_number_of_segments() -> None:
    """Of a text with an empty segment and too many of them, the empty one is told."""
    with pytest.raises(topics.Malformed, match="empty segment"):
        topics.split("a." * 9)


@pytest.mark.parametrize("text", ["a.*.b", "*.b", "*.*", "*.a.*"])
def test_a_wildcard_before_the_end_is_not_subscribable(text: str) -> None:
    """A guest may not subscribe to an inner wildcard, and the sentence says to what it may."""
    with pytest.raises(topics.NotSubscribable, match=re.escape(f"'{text}'") + ".*ends in"):
        topics.split_subscribable(text)
    assert topics.split(text)


@pytest.mark.parametrize("text", ["a", "a.b", "*", "a.*", "a.b.c.d.e.f.g.*", "a*.b", "**.a", "kernel.*"])
def test_exact_topics_and_trailing_wildcards_are_subscribable(text: str) -> None:
    """A guest may subscribe to an exact topic and to a trailing wildcard; `a*` is an ordinary text."""
    assert topics.split_subscribable(text) == tuple(text.split("."))


@pytest.mark.parametrize("text", ["", "a" * 257, "a.b.c.d.e.f.g.h.i"])
def test_what_is_no_pattern_is_not_subscribable(text: str) -> None:
    """Subscribing refuses what `split` refuses, for the same reason."""
    with pytest.raises(topics.TopicError) as split:
        topics.split(text)
    with pytest.raises(type(split.value), match=re.escape(str(split.value))):
        topics.split_subscribable(text)
