"""The launch order: all that a worker is told, once, before it seals itself.

It travels in a sealed memory file that is the worker's standard input, so that nothing of it stands in
argv or environ, where others could read it. Names of descriptors in it are numbers of inherited ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import cbor2

from capsuled.proto.grants import Grants

VERSION = 1


class OrderError(ValueError):
    """Bytes that are not a launch order of this version."""


@dataclass(frozen=True)
class Descriptors:
    """Numbers of the descriptors that the worker inherits, besides 0 (the order), 1 and 2 (its output)."""

    module: int
    """Sealed memory file with what the module was compiled to (`blob`)."""
    edge: int
    """Bound Unix stream socket, on which the worker listens and the backbone connects."""
    control: int
    """Sequenced-packet socket to the supervisor; its end of file means that the supervisor is gone."""
    log: int
    """Sequenced-packet socket for log lines."""
    ledger: int
    """Sealed memory file of the ledger page."""


@dataclass(frozen=True)
class WorkerLimits:
    """The part of a manifest's limits that the worker puts on itself or on its guest. Bytes, seconds."""

    memory: int
    process_memory: int
    cpu_time: int
    open_files: int
    max_payload: int
    largest_payload: int
    """The largest that any capsule may publish, and this one receive."""
    publish_bytes_per_second: int
    publish_messages_per_second: int
    queue_messages: int
    queue_bytes: int
    log_bytes_per_second: int


Namespaces = Literal["none", "all", "user"]
"""`all` of the worker's own but the user's; `user`: that one first, as it needs no privilege."""


@dataclass(frozen=True)
class Confinement:
    """Which layers the worker puts around itself. It ends when one of these cannot be held."""

    user: int | None
    """Number of the user and group that it becomes; None: it stays the supervisor's."""
    namespaces: Namespaces
    landlock: bool
    seccomp: bool


@dataclass(frozen=True)
class Interceptor:
    """A subscription that exists before the guest's first instruction."""

    handle: int
    pattern: str
    action: str


@dataclass(frozen=True)
class Order:
    """See the module's docstring."""

    name: str
    instance: bytes
    engine: str
    descriptors: Descriptors
    limits: WorkerLimits
    grants: Grants
    confinement: Confinement
    interceptors: tuple[Interceptor, ...] = ()
    config: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Key to CBOR item."""


def encode(order: Order) -> bytes:
    """The order's bytes."""
    return cbor2.dumps({"version": VERSION, **asdict(order)})


def decode(data: bytes) -> Order:
    """The order in `data`. Raises `OrderError`; the supervisor is trusted, so this guards against mixed versions."""
    try:
        fields: dict[str, Any] = cbor2.loads(data)
        version = fields.pop("version")
        if version != VERSION:
            raise OrderError(f"the launch order has version {version}; this worker reads {VERSION}")
        grants = fields.pop("grants")
        return Order(
            descriptors=Descriptors(**fields.pop("descriptors")),
            limits=WorkerLimits(**fields.pop("limits")),
            confinement=Confinement(**fields.pop("confinement")),
            grants=Grants(*(tuple(grants[each]) for each in ("publish", "subscribe", "retain"))),
            interceptors=tuple(Interceptor(**each) for each in fields.pop("interceptors")),
            **fields,
        )
    except (cbor2.CBORError, AttributeError, KeyError, TypeError) as exc:
        raise OrderError(f"not a launch order: {exc}") from exc
