"""What each attack meets, with all layers on."""

from __future__ import annotations

from collections.abc import Mapping

from ..support import control_groups

KILLED = "killed SIGSYS"
PERM = "refused EPERM"

SEALED: Mapping[str, str] = {
    "read-passwd": PERM,
    "write-tmp": PERM,
    "list-proc": PERM,
    "own-maps": PERM,
    "launch-order": PERM,
    "tcp": PERM,
    "udp": PERM,
    "control-socket": PERM,
    "spine-socket": PERM,
    "sibling-edge": PERM,
    "read-shadow": PERM,
    "write-state": PERM,
    "read-manifest": PERM,
    "environ": PERM,
    "core-pattern": PERM,
    "leave-cgroup": PERM,
    "inherited": "refused EBADF",
    "unix-abstract": PERM,
    "fork": KILLED,
    "execve": KILLED,
    "ptrace": KILLED,
    "process-vm-readv": KILLED,
    "kill-group": KILLED,
    "kill-parent": KILLED,
    "pidfd-open": KILLED,
    "setuid": KILLED,
    "capset": KILLED,
    "mount": KILLED,
    "unshare": KILLED,
    "setns": KILLED,
    "pivot-root": KILLED,
    "bpf": KILLED,
    "io-uring": KILLED,
    "userfaultfd": KILLED,
    "keyctl": KILLED,
    "perf-event": KILLED,
    "memfd": KILLED,
    "new-seccomp": KILLED,
    "dumpable": PERM,
    "no-pdeathsig": PERM,
    "map-executable": PERM,
    "map-shared": PERM,
    "map-private": "refused ENOMEM",
    "map-read-only": PERM,
    "map-huge": PERM,
    "grow-stack": "killed SIGSEGV",
    "page-tables": "refused ENOMEM",
    "raise-limit": KILLED,
    "sysv-shm": KILLED,
}

TWO_WALLS = (
    *("read-passwd", "write-tmp", "list-proc", "own-maps", "launch-order", "tcp", "udp", "control-socket"),
    *(
        "spine-socket",
        "sibling-edge",
        "read-shadow",
        "write-state",
        "read-manifest",
        "environ",
        "core-pattern",
    ),
    *("leave-cgroup", "inherited"),
    *("fork", "execve", "ptrace", "setuid", "capset", "mount", "map-private"),
    *("map-shared", "map-read-only", "grow-stack", "page-tables"),
)
"""Refused without seccomp too, by another layer."""

SECCOMP_ALONE = (
    "memfd",
    "dumpable",
    "no-pdeathsig",
    "map-executable",
    "sysv-shm",
    "kill-group",
)
"""Let through where seccomp is missing: the process's own memory, its own namespace's, and its own group.

Of the rest of `SEALED` nothing is said without seccomp: their arguments are ones that the kernel itself refuses, or
nothing is there to be reached, so that a refusal would prove nothing.
"""

OUT_OF_MEMORY = "oom" if control_groups.USABLE else "THROUGH"
"""What becomes of who takes more memory than he may, where only a control group counts it."""

WITHOUT: Mapping[str, Mapping[str, str]] = {
    "nothing": {},
    "namespaces": {},
    "root": {},
    "uid": {},
    "capabilities": {},
    "landlock": {},
    "descriptors": {},
    "cgroup": {},
    "rlimits": {},
    "addresses": {"grow-stack": OUT_OF_MEMORY, "page-tables": OUT_OF_MEMORY},
}
"""What is different from `SEALED` where one layer is missing. All else is held by another one."""
