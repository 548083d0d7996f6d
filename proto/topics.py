"""Topics and patterns: one grammar and one matcher, for delivery and for both kinds of grant.

A topic is UTF-8 text, its segments separated by dots, none of them empty: ``room.7.temperature``.
In a pattern a segment that is exactly ``*`` is a wildcard. At the end it stands for one *or more*
segments, elsewhere for exactly one; ``a*`` is an ordinary literal.

There is one matcher because two that disagree are a hole: a grant that means one segment where
delivery means a subtree gives away the subtree.
"""

from __future__ import annotations

MAX_BYTES = 256
"""Longest topic or pattern in bytes of UTF-8."""

MAX_SEGMENTS = 8
"""Most segments of a topic or pattern; it also bounds the depth of the subscription table."""

SEPARATOR = "."
WILDCARD = "*"

RESERVED = "kernel"
"""First segment of the supervisor's own events. No wildcard reaches it: it must be spelled out."""

Segments = tuple[str, ...]


class TopicError(ValueError):
    """A text that is not a topic or pattern; its message says which rule it breaks."""


class TooLong(TopicError):
    """More than `MAX_BYTES` bytes."""


class Malformed(TopicError):
    """An empty segment, more than `MAX_SEGMENTS` of them, or a NUL."""


class NotSubscribable(TopicError):
    """A wildcard that is not the last segment, in a pattern that a guest wants to subscribe to."""


def split(text: str) -> Segments:
    """The segments of a topic or pattern.

    Raises `TooLong` or `Malformed`, whose messages name the text and the rule.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise TooLong(f"'{text[:32]}…' has {size} bytes: a topic or pattern has {MAX_BYTES} at most")
    if "\0" in text:
        raise Malformed(f"{text!r} holds a NUL: on the wire that ends a topic")
    segments = tuple(text.split(SEPARATOR))
    if "" in segments:
        raise Malformed(f"'{text}' has an empty segment: write segments separated by single dots")
    if len(segments) > MAX_SEGMENTS:
        raise Malformed(f"'{text}' has {len(segments)} segments: {MAX_SEGMENTS} at most")
    return segments


def split_subscribable(text: str) -> Segments:
    """The segments of a pattern that a guest may subscribe to: exact, or with a trailing wildcard only.

    Raises what `split` raises, and `NotSubscribable`.
    """
    segments = split(text)
    check_subscribable(segments)
    return segments


def check_subscribable(pattern: Segments) -> None:
    """Raise `NotSubscribable` when a wildcard stands before the last segment."""
    if WILDCARD in pattern[:-1]:
        raise NotSubscribable(
            f"'{SEPARATOR.join(pattern)}' has a wildcard before its last segment: "
            "subscribe to an exact topic or to one that ends in '.*'"
        )


def matches(pattern: Segments, topic: Segments) -> bool:
    """Whether `pattern` matches `topic`.

    The lengths are compared by counting first, so that neither can be a mere prefix of the other.
    """
    if topic[0] == RESERVED and pattern[0] != RESERVED:
        return False
    fixed = len(pattern) - 1
    if pattern[-1] == WILDCARD:
        if len(topic) < len(pattern):
            return False
    elif len(topic) != len(pattern) or pattern[-1] != topic[-1]:
        return False
    for i in range(fixed):  # noqa: SIM110 - a generator takes twice as long, and this runs for every grant
        if pattern[i] != topic[i] and pattern[i] != WILDCARD:
            return False
    return True


def covers(grant: Segments, request: Segments) -> bool:
    """Whether `grant` matches every topic that `request` can match.

    Segment by segment: a wildcard of the grant covers whatever stands there, a literal only itself.
    A request that ends in a wildcard stands for one or more segments, so that only a grant which
    ends in one as well, no later than the request, can cover it.
    """
    if (grant[0] == RESERVED) != (request[0] == RESERVED):
        return False
    open_grant, open_request = grant[-1] == WILDCARD, request[-1] == WILDCARD
    if open_request and not open_grant:
        return False
    if open_grant:
        if len(request) < len(grant):
            return False
        compared = len(grant) - 1
    else:
        if len(request) != len(grant):
            return False
        compared = len(grant)
    return all(grant[i] in (WILDCARD, request[i]) for i in range(compared))
