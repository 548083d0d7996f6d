"""What is remembered of a capsule beyond its instances and the supervisor: its budget, and its last ends. A rule.

It is kept by name: a capsule that has failed too often stays `failed` when the supervisor is restarted, and what it
died of can be asked for afterwards. Failures are counted on a clock that nobody can set (clock_gettime(2),
CLOCK_BOOTTIME), so that they belong to one boot of the machine; ends are told with the time of day, and stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from capsuled.proto.control import Reason
from capsuled.supervisor import clock
from capsuled.supervisor.control.shapes import Json, JsonObject
from capsuled.supervisor.manifest import Manifest

KEPT_EXITS = 16
"""Ends that are remembered of each capsule."""

MAX_BYTES = 1024 * 1024
"""Of what is written: sixteen ends with ten log lines of 4 KiB each have room in it."""


class ExitRecord(NamedTuple):
    """An end that is remembered."""

    time: datetime
    instance: str
    """Empty where there was no process."""
    reason: Reason
    evidence: JsonObject

    def shape(self) -> JsonObject:
        """As the control socket shows it."""
        return {"time": clock.rfc3339(self.time), "instance": self.instance, **self.evidence}


class Moment(NamedTuple):
    """A time on the clock that failures are counted on."""

    boot: str
    """Which boot of the machine it is of."""
    seconds: float
    """Since then."""


@dataclass(frozen=True)
class History:
    """What is remembered of one capsule."""

    attempt: int = 1
    """See `restart.Budget`."""
    ages: tuple[float, ...] = ()
    """How long ago each of its failures was, the oldest first. Seconds."""
    failed: str = ""
    """The fingerprint of the manifest that it has failed too often with; empty: it has not."""
    running: str = ""
    """Its instance, while it has one: a supervisor that finds this has lost it."""
    exits: tuple[ExitRecord, ...] = field(default=())
    """Its last ends, the newest first."""


class HistoryInvalid(Exception):
    """What is no history; the message says why."""


def fingerprint(manifest: Manifest, module: str) -> str:
    """Of a manifest and, where it does not name its module's hash, of the module: another one is another capsule."""
    return hashlib.sha256(f"{manifest!r}\n{module}".encode()).hexdigest()


def encode(history: History, now: Moment) -> bytes:
    """As it is written. What has grown too large loses its oldest ends."""
    exits = history.exits[:KEPT_EXITS]
    while len(data := _encode(replace(history, exits=exits), now)) > MAX_BYTES and exits:
        exits = exits[:-1]
    return data


def decode(data: bytes, now: Moment) -> History:
    """What `encode` has made, as it is `now`: failures of another boot are forgotten. Raises `HistoryInvalid`."""
    if len(data) > MAX_BYTES:
        raise HistoryInvalid(f"it has {len(data)} bytes: {MAX_BYTES} at most")
    try:
        read = _STORED.validate_json(data)
        exits = tuple(_exit(each) for each in read.exits)
    except (ValidationError, ValueError, OverflowError, RecursionError) as exc:
        first = exc.errors(include_url=False)[0] if isinstance(exc, ValidationError) else None
        why = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"]))) if first else str(exc)
        raise HistoryInvalid(why) from exc
    if read.boot != now.boot or read.seconds > now.seconds:
        return History(running=read.running, exits=exits)
    ages = tuple(now.seconds - each for each in sorted(read.failures) if each <= now.seconds)
    return History(read.attempt, ages, read.failed, read.running, exits)


@checked(config=ConfigDict(extra="forbid"), frozen=True)
class _Exit:
    time: datetime
    instance: Annotated[str, Field(max_length=64)]
    reason: Reason
    evidence: dict[str, Any]


@checked(config=ConfigDict(extra="forbid"), frozen=True)
class _Stored:
    version: Literal[1]
    boot: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    attempt: Annotated[int, Field(ge=1)]
    failures: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=10_000)]
    failed: Annotated[str, Field(max_length=64)]
    running: Annotated[str, Field(max_length=64)]
    exits: Annotated[list[_Exit], Field(max_length=KEPT_EXITS)]


_STORED = TypeAdapter(_Stored)


def _exit(read: _Exit) -> ExitRecord:
    if read.time.tzinfo is None:
        raise ValueError(f"exits: {read.time.isoformat()} has no time zone")
    json.dumps(read.evidence, allow_nan=False)  # what cannot be shown cannot be kept
    return ExitRecord(read.time.astimezone(timezone.utc), read.instance, read.reason, read.evidence)


def _encode(history: History, now: Moment) -> bytes:
    exits: Sequence[Json] = [
        {
            "time": clock.rfc3339(each.time),
            "instance": each.instance,
            "reason": each.reason.value,
            "evidence": each.evidence,
        }
        for each in history.exits
    ]
    stored: JsonObject = {
        "version": 1,
        "boot": now.boot,
        "seconds": now.seconds,
        "attempt": history.attempt,
        "failures": [now.seconds - age for age in history.ages],
        "failed": history.failed,
        "running": history.running,
        "exits": exits,
    }
    return json.dumps(stored).encode() + b"\n"
