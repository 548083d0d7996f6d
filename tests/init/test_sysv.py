"""The script: actions and exit statuses of LSB Core 5.0, section 22.2."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ..support.daemon import Daemon
from .inits import BareSysv, Sysv, cmdline, until


@pytest.fixture(params=[Sysv, BareSysv])
def script(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Sysv]:
    made: Sysv = request.param(daemon)
    try:
        yield made
    finally:
        made.close()


def test_a_life(script: Sysv) -> None:
    """Every action from every state, with the status that the standard wants."""
    assert script.act("status") == 3
    assert script.act("reload") == 7
    assert script.act("force-reload") == 7
    assert script.act("try-restart") == 0
    assert script.pid() is None
    assert script.act("stop") == 0

    assert script.act("start") == 0
    assert script.daemon.get("/v1/health")["healthy"]
    assert script.act("status") == 0
    first = script.pid()
    assert first is not None
    assert script.act("start") == 0
    assert script.pid() == first

    assert script.act("reload") == 0
    assert script.act("force-reload") == 0
    assert script.pid() == first

    assert script.act("restart") == 0
    second = script.pid()
    assert second not in (None, first)
    assert script.act("try-restart") == 0
    third = script.pid()
    assert third not in (None, second)

    assert third is not None
    os.kill(third, signal.SIGKILL)
    until(lambda: script.pid() is None, "gone")
    assert script.act("status") == 1
    assert script.act("start") == 0
    assert script.act("stop") == 0
    assert script.act("status") == 3
    assert not script.pidfile.exists()


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("start", "now")])
def test_wrong_arguments(script: Sysv, arguments: tuple[str, ...]) -> None:
    """Are 2, and start nothing."""
    assert script.act(*arguments) == 2
    assert script.pid() is None


def test_a_pid_file_that_names_another(script: Sysv) -> None:
    """A number that is somebody else's by now is not ours: nobody is stopped for it, and it is in no start's way."""
    bystander = script.run("sleep", "60")
    script.pidfile.write_text(f"{bystander.pid}\n")
    assert script.act("status") == 1
    assert script.act("reload") == 7
    assert script.act("stop") == 0
    assert bystander.poll() is None
    script.pidfile.write_text(f"{bystander.pid}\n")
    assert script.act("start") == 0
    assert script.pid() not in (None, bystander.pid)
    assert script.act("stop") == 0
    assert bystander.poll() is None


@pytest.mark.parametrize("text", ["", "no number\n", "-1\n", "0x10\n"])
def test_a_pid_file_without_a_number(script: Sysv, text: str) -> None:
    """Is that of a dead one."""
    script.pidfile.write_text(text)
    assert script.act("status") == 1
    assert script.act("stop") == 0
    assert not script.pidfile.exists()


def test_a_start_that_fails(script: Sysv) -> None:
    """Is 1, and leaves neither a process nor a pid file."""
    script.daemon.runtime.write_text("in the way")
    assert script.act("start") == 1
    assert "it has not started" in script.log.read_text()
    assert not script.pidfile.exists()
    assert script.act("status") == 3


def test_a_start_that_takes_too_long(script: Sysv) -> None:
    """Is ended, and is 1."""
    slow = script.folder / "slow"
    slow.write_text('#!/bin/sh\nread -r line <"$0.fifo"\n')
    slow.chmod(0o755)
    os.mkfifo(f"{slow}.fifo")
    script.defaults.write_text(script.defaults.read_text() + f"DAEMON={slow}\nSTART_SECONDS=1\n")
    assert script.act("start") == 1
    assert not script.pidfile.exists()
    assert not [each for each in psutil.process_iter() if str(slow) in cmdline(each)]


def test_two_starts_at_once(script: Sysv) -> None:
    """Make one supervisor, whose pid the file has."""
    starts = [script.run(*script.command("start"), env=script.environment()) for _ in range(3)]
    assert [each.wait(60) for each in starts] == [0, 0, 0]
    pid = script.pid()
    assert pid is not None
    assert script.daemon.get("/v1/status")["pid"] == pid
    assert script.act("stop") == 0


def test_where_it_is_not_installed(script: Sysv) -> None:
    """Is 5; the status is that of one that does not run."""
    script.defaults.write_text(script.defaults.read_text() + "DAEMON=/nowhere/capsuled\n")
    assert script.act("start") == 5
    assert script.act("status") == 3


def test_where_the_pid_file_may_not_be(script: Sysv) -> None:
    """Is 4, for want of privilege."""
    script.defaults.write_text(script.defaults.read_text() + "PIDFILE=/proc/capsuled.pid\n")
    assert script.act("start") == 4


def test_the_header(script: Sysv) -> None:
    """insserv and its like find what they read."""
    assert script.script is not None
    lines = script.script.read_text().splitlines()
    header = lines[lines.index("### BEGIN INIT INFO") : lines.index("### END INIT INFO")]
    keys = {each.split(":")[0].lstrip("# ") for each in header[1:]}
    assert keys == {
        *("Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop"),
        "Short-Description",
    }


@pytest.mark.parametrize(
    "file",
    [
        "sysv/capsuled",
        "openrc/capsuled",
        "s6/capsuled/run",
        "s6/capsuled/finish",
        "runit/capsuled/run",
        "runit/capsuled/check",
        "runit/capsuled/finish",
    ],
)
def test_dash_reads_it(file: str) -> None:
    """No word of it is bash's alone."""
    path = Path(__file__).resolve().parents[2] / "init" / file
    assert path.stat().st_mode & 0o111 == 0o111
    made = subprocess.run(["dash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")


def test_the_supervisor_holds_no_lock_of_the_script(script: Sysv) -> None:
    """What the script has opened stays its own: descriptors 3 and 9 are closed in the supervisor."""
    assert script.act("start") == 0
    pid = script.pid()
    assert pid is not None
    open_files = {each.path for each in psutil.Process(pid).open_files()}
    assert f"{script.pidfile}.lock" not in open_files
    assert script.act("stop") == 0
