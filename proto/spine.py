"""The spine: plain ZeroMQ PUB/SUB for what the operator trusts. What stands in its frames.

    topic NUL | stamps | payload

The wire topic ends in a NUL, so that a prefix subscription to ``a.b\\0`` is exact and one to ``a.b.`` is the subtree.
Stamps are one CBOR map; the payload is the publisher's CBOR item as it came. In the other direction, from a ZeroMQ
PUB of the operator's: topic, with or without its NUL, and payload.
"""

from __future__ import annotations

from typing import NamedTuple

import cbor2

from capsuled.proto import topics

END = b"\0"

SUBSCRIBERS = "sub"
"""Name of the socket that a ZeroMQ SUB connects to, in the spine's folder."""

PUBLISHERS = "pub"
"""Name of the socket that a ZeroMQ PUB connects to."""

OPERATOR = "operator"
"""Source and principal of what comes in here."""

SUPERVISOR = "capsuled"
"""Source and principal of the supervisor's own events, under ``kernel.``; no capsule's name is taken for it."""


class Stamps(NamedTuple):
    """What the backbone knows of a message."""

    source: str
    instance: bytes
    principal: str
    seq: int
    time_ms: int
    cause: int


def frames(topic: bytes, stamps: Stamps, payload: bytes) -> list[bytes]:
    """The frames of a message going out."""
    fields: dict[str, object] = {
        "source": stamps.source,
        "instance": stamps.instance,
        "principal": stamps.principal,
        "seq": stamps.seq,
        "time": stamps.time_ms,
    }
    if stamps.cause:
        fields["cause"] = stamps.cause
    return [topic + END, cbor2.dumps(fields), payload]


def prefix(pattern: str) -> bytes:
    """The prefix that a ZeroMQ SUB subscribes to for a topic, or for a pattern that ends in ``*``.

    Raises `topics.TopicError`.
    """
    segments = topics.split_subscribable(pattern)
    if segments[-1] != topics.WILDCARD:
        return pattern.encode() + END
    return pattern.removesuffix(topics.WILDCARD).encode()
