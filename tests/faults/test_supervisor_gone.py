"""The supervisor is killed: nothing of it stays, and the next one starts on the same folders."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import psutil
import pytest

from ..e2e import lives
from ..support.daemon import DEADLINE, Daemon, Watched

WITHIN = 2.0
"""Seconds, of the contract. The kernel needs milliseconds."""


def kill(daemon: Daemon) -> None:
    """SIGKILL, and nothing is left within the time."""
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert daemon.left(WITHIN) == []


@pytest.mark.parametrize("stopped", [(), ("sleeper",), ("sleeper", "spinner"), ("backbone",)])
def test_nothing_outlives_it(daemon: Daemon, stopped: tuple[str, ...]) -> None:
    """Whether they wait, compute or are stopped: the workers and the backbone are gone, and a new start succeeds."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "200ms"\n')
    daemon.start(wait_for=["sleeper", "spinner"])
    for name in stopped:
        os.kill(daemon.backbone if name == "backbone" else daemon.worker(name), signal.SIGSTOP)
    assert len(daemon.children()) == 3
    kill(daemon)
    assert daemon.socket.exists()
    daemon.start(wait_for=["sleeper", "spinner"])
    assert len(os.listdir(daemon.runtime / "edges")) == 2


def test_nothing_outlives_it_while_it_stops(daemon: Daemon) -> None:
    """Killed in the middle of its graceful end, with a guest that has a minute more: nothing is left."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "60s"\n')
    daemon.start(wait_for=["spinner"])
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_state("spinner", "stopping")
    kill(daemon)


@pytest.mark.parametrize("milliseconds", [100, 250, 300, 350, 400, 500])
def test_nothing_outlives_it_while_it_starts(daemon: Daemon, milliseconds: int) -> None:
    """Whenever in its start it is killed, with six workers on their way, each of its processes ends by itself."""
    for number in range(6):
        daemon.capsule(f"sleeper-{number}", lives.sleeper(), subscribe=lives.QUIET)
    process = daemon.launch()
    with suppress(subprocess.TimeoutExpired):
        process.wait(milliseconds / 1000)  # no waiting for something: another moment each time
    # It is stopped while we look, so that no child comes between the look and the kill.
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    children = Watched(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert children.left(WITHIN) == []
