"""What a worker is confined by, seen from outside: the kernel's files, never the worker's word.

proc(5), /proc/PID/status; prlimit(2).
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

LATER = "not in this version"


class Layer(NamedTuple):
    held: bool
    why: str


def observe(pid: int) -> dict[str, Layer]:
    """The layers of a process. A process that has just ended has none, and each says so."""
    try:
        status = _status(Path(f"/proc/{pid}/status").read_text())
        limits = {name: resource.prlimit(pid, which) for name, which in _LIMITS.items()}
        own_session = os.getsid(pid) == pid
    except (OSError, ValueError) as exc:
        return {name: Layer(False, f"cannot be seen: {exc}") for name in (*_SEEN, *_LACKING)}
    found = {
        "process": Layer(own_session, f"a process of its own, session {pid}"),
        "no_new_privs": Layer(status.get("NoNewPrivs") == "1", f"NoNewPrivs {status.get('NoNewPrivs')}"),
        "rlimits": Layer(
            all(soft != resource.RLIM_INFINITY for soft, _ in limits.values()),
            ", ".join(f"{name} {soft}" for name, (soft, _) in limits.items()),
        ),
    }
    return found | {name: Layer(False, LATER) for name in _LACKING}


_LIMITS = {
    "data": resource.RLIMIT_DATA,
    "stack": resource.RLIMIT_STACK,
    "nofile": resource.RLIMIT_NOFILE,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "memlock": resource.RLIMIT_MEMLOCK,
}

_SEEN = ("process", "no_new_privs", "rlimits")

_LACKING = ("uid", "namespaces", "landlock", "seccomp", "cgroup")


def _status(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, value in pairs}


def in_force() -> dict[str, Layer]:
    """The layers that this version puts around every capsule."""
    return {name: Layer(True, "around every capsule") for name in _SEEN} | {
        name: Layer(False, LATER) for name in _LACKING
    }
