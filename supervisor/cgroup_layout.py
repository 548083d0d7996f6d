"""Where control groups are, and what is written into one: versions 1 and 2. A rule.

cgroups(7), proc(5) for the two files that are read, and the kernel's documentation of cgroup-v1 and cgroup-v2 for those
that are written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from capsuled.supervisor.quantities import MIB

CONTROLLERS = ("memory", "pids", "cpu")

PERIOD_US = 100_000
"""In which a share of the processors is given out."""

LEAST_US = 1_000
"""The smallest share that the kernel takes."""

MEMORY_SLACK = 64 * MIB
"""Above what a process may have itself, so that its clean error comes first: pages of files, sockets, page tables."""

PROCESSES = 32
"""Processes and threads of a worker or a compiler; an honest one has five."""

NEAR = MIB
"""Memory is taken in batches: who was refused some may have been so much below his limit (version 1)."""

SWAP_FILES = ("memory.swap.max", "memory.memsw.limit_in_bytes")
"""A kernel that does not account for swap has not got them."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Caps(NamedTuple):
    """The limits of one group."""

    memory: int
    """Bytes, swap included; whole pages."""
    processes: int
    cpu: float
    """Cores."""

    @classmethod
    def beside(cls, process_memory: int, cpu: float) -> Caps:
        """For a process whose own limit is `process_memory` bytes of data."""
        return cls((process_memory + MEMORY_SLACK) // _PAGE * _PAGE, PROCESSES, cpu)


class Tree(NamedTuple):
    """A hierarchy of groups, and our own place in it."""

    version: int
    controllers: tuple[str, ...]
    path: str
    """Of our own group, as /proc/PID/cgroup tells it."""
    folder: Path
    """Of our own group."""

    @property
    def key(self) -> str:
        """What stands between number and path in /proc/PID/cgroup."""
        return "" if self.version == 2 else ",".join(self.controllers)


def trees(mountinfo: str, own: str) -> list[tuple[Tree, ...]]:
    """Ways to have all controllers, version 2 first, from /proc/self/mountinfo and /proc/self/cgroup.

    Which controllers version 2 has is not told there: its way may turn out to have none.
    """
    unified: list[tuple[Tree, ...]] = []
    separate: dict[str, Tree] = {}
    for version, root, point, options in _mounts(mountinfo):
        for key, path in memberships(own).items():
            controllers = CONTROLLERS if version == 2 else tuple(key.split(","))
            if (version == 2) != (not key) or (version == 1 and not set(controllers) <= options):
                continue
            inside = _below(path, root)
            if inside is None:
                continue
            tree = Tree(version, controllers, path, Path(point + inside))
            if version == 2:
                unified.append((tree,))
            else:
                for each in controllers:
                    separate.setdefault(each, tree)
    if set(CONTROLLERS) <= separate.keys():
        # Two controllers may share a hierarchy, as cpu and cpuacct do.
        unified.append(tuple(dict.fromkeys(separate[each] for each in CONTROLLERS)))
    return unified


def memberships(told: str) -> dict[str, str]:
    """The path of its group in each hierarchy by controllers, from /proc/PID/cgroup; of version 2 by an empty key."""
    return {
        key: path
        for _, key, path in (line.split(":", 2) for line in told.split("\n") if line.count(":") >= 2)
    }


def settings(tree: Tree, caps: Caps) -> Iterator[tuple[str, str]]:
    """What is written into the files of a group, in this order."""
    for controller, files in _files(tree.version, caps).items():
        if controller in tree.controllers:
            yield from files.items()


def _files(version: int, caps: Caps) -> Mapping[str, Mapping[str, str]]:
    memory, processes = str(caps.memory), str(caps.processes)
    quota = str(max(LEAST_US, round(caps.cpu * PERIOD_US)))
    if version == 2:
        return {
            "memory": {"memory.max": memory, "memory.swap.max": "0"},
            "pids": {"pids.max": processes},
            "cpu": {"cpu.max": f"{quota} {PERIOD_US}"},
        }
    return {
        # The second counts swap as well, and must not be below the first.
        "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
        "pids": {"pids.max": processes},
        "cpu": {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota},
    }


def oom_files(tree: Tree) -> tuple[str, ...]:
    """The files of a group that `oom_kills` wants to see."""
    return ("memory.events",) if tree.version == 2 else ("memory.oom_control", "memory.max_usage_in_bytes")


def oom_kills(tree: Tree, files: Sequence[str], caps: Caps) -> int:
    """How many processes were killed in a group that has met its own limit of memory, from its `oom_files`; 0 where it
    has not: they were killed for the sake of others. 0 on kernels that do not tell, too."""
    if tree.version == 2:
        met = bool(re.search(r"^(max|oom) [1-9]\d*$", files[0], re.MULTILINE))
    else:
        # Not by memory.failcnt, which was seen to stay 0 where the limit was met.
        met = int(files[1]) >= caps.memory - NEAR
    found = re.search(r"^oom_kill (\d+)$", files[0], re.MULTILINE)
    return int(found[1]) if found and met else 0


def _mounts(mountinfo: str) -> Iterator[tuple[int, str, str, set[str]]]:
    """Version, root, mount point and options of each mounted hierarchy."""
    for line in mountinfo.split("\n"):  # and no other separators: a mount point may hold them
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        options = options.partition(" ")[2]
        if kind in ("cgroup", "cgroup2") and before.count(" ") >= 5:
            root, point = map(_unescaped, before.split(" ")[3:5])
            if "ro" not in before.split(" ")[5].split(
                ","
            ):  # there may be another mount of it that can be written
                yield 2 if kind == "cgroup2" else 1, root, point, set(options.split(","))


def _unescaped(text: str) -> str:
    """A path of mountinfo: blanks and the like stand there in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _below(path: str, root: str) -> str | None:
    """`path` as seen from `root`, beginning with a slash, or empty for `root` itself; None when it is not below it."""
    root = root.rstrip("/")
    if path == root or path == "/" == root + "/":
        return ""
    if path.startswith("/.."):  # above the namespace that we are in
        return None
    return path[len(root) :] if path.startswith(f"{root}/") else None
