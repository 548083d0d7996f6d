"""What every init system may rely on: told ready when the control socket answers and not before, stopped without a
trace, restarted where it restarts, and never told ready by a start that fails."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

from capsuled.supervisor.spawn import WORKER_ENVIRONMENT

from ..e2e import lives
from ..support.daemon import Daemon
from .inits import Init, Notify, until


@pytest.fixture
def capsules(daemon: Daemon) -> None:
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "500ms"\n')


def await_capsules(daemon: Daemon) -> None:
    """Until both are ready: from then on no compiler and no launcher comes and goes."""
    for name in ("sleeper", "spinner"):
        daemon.wait_state(name, "ready")


def environment(process: psutil.Process) -> dict[str, str]:
    """Root alone is shown that of a worker, which is not dumpable; to others it looks as it has to be."""
    try:
        with open(f"/proc/{process.pid}/environ", "rb") as file:
            return dict(each.split("=", 1) for each in file.read().decode().split("\0") if each)
    except PermissionError:
        assert os.getuid() != 0
        return dict(WORKER_ENVIRONMENT)


def last_words(daemon: Daemon, name: str) -> str:
    text = (daemon.folder / "st" / "logs" / f"{name}.log").read_text()
    return str(json.loads(text.splitlines()[-1])["message"])


@pytest.mark.usefixtures("capsules")
def test_it_is_told_ready_when_the_socket_answers(init: Init, daemon: Daemon) -> None:
    """Held up before it listens it is not ready; let go on it is, and then the first question is answered."""
    init.begin()
    os.kill(init.await_pid(), signal.SIGSTOP)
    assert not daemon.socket.exists()
    assert not init.ready()
    pid = init.pid()
    assert pid is not None
    os.kill(pid, signal.SIGCONT)
    init.await_ready()
    assert daemon.get("/v1/health")["healthy"]
    await_capsules(daemon)
    init.end()


@pytest.mark.usefixtures("capsules")
def test_a_stop_is_graceful_and_leaves_nothing(init: Init, daemon: Daemon) -> None:
    """Capsules are told to stop, the exit status is 0, and no process, socket or worker's socket is left."""
    init.begin()
    init.await_ready()
    for name in ("sleeper", "spinner"):
        daemon.wait_state(name, "ready")
    init.watch()
    assert init.end() in (0, None)
    assert init.left() == []
    assert not daemon.socket.exists()
    assert not (daemon.runtime / "edges").exists()
    assert daemon.groups() == []
    for name in ("sleeper", "spinner"):
        assert last_words(daemon, name) == "ended: supervisor-shutdown"
    assert "Traceback" not in init.log.read_text()
    if isinstance(init, Notify):
        told = [each for each in init.hear() if each in (b"READY=1", b"STOPPING=1")]
        assert told == [b"READY=1", b"STOPPING=1"]


@pytest.mark.usefixtures("capsules")
def test_workers_know_nothing_of_it(init: Init, daemon: Daemon) -> None:
    """Neither the environment of the init system nor its descriptor is a worker's or the backbone's."""
    init.begin()
    init.await_ready()
    await_capsules(daemon)
    workers = init.workers()
    assert workers
    for each in workers:
        assert environment(each) == dict(WORKER_ENVIRONMENT)
    for each in init.descendants():
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & environment(each).keys()
    init.end()


@pytest.mark.usefixtures("capsules")
def test_a_crash(init: Init, daemon: Daemon) -> None:
    """Nobody outlives a supervisor that is killed; who restarts it has it ready again, with all its capsules."""
    init.begin()
    init.await_ready()
    await_capsules(daemon)
    init.watch()
    pid = init.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert init.left() == []
    if init.restarts:
        init.await_pid(but=pid)
        init.await_ready()
        await_capsules(daemon)
        init.end()
    else:
        until(lambda: init.pid() is None, "gone")


def test_a_start_that_fails_is_never_ready(init: Init, daemon: Daemon) -> None:
    """Something is in the way of its folder: the init system hears of no success."""
    daemon.runtime.write_text("in the way")
    init.begin()
    until(lambda: init.given_up() or init.ready(), "given up")
    assert not init.ready()
    assert "Traceback" not in init.log.read_text()
