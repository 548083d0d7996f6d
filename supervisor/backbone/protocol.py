"""What the supervisor and the backbone tell each other: CBOR items behind a length, over a socket pair.

To the backbone:   configure, attach, begin, detach, succeed, figures, ping, publish, tap, untap, trace, stop
To the supervisor: subscriptions, detached, figures, pong, published, tapped, traced, fault

The supervisor sends `configure`, the members that live already as `attach`, and then `begin`: no worker is
greeted, and so none publishes, before all subscriptions of the last epoch stand again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from struct import Struct
from typing import Any, cast

import cbor2

from capsuled.proto import records
from capsuled.proto.grants import Grants
from capsuled.supervisor.backbone.members import Admission
from capsuled.supervisor.backbone.origins import Origin

Json = dict[str, Any]

_LENGTH = Struct(">I")

MAX_TAPPED = 4 * 1024 * 1024
"""Bytes that may wait for the supervisor before a tap loses messages: it must not wait for who looks on."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Bound of one item: the figures of ten thousand capsules with all their subscriptions are below it."""


class ProtocolError(Exception):
    """Bytes between supervisor and backbone that are no message: one of the two is broken."""


@dataclass(frozen=True)
class Settings:
    """What the supervisor configures a backbone with, before anything else. Raises ValueError."""

    epoch: int
    """Number of the backbone's process, each higher than the last one's."""
    total_queue_bytes: int
    """Bound of all outboxes together."""
    largest_payload: int
    """The largest payload that any capsule may publish, in bytes."""
    spine: str = ""
    """Folder of the spine's sockets; empty: there is no spine."""

    def __post_init__(self) -> None:
        if not 0 <= self.epoch <= records.MAX_EPOCH:
            raise ValueError(
                f"an epoch of {self.epoch}: only 0 to {records.MAX_EPOCH} leave room for sequence numbers"
            )


def pack(message: Json) -> bytes:
    """One message with its length."""
    data = cbor2.dumps(message)
    return _LENGTH.pack(len(data)) + data


class Unpacker:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Json]:
        """The messages that `data` completes. Raises `ProtocolError`."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE:
                raise ProtocolError(f"a message of {length} bytes: {MAX_MESSAGE} at most")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            data = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                message: object = cbor2.loads(data)
            except cbor2.CBORDecodeError as exc:
                raise ProtocolError(f"a message that is not CBOR: {exc}") from exc
            if not isinstance(message, dict) or "op" not in message:
                raise ProtocolError(f"a message of {length} bytes without an op")
            yield cast(Json, message)


def configure(settings: Settings) -> Json:
    """The message that `settings_of` reads."""
    return {"op": "configure", **asdict(settings)}


def attach(admission: Admission) -> Json:
    """The message that `admission_of` reads."""
    return {"op": "attach", **asdict(admission)}


def stamped(topic: bytes, origin: Origin, seq: int, time_ms: int, cause: int) -> Json:
    """What the backbone knows of a message, as a tap or a trace tells it."""
    return {
        "topic": topic.decode(),
        "source": origin.name,
        "instance": origin.instance,
        "principal": origin.principal,
        "seq": seq,
        "time_ms": time_ms,
        "cause": cause,
    }


def settings_of(message: Json) -> Settings:
    """The settings of a `configure`. Raises `ProtocolError`."""
    try:
        return Settings(**_fields(message))
    except (TypeError, ValueError) as exc:
        raise ProtocolError(f"a configure that cannot be read: {exc}") from exc


def admission_of(message: Json) -> Admission:
    """The admission of an `attach`. Raises `ProtocolError`."""
    fields = _fields(message)
    try:
        grants = fields.pop("grants")
        fields["grants"] = Grants(*(tuple(grants[each]) for each in ("publish", "subscribe", "retain")))
        fields["subscriptions"] = tuple((h, p, o) for h, p, o in fields.pop("subscriptions"))
        return Admission(**fields)
    except (KeyError, TypeError, ValueError) as exc:
        raise ProtocolError(f"an attach that cannot be read: {exc!r}") from exc


def _fields(message: Json) -> Json:
    return {key: value for key, value in message.items() if key != "op"}
