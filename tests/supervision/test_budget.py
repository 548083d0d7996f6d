"""The budget of restarts belongs to a capsule's name: it survives its instances and the supervisor."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from ..e2e import lives
from ..support.daemon import DEADLINE, Daemon

FAILING = """
[supervision]
backoff_initial = "{first}"
backoff_max = "60s"
start_limit = 5
start_limit_interval = "10m"
"""


def exits(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    return list(daemon.get(f"/v1/capsules/{name}/why")["exits"])


def attempts(daemon: Daemon, name: str) -> list[int]:
    """Of its ends, the oldest first."""
    return [each["attempt"] for each in reversed(exits(daemon, name)) if "attempt" in each]


def test_a_failed_start_is_tried_again_with_growing_pauses_and_then_no_more(daemon: Daemon) -> None:
    """As a crash is: five attempts, and `failed`, of which each attempt tells what followed."""
    daemon.capsule("broken", lives.traps(), digest="0" * 64, extra=FAILING.format(first="20ms"))
    daemon.start()
    daemon.wait_state("broken", "failed")
    found = exits(daemon, "broken")
    assert [each["reason"] for each in found] == ["load-error"] * 5
    assert attempts(daemon, "broken") == [1, 2, 3, 4, 5]
    assert found[0]["then"] == "it has failed: 5 failures within 600 s"
    pauses = [float(each["then"].split()[-2]) for each in reversed(found[1:])]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * pauses[0]
    said = daemon.ctl("why", "broken")
    assert said.returncode == 0
    assert "reset-failed" in said.stdout
    assert daemon.act("broken", "reset-failed").status == 202
    daemon.wait("broken", lambda _: len(exits(daemon, "broken")) == 10)
    assert attempts(daemon, "broken")[5:] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_budget_survives_the_supervisor(daemon: Daemon, number: signal.Signals) -> None:
    """Failures before and after are counted together; ends of before can be asked for."""
    daemon.capsule("broken", lives.traps(), extra=FAILING.format(first="1s"))
    daemon.start()
    daemon.wait("broken", lambda each: each["attempt"] == 2)
    assert daemon.act("broken", "start").status == 202  # instead of the pause
    daemon.wait("broken", lambda each: each["attempt"] == 3)
    written(daemon, "broken", attempt=3)
    daemon.stop(number)
    daemon.start()
    daemon.wait("broken", lambda each: each["attempt"] == 4)
    daemon.act("broken", "start")
    daemon.wait("broken", lambda each: each["attempt"] == 5)
    daemon.act("broken", "start")
    daemon.wait_state("broken", "failed")
    assert attempts(daemon, "broken") == [1, 2, 3, 4, 5]


def test_what_has_failed_stays_so_until_it_is_reset_or_changed(daemon: Daemon) -> None:
    """Over two restarts of the supervisor; a new manifest is a new beginning."""
    daemon.capsule("broken", lives.traps(), extra=FAILING.format(first="10ms"))
    daemon.start()
    daemon.wait_state("broken", "failed")
    daemon.stop()
    for _ in range(2):
        daemon.start()
        found = daemon.of("broken")
        assert (found["state"], found["desired"], found["pid"]) == ("failed", "up", None)
        assert daemon.act("broken", "start").status == 409
        daemon.stop()
    manifest = daemon.capsules / "broken" / "Capsule.toml"
    manifest.write_text(manifest.read_text().replace('"1.0.0"', '"1.0.1"'))
    daemon.start()
    daemon.wait("broken", lambda each: each["state"] != "failed")
    daemon.act("broken", "stop", wait="down")


def test_a_supervisor_that_was_killed_is_an_end_too(daemon: Daemon) -> None:
    """Each instance that went with it has the reason `supervisor-lost`, once, and it counts for nothing."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    instance = daemon.of("sleeper")["instance"]
    written(daemon, "sleeper", running=instance)
    daemon.stop(signal.SIGKILL)
    daemon.start(wait_for=["sleeper"])
    assert [(each["reason"], each["instance"]) for each in exits(daemon, "sleeper")] == [
        ("supervisor-lost", instance)
    ]
    assert daemon.of("sleeper")["attempt"] == 1
    daemon.stop()
    daemon.start(wait_for=["sleeper"])
    assert [each["reason"] for each in exits(daemon, "sleeper")] == ["supervisor-shutdown", "supervisor-lost"]


def test_an_end_has_its_evidence(daemon: Daemon) -> None:
    """The trap with its backtrace, what it used, the last lines of its log, its counters on the bus; after a restart
    of the supervisor too."""
    daemon.capsule("crasher", lives.traps(), extra='[supervision]\nrestart = "never"\n')
    daemon.start()
    daemon.wait_state("crasher", "stopped")
    (before,) = exits(daemon, "crasher")
    assert (before["reason"], before["then"], before["attempt"]) == ("trap", "it stays down", 1)
    assert "unreachable" in before["trap"]
    assert before["backtrace"]
    assert before["cpu_seconds"] > 0
    assert before["max_rss"] > 1 << 20
    assert before["ready_seconds"] >= 0
    assert before["bus"]["published"] == 0
    assert before["bus"]["host_calls"] >= 1
    daemon.stop()
    daemon.start()
    assert exits(daemon, "crasher")[-1] == before


def test_a_history_that_is_damaged(daemon: Daemon) -> None:
    """It is said and put aside; the capsule starts as if there had been none."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    folder = daemon.folder / "st" / "histories"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "sleeper.json").write_text('{"version": 1')
    daemon.start(wait_for=["sleeper"])
    assert exits(daemon, "sleeper") == []
    assert "sleeper.json" in daemon.log()
    assert (folder / "sleeper.bad").exists()


def test_a_history_that_cannot_be_written_is_told(daemon: Daemon) -> None:
    """By the status, for as long; the capsule is disturbed in nothing."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    in_its_way = daemon.folder / "st" / "histories" / "sleeper.new"
    (in_its_way / "x").mkdir(parents=True, mode=0o700)
    daemon.start(wait_for=["sleeper"])
    deadline = time.monotonic() + DEADLINE
    while not (faults := daemon.get("/v1/status")["faults"]):
        assert time.monotonic() < deadline
    assert faults[0]["file"].endswith("histories/sleeper.json")
    assert "cannot be written" in faults[0]["message"]
    assert daemon.act("sleeper", "restart", wait="ready").status == 200
    (in_its_way / "x").rmdir()
    in_its_way.rmdir()
    while daemon.get("/v1/status")["faults"]:
        assert time.monotonic() < deadline


def test_one_that_has_done_its_work_is_not_missed(daemon: Daemon) -> None:
    """Where its restart policy leaves it at that, the supervisor is ready; one that has failed is missed."""
    daemon.capsule("done", lives.returns())
    daemon.start()
    daemon.wait_state("done", "stopped")
    assert daemon.ctl("health", "--level", "ready").returncode == 0
    daemon.act("done", "restart")
    daemon.wait("done", lambda _: len(exits(daemon, "done")) == 2)


def written(daemon: Daemon, name: str, **wanted: Any) -> None:
    """Ask the supervisor for something until the file of a history, which it writes meanwhile, holds these."""
    path = daemon.folder / "st" / "histories" / f"{name}.json"
    deadline = time.monotonic() + DEADLINE
    while not (path.exists() and wanted.items() <= json.loads(path.read_text()).items()):
        assert time.monotonic() < deadline, path.exists() and path.read_text()
        daemon.of(name)
