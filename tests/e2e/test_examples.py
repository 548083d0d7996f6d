"""The examples through the real programs: `capsuled run`, and `capsulectl` in processes of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from capsuled.proto.control import Exit

from ..support import daemon as support
from ..support.daemon import Daemon
from . import lives

NAMES = sorted(each.parent.name for each in lives.EXAMPLES.glob("*/Capsule.toml"))

RESTLESS = "crasher"
"""The example that traps again and again."""


@pytest.fixture(scope="module")
def stage() -> Generator[Daemon, None, None]:
    """A supervisor of all examples."""
    with support.daemon() as made:
        made.start(arguments=["--capsules", str(lives.EXAMPLES)], wait_for=NAMES)
        yield made
        if made.process is not None:
            assert made.stop() == 0, made.log()
        assert made.left() == []


def test_all_of_them_are_listed(stage: Daemon) -> None:
    """`list` has each example, ready but for the one that traps on purpose."""
    found = stage.ctl("list", "--json")
    assert found.returncode == Exit.DONE, found.stderr
    capsules = {each["name"]: each for each in json.loads(found.stdout)["capsules"]}
    assert sorted(capsules) == NAMES
    assert all(each["ready"] for name, each in capsules.items() if name != RESTLESS), capsules


def test_status_of_the_supervisor(stage: Daemon) -> None:
    """`status` answers with the pid that was started."""
    found = stage.ctl("status", "--json")
    assert found.returncode == Exit.DONE
    assert json.loads(found.stdout)["pid"] == stage.pid


def test_a_stop_ends_a_receive_of_a_minute_within_a_second(stage: Daemon) -> None:
    """`stop pong --wait down` returns 0 while pong blocks in a receive, and its process is gone then."""
    pid = stage.worker("pong")
    found = stage.ctl("stop", "pong", "--wait", "down", "--timeout", "5s")
    assert found.returncode == Exit.DONE, found.stderr
    assert not Path(f"/proc/{pid}").exists()
    assert stage.of("pong")["last_exit"]["reason"] == "cancelled"
    assert stage.seconds_between("pong", "stopping", "stopped") < 1.0
    assert stage.ctl("status", "pong").returncode == Exit.NOT_RUNNING
    assert stage.ctl("start", "pong", "--wait", "ready").returncode == Exit.DONE
    assert stage.ctl("status", "pong").returncode == Exit.DONE


def test_a_kill_ends_what_computes_for_ever_within_a_second(stage: Daemon) -> None:
    """`kill spinner --wait down` returns 0, the reason says who did it, and there is no such process."""
    pid = stage.worker("spinner")
    found = stage.ctl("kill", "spinner", "--wait", "down")
    assert found.returncode == Exit.DONE, found.stderr
    assert not Path(f"/proc/{pid}").exists()
    end = stage.of("spinner")["last_exit"]
    assert (end["reason"], end["signal"]) == ("killed-by-operator", "SIGKILL")
    assert stage.seconds_between("spinner", "stopping", "stopped") < 1.0


def test_a_wait_that_is_too_short(stage: Daemon) -> None:
    """What hears no cancel lives on to the end of its `stop_timeout`, for process 1 of a namespace ignores SIGTERM: a
    shorter wait exits 6, the stop goes on."""
    assert stage.ctl("start", "spinner", "--wait", "ready").returncode == Exit.DONE
    found = stage.ctl("stop", "spinner", "--wait", "down", "--timeout", "100ms")
    assert found.returncode == Exit.TIMED_OUT, found
    end = stage.wait_state("spinner", "stopped")["last_exit"]
    assert (end["reason"], end["signal"]) == ("cancelled", "SIGKILL")


def test_restart(stage: Daemon) -> None:
    """`restart --wait ready` returns with another process."""
    before = stage.worker("ping")
    assert stage.ctl("restart", "ping", "--wait", "ready").returncode == Exit.DONE
    assert stage.worker("ping") != before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("logs", "sensor", "-n", "5"), Exit.DONE),
        (("why", "crasher"), Exit.DONE),
        (("events",), Exit.DONE),
        (("bus", "stats", "--check"), Exit.DONE),
        (("acl", "explain", "ping", "publish", "ping.request"), Exit.DONE),
        (("acl", "explain", "ping", "publish", "pong.reply"), Exit.FAILED),
        (("health",), Exit.DONE),
        (("wait", "sensor", "--for", "ready"), Exit.DONE),
        (("reset-failed", "sensor"), Exit.DONE),
        (("start", "sensor"), Exit.DONE),
        (("start", "nobody"), Exit.NO_SUCH_CAPSULE),
        (("why", "nobody"), Exit.NO_SUCH_CAPSULE),
        (("stop", "sensor", "--wait", "ready"), Exit.FAILED),
        (("stop",), Exit.USAGE),
        (("dance",), Exit.USAGE),
    ],
)
def test_exit_codes(stage: Daemon, arguments: tuple[str, ...], code: Exit) -> None:
    """Each command exits as the contract says, and whoever fails says why."""
    found = stage.ctl(*arguments)
    assert found.returncode == code, found
    assert bool(found.stderr) == (code is not Exit.DONE and arguments[0] != "acl"), found


def test_nobody_there(stage: Daemon, tmp_path: Path) -> None:
    """Without a supervisor the commands exit 7."""
    found = stage.ctl("--socket", str(tmp_path / "none.sock"), "list")
    assert found.returncode == Exit.NO_SUPERVISOR
    assert "cannot reach a supervisor" in found.stderr


def test_nothing_was_lost_where_nothing_is_to_be(stage: Daemon) -> None:
    """The customer has never got a wrong answer, and the ledger adds up."""
    assert not [line for line in stage.lines("customer") if line["level"] == "error"]
    assert stage.get("/v1/bus")["balanced"]


def test_shutdown_is_the_last_word(stage: Daemon) -> None:
    """`shutdown` ends the supervisor with status 0, every process of it, and its socket."""
    stage.descendants = support.Watched(stage.children())
    assert stage.ctl("shutdown").returncode == Exit.DONE
    assert stage.wait_end() == 0
    assert stage.left() == []
    assert not stage.socket.exists()
    assert not os.path.lexists(stage.runtime / "edges")
