"""Messages for people and for JSON, which has neither bytes nor all of CBOR's numbers.

Bytes and simple values are written as CBOR's diagnostic notation has them, ``h'00ff'`` and ``simple(99)`` (RFC 8949,
section 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, cast

import cbor2

from capsuled.proto import payloads
from capsuled.supervisor import clock
from capsuled.supervisor.control.shapes import Json, JsonObject

SHOWN_BYTES = 64 * 1024
"""A larger payload is not decoded: as objects it may take 80 times its size, and nobody reads it."""


def message(stamped: Mapping[str, Any]) -> JsonObject:
    """A message as the backbone tells it, as a line of a tap."""
    return {**hop(stamped), "payload": payload(stamped["payload"])}


def hop(stamped: Mapping[str, Any]) -> JsonObject:
    """The same without its payload, as a line of a trace."""
    return {
        "time": clock.rfc3339(datetime.fromtimestamp(stamped["time_ms"] / 1000, timezone.utc)),
        "topic": stamped["topic"],
        "source": stamped["source"],
        "instance": stamped["instance"].hex(),
        "principal": stamped["principal"],
        "seq": stamped["seq"],
        "cause": stamped["cause"] or None,
    }


def payload(data: bytes) -> Json:
    """A payload's value; what is too large, or is no CBOR of the accepted form, says so."""
    if len(data) > SHOWN_BYTES:
        return {"bytes": len(data)}
    try:
        return value(payloads.decode(data))
    except payloads.NotCbor as exc:
        return {"bytes": len(data), "malformed": str(exc)}


def value(item: object) -> Json:
    """A decoded item in JSON."""
    if item is None or isinstance(item, (bool, int, str)):
        return item
    if isinstance(item, float):
        return item if math.isfinite(item) else str(item)
    if isinstance(item, bytes):
        return f"h'{item.hex()}'"
    if isinstance(item, cbor2.CBORSimpleValue):
        return f"simple({item.value})"
    if isinstance(item, list):
        return [value(each) for each in cast("list[object]", item)]
    if isinstance(item, dict):
        return {str(value(key)): value(each) for key, each in cast("dict[object, object]", item).items()}
    return str(item)
