"""Capsules start when what they import from is ready, and stop before it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

from ..e2e import lives
from ..support.daemon import Daemon
from . import changing

IMPORTS = '[imports.acme]\n{0} = "^1.0"\n'
EXPORTS = '[exports.acme]\n{0} = "1.2.0"\n'
OPTIONAL = '[imports.acme]\n{0} = {{ version = "^1.0", optional = true }}\n'


def chain(daemon: Daemon) -> None:
    """`a` imports from `b`, and `b` from `c`: the other way round than their names are started."""
    quiet = lives.QUIET
    daemon.capsule("a", lives.sleeper(), subscribe=quiet, extra=IMPORTS.format("b"))
    daemon.capsule("b", lives.sleeper(), subscribe=quiet, extra=IMPORTS.format("c") + EXPORTS.format("b"))
    daemon.capsule("c", lives.sleeper(), subscribe=quiet, extra=EXPORTS.format("c"))


def order_of(daemon: Daemon, event: str) -> list[str]:
    return [each["capsule"] for each in daemon.events() if each["event"] == event]


def test_each_is_spawned_when_its_provider_is_ready(daemon: Daemon) -> None:
    chain(daemon)
    daemon.start(wait_for=["a", "b", "c"])
    assert order_of(daemon, "ready") == ["c", "b", "a"]
    assert daemon.of("a")["waits_for"] is None


def test_they_stop_in_reverse(daemon: Daemon) -> None:
    """A provider is told to stop when who imports from it is gone."""
    chain(daemon)
    daemon.start(wait_for=["a", "b", "c"])
    assert daemon.stop() == 0, daemon.log()
    ended = [
        line.split("capsule=")[1].split()[0] for line in daemon.log().splitlines() if "event=exited" in line
    ]
    assert ended == ["a", "b", "c"]
    assert daemon.left() == []


def test_who_waits_can_be_stopped_and_says_what_for(daemon: Daemon) -> None:
    """It has no process; its provider, which never gets ready, is named."""
    daemon.capsule(
        "late",
        lives.sleeper(says_ready=False),
        subscribe=lives.QUIET,
        extra=EXPORTS.format("x") + '[supervision]\nready_timeout = "60s"\n',
    )
    daemon.capsule("app", lives.sleeper(), subscribe=lives.QUIET, extra=IMPORTS.format("x"))
    daemon.start()
    found = daemon.wait_state("app", "starting")
    assert (found["pid"], found["waits_for"]) == (None, "late")
    assert "waits until late is ready" in daemon.get("/v1/capsules/app/why")["next"]
    assert daemon.act("app", "stop", wait="down").status == 200
    assert daemon.of("app")["waits_for"] is None
    assert daemon.get("/v1/capsules/app/why")["exits"] == []
    daemon.act("app", "start")
    assert daemon.act("app", "kill", wait="down").status == 200
    assert daemon.act("late", "stop", wait="down").status == 200
    refused = daemon.act("app", "start", wait="ready")
    assert refused.status >= 400
    assert "imports from late, which is stopped" in str(refused.value)


def test_a_supervisor_that_ends_while_somebody_waits(daemon: Daemon) -> None:
    chain(daemon)
    daemon.capsule("d", lives.sleeper(), subscribe=lives.QUIET, extra=IMPORTS.format("late"))
    daemon.capsule(
        "late", lives.sleeper(says_ready=False), subscribe=lives.QUIET, extra=EXPORTS.format("late")
    )
    daemon.start(wait_for=["a"])
    assert daemon.of("d")["state"] == "starting"
    assert daemon.stop(signal.SIGTERM) == 0
    assert daemon.left() == []


def test_an_optional_provider_that_fails_holds_nobody_up(daemon: Daemon) -> None:
    daemon.capsule(
        "broken",
        lives.traps(),
        digest="0" * 64,
        extra=EXPORTS.format("x") + '[supervision]\nbackoff_initial = "60s"\nbackoff_max = "60s"\n',
    )
    daemon.capsule("app", lives.sleeper(), subscribe=lives.QUIET, extra=OPTIONAL.format("x"))
    daemon.start(wait_for=["app"])
    assert daemon.of("broken")["state"] == "backoff"


def test_an_optional_circle_is_none(daemon: Daemon) -> None:
    """Whichever way round their names are, and one after the other."""
    quiet = lives.QUIET
    for one, two in (("a", "b"), ("d", "c")):
        daemon.capsule(one, lives.sleeper(), subscribe=quiet, extra=IMPORTS.format(two) + EXPORTS.format(one))
        daemon.capsule(
            two, lives.sleeper(), subscribe=quiet, extra=OPTIONAL.format(one) + EXPORTS.format(two)
        )
    daemon.start(wait_for=["a", "b", "c", "d"])
    assert order_of(daemon, "ready").index("b") < order_of(daemon, "ready").index("a")


def test_who_waits_is_told_of_another_provider(daemon: Daemon) -> None:
    """One that comes with a reload is taken, and the one that never gets ready is not waited for any longer."""
    late = '[supervision]\nready_timeout = "60s"\n'
    daemon.capsule(
        "old", lives.sleeper(says_ready=False), subscribe=lives.QUIET, extra=EXPORTS.format("x") + late
    )
    daemon.capsule("app", lives.sleeper(), subscribe=lives.QUIET, extra=IMPORTS.format("x"))
    daemon.start()
    assert daemon.wait_state("app", "starting")["waits_for"] == "old"
    daemon.capsule(
        "new", lives.sleeper(), subscribe=lives.QUIET, extra=EXPORTS.format("x").replace("1.2.0", "1.3.0")
    )
    assert daemon.ctl("reload").returncode == 0
    daemon.wait("app", lambda each: each["ready"])


def test_a_provider_that_ends_takes_nobody_with_it(daemon: Daemon) -> None:
    chain(daemon)
    daemon.start(wait_for=["a", "b", "c"])
    pids = {name: daemon.worker(name) for name in "ab"}
    assert daemon.act("c", "kill", wait="down").status == 200
    assert {name: daemon.worker(name) for name in "ab"} == pids


def test_circles_and_missing_providers_are_left_out(daemon: Daemon) -> None:
    """They are told with their files; the rest starts. `capsuled check` tells them too."""
    quiet = lives.QUIET
    daemon.capsule("a", lives.sleeper(), subscribe=quiet, extra=IMPORTS.format("b") + EXPORTS.format("a"))
    daemon.capsule("b", lives.sleeper(), subscribe=quiet, extra=IMPORTS.format("a") + EXPORTS.format("b"))
    daemon.capsule("lonely", lives.sleeper(), subscribe=quiet, extra=IMPORTS.format("nobody"))
    daemon.capsule("fine", lives.sleeper(), subscribe=quiet)
    daemon.start(wait_for=["fine"])
    faults: list[dict[str, Any]] = daemon.get("/v1/status")["faults"]
    assert sorted(each["key"] for each in faults) == [
        "imports.acme.a",
        "imports.acme.b",
        "imports.acme.nobody",
    ]
    assert any("imports from" in each["message"] for each in faults)
    assert [each["name"] for each in daemon.get("/v1/capsules")["capsules"]] == ["fine"]
    done = subprocess.run(
        [sys.executable, "-m", "capsuled.supervisor.commands.capsuled", "check", str(daemon.capsules)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.count("imports.acme.") == 3
    changing.rewrite(daemon, "a", 'b = "^1.0"', 'b = { version = "^1.0", optional = true }')
    plan = changing.reload(daemon)
    assert plan["added"] == ["a", "b"]
    assert order_of(daemon, "ready") == ["fine", "a", "b"]
