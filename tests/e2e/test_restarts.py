"""Restarts by policy, and what operators do meanwhile."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress

import pytest

from ..support.daemon import Daemon
from . import lives

LOOPING = """
[supervision]
backoff_initial = "50ms"
backoff_max = "50ms"
start_limit = 3
start_limit_interval = "60s"
"""


def states(daemon: Daemon, name: str) -> list[str]:
    return [each["event"] for each in daemon.events() if each["capsule"] == name]


def test_a_crash_loop_ends_and_begins_anew_when_asked(daemon: Daemon) -> None:
    """Trap, backoff, … until it has failed; to start it is refused by 409 until `reset-failed`."""
    daemon.capsule("crasher", lives.traps(), extra=LOOPING)
    daemon.start()
    found = daemon.wait_state("crasher", "failed")
    assert (found["desired"], found["pid"], found["attempt"]) == ("up", None, 3)
    assert states(daemon, "crasher") == [
        *["starting", "ready", "exited", "backoff"] * 2,
        *["starting", "ready", "exited", "failed"],
    ]
    assert [each["reason"] for each in daemon.get("/v1/capsules/crasher/why")["exits"]] == ["trap"] * 3
    for verb in ("start", "restart"):
        refused = daemon.act("crasher", verb)
        assert refused.status == 409, refused
        assert "reset-failed" in str(refused.value)
    assert daemon.act("crasher", "reset-failed").status == 202
    daemon.wait(
        "crasher",
        lambda _: states(daemon, "crasher").count("starting") >= 4,
    )
    daemon.wait_state("crasher", "failed")


def test_a_stop_during_a_backoff_holds(daemon: Daemon) -> None:
    """What waits for its next attempt is down at once when it is stopped, and is not started by its timer."""
    daemon.capsule(
        "crasher",
        lives.traps(),
        extra='[supervision]\nbackoff_initial = "300ms"\nbackoff_max = "300ms"\nstart_limit = 50\n',
    )
    daemon.capsule("other", lives.traps(), extra='[supervision]\nbackoff_initial = "1s"\nstart_limit = 50\n')
    daemon.start()
    assert daemon.wait_state("crasher", "backoff")["next_attempt_at"] is not None
    stopped = daemon.act("crasher", "stop", wait="down")
    assert stopped.status == 200, stopped
    assert daemon.of("crasher")["next_attempt_at"] is None
    # The other one's timer, which is longer, has gone off: so would this one's have.
    daemon.wait("other", lambda each: states(daemon, "other").count("starting") >= 2)
    assert states(daemon, "crasher")[-1] == "stopped"


def test_a_start_during_a_backoff_waits_no_longer(daemon: Daemon) -> None:
    """`start` in a backoff of a minute starts it now."""
    daemon.capsule(
        "once", lives.traps(), extra='[supervision]\nbackoff_initial = "60s"\nbackoff_max = "60s"\n'
    )
    daemon.start()
    daemon.wait_state("once", "backoff")
    assert daemon.act("once", "start").status == 202
    daemon.wait("once", lambda _: states(daemon, "once").count("starting") == 2)


def test_verbs_that_change_nothing(daemon: Daemon) -> None:
    """To start what is up, and to stop or kill what is down, is no error and starts or ends no process."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    pid = daemon.worker("sleeper")
    assert daemon.act("sleeper", "start", wait="ready").status == 200
    assert daemon.worker("sleeper") == pid
    for verb in ("stop", "stop", "kill"):
        assert daemon.act("sleeper", verb, wait="down").status == 200
    assert states(daemon, "sleeper") == ["starting", "ready", "stopping", "exited", "stopped"]


def test_a_restart_while_it_stops_brings_it_back(daemon: Daemon) -> None:
    """The last word counts: stopped, and started again before it is down, it comes back by itself."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "500ms"\n')
    daemon.start(wait_for=["spinner"])
    pid = daemon.worker("spinner")
    assert daemon.act("spinner", "stop").status == 202
    assert daemon.act("spinner", "start", wait="ready").status == 200
    assert daemon.worker("spinner") != pid


def test_whoever_waits_for_the_contrary_is_told(daemon: Daemon) -> None:
    """A wait that another operator's word makes hopeless ends with a refusal, and not by its timeout."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "60s"\n')
    daemon.start(wait_for=["spinner"])
    answers: list[int] = []
    waiting = threading.Thread(
        target=lambda: answers.append(daemon.act("spinner", "restart", wait="ready").status)
    )
    waiting.start()
    daemon.wait_state("spinner", "stopping")
    assert daemon.act("spinner", "kill", wait="down").status == 200
    waiting.join(20)
    assert answers == [409]


ACTIONS = ("start", "stop", "restart", "kill", "reset-failed", "signal")


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_operators_do_desired_and_observed_agree_in_the_end(daemon: Daemon, seed: int) -> None:
    """Invariant: after any sequence of actions every capsule comes to rest where it is wanted, and nobody crashed.

    200 actions at random on five capsules that live and die differently, one in six of them a SIGKILL from outside.
    """
    quick = '[supervision]\nstop_timeout = "200ms"\nbackoff_initial = "10ms"\nbackoff_max = "20ms"\n'
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET, extra=quick)
    daemon.capsule("spinner", lives.spinner(), extra=quick)
    daemon.capsule("returns", lives.returns(), extra=quick + 'restart = "always"\n')
    daemon.capsule("crasher", lives.traps(), extra=quick + "start_limit = 4\n")
    daemon.capsule("never", lives.traps_at_once(), extra=quick + 'restart = "never"\n')
    names = ("sleeper", "spinner", "returns", "crasher", "never")
    daemon.start()
    chance = random.Random(seed)
    for _ in range(200):
        name, action = chance.choice(names), chance.choice(ACTIONS)
        if action == "signal":
            pid = daemon.of(name)["pid"]
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            continue
        answer = daemon.act(name, action)
        assert answer.status in (202, 409), (name, action, answer)
        if answer.status == 409:
            assert action in ("start", "restart"), (name, action, answer)
            assert answer.value["error"]["detail"]["state"] == "failed"  # type: ignore[index, call-overload]
    for name in names:
        found = daemon.of(name)
        if found["desired"] == "down":
            daemon.wait(name, lambda each: each["state"] in ("stopped", "failed") and each["pid"] is None)
        elif name in ("sleeper", "spinner"):
            daemon.wait(name, lambda each: each["state"] in ("ready", "failed"))
        else:
            daemon.wait(
                name, lambda each: each["state"] in ("stopped", "failed", "ready", "backoff", "starting")
            )
    for name in names:
        assert daemon.act(name, "stop", wait="down").status == 200
        assert daemon.of(name)["pid"] is None
    assert os.listdir(daemon.runtime / "edges") == []
    assert "Traceback" not in daemon.log()
    assert daemon.get("/v1/status")["backbone"]["restarts"] == 0
