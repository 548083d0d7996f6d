"""What the control socket can ask of the daemon, and how the daemon says no.

The socket knows HTTP, levels and bounds; it knows nothing about capsules. The daemon implements
`Operations` and knows nothing about HTTP. Everything here runs on the supervisor's one thread: what is not
`async` must answer from memory, at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from capsuled.supervisor.control.shapes import Json, JsonObject

if TYPE_CHECKING:
    from capsuled.supervisor.control.streams import Follower

Wait = Literal["ready", "down"]
HealthLevel = Literal["alive", "ready"]
AclVerb = Literal["publish", "subscribe"]


class Verb(str, Enum):
    """What an operator does to a capsule."""

    START = "start"
    """Want it up."""
    STOP = "stop"
    """Want it down: cancelled first, killed at the end of its `stop_timeout`."""
    RESTART = "restart"
    """Stop it, then start it."""
    KILL = "kill"
    """Want it down, with SIGKILL and at once; the exit's reason is `killed-by-operator`."""
    RESET = "reset-failed"
    """Forget its failures; one that has failed and is wanted up starts again."""


REACHED_BY: Mapping[Verb, Wait] = {
    Verb.START: "ready",
    Verb.STOP: "down",
    Verb.RESTART: "ready",
    Verb.KILL: "down",
    Verb.RESET: "ready",
}
"""What may be waited for after each verb; anything else would contradict it."""


class ActResult(NamedTuple):
    """`change` names what was set going, `capsule` is the capsule now, `done` says it was waited for."""

    change: str
    capsule: JsonObject
    done: bool


class Refused(Exception):
    """A request that is not carried out: a sentence with the next step, and facts for programs."""

    def __init__(self, message: str, detail: JsonObject | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail: dict[str, Json] = dict(detail or {})


class NoSuchCapsule(Refused):
    """No manifest has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"cannot find capsule '{name}': `capsulectl list` names those there are", {"name": name}
        )


class WaitTimedOut(Refused):
    """The time to wait is over. What was begun goes on."""


class Failed(Refused):
    """What was waited for cannot come any more: the capsule failed, or somebody wants it otherwise now."""


class Conflict(Refused):
    """The request contradicts itself or the present state, such as to stop and wait until ready."""


class ShuttingDown(Refused):
    """The supervisor is on its way out and starts nothing any more."""


class Operations(Protocol):
    """The daemon, as the control socket sees it. Shapes are those of the control contract.

    A method that takes a name raises `NoSuchCapsule`. Any other exception than a `Refused` is a defect: it is
    logged, the peer gets ``500 internal``, and the supervisor goes on.
    """

    def status(self) -> JsonObject:
        """``{"pid", "version", "uptime", "states": {state: n}, "isolation", "engines"}``"""
        ...

    def capsules(self) -> Sequence[JsonObject]:
        """Every capsule, by name."""
        ...

    def capsule(self, name: str) -> JsonObject: ...

    async def act(self, name: str, verb: Verb, *, wait: Wait | None, timeout: float | None) -> ActResult:
        """Set a change going, and wait for its end when `wait` says for which.

        Idempotent: to start what is up is no error. Without `wait` it returns when the change is recorded,
        with `done` false. `timeout` is in seconds; None waits until the outcome is known.

        It is cancelled when the peer hangs up, and that ends the waiting only, never the change: the change
        is recorded before the first checkpoint.

        Raises `WaitTimedOut`, `Failed`, `Conflict`, `ShuttingDown`. To start what has failed is a `Conflict`
        that says to use ``reset-failed``.
        """
        ...

    async def recall_logs(self, name: str) -> None:
        """Bring back what a supervisor before this one has logged of it, so that `logs` has it too."""
        ...

    async def reload(self, *, dry_run: bool) -> JsonObject:
        """Read the manifests again and set going what follows from them; with `dry_run` only say what would.

        ``{"dry_run", "added": [name], "removed": [name], "changed": [{"name", "why": [sentence]}],
        "unchanged": [name], "kept": [name], "faults": [{"file", "key", "message"}]}``

        `kept` go on as they are, because what their manifest says now is no manifest. A peer that hangs up cancels
        it, which leaves all of the plan or nothing of it. Raises `Failed`, `Conflict`, `ShuttingDown`.
        """
        ...

    async def settle(self, names: Sequence[str], timeout: float | None) -> None:
        """Wait until these capsules are as they are wanted; one that is not there any more is.

        Raises `Failed` for one that cannot become so, `WaitTimedOut`.
        """
        ...

    def logs(self, name: str, lines: int, since: datetime | None) -> Sequence[JsonObject]:
        """The last `lines` log lines that are kept, oldest first, from the first one on that is not older than `since`
        (aware, UTC).
        """
        ...

    def follow_logs(self, name: str) -> AbstractContextManager[Follower]:
        """What the capsule logs from now on: `Broadcast.follow` of the capsule's own broadcast.

        Entering it and then reading `logs` happens without a checkpoint in between, so that no line is
        missing between the two and none comes twice. It outlives instances; closing the broadcast ends it.
        """
        ...

    def why(self, name: str) -> JsonObject:
        """``{"name", "state", "exits": [{"time", "instance", "reason", …evidence}], "next"}``

        The newest exit comes first. `next` is a sentence: what happens now, or what the operator has to do.
        """
        ...

    async def bus(self) -> JsonObject:
        """``{"balanced", "epoch", "capsules", "subscriptions"}``. Async: the backbone is another process."""
        ...

    async def publish(self, topic: str, payload: bytes) -> int:
        """Publish one CBOR item on the operator's behalf; returns its global sequence number.

        `topic` is well-formed and not the supervisor's own, `payload` is of the accepted form. Raises `Failed`.
        """
        ...

    def tap(self, pattern: str) -> AbstractContextManager[Follower]:
        """Messages that match `pattern` from now on, under the same promise as `follow_events`."""
        ...

    async def trace(self, seq: int) -> JsonObject:
        """``{"id", "hops": [{"time", "topic", "source", "principal", "seq", "cause"}], "cut"}``

        The chain of causes that the message `seq` belongs to, its first cause first; no hops when it is not
        remembered. Raises `Failed`.
        """
        ...

    def acl(self, capsule: str, verb: AclVerb, topic: str) -> JsonObject:
        """``{"capsule", "verb", "topic", "allowed", "grant"}``; `grant` is None when none says so.

        `topic` is well-formed, and subscribable for that verb: the route has checked it.
        """
        ...

    async def metrics(self) -> str:
        """All counts as OpenMetrics has them, those of the ledger too where the backbone answers."""
        ...

    def health(self, level: HealthLevel) -> tuple[bool, JsonObject]:
        """Whether all is well, and ``{"healthy", "level", …what is missing}``."""
        ...

    def events(self, since: datetime | None) -> Sequence[JsonObject]:
        """The lifecycle events that are kept, oldest first, none older than `since` (aware, UTC)."""
        ...

    def follow_events(self) -> AbstractContextManager[Follower]:
        """Lifecycle events from now on, under the same promise as `follow_logs`."""
        ...

    def shutdown(self) -> None:
        """Set the shutdown going: set an event and return. The answer is sent before the next checkpoint."""
        ...
