"""What a manifest's limits are in the kernel's control groups, and what is left of these when workers end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from capsuled.supervisor.cgroup_layout import MEMORY_SLACK, PROCESSES

from ..support import control_groups
from ..support.daemon import DEADLINE, Daemon
from . import lives

pytestmark = control_groups.needed

MIB = 1 << 20


def test_each_worker_has_a_group_of_its_own(daemon: Daemon) -> None:
    """Its memory, processes and share are the manifest's, as seen by the kernel and as the status tells it."""
    limits = '[limits]\nmemory = "8MiB"\nprocess_memory = "100MiB"\ncpu = 0.5\n'
    daemon.capsule("one", lives.sleeper(), subscribe=lives.QUIET, extra=limits)
    daemon.capsule("two", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["one", "two"])
    one, two = daemon.worker("one"), daemon.worker("two")
    assert Path(f"/proc/{one}/cgroup").read_text() != Path(f"/proc/{two}/cgroup").read_text()
    memory = control_groups.read(one, "memory", "memory.max", "memory.limit_in_bytes")
    code = int(memory) - 100 * MIB - MEMORY_SLACK
    assert 0 < code < MIB, "its native code, in whole pages"
    assert control_groups.read(one, "pids", "pids.max") == str(PROCESSES)
    assert control_groups.read(one, "cpu", "cpu.max", "cpu.cfs_quota_us").split()[0] == "50000"
    layer = daemon.of("one")["isolation"]["cgroup"]
    assert layer["held"] is True
    assert f" {memory}" in layer["why"]
    assert " 50000" in layer["why"]


def test_a_spinning_guest_has_its_share(daemon: Daemon) -> None:
    """The kernel holds it up, and counts how often."""
    extra = '[limits]\ncpu = 0.1\n[supervision]\nstop_timeout = "100ms"\n'
    daemon.capsule("one", lives.spinner(), extra=extra)
    daemon.start(wait_for=["one"])
    deadline = time.monotonic() + DEADLINE
    while not throttles(daemon.worker("one")):
        assert time.monotonic() < deadline


def throttles(pid: int) -> int:
    lines = control_groups.read(pid, "cpu", "cpu.stat").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("nr_throttled ")))


def test_a_group_ends_with_its_worker(daemon: Daemon) -> None:
    """However it ends: by itself, by a stop, by a kill, by a crash; the next instance has another one."""
    daemon.capsule("one", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["one"])
    first = {folder.name for folder in daemon.groups()}
    assert len(first) == 1, "the compiler's has ended with it"
    before = daemon.of("one")["instance"]
    os.kill(daemon.worker("one"), signal.SIGKILL)
    daemon.wait("one", lambda capsule: capsule["ready"] and capsule["instance"] != before)
    second = {folder.name for folder in daemon.groups()}
    assert len(second) == 1
    assert second != first
    for verb in ("stop", "start", "kill"):
        wait = "ready" if verb == "start" else "down"
        assert daemon.act("one", verb, wait=wait).status == 200
    assert daemon.groups() == []


def test_a_killed_supervisors_groups_go_with_the_next_start(daemon: Daemon) -> None:
    """They are empty, for the workers have died with it; and the next one has its own."""
    daemon.capsule("one", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["one"])
    stale = set(daemon.groups())
    daemon.stop(signal.SIGKILL)
    assert daemon.left() == []
    assert all(not (folder / "cgroup.procs").read_text() for folder in stale)
    assert set(daemon.groups()) == stale
    daemon.start(wait_for=["one"])
    assert control_groups.read(daemon.worker("one"), "pids", "cgroup.procs").split() == [
        str(daemon.worker("one"))
    ]
    daemon.stop()
    assert daemon.groups() == []
