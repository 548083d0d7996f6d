"""Admissions for the backbone's tests, and records as a worker makes them."""

from __future__ import annotations

from capsuled.proto import records
from capsuled.proto.grants import Grants
from capsuled.proto.records import UpKind
from capsuled.supervisor.backbone.members import Admission

Tables = tuple[tuple[int, str, bool], ...]


def admission(
    index: int,
    *,
    name: str = "",
    principal: str = "",
    path: str = "",
    peer: str = "",
    publish: tuple[str, ...] = ("a.*",),
    subscribe: tuple[str, ...] = ("a.*",),
    max_payload: int = 1 << 20,
    byte_rate: int = 1 << 30,
    message_rate: int = 1 << 20,
    queue_messages: int = 1024,
    queue_bytes: int = 10 << 20,
    subscriptions: Tables = (),
    standby: bool = False,
) -> Admission:
    """A capsule that may do anything below `a`, and has room and rate to spare."""
    return Admission(
        index=index,
        name=name or f"c{index}",
        instance=index.to_bytes(16, "big"),
        principal=principal or f"p{index}",
        path=path,
        peer=peer,
        grants=Grants(publish, subscribe),
        max_payload=max_payload,
        publish_bytes_per_second=byte_rate,
        publish_messages_per_second=message_rate,
        queue_messages=queue_messages,
        queue_bytes=queue_bytes,
        subscriptions=subscriptions,
        standby=standby,
    )


def publish(topic: str | bytes, count: int = 0, payload: bytes = b"\0", cause: int = 0) -> bytes:
    text = topic.encode() if isinstance(topic, str) else topic
    return records.up(UpKind.PUBLISH, text, a=count, b=cause, body=payload)


def subscribe(handle: int, pattern: str | bytes) -> bytes:
    text = pattern.encode() if isinstance(pattern, str) else pattern
    return records.up(UpKind.SUBSCRIBE, text, a=handle)


def unsubscribe(handle: int) -> bytes:
    return records.up(UpKind.UNSUBSCRIBE, a=handle)
