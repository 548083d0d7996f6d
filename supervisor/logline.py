"""One line of a capsule's log: its shape, what it costs in memory, and whether what a file holds is one."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import NamedTuple, cast

from capsuled.proto.control import LOG_LEVELS, LogStream
from capsuled.supervisor.clock import rfc3339
from capsuled.supervisor.control.shapes import Json, JsonObject

LINE_OVERHEAD = 256
"""Bytes that a line costs beyond its text: the other fields, and the objects that hold them."""

_KEYS = ("time", "capsule", "instance", "stream", "level", "message")
_STREAMS = frozenset(each.value for each in LogStream)


class Line(NamedTuple):
    """A line as it is kept."""

    time: datetime
    shape: JsonObject
    size: int
    """Bytes in memory, where one letter beyond the usual makes each of them take four."""


def make(
    time: datetime, capsule: str, instance: str, stream: LogStream, level: str, message: str, **more: Json
) -> Line:
    """A line of the contract's shape; `more` keys stand behind it."""
    shape = {
        "time": rfc3339(time),
        "capsule": capsule,
        "instance": instance,
        "stream": stream.value,
        "level": level,
        "message": message,
        **more,
    }
    return _kept(time, shape, message)


def lost(time: datetime, capsule: str, count: int) -> Line:
    """What stands in a file where lines are missing."""
    message = f"lost: {count} lines that the disk did not take"
    return make(time, capsule, "", LogStream.SUPERVISOR, "warn", message, lost=count)


def parse(data: bytes, capsule: str) -> Line | None:
    """The line of this capsule in one line of a file; None when it is none: half of one, or somebody else's words."""
    try:
        found: object = json.loads(data)
        if not isinstance(found, dict):
            return None
        table = cast("dict[str, object]", found)
        texts = {key: value for key in _KEYS if isinstance(value := table.get(key), str)}
        if len(texts) < len(_KEYS) or texts["capsule"] != capsule:
            return None
        if texts["stream"] not in _STREAMS or texts["level"] not in LOG_LEVELS:
            return None
        time = datetime.fromisoformat(texts["time"].replace("Z", "+00:00"))
    except (ValueError, RecursionError):
        return None
    if time.tzinfo is None:
        return None
    count = table.get("lost")
    more: dict[str, Json] = {"lost": count} if isinstance(count, int) else {}
    return _kept(time, {**texts, **more}, texts["message"])


def _kept(time: datetime, shape: JsonObject, message: str) -> Line:
    return Line(time, shape, sys.getsizeof(message) + LINE_OVERHEAD)
