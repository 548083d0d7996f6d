"""Whether control groups can be used here, and what stands in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsuled.supervisor import cgroup_layout, cgroups

with cgroups.opened(cgroups.passer_by()) as _groups:
    USABLE = _groups.usable

needed = pytest.mark.skipif(not USABLE, reason="this user cannot use control groups on this machine")


def read(pid: int, controller: str, *files: str) -> str:
    """The first of these files that there is in the group of a process, as its `controller` has it."""
    inside = cgroup_layout.memberships(Path(f"/proc/{pid}/cgroup").read_text())
    ways = cgroup_layout.trees(
        Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    )
    tree = next(tree for way in reversed(ways) for tree in way if controller in tree.controllers)
    mounted = str(tree.folder).removesuffix(tree.path.rstrip("/"))
    folder = Path(mounted + inside[tree.key])
    return next(folder / file for file in files if (folder / file).exists()).read_text().strip()
