"""Envelopes: what a guest gets from a receive. CBOR with definite lengths and keys in a fixed order.

    {"messages": [message, …], "dropped": n, "lagged": n}
    message = {"topic", "payload", "source", "instance", "principal", "seq", "time"[, "cause"][, "request"|"retained"]}

Built by splicing: the payload's bytes are taken as they came, since they are one CBOR item already, and what
is the same for all messages of a source is encoded once. A small reader in C can walk the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

MAX_DRAIN_BYTES = 10 * 1024 * 1024
"""Most payload bytes that one poll or receive hands over."""

_U16, _U32, _U64 = Struct(">BH"), Struct(">BI"), Struct(">BQ")
_SHORT, _ONE, _TWO, _FOUR, _EIGHT = 24, 1 << 8, 1 << 16, 1 << 32, 1 << 64


def head(major: int, value: int) -> bytes:
    """The head of an item: major type 0 to 7 and its argument in the shortest form (RFC 8949 §3)."""
    kind = major << 5
    if value < _SHORT:
        return bytes((kind | value,))
    if value < _ONE:
        return bytes((kind | 24, value))
    if value < _TWO:
        return _U16.pack(kind | 25, value)
    if value < _FOUR:
        return _U32.pack(kind | 26, value)
    if value < _EIGHT:
        return _U64.pack(kind | 27, value)
    raise ValueError(f"{value} does not fit an item's head")


def text(value: bytes) -> bytes:
    """A text string from its UTF-8."""
    return head(3, len(value)) + value


_TOPIC = tuple(head(5, 7 + more) + text(b"topic") for more in range(3))
"""The head of a message with so many of the optional keys."""
_PAYLOAD = text(b"payload")
_TIME = text(b"time")
_CAUSE = text(b"cause")
_TRUE = b"\xf5"

REQUEST = text(b"request") + _TRUE
"""Of a message whose sender waits for an answer."""

RETAINED = text(b"retained") + _TRUE
"""Of a message that was kept for this subscriber, and was sent before it subscribed."""

_MESSAGES = head(5, 3) + text(b"messages")
_DROPPED = text(b"dropped")
_LAGGED = text(b"lagged")


def source_part(name: bytes, instance: bytes, principal: bytes) -> bytes:
    """The keys and values that every message of one source shares, up to the value of `seq`."""
    return b"".join(
        (
            text(b"source"),
            text(name),
            text(b"instance"),
            head(2, len(instance)),
            instance,
            text(b"principal"),
            text(principal),
            text(b"seq"),
        )
    )


def message(
    topic: bytes, payload: bytes, source: bytes, seq: int, time_ms: int, cause: int, extra: bytes = b""
) -> bytes:
    """One message; `source` is its source's `source_part`, `cause` 0 where it has none.

    `extra` is b"" or one more key with its value: `REQUEST` or `RETAINED`.
    """
    parts = (
        _TOPIC[bool(cause) + bool(extra)],
        text(topic),
        _PAYLOAD,
        payload,
        source,
        head(0, seq),
        _TIME,
        head(0, time_ms),
    )
    return b"".join(parts) + (_CAUSE + head(0, cause) if cause else b"") + extra


def envelope(messages: Sequence[bytes], dropped: int, lagged: int) -> bytes:
    """The envelope around messages that `message` made."""
    return b"".join(
        (
            _MESSAGES,
            head(4, len(messages)),
            *messages,
            _DROPPED,
            head(0, dropped),
            _LAGGED,
            head(0, lagged),
        )
    )


def overhead(count: int, dropped: int, lagged: int) -> int:
    """Bytes of an envelope with `count` messages, less those of the messages."""
    fixed = len(_MESSAGES) + len(_DROPPED) + len(_LAGGED)
    return fixed + len(head(4, count)) + len(head(0, dropped)) + len(head(0, lagged))
