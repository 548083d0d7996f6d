"""What starts and stops leave behind: nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..e2e import lives
from ..support.daemon import DEADLINE, Daemon

Open = dict[int, list[str]]
"""Descriptors by pid."""


def descriptors(pids: Iterable[int]) -> Open:
    """Every descriptor of these processes by what it leads to; numbers of pipes and sockets differ."""
    found: Open = {}
    for pid in pids:
        kinds: list[str] = []
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                kinds.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0])
        found[pid] = sorted(kinds)
    return found


def settled(daemon: Daemon, *pids: int) -> Open:
    """Descriptors at rest: our own connections are closed there, and no log or history is being written."""
    deadline, mine = time.monotonic() + DEADLINE, str(daemon.socket)
    while True:
        connections = sum(line.endswith(mine) for line in Path("/proc/net/unix").read_text().splitlines()) - 1
        found = descriptors(pids)
        written = [each for kinds in found.values() for each in kinds if each.endswith((".log", ".new"))]
        if not connections and not written:
            return found
        assert time.monotonic() < deadline, (connections, written)


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
    before = settled(daemon, daemon.pid, backbone)
    for number in range(50):
        assert daemon.act("sleeper", "start", wait="ready").status == 200
        assert daemon.act("sleeper", "kill" if number % 5 == 0 else "stop", wait="down").status == 200
    assert daemon.backbone == backbone
    assert settled(daemon, daemon.pid, backbone) == before
    assert os.listdir(daemon.runtime / "edges") == []


def test_restarts_of_the_backbone_leak_no_descriptor(daemon: Daemon) -> None:
    """Nor do its own deaths."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    os.kill(daemon.backbone, signal.SIGKILL)
    daemon.act("sleeper", "restart", wait="ready")
    before = daemon.backbone
    open_before = settled(daemon, daemon.pid)
    os.kill(before, signal.SIGKILL)
    daemon.act("sleeper", "restart", wait="ready")
    assert daemon.backbone != before
    assert settled(daemon, daemon.pid) == open_before


def test_starts_that_fail_leak_no_descriptor(daemon: Daemon) -> None:
    """A worker that cannot be spawned leaves nothing open, and its reason is told."""
    daemon.capsule(
        "vanishing", lives.sleeper(), subscribe=lives.QUIET, extra='[supervision]\nrestart = "never"\n'
    )
    daemon.start(wait_for=["vanishing"])
    daemon.act("vanishing", "stop", wait="down")
    before = settled(daemon, daemon.pid)
    # Where its edge is to be there is a folder by now: bind fails.
    for index in range(2, 12):
        (daemon.runtime / "edges" / f"{index:08x}").mkdir()
    for _ in range(10):
        assert daemon.act("vanishing", "start", wait="ready").status == 409
        assert daemon.of("vanishing")["last_exit"]["reason"] == "spawn-failed"
    assert settled(daemon, daemon.pid) == before
