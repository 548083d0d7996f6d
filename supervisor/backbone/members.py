"""A member: one attached capsule, as the backbone knows it. Who it is was said by the supervisor alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from capsuled.proto import ledger, topics
from capsuled.proto.bucket import Bucket
from capsuled.proto.grants import Grants
from capsuled.proto.refusals import Errno, Refusal
from capsuled.proto.topics import Segments, TopicError
from capsuled.supervisor.backbone.outbox import Outbox

CONTROL_RATE = 256
"""Control records per second (and their burst) that a worker may send: a subscription costs all members their
cached routes, so that a worker which repeats it for ever must wait for it, alone."""

MAX_ROUTES = 1024
"""Topics of one publisher that are cached; a publisher of ever new topics pays for each one itself."""


@dataclass(frozen=True)
class Admission:
    """What the supervisor says of a capsule when it attaches it. Bytes, seconds."""

    index: int
    name: str
    instance: bytes
    principal: str
    path: str
    """Of the edge's listening socket."""
    peer: str
    """`uid:gid:pid` that must stand at the other end."""
    grants: Grants
    max_payload: int
    publish_bytes_per_second: int
    publish_messages_per_second: int
    queue_messages: int
    queue_bytes: int
    subscriptions: tuple[tuple[int, str, bool], ...] = ()
    """Handle, pattern, and whether the runtime owns it: interceptors, and what an earlier epoch acknowledged."""
    standby: bool = False
    """Its subscriptions reach it not yet, or no more: another instance of its capsule has them (`Router.succeed`)."""


@dataclass(eq=False)
class Subscription:
    """One handle of one member."""

    member: int
    handle: int
    text: str
    pattern: Segments
    runtime_owned: bool
    since: int
    """Global sequence number when it began: no message up to this one is its."""
    matched: int = 0
    """Messages routed to it; those still counted by cached routes are not in yet."""
    lagged: int = 0
    """Messages of it that were lost in the outbox."""


class Route:
    """Where the messages of one publisher on one topic go. Cached; built anew when subscriptions change."""

    __slots__ = ("count", "extra", "outboxes", "retained", "segments", "subscriptions", "topic", "watched")

    def __init__(
        self,
        outboxes: tuple[Outbox, ...],
        subscriptions: dict[int, dict[Subscription, None]],
        topic: bytes = b"",
        segments: Segments = (),
        *,
        watched: bool = False,
        retained: bool = False,
    ) -> None:
        self.topic = topic
        self.segments = segments
        self.watched = watched
        """Whether the spine or a tap wants its messages."""
        self.retained = retained
        """Whether the last one of them is kept for later subscribers."""
        self.extra = watched or retained
        self.outboxes = outboxes
        self.subscriptions = subscriptions
        """By member index. Dicts as ordered sets: a subscription that ends is taken out of what still waits."""
        self.count = 0
        """Messages that went this way and are not in the subscriptions' `matched` yet."""

    def settle(self) -> None:
        """Count what went this way at the subscriptions."""
        if self.count:
            for group in self.subscriptions.values():
                for subscription in group:
                    subscription.matched += self.count
            self.count = 0


@dataclass
class Member:
    """One attached capsule."""

    admission: Admission
    outbox: Outbox
    bucket: Bucket
    control_bucket: Bucket
    origin: int
    """Origin index of what it publishes on its own behalf."""
    subscriptions: dict[int, Subscription] = field(default_factory=dict[int, Subscription])
    routes: dict[bytes, Route] = field(default_factory=dict[bytes, Route])
    known_origins: set[int] = field(default_factory=set[int])
    published: int = 0
    """Messages routed for it."""
    received: int = 0
    """Publish records read from it in this epoch, refused ones included."""
    next_count: int | None = None
    """Low 32 bits of the count that its next publish should have; None before its HELLO."""
    missing: int = 0
    """Publishes that it counted and that never arrived."""
    refused: Counter[str] = field(default_factory=Counter[str])
    """By code: what its worker should have refused. An honest worker leaves this empty."""
    closed_matched: int = 0
    """Of subscriptions that it has ended, without what waited for them then."""
    closed_lagged: int = 0
    requests: int = 0
    """Requests that it has made. Each waits, or has ended in one of the two below."""
    answered: int = 0
    failed: int = 0
    late: int = 0
    """What it said too late: answers to requests that were over, losses of such, ends of subscriptions that there
    were no more."""
    standby: bool = False
    """See `Admission`. What it subscribes to is noted, and matches nothing."""
    table_changed: bool = False
    """Whether its subscriptions differ from what the supervisor was last told."""

    def settle(self) -> None:
        """Count what it has published at the subscriptions that it was for."""
        for route in self.routes.values():
            route.settle()

    def forget_routes(self) -> None:
        """Have its routes built anew, without losing their counts."""
        self.settle()
        self.routes.clear()

    def refuse(self, errno: Errno) -> None:
        """Count what its worker should have refused."""
        self.refused[errno.name.lower()] += 1

    def publishable(self, topic: bytes) -> Segments | Errno:
        """The segments of a topic that it may publish on, or the first rule that the topic breaks."""
        if len(topic) > topics.MAX_BYTES:
            return Errno.NAMETOOLONG
        try:
            segments = topics.split(topic.decode())
        except UnicodeDecodeError:
            return Errno.ILSEQ
        except TopicError:
            return Errno.INVAL
        return Errno.NOTCAPABLE if self.admission.grants.publisher(segments) is None else segments

    def subscribable(self, handle: int, text: bytes) -> Segments | Refusal:
        """The segments of a pattern that it may subscribe to with this handle, or has already; or the refusal."""
        present = self.subscriptions.get(handle)
        if present is not None and present.text.encode() == text:
            return present.pattern  # asked again after a change of epoch
        if len(text) > topics.MAX_BYTES:
            return Refusal(Errno.NAMETOOLONG, f"a pattern of {len(text)} bytes: {topics.MAX_BYTES} at most")
        try:
            decoded = text.decode()
            pattern = topics.split_subscribable(decoded)
        except UnicodeDecodeError:
            return Refusal(Errno.ILSEQ, f"the pattern {text[:32]!r} is not UTF-8")
        except TopicError as exc:
            return Refusal(Errno.INVAL, str(exc))
        if self.admission.grants.subscriber(pattern) is None:
            return Refusal(Errno.NOTCAPABLE, f"subscribe to '{decoded}' is not granted")
        if len(self.subscriptions) >= ledger.MAX_SUBSCRIPTIONS:
            what = f"{ledger.MAX_SUBSCRIPTIONS} are open, the most"
            return Refusal(Errno.MFILE, f"subscribe to '{decoded}': {what}")
        if present is not None or not handle:
            return Refusal(Errno.BADF, f"subscribe to '{decoded}': the handle {handle} is in use or is 0")
        return pattern
