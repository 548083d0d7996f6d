"""The operator's vocabulary: states, exit reasons, access levels, exit codes.

Closed sets. The control socket, the commands, the logs and the docs use these words and no others.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class Desired(str, Enum):
    """What the operator wants of a capsule; kept apart from what is observed."""

    UP = "up"
    DOWN = "down"


class State(str, Enum):
    """What is observed of a capsule."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


class Reason(str, Enum):
    """Why an instance of a capsule ended."""

    OK = "ok"
    NONZERO = "nonzero"
    TRAP = "trap"
    CANCELLED = "cancelled"
    NOT_READY = "not-ready"
    WATCHDOG = "watchdog"
    MEMORY = "memory"
    CPU_TIME = "cpu-time"
    KILLED_SIGNAL = "killed-signal"
    SECCOMP = "seccomp"
    OOM = "oom"
    SPAWN_FAILED = "spawn-failed"
    LOAD_ERROR = "load-error"
    KILLED_BY_OPERATOR = "killed-by-operator"
    SUPERVISOR_SHUTDOWN = "supervisor-shutdown"
    SUPERVISOR_LOST = "supervisor-lost"


class Level(IntEnum):
    """What a peer of the control socket may do; each includes those below it."""

    READ = 1
    OPERATE = 2
    ADMIN = 3


class Exit(IntEnum):
    """Exit codes of the commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NO_SUCH_CAPSULE = 4
    NOT_PERMITTED = 5
    TIMED_OUT = 6
    NO_SUPERVISOR = 7


class LogStream(str, Enum):
    """Where a log line of a capsule comes from."""

    GUEST = "guest"
    STDOUT = "stdout"
    STDERR = "stderr"
    SUPERVISOR = "supervisor"


LOG_LEVELS = ("trace", "debug", "info", "warn", "error")
"""Names of the guest ABI's log levels 0 to 4."""
