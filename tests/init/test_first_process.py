"""As process 1 of a pid namespace, as in a container: signals, and orphans that are nobody's but its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import psutil
import pytest

from ..e2e import lives
from ..support.daemon import DEADLINE, Daemon
from .inits import FirstProcess, cmdline, until


@pytest.fixture
def first(daemon: Daemon) -> Iterator[FirstProcess]:
    made = FirstProcess(daemon)
    try:
        yield made
    finally:
        made.close()


def inside(pid: int) -> int:
    """The pid that a process has in its own namespace."""
    with open(f"/proc/{pid}/status") as file:
        return int(next(line for line in file if line.startswith("NSpid:")).split()[-1])


def test_it_is_the_first_process(first: FirstProcess, daemon: Daemon) -> None:
    """What is looked at here is process 1, and says so itself."""
    first.begin()
    first.await_ready()
    assert inside(first.await_pid()) == 1
    assert daemon.get("/v1/status")["pid"] == 1
    assert first.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_gracefully(first: FirstProcess, daemon: Daemon, number: signal.Signals) -> None:
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    first.begin()
    first.await_ready()
    daemon.wait_state("sleeper", "ready")
    first.watch()
    os.kill(first.await_pid(), number)
    assert first.process is not None
    assert first.process.wait(DEADLINE) == 0
    assert first.left() == []


def test_term_ends_it_before_there_is_anything_to_stop(first: FirstProcess) -> None:
    """The kernel ignores a signal that process 1 has no handler for; there is one before anything else is done."""
    code = (
        "import os, signal\nfrom capsuled.supervisor.commands import capsuled\n"
        f"def held(file): os.write({first.writer}, b'x'); signal.pause()\n"
        "capsuled.configured = held\ncapsuled.main(['run'])"
    )
    first.launch(sys.executable, "-c", code)
    until(lambda: not first.ready() and first.said == b"x", "held up")
    os.kill(first.await_pid(), signal.SIGTERM)
    assert first.process is not None
    assert first.process.wait(DEADLINE) == 128 + signal.SIGTERM


def test_orphans_are_reaped_and_its_own_children_are_not_stolen(first: FirstProcess, daemon: Daemon) -> None:
    """Who loses his parent is reaped, while a capsule's exit status is still told rightly, again and again."""
    daemon.capsule("leaver", lives.exits(7), extra='[supervision]\nrestart = "never"\n')
    first.begin()
    first.await_ready()
    pid = first.await_pid()
    user = [] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
    enter = ("nsenter", f"--target={pid}", *user, "--pid", "--mount")
    for _ in range(5):
        # Each of ten has a parent that is gone before it ends.
        made = first.run(*enter, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.2 &); done")
        assert made.wait(DEADLINE) == 0
        answer = daemon.act("leaver", "restart")
        assert answer.status == 202
        ended = daemon.wait("leaver", lambda capsule: capsule["state"] == "stopped" and capsule["last_exit"])
        assert ended["last_exit"]["reason"] == "nonzero"
        assert ended["last_exit"]["status"] == 7

    def none_left() -> bool:
        try:
            return not [
                each
                for each in psutil.Process(pid).children()
                if "sleep" in cmdline(each) or each.status() == psutil.STATUS_ZOMBIE
            ]
        except psutil.NoSuchProcess:  # one was reaped between two looks
            return False

    until(none_left, "reaped")
    assert first.end() == 0
