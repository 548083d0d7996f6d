"""Exit reasons: one word from the evidence, and what is told of it."""

from __future__ import annotations

import json
from signal import Signals
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import Reason
from capsuled.proto.reports import SEALING_FAILED, STATUS, Ended, How
from capsuled.supervisor import exits
from capsuled.supervisor.exits import Evidence, Intent

TRAP = Ended("trap", trap="unreachable", message="unreachable executed", backtrace="run")
KILL = Signals.SIGKILL

CASES: dict[str, tuple[Evidence, Reason]] = {
    # no process, or one that could not seal itself
    "no process": (Evidence(spawn_error="cannot spawn: no memory"), Reason.SPAWN_FAILED),
    "no process to kill": (
        Evidence(spawn_error="cannot spawn", intent=Intent.OPERATOR_KILL),
        Reason.SPAWN_FAILED,
    ),
    "not sealed": (Evidence(status=97), Reason.SPAWN_FAILED),
    "not sealed while stopping": (Evidence(status=97, intent=Intent.STOP), Reason.SPAWN_FAILED),
    "not sealed, says another thing": (Evidence(status=97, report=Ended("returned")), Reason.SPAWN_FAILED),
    "the guest's own 97": (Evidence(status=97, report=Ended("exit", 97)), Reason.NONZERO),
    # by itself
    "returned": (Evidence(status=0, report=Ended("returned")), Reason.OK),
    "exit 0": (Evidence(status=0, report=Ended("exit", 0)), Reason.OK),
    "0 without a word": (Evidence(status=0), Reason.OK),
    "exit 3": (Evidence(status=3, report=Ended("exit", 3)), Reason.NONZERO),
    "exit 256": (Evidence(status=0, report=Ended("exit", 256)), Reason.NONZERO),
    "3 without a word": (Evidence(status=3), Reason.NONZERO),
    "the worker failed": (Evidence(status=71, report=Ended("failed", message="edge")), Reason.NONZERO),
    "trap": (Evidence(status=70, report=TRAP), Reason.TRAP),
    "70 without a word": (Evidence(status=70), Reason.NONZERO),
    "load error": (Evidence(status=65, report=Ended("load-error")), Reason.LOAD_ERROR),
    "memory": (Evidence(status=77, report=Ended("memory")), Reason.MEMORY),
    "memory without a word": (Evidence(status=77), Reason.MEMORY),
    "the guest's own 77": (Evidence(status=77, report=Ended("exit", 77)), Reason.NONZERO),
    # claims that the evidence contradicts
    "claims success, status 1": (Evidence(status=1, report=Ended("returned")), Reason.NONZERO),
    "claims success, crashed": (
        Evidence(signal=Signals.SIGSEGV, report=Ended("returned")),
        Reason.KILLED_SIGNAL,
    ),
    "claims a trap, status 0": (Evidence(status=0, report=TRAP), Reason.OK),
    "claims a trap, system call": (Evidence(signal=Signals.SIGSYS, report=TRAP), Reason.SECCOMP),
    # by a signal
    "crashed": (Evidence(signal=Signals.SIGSEGV), Reason.KILLED_SIGNAL),
    "terminated by another": (Evidence(signal=Signals.SIGTERM), Reason.KILLED_SIGNAL),
    "seccomp": (Evidence(signal=Signals.SIGSYS), Reason.SECCOMP),
    "soft limit of CPU": (Evidence(signal=Signals.SIGXCPU, cpu_limit=2), Reason.CPU_TIME),
    "hard limit of CPU": (Evidence(signal=KILL, cpu_limit=2, cpu_seconds=2.0), Reason.CPU_TIME),
    "below the limit of CPU": (Evidence(signal=KILL, cpu_limit=2, cpu_seconds=1.9), Reason.KILLED_SIGNAL),
    "no limit of CPU": (Evidence(signal=KILL, cpu_seconds=900.0), Reason.KILLED_SIGNAL),
    "CPU not known": (Evidence(signal=KILL, cpu_limit=2), Reason.KILLED_SIGNAL),
    "OOM": (Evidence(signal=KILL, oom_kills=1), Reason.OOM),
    "OOM before CPU": (Evidence(signal=KILL, oom_kills=1, cpu_limit=2, cpu_seconds=3.0), Reason.OOM),
    "a crash is no OOM": (Evidence(signal=Signals.SIGBUS, oom_kills=1), Reason.KILLED_SIGNAL),
    "killed for breaking the protocol": (
        Evidence(signal=KILL, killed_by_us=True, oom_kills=1, cpu_limit=2, cpu_seconds=3.0),
        Reason.KILLED_SIGNAL,
    ),
    "killed by somebody": (Evidence(signal=KILL), Reason.KILLED_SIGNAL),
    # what the supervisor was about
    "operator killed it": (
        Evidence(intent=Intent.OPERATOR_KILL, signal=KILL, killed_by_us=True),
        Reason.KILLED_BY_OPERATOR,
    ),
    "operator killed it, no OOM": (
        Evidence(intent=Intent.OPERATOR_KILL, signal=KILL, killed_by_us=True, oom_kills=1),
        Reason.KILLED_BY_OPERATOR,
    ),
    "it was quicker than the kill": (
        Evidence(intent=Intent.OPERATOR_KILL, status=0, report=Ended("returned"), killed_by_us=True),
        Reason.KILLED_BY_OPERATOR,
    ),
    "not ready": (Evidence(intent=Intent.NOT_READY, signal=KILL, killed_by_us=True), Reason.NOT_READY),
    "watchdog": (Evidence(intent=Intent.WATCHDOG, signal=KILL, killed_by_us=True), Reason.WATCHDOG),
    "stopped": (Evidence(intent=Intent.STOP, status=0, report=Ended("returned")), Reason.CANCELLED),
    "stopped, exit 1": (Evidence(intent=Intent.STOP, status=1, report=Ended("exit", 1)), Reason.CANCELLED),
    "stopped by TERM": (Evidence(intent=Intent.STOP, signal=Signals.SIGTERM), Reason.CANCELLED),
    "stopped by KILL": (Evidence(intent=Intent.STOP, signal=KILL, killed_by_us=True), Reason.CANCELLED),
    "trap while stopping": (Evidence(intent=Intent.STOP, status=70, report=TRAP), Reason.TRAP),
    "claims a trap, killed": (
        Evidence(intent=Intent.STOP, signal=KILL, report=TRAP, killed_by_us=True),
        Reason.CANCELLED,
    ),
    "shut down": (Evidence(intent=Intent.SHUTDOWN, status=0), Reason.SUPERVISOR_SHUTDOWN),
    "shut down by KILL": (
        Evidence(intent=Intent.SHUTDOWN, signal=KILL, killed_by_us=True),
        Reason.SUPERVISOR_SHUTDOWN,
    ),
    "trap while shutting down": (Evidence(intent=Intent.SHUTDOWN, status=70, report=TRAP), Reason.TRAP),
    "trap when not ready": (Evidence(intent=Intent.NOT_READY, status=70, report=TRAP), Reason.NOT_READY),
    # nobody was there
    "unseen": (Evidence(), Reason.SUPERVISOR_LOST),
    "unseen, with a word": (Evidence(report=Ended("returned")), Reason.SUPERVISOR_LOST),
}


@pytest.mark.parametrize("name", CASES)
def test_reason(name: str) -> None:
    """The reason follows from the evidence: intent before kernel before the worker's claim."""
    evidence, wanted = CASES[name]
    assert exits.reason(evidence) is wanted


def test_every_reason_has_its_evidence() -> None:
    """There is no reason that no evidence leads to."""
    assert {wanted for _, wanted in CASES.values()} == set(Reason)


@pytest.mark.parametrize("how", get_args(How))
def test_a_report_is_believed_with_its_status_only(how: How) -> None:
    """Each kind of report has one status that agrees, and no other status and no signal does."""
    report = Ended(how, code=5)
    agreeing = [status for status in range(256) if exits.believed(Evidence(status=status, report=report))]
    assert agreeing == [exits.status_of(report)]
    assert exits.believed(Evidence(signal=KILL, report=report)) is None


def test_statuses_tell_kinds_apart() -> None:
    """No two kinds of report share a status, and a worker that is not sealed has one of its own."""
    assert len(set(STATUS.values())) == len(STATUS)
    assert STATUS["unsealed"] == SEALING_FAILED


EVIDENCE = st.builds(
    Evidence,
    report=st.none() | st.builds(Ended, how=st.sampled_from(get_args(How)), code=st.integers(0, 1000)),
    signal=st.sampled_from([each for each in Signals if each != KILL]),
    oom_kills=st.integers(0, 1),
    cpu_limit=st.integers(0, 2),
    cpu_seconds=st.none() | st.floats(0.0, 4.0),
)


@given(EVIDENCE)
def test_a_crash_is_never_a_success(evidence: Evidence) -> None:
    """Invariant: what died by a signal that nobody intended failed, whatever its worker had claimed."""
    assert exits.reason(evidence) in (Reason.KILLED_SIGNAL, Reason.SECCOMP, Reason.CPU_TIME)


def test_evidence_has_one_end() -> None:
    """A process ends by status or by signal, and evidence of both is refused."""
    with pytest.raises(ValueError, match="1 and 9"):
        Evidence(status=1, signal=9)


@pytest.mark.parametrize(
    ("evidence", "told"),
    [
        (
            Evidence(status=70, report=TRAP, cpu_seconds=0.25),
            {
                "reason": "trap",
                "status": 70,
                "cpu_seconds": 0.25,
                "trap": "unreachable",
                "message": "unreachable executed",
                "backtrace": "run",
            },
        ),
        (Evidence(status=0), {"reason": "ok", "status": 0}),
        (
            Evidence(spawn_error="cannot spawn 'echo': no such file"),
            {"reason": "spawn-failed", "message": "cannot spawn 'echo': no such file"},
        ),
        (
            Evidence(signal=Signals.SIGSEGV, report=Ended("returned", message="all is well")),
            {"reason": "killed-signal", "signal": "SIGSEGV", "claim": "returned"},
        ),
        (
            Evidence(signal=KILL),
            {
                "reason": "killed-signal",
                "signal": "SIGKILL",
                "message": "killed, cause unknown: not by the supervisor, and no limit shows that it was met",
            },
        ),
        (
            Evidence(signal=KILL, killed_by_us=True),
            {"reason": "killed-signal", "signal": "SIGKILL", "killed": True},
        ),
        (
            Evidence(signal=Signals.SIGXCPU, cpu_limit=2, cpu_seconds=2.5),
            {
                "reason": "cpu-time",
                "signal": "SIGXCPU",
                "cpu_seconds": 2.5,
                "limit": "cpu_time",
                "value": 2,
            },
        ),
        (
            Evidence(signal=KILL, oom_kills=2, process_memory=1 << 29),
            {
                "reason": "oom",
                "signal": "SIGKILL",
                "oom_kills": 2,
                "limit": "process_memory",
                "value": 1 << 29,
            },
        ),
        (
            Evidence(status=77, process_memory=1 << 29),
            {"reason": "memory", "status": 77, "limit": "process_memory", "value": 1 << 29},
        ),
        (
            Evidence(intent=Intent.NOT_READY, signal=KILL, killed_by_us=True, ready_timeout=10.0),
            {
                "reason": "not-ready",
                "signal": "SIGKILL",
                "killed": True,
                "limit": "ready_timeout",
                "value": 10.0,
            },
        ),
        (
            Evidence(intent=Intent.WATCHDOG, signal=KILL, killed_by_us=True, watchdog=3.0),
            {"reason": "watchdog", "signal": "SIGKILL", "killed": True, "limit": "watchdog", "value": 3.0},
        ),
        (
            Evidence(intent=Intent.STOP, signal=KILL, killed_by_us=True, stop_timeout=5.0),
            {
                "reason": "cancelled",
                "signal": "SIGKILL",
                "killed": True,
                "limit": "stop_timeout",
                "value": 5.0,
            },
        ),
        (
            Evidence(intent=Intent.STOP, status=0, stop_timeout=5.0),
            {"reason": "cancelled", "status": 0},
        ),
        (
            Evidence(intent=Intent.OPERATOR_KILL, signal=KILL, killed_by_us=True, stop_timeout=5.0),
            {"reason": "killed-by-operator", "signal": "SIGKILL", "killed": True},
        ),
        (Evidence(), {"reason": "supervisor-lost"}),
    ],
)
def test_description(evidence: Evidence, told: dict[str, object]) -> None:
    """What is known and bears on the reason is told, and nothing else; it travels as JSON."""
    description = exits.describe(evidence, exits.reason(evidence))
    assert description == told
    assert json.loads(json.dumps(description)) == told


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (9, "SIGKILL"), (40, "signal 40")])
def test_signals_have_names(number: int, name: str) -> None:
    """A signal is told by its name, and one without a name by its number."""
    assert exits.signal_name(number) == name
