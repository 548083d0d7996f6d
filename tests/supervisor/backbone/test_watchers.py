"""Who is shown which message: prefixes of the spine, patterns of the taps."""

from __future__ import annotations

import pytest

from capsuled.proto import topics
from capsuled.supervisor.backbone.watchers import MAX_PREFIXES, Seen, Watchers


def seen(topic: str) -> Seen:
    return Seen(topic.encode(), 0, 1, 1000, 0, b"\0")


def shown(watchers: Watchers, topic: str) -> tuple[int, list[int]]:
    """How often it is shown on the spine, and to which taps."""
    watchers.for_spine, watchers.for_taps = [], []
    segments = topics.split(topic)
    watchers.see(segments, seen(topic))
    assert watchers.want(topic.encode(), segments) == bool(watchers.for_spine or watchers.for_taps)
    return len(watchers.for_spine), [tap for tap, _ in watchers.for_taps]


@pytest.mark.parametrize(
    ("prefix", "topic", "wanted"),
    [
        (b"a.b\0", "a.b", True),
        (b"a.b\0", "a.b.c", False),
        (b"a.b\0", "a.bc", False),
        (b"a.b", "a.bc", True),
        (b"a.", "a", False),
        (b"a.", "a.*", True),
        (b"", "kernel.x", True),
        (b"kernel.", "kernel.x", True),
        (b"A", "a", False),
    ],
)
def test_a_prefix_is_zeromqs(prefix: bytes, topic: str, wanted: bool) -> None:
    """The bytes of the topic and its NUL begin with it: exact with a NUL, a subtree with a dot."""
    watchers = Watchers()
    watchers.subscribe(prefix)
    assert shown(watchers, topic)[0] == wanted


@pytest.mark.parametrize(
    ("pattern", "topic", "wanted"),
    [
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.d", False),
        ("a.*.c", "a.b.b.c", False),
        ("*.b", "a.b", True),
        ("*", "a.b", True),
        ("*", "kernel.x", False),
        ("*.x", "kernel.x", False),
        ("kernel.*", "kernel.x", True),
    ],
)
def test_a_tap_has_a_pattern(pattern: str, topic: str, wanted: bool) -> None:
    """It may have inner wildcards; none reaches `kernel` but by its name."""
    watchers = Watchers()
    watchers.taps[4] = topics.split(pattern)
    assert shown(watchers, topic)[1] == ([4] if wanted else [])


def test_each_is_shown_once() -> None:
    """Two prefixes that match are one message on the spine, since ZeroMQ copies it; each tap is shown its own."""
    watchers = Watchers()
    watchers.subscribe(b"a.")
    watchers.subscribe(b"a.b\0")
    watchers.taps.update({1: ("a", "*"), 2: ("*",), 3: ("b",)})
    assert shown(watchers, "a.b") == (1, [1, 2])


def test_nobody_is_there() -> None:
    """Without watchers, and after the last one has gone, nothing is wanted; an end that never began is none."""
    watchers = Watchers()
    assert shown(watchers, "a") == (0, [])
    watchers.unsubscribe(b"a")
    watchers.subscribe(b"a")
    watchers.unsubscribe(b"a")
    assert shown(watchers, "a") == (0, [])


def test_so_many_prefixes_and_one_more() -> None:
    """`MAX_PREFIXES` are looked at; while there are more, all is handed to ZeroMQ, which filters itself."""
    watchers = Watchers()
    for n in range(MAX_PREFIXES):
        watchers.subscribe(b"x.%d\0" % n)
    assert shown(watchers, "a") == (0, [])
    watchers.subscribe(b"more\0")
    assert shown(watchers, "a") == (1, [])
    assert len(watchers.prefixes) == MAX_PREFIXES
    watchers.unsubscribe(b"more\0")
    assert shown(watchers, "a") == (0, [])
    assert shown(watchers, "x.7") == (1, [])


def test_a_prefix_longer_than_every_topic_is_not_kept() -> None:
    """One of the longest topic is; one byte more can match nothing, and costs nothing."""
    watchers = Watchers()
    longest = "x" * topics.MAX_BYTES
    watchers.subscribe(longest.encode() + b"\0")
    assert shown(watchers, longest) == (1, [])
    watchers.subscribe(longest.encode() + b"\0\0")
    watchers.unsubscribe(longest.encode() + b"\0\0")
    assert (len(watchers.prefixes), watchers.unlisted) == (1, 0)
