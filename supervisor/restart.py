"""The restart policy: whether a capsule whose process is gone is started again, and after how long.

A `Budget` belongs to the capsule's name and outlives its instances. Two things are counted in it, for two
reasons: restarts since the last stable run make the pauses longer, and failures within the last while end
the trying. A short success clears neither: a capsule that comes up, serves for a second and dies is a crash
loop all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

from capsuled.proto.control import Reason
from capsuled.supervisor.manifest import Supervision

Mode = Literal["always", "on-failure", "never"]

JITTER = 0.1
"""Part of a pause that chance takes away, so that capsules that fell together do not all rise together. It
only shortens, so that `backoff_max` holds."""

LEAST_DELAY = 0.01
"""Seconds. Shortest pause, whatever the manifest says: a crash loop must leave the supervisor's own work
its turn."""

NO_FAILURE = frozenset((Reason.OK, Reason.CANCELLED, Reason.KILLED_BY_OPERATOR, Reason.SUPERVISOR_SHUTDOWN))
"""Ends that were asked for, by the guest itself or by those who may."""


@dataclass(frozen=True)
class Policy:
    """The part of a manifest's `[supervision]` that says what follows an end. Durations in seconds."""

    mode: Mode
    backoff_initial: float
    backoff_max: float
    backoff_factor: float
    stable_after: float
    """Ready for this long, and the run was stable: the next pause is the first one again."""
    start_limit: int
    """This many failures within `start_limit_interval`, and it is not tried again. 0: there is no such
    limit."""
    start_limit_interval: float


class Next(str, Enum):
    """What follows the end of an instance."""

    STAY = "stay"
    RETRY = "retry"
    EXHAUSTED = "exhausted"


class Verdict(NamedTuple):
    """What follows, and for `RETRY` in how many seconds (else 0.0)."""

    next: Next
    delay: float = 0.0


@dataclass
class Budget:
    """What is remembered of one capsule's ends, whatever instances it had; a new manifest changes the policy only."""

    policy: Policy
    attempt: int = 1
    """Which start in a row this is, or the coming one while it waits: a first start is 1, each restart by
    policy counts on, and a run that was stable has become the first."""
    _failures: deque[float] = field(default_factory=deque[float])
    """When it failed, oldest first; at most `start_limit`, for older ones cannot matter."""

    def ended(self, reason: Reason, alive_ready_seconds: float, now: float, random: float) -> Verdict:
        """What follows an instance that ended for `reason`, after it had been ready for so long (0.0: never).

        `now` is in seconds of a monotonic clock, `random` is within 0 ≤ random < 1. Ask once for each end;
        one that the operator asked for counts for nothing, and the answer is `STAY`.
        """
        policy = self.policy
        if alive_ready_seconds >= policy.stable_after:
            self.attempt = 1
        too_often = reason not in NO_FAILURE and self._too_often(now)
        if not restarts(policy.mode, reason):
            return Verdict(Next.STAY)
        if too_often:
            return Verdict(Next.EXHAUSTED)
        pause = delay(policy, self.attempt - 1) * (1.0 - JITTER * random)
        self.attempt += 1
        return Verdict(Next.RETRY, max(LEAST_DELAY, pause))

    @property
    def failures(self) -> int:
        """How many are counted at the moment, of which the oldest may have lost its weight."""
        return len(self._failures)

    def ages(self, now: float) -> tuple[float, ...]:
        """How long ago each failure that is counted was, the oldest first. Seconds."""
        return tuple(now - each for each in self._failures)

    def restore(self, attempt: int, ages: Sequence[float], now: float) -> None:
        """Go on where another supervisor has stopped: with its `attempt` and its `ages`."""
        self.attempt = attempt
        self._failures = deque(now - age for age in ages)

    def forget(self) -> None:
        """Begin anew, as the operator asks by `reset-failed`."""
        self.attempt = 1
        self._failures.clear()

    def _too_often(self, now: float) -> bool:
        """Count a failure, and say whether it is the last that the limit allows."""
        limit, failures = self.policy.start_limit, self._failures
        if not limit:
            return False
        failures.append(now)
        while len(failures) > limit:
            failures.popleft()
        return len(failures) == limit and now - failures[0] < self.policy.start_limit_interval


def restarts(mode: Mode, reason: Reason) -> bool:
    """Whether the mode alone would start it again. What somebody stopped stays down, whatever the mode."""
    if mode == "never":
        return False
    return reason not in NO_FAILURE or (mode == "always" and reason is Reason.OK)


def delay(policy: Policy, restarts_before: int) -> float:
    """Seconds of the pause after so many restarts since the last stable run, before chance has shortened
    it."""
    if not policy.backoff_initial:
        return 0.0
    try:
        grown = policy.backoff_initial * policy.backoff_factor**restarts_before
    except OverflowError:  # 2.0 to the 1024th: that loop has been at its maximum for long
        return policy.backoff_max
    return min(policy.backoff_max, grown)


def policy(supervision: Supervision) -> Policy:
    """The part of a manifest that says what follows an end."""
    return Policy(
        mode=supervision.restart,
        backoff_initial=supervision.backoff_initial,
        backoff_max=supervision.backoff_max,
        backoff_factor=supervision.backoff_factor,
        stable_after=supervision.stable_after,
        start_limit=supervision.start_limit,
        start_limit_interval=supervision.start_limit_interval,
    )


def follows(verdict: Verdict, policy: Policy) -> str:
    """What follows an end, for people."""
    match verdict.next:
        case Next.STAY:
            return "it stays down"
        case Next.RETRY:
            return f"it is started again after {verdict.delay:.3g} s"
        case Next.EXHAUSTED:
            return f"it has failed: {policy.start_limit} failures within {policy.start_limit_interval:g} s"
