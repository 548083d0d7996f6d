"""Workers that are killed, stopped, compute for ever or never come up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..e2e import lives
from ..support.daemon import Daemon

QUICK = (
    '[supervision]\nstop_timeout = "1s"\nbackoff_initial = "10ms"\nbackoff_max = "10ms"\nstart_limit = 100\n'
)


def test_killed_from_outside(daemon: Daemon) -> None:
    """A SIGKILL that nobody here sent is `killed-signal`, says so, and the policy starts it again."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET, extra=QUICK)
    daemon.start(wait_for=["sleeper"])
    pid = daemon.worker("sleeper")
    os.kill(pid, signal.SIGKILL)
    found = daemon.wait("sleeper", lambda each: each["ready"] and each["pid"] not in (None, pid))
    end = found["last_exit"]
    assert (end["reason"], end["signal"]) == ("killed-signal", "SIGKILL")
    assert "killed" not in end
    assert "cause unknown" in end["message"]
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("wasm", "prepare", "signalled", "fewest", "most"),
    [
        (lives.sleeper, None, None, 0.0, 0.5),
        (lives.spinner, None, "SIGKILL", 1.0, 3.0),
        (lives.sleeper, signal.SIGSTOP, "SIGKILL", 1.0, 3.0),
        (lives.spinner, signal.SIGSTOP, "SIGKILL", 1.0, 3.0),
    ],
    ids=["sleeping", "spinning", "stopped while it sleeps", "stopped while it spins"],
)
def test_a_stop_is_bounded(
    daemon: Daemon,
    wasm: Callable[[], bytes],
    prepare: signal.Signals | None,
    signalled: str | None,
    fewest: float,
    most: float,
) -> None:
    """Cancel, TERM at the half of `stop_timeout`, KILL at its end: the first that works ends it, and the end tells.

    Process 1 of a namespace ignores TERM: where there are namespaces, KILL is what ends who hears no cancel.
    """
    daemon.capsule("subject", wasm(), subscribe=lives.QUIET, extra=QUICK)
    daemon.start(wait_for=["subject"])
    pid = daemon.worker("subject")
    if prepare is not None:
        os.kill(pid, prepare)
    begun = time.monotonic()
    assert daemon.act("subject", "stop", wait="down").status == 200
    took = time.monotonic() - begun
    assert not Path(f"/proc/{pid}").exists()
    end = daemon.of("subject")["last_exit"]
    assert (end["reason"], end.get("signal")) == ("cancelled", signalled)
    assert fewest <= took < most + 5.0
    if signalled == "SIGKILL":
        assert (end["killed"], end["limit"], end["value"]) == (True, "stop_timeout", 1.0)


@pytest.mark.parametrize("prepare", [None, signal.SIGSTOP])
@pytest.mark.parametrize("wasm", [lives.sleeper, lives.spinner])
def test_a_kill_is_at_once(daemon: Daemon, wasm: Callable[[], bytes], prepare: signal.Signals | None) -> None:
    """A kill asks nothing of the guest, whatever it does."""
    daemon.capsule("subject", wasm(), subscribe=lives.QUIET, extra='[supervision]\nstop_timeout = "60s"\n')
    daemon.start(wait_for=["subject"])
    pid = daemon.worker("subject")
    if prepare is not None:
        os.kill(pid, prepare)
    begun = time.monotonic()
    assert daemon.act("subject", "kill", wait="down").status == 200
    assert time.monotonic() - begun < 5.0
    assert not Path(f"/proc/{pid}").exists()
    end = daemon.of("subject")["last_exit"]
    assert (end["reason"], end["killed"]) == ("killed-by-operator", True)


def test_a_stop_that_was_begun_gives_way_to_a_kill(daemon: Daemon) -> None:
    """Who has no patience for the ladder kills, and the reason is the kill."""
    daemon.capsule("subject", lives.spinner(), extra='[supervision]\nstop_timeout = "60s"\n')
    daemon.start(wait_for=["subject"])
    assert daemon.act("subject", "stop").status == 202
    assert daemon.act("subject", "kill", wait="down").status == 200
    assert daemon.of("subject")["last_exit"]["reason"] == "killed-by-operator"


def test_killed_in_the_middle_of_its_start(daemon: Daemon) -> None:
    """Again and again before it is ready: it is started anew each time, and gets there in the end."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET, extra=QUICK)
    daemon.start()
    last = None
    for _ in range(10):
        found = daemon.wait("sleeper", lambda each, last=last: each["pid"] not in (None, last))  # type: ignore[misc]
        last = found["pid"]
        os.kill(last, signal.SIGKILL)
    found = daemon.wait("sleeper", lambda each: each["ready"] and each["pid"] not in (None, last))
    exits = daemon.get("/v1/capsules/sleeper/why")["exits"]
    assert len(exits) == 10
    assert {each["reason"] for each in exits} == {"killed-signal"}


@pytest.mark.parametrize("verb", ["stop", "kill", "restart"])
def test_an_operator_in_the_middle_of_its_start(daemon: Daemon, verb: str) -> None:
    """The verb right after the start, before there is anything of a guest: it ends as it should."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET, extra=QUICK)
    daemon.start(wait_for=["sleeper"])
    daemon.act("sleeper", "stop", wait="down")
    for _ in range(5):
        daemon.act("sleeper", "start")
        wait = "ready" if verb == "restart" else "down"
        assert daemon.act("sleeper", verb, wait=wait).status == 200
        daemon.act("sleeper", "stop", wait="down")
    assert os.listdir(daemon.runtime / "edges") == []
    assert "Traceback" not in daemon.log()


def test_the_control_socket_answers_while_capsules_crash(daemon: Daemon) -> None:
    """Eight crash loops with the shortest pause hold nobody up: each answer comes in time."""
    for number in range(8):
        daemon.capsule(
            f"crasher-{number}",
            lives.traps_at_once(),
            extra='[supervision]\nbackoff_initial = "10ms"\nbackoff_max = "10ms"\nstart_limit = 0\n',
        )
    daemon.start()
    slowest = 0.0
    for _ in range(50):
        begun = time.monotonic()
        daemon.get("/v1/status")
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 2.0
    for number in range(8):
        name = f"crasher-{number}"
        daemon.wait(name, lambda each: each["attempt"] > 2)
        assert daemon.act(name, "stop", wait="down").status == 200
