"""The supervisor's own end: by signals, at any moment, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from ..support.daemon import DEADLINE, Daemon, Watched
from . import lives


def log_file(daemon: Daemon, name: str) -> list[dict[str, str]]:
    """A capsule's log, as it stands on the disk."""
    text = (daemon.folder / "st" / "logs" / f"{name}.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_gracefully(daemon: Daemon, number: signal.Signals) -> None:
    """Guests that listen end at once, one that does not is killed at its own deadline; the files know of both."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "500ms"\n')
    daemon.start(wait_for=["sleeper", "spinner"])
    begun = time.monotonic()
    assert daemon.stop(number) == 0, daemon.log()
    assert time.monotonic() - begun < 5.0
    assert daemon.left() == []
    assert not daemon.socket.exists()
    assert not os.path.lexists(daemon.runtime / "edges")
    for name in ("sleeper", "spinner"):
        assert log_file(daemon, name)[-1]["message"] == "ended: supervisor-shutdown"


def test_the_second_signal_ends_it_at_once(daemon: Daemon) -> None:
    """A guest that would have a minute more is killed now, and its end is on the disk all the same."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "60s"\n')
    daemon.start(wait_for=["spinner"])
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_state("spinner", "stopping")
    assert daemon.stop(signal.SIGTERM) == 0
    assert daemon.left() == []
    assert log_file(daemon, "spinner")[-1]["message"] == "ended: supervisor-shutdown"


def test_the_second_signal_waits_for_no_backbone(daemon: Daemon) -> None:
    """At once means at once, though the backbone is stopped and hears nothing."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "60s"\n')
    daemon.start(wait_for=["spinner"])
    assert daemon.process is not None
    os.kill(daemon.backbone, signal.SIGSTOP)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_state("spinner", "stopping")
    begun = time.monotonic()
    assert daemon.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 4.0
    assert daemon.left() == []


def test_what_is_asked_while_it_ends(daemon: Daemon) -> None:
    """A supervisor on its way out answers, and starts nothing any more."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "2s"\n')
    daemon.start(wait_for=["spinner"])
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_state("spinner", "stopping")
    for verb in ("start", "restart", "reset-failed"):
        assert daemon.act("spinner", verb).status == 503
    assert daemon.act("spinner", "kill").status == 202
    assert daemon.wait_end() == 0


def test_a_hangup_ends_nothing(daemon: Daemon) -> None:
    """SIGHUP is taken and said so; no capsule notices."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    pid = daemon.worker("sleeper")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.worker("sleeper") == pid
    assert daemon.stop() == 0
    assert "SIGHUP" in daemon.log()


@pytest.mark.parametrize("milliseconds", [10, 100, 200, 250, 300, 400, 600])
def test_a_signal_while_it_starts(daemon: Daemon, milliseconds: int) -> None:
    """Whenever TERM comes, it ends, nothing of it is left, no traceback is shown, and a new start succeeds."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    process = daemon.launch()
    with suppress(subprocess.TimeoutExpired):
        process.wait(milliseconds / 1000)  # no waiting for something: another moment each time
    daemon.process = process
    descendants = Watched(daemon.children())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    daemon.process = None
    assert process.returncode in (0, -signal.SIGTERM)  # before it takes signals, the kernel does
    assert b"Traceback" not in said, said
    assert descendants.left(2.0) == []
    daemon.start(wait_for=["sleeper"])


def test_nobody_has_to_read_its_standard_error(daemon: Daemon) -> None:
    """With a reader that has stopped to read, the supervisor starts, answers, logs on and ends as ever."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    daemon.capsule(
        "crasher", lives.traps(), extra='[supervision]\nbackoff_initial = "10ms"\nstart_limit = 3\n'
    )
    process = daemon.launch(stderr=writer)
    os.close(writer)
    try:
        deadline = time.monotonic() + DEADLINE
        while not daemon.socket.exists() and time.monotonic() < deadline:
            assert process.poll() is None
        daemon.wait_state("crasher", "failed")
        daemon.descendants = Watched(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert daemon.left() == []
    finally:
        os.close(reader)
        process.kill()
        process.wait()
