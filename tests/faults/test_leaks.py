"""What starts and stops leave behind: nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ..e2e import lives
from ..support.daemon import DEADLINE, Daemon


def settle(daemon: Daemon) -> None:
    """Wait until the supervisor has closed its ends of our connections: /proc/net/unix has them by the path."""
    deadline = time.monotonic() + DEADLINE
    mine = str(daemon.socket)
    while sum(line.endswith(mine) for line in Path("/proc/net/unix").read_text().splitlines()) > 1:
        assert time.monotonic() < deadline


def descriptors(pid: int) -> list[str]:
    """Every descriptor of a process by what it leads to; numbers of pipes and sockets differ."""
    found: list[str] = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


def test_fifty_starts_and_stops_leak_no_descriptor(daemon: Daemon) -> None:
    """In the supervisor and in the backbone there are as many afterwards as before, of each kind."""
    daemon.capsule(
        "sleeper", lives.sleeper(), subscribe=lives.QUIET, extra='[supervision]\nstop_timeout = "2s"\n'
    )
    daemon.start(wait_for=["sleeper"])
    backbone = daemon.backbone
    for verb in ("stop", "kill"):  # once each, so that what is made once is made
        assert daemon.act("sleeper", verb, wait="down").status == 200
        assert daemon.act("sleeper", "start", wait="ready").status == 200
    daemon.act("sleeper", "stop", wait="down")
    settle(daemon)
    before = descriptors(daemon.pid), descriptors(backbone)
    for number in range(50):
        assert daemon.act("sleeper", "start", wait="ready").status == 200
        assert daemon.act("sleeper", "kill" if number % 5 == 0 else "stop", wait="down").status == 200
    assert daemon.backbone == backbone
    settle(daemon)
    assert (descriptors(daemon.pid), descriptors(backbone)) == before
    assert os.listdir(daemon.runtime / "edges") == []


def test_restarts_of_the_backbone_leak_no_descriptor(daemon: Daemon) -> None:
    """Nor do its own deaths."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    os.kill(daemon.backbone, signal.SIGKILL)
    daemon.act("sleeper", "restart", wait="ready")
    before = daemon.backbone
    settle(daemon)
    open_before = len(descriptors(daemon.pid))
    os.kill(before, signal.SIGKILL)
    daemon.act("sleeper", "restart", wait="ready")
    assert daemon.backbone != before
    settle(daemon)
    assert len(descriptors(daemon.pid)) == open_before


def test_starts_that_fail_leak_no_descriptor(daemon: Daemon) -> None:
    """A worker that cannot be spawned leaves nothing open, and its reason is told."""
    daemon.capsule(
        "vanishing", lives.sleeper(), subscribe=lives.QUIET, extra='[supervision]\nrestart = "never"\n'
    )
    daemon.start(wait_for=["vanishing"])
    daemon.act("vanishing", "stop", wait="down")
    settle(daemon)
    before = descriptors(daemon.pid)
    # Where its edge is to be there is a folder by now: bind fails.
    for index in range(2, 12):
        (daemon.runtime / "edges" / f"{index:08x}").mkdir()
    for _ in range(10):
        assert daemon.act("vanishing", "start", wait="ready").status == 409
        assert daemon.of("vanishing")["last_exit"]["reason"] == "spawn-failed"
    settle(daemon)
    assert descriptors(daemon.pid) == before
