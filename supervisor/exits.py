"""Why an instance ended: from the evidence to one word of a closed set.

There are three kinds of evidence, and they are believed in this order:

1. what the supervisor did itself, and recorded *before* it sent the signal: the intent
2. what the kernel says: exit status or signal, CPU seconds, the count of OOM kills
3. what the worker says in its last report, and that only when the exit status agrees

The third is a claim, since a worker may have been taken over. It can choose between failures, which its own
exit status could do as well; it cannot make a crash look like a success.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from capsuled.proto.control import Reason
from capsuled.proto.reports import SEALING_FAILED, STATUS, Ended, How


class Intent(str, Enum):
    """What the supervisor was about when it told an instance to end, or killed it."""

    OPERATOR_KILL = "operator-kill"
    STOP = "stop"
    """A stop, a restart, or a reload that changes or removes the capsule."""
    SHUTDOWN = "shutdown"
    NOT_READY = "not-ready"
    WATCHDOG = "watchdog"


@dataclass(frozen=True)
class Evidence:
    """All that is known of an end. Seconds, bytes; a limit of 0 is none.

    Neither `status` nor `signal`, no `spawn_error` and no intent: nobody was there to see it end.
    """

    intent: Intent | None = None
    report: Ended | None = None
    """The worker's last word, as yet unbelieved."""
    status: int | None = None
    """Exit status, where it exited."""
    signal: int | None = None
    """Number of the signal that ended it, where one did."""
    spawn_error: str | None = None
    """Why there was no process at all."""
    cpu_seconds: float | None = None
    """Used in its whole life, as wait4(2) tells; a last sample would miss the end."""
    max_rss: int = 0
    """Most memory that it had resident at a time, as wait4(2) tells. Bytes."""
    oom_kills: int = 0
    """In its control group, where that had met its own limit."""
    killed_by_us: bool = False
    """SIGKILL was sent: after the intent to kill, at the end of the stop ladder, or because the worker broke
    the protocol, which is no intent."""
    cpu_limit: int = 0
    process_memory: int = 0
    ready_timeout: float = 0.0
    watchdog: float = 0.0
    stop_timeout: float = 0.0

    def __post_init__(self) -> None:
        if self.status is not None and self.signal is not None:
            raise ValueError(
                f"a process ends by exit status or by signal: this one has {self.status} and {self.signal}"
            )


INTENDED: Mapping[Intent, Reason] = {
    Intent.OPERATOR_KILL: Reason.KILLED_BY_OPERATOR,
    Intent.STOP: Reason.CANCELLED,
    Intent.SHUTDOWN: Reason.SUPERVISOR_SHUTDOWN,
    Intent.NOT_READY: Reason.NOT_READY,
    Intent.WATCHDOG: Reason.WATCHDOG,
}

GENTLE = (Intent.STOP, Intent.SHUTDOWN)
"""Intents that leave the guest time, in which it may trap; and a trap is news to its author."""

REPORTED: Mapping[How, Reason] = {
    "returned": Reason.OK,
    "trap": Reason.TRAP,
    "load-error": Reason.LOAD_ERROR,
    "memory": Reason.MEMORY,
    "failed": Reason.NONZERO,
    "unsealed": Reason.SPAWN_FAILED,
}
"""By how; `exit` is missing, for its code decides."""


def reason(evidence: Evidence) -> Reason:
    """The one word for it."""
    report = believed(evidence)
    if evidence.spawn_error is not None:
        return Reason.SPAWN_FAILED
    if evidence.status == SEALING_FAILED and report is None:  # a guest may exit with 97, and then says so
        return Reason.SPAWN_FAILED
    if evidence.intent is not None:
        if evidence.intent in GENTLE and report is not None and report.how == "trap":
            return Reason.TRAP
        return INTENDED[evidence.intent]
    if evidence.signal is not None:
        return _of_signal(evidence, evidence.signal)
    if report is not None:
        if report.how == "exit":
            return Reason.NONZERO if report.code else Reason.OK
        return REPORTED[report.how]
    if evidence.status is None:
        return Reason.SUPERVISOR_LOST
    if evidence.status == STATUS["memory"]:  # what is out of memory may be unable to report it
        return Reason.MEMORY
    return Reason.NONZERO if evidence.status else Reason.OK


def believed(evidence: Evidence) -> Ended | None:
    """The worker's report if the exit status agrees with it."""
    report = evidence.report
    if report is None or evidence.status is None or evidence.status != status_of(report):
        return None
    return report


def status_of(report: Ended) -> int:
    """The exit status that belongs to a report."""
    return report.code & 0xFF if report.how == "exit" else STATUS[report.how]


def describe(evidence: Evidence, reason: Reason) -> dict[str, str | int | float | bool]:
    """`last_exit` of the control contract: the reason, and whatever is known that bears on it.

    reason, status, signal (its name), killed (true: the supervisor sent SIGKILL), cpu_seconds, max_rss, oom_kills
    trap, message, backtrace    of a report that is believed, or the message of a failed spawn
    claim                       of a report that is not: what it said
    limit, value                the limit that was met, by its name in the manifest, where there is one
    """
    known: dict[str, str | int | float | bool] = {"reason": reason.value}
    if evidence.status is not None:
        known["status"] = evidence.status
    if evidence.signal is not None:
        known["signal"] = signal_name(evidence.signal)
    if evidence.killed_by_us:
        known["killed"] = True
    if evidence.cpu_seconds is not None:
        known["cpu_seconds"] = evidence.cpu_seconds
    if evidence.max_rss:
        known["max_rss"] = evidence.max_rss
    if evidence.oom_kills:
        known["oom_kills"] = evidence.oom_kills
    known.update(_texts(evidence, reason))
    limit, value = _limit(evidence, reason)
    if value:
        known.update(limit=limit, value=value)
    return known


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11; `signal 40` for one without a name of its own."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _of_signal(evidence: Evidence, number: int) -> Reason:
    if number == signals.SIGSYS:
        return Reason.SECCOMP
    if number == signals.SIGXCPU:
        return Reason.CPU_TIME
    if number == signals.SIGKILL and not evidence.killed_by_us:
        if evidence.oom_kills:
            return Reason.OOM
        # Process 1 of a namespace ignores SIGXCPU, the soft limit's, and gets SIGKILL at the hard one.
        if evidence.cpu_limit and (evidence.cpu_seconds or 0.0) >= evidence.cpu_limit:
            return Reason.CPU_TIME
    return Reason.KILLED_SIGNAL


def _texts(evidence: Evidence, reason: Reason) -> dict[str, str]:
    if evidence.spawn_error is not None:
        return {"message": evidence.spawn_error}
    report = believed(evidence)
    if report is not None:
        texts = {"trap": report.trap, "message": report.message, "backtrace": report.backtrace}
        return {name: text for name, text in texts.items() if text}
    texts = {"claim": evidence.report.how} if evidence.report is not None else {}
    if evidence.signal == signals.SIGKILL and reason is Reason.KILLED_SIGNAL and not evidence.killed_by_us:
        texts["message"] = "killed, cause unknown: not by the supervisor, and no limit shows that it was met"
    return texts


def _limit(evidence: Evidence, reason: Reason) -> tuple[str, int | float]:
    """The limit that was met and its value; 0 where there was none."""
    if reason is Reason.CPU_TIME:
        return "cpu_time", evidence.cpu_limit
    if reason in (Reason.MEMORY, Reason.OOM):
        return "process_memory", evidence.process_memory
    if reason is Reason.NOT_READY:
        return "ready_timeout", evidence.ready_timeout
    if reason is Reason.WATCHDOG:
        return "watchdog", evidence.watchdog
    if evidence.intent in GENTLE and evidence.killed_by_us:
        return "stop_timeout", evidence.stop_timeout
    return "", 0
