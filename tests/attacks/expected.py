"""What each attack meets, with all layers on."""

from __future__ import annotations

from collections.abc import Mapping

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
    "raise-limit": KILLED,
    "sysv-shm": KILLED,
}

TWO_WALLS = (
    *("read-passwd", "write-tmp", "list-proc", "own-maps", "launch-order", "tcp", "udp", "control-socket"),
    *("fork", "execve", "ptrace", "setuid", "capset", "mount", "map-private"),
)
"""Refused without seccomp too, by another layer."""

SECCOMP_ALONE = (
    "memfd",
    "dumpable",
    "no-pdeathsig",
    "map-executable",
    "map-shared",
    "sysv-shm",
    "kill-group",
)
"""Let through where seccomp is missing: the process's own memory, its own namespace's, and its own group.

Of the rest of `SEALED` nothing is said without seccomp: their arguments are ones that the kernel itself refuses, or
nothing is there to be reached, so that a refusal would prove nothing.
"""
