"""Reload: only what has changed is touched, once; what has become bad goes on."""

from __future__ import annotations

import hashlib
import shutil
import signal

from ..e2e import lives
from ..support.daemon import Daemon
from . import changing
from .changing import reload, rewrite, states


def three(daemon: Daemon) -> None:
    for name in ("one", "two", "three"):
        daemon.capsule(name, lives.sleeper(), subscribe=lives.QUIET)


def instances(daemon: Daemon) -> dict[str, str]:
    return {each["name"]: each["instance"] for each in daemon.get("/v1/capsules")["capsules"]}


def change_all(daemon: Daemon) -> None:
    """`one` stays, `two` is changed, `three` is removed, `four` is new."""
    rewrite(daemon, "two", 'version = "1.0.0"', 'version = "1.1.0"')
    changing.remove(daemon, "three")
    daemon.capsule("four", lives.sleeper(), subscribe=lives.QUIET)


PLAN = {
    "added": ["four"],
    "removed": ["three"],
    "changed": [{"name": "two", "why": ["package.version: '1.0.0' to '1.1.0'"]}],
    "unchanged": ["one"],
    "kept": [],
    "faults": [],
}


def test_a_dry_run_does_nothing(daemon: Daemon) -> None:
    """It says what would be done; asked again it says the same."""
    three(daemon)
    daemon.start(wait_for=["one", "two", "three"])
    before = instances(daemon)
    change_all(daemon)
    for _ in range(2):
        assert reload(daemon, "dry_run=") == {"dry_run": True, **PLAN}
    assert instances(daemon) == before
    said = daemon.ctl("reload", "--dry-run")
    assert said.returncode == 0
    assert "+ four" in said.stdout
    assert "- three" in said.stdout


def test_only_what_has_changed_is_touched(daemon: Daemon) -> None:
    """And that once: the plan of the next reload is empty."""
    three(daemon)
    daemon.start(wait_for=["one", "two", "three"])
    before = instances(daemon)
    change_all(daemon)
    assert reload(daemon) == {"dry_run": False, **PLAN}
    after = instances(daemon)
    assert set(after) == {"one", "two", "four"}
    assert after["one"] == before["one"]
    assert after["two"] != before["two"]
    assert daemon.of("two")["version"] == "1.1.0"
    assert states(daemon, "one") == ["starting", "ready"]
    again = reload(daemon)
    assert (again["added"], again["removed"], again["changed"]) == ([], [], [])
    assert instances(daemon) == after


def test_by_a_signal(daemon: Daemon) -> None:
    three(daemon)
    daemon.start(wait_for=["one", "two", "three"])
    change_all(daemon)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_event(lambda each: each["capsule"] == "two" and each["event"] == "upgraded")
    daemon.wait_event(lambda each: each["capsule"] == "four" and each["event"] == "ready")


def test_a_manifest_that_became_bad(daemon: Daemon) -> None:
    """Its capsule goes on, and the fault is told, also by the status; mended it is unchanged."""
    three(daemon)
    daemon.start(wait_for=["one", "two", "three"])
    before = instances(daemon)
    rewrite(daemon, "two", 'version = "1.0.0"', 'version = "one"')
    plan = reload(daemon)
    assert (plan["kept"], plan["removed"], plan["changed"]) == (["two"], [], [])
    assert [each["key"] for each in plan["faults"]] == ["package.version"]
    assert daemon.get("/v1/status")["faults"] == plan["faults"]
    assert daemon.ctl("reload").returncode == 1
    assert instances(daemon) == before
    rewrite(daemon, "two", 'version = "one"', 'version = "1.0.0"')
    assert reload(daemon)["unchanged"] == ["one", "three", "two"]
    assert instances(daemon) == before


def test_a_folder_that_vanishes(daemon: Daemon) -> None:
    """The one with all capsules: they go on. That of one: it is not wanted any more."""
    three(daemon)
    daemon.start(wait_for=["one", "two", "three"])
    hidden = daemon.folder / "hidden"
    daemon.capsules.rename(hidden)
    plan = reload(daemon)
    assert plan["kept"] == ["one", "three", "two"]
    hidden.rename(daemon.capsules)
    shutil.rmtree(daemon.capsules / "one")
    assert reload(daemon)["removed"] == ["one"]
    assert set(instances(daemon)) == {"two", "three"}


def test_one_that_is_removed_and_comes_back(daemon: Daemon) -> None:
    """Also while the old one is being stopped."""
    daemon.capsule("slow", lives.spinner(), extra='[supervision]\nstop_timeout = "1s"\n')
    daemon.start(wait_for=["slow"])
    before = daemon.of("slow")["instance"]
    kept = daemon.folder / "kept"
    shutil.copytree(daemon.capsules / "slow", kept)
    changing.remove(daemon, "slow")
    assert daemon.ctl("reload").returncode == 0
    assert daemon.of("slow")["state"] == "stopping"
    assert daemon.act("slow", "start").status == 409
    kept.rename(daemon.capsules / "slow")
    assert daemon.ctl("reload").returncode == 0
    daemon.wait("slow", lambda each: each["ready"] and each["instance"] != before)
    assert daemon.get("/v1/capsules/slow/why")["exits"] == [], "its namesake is forgotten"


def test_one_that_is_removed_comes_back_and_is_removed(daemon: Daemon) -> None:
    """All before the first one is down: it stays away, and comes when it is wanted once more."""
    daemon.capsule("slow", lives.spinner(), extra='[supervision]\nstop_timeout = "1s"\n')
    daemon.start(wait_for=["slow"])
    kept = daemon.folder / "kept"
    for wanted in (False, True, False):
        if wanted:
            shutil.copytree(kept, daemon.capsules / "slow")
        else:
            shutil.copytree(daemon.capsules / "slow", kept, dirs_exist_ok=True)
            changing.remove(daemon, "slow")
        assert daemon.ctl("reload").returncode == 0
    assert daemon.of("slow")["state"] == "stopping"
    reload(daemon)
    changing.await_gone(daemon, "slow")
    shutil.copytree(kept, daemon.capsules / "slow")
    assert reload(daemon)["added"] == ["slow"]
    assert daemon.of("slow")["ready"]


def test_one_that_has_ended_well_is_started_when_it_is_changed(daemon: Daemon) -> None:
    """It is wanted up still; one that somebody has stopped is not."""
    for name in ("done", "stopped"):
        daemon.capsule(name, lives.returns())
    daemon.start()
    for name in ("done", "stopped"):
        daemon.wait_state(name, "stopped")
    daemon.act("stopped", "stop", wait="down")
    for name in ("done", "stopped"):
        rewrite(daemon, name, 'version = "1.0.0"', 'version = "1.0.1"')
    reload(daemon)
    assert states(daemon, "done").count("ready") == 2
    assert states(daemon, "stopped").count("ready") == 1


def test_nobody_takes_a_name_or_a_place(daemon: Daemon) -> None:
    """A folder that comes first and says the same name is a fault of its own; so is one capsule more than may be."""
    for name in ("victim", "x"):
        daemon.capsule(name, lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(configuration="[limits]\ntotal_capsules = 2", wait_for=["victim", "x"])
    before = instances(daemon)
    daemon.capsule("aaa", lives.sleeper(), subscribe=lives.QUIET)
    plan = reload(daemon)
    assert (plan["added"], plan["unchanged"]) == ([], ["victim", "x"])
    assert "total_capsules = 2" in plan["faults"][0]["message"]
    rewrite(daemon, "aaa", 'name = "aaa"', 'name = "victim"')
    plan = reload(daemon)
    assert (plan["changed"], plan["unchanged"]) == ([], ["victim", "x"])
    (fault,) = plan["faults"]
    assert fault["file"].endswith("aaa/Capsule.toml")
    assert "'victim' is taken by" in fault["message"]
    assert instances(daemon) == before


def test_a_failed_one_begins_anew(daemon: Daemon) -> None:
    """With a new manifest; one that is not changed stays as it is."""
    daemon.capsule(
        "broken",
        lives.traps(),
        extra='[supervision]\nbackoff_initial = "10ms"\nbackoff_max = "10ms"\nstart_limit = 2\n',
    )
    daemon.start()
    daemon.wait_state("broken", "failed")
    reload(daemon, "dry_run=")
    assert daemon.ctl("reload").returncode == 0
    assert daemon.of("broken")["state"] == "failed"
    wasm = lives.sleeper()
    (daemon.capsules / "broken" / "broken.wasm").write_bytes(wasm)
    rewrite(daemon, "broken", hashlib.sha256(lives.traps()).hexdigest(), hashlib.sha256(wasm).hexdigest())
    rewrite(daemon, "broken", "ipc_subscribe = []", f'ipc_subscribe = ["{lives.QUIET[0]}"]')
    reload(daemon)
    assert daemon.of("broken")["ready"]


def test_folders_are_watched_where_that_is_asked_for(daemon: Daemon) -> None:
    """Several changes in a row are one reload, when they are over."""
    three(daemon)
    daemon.start(configuration='watch = "200ms"', wait_for=["one", "two", "three"])
    change_all(daemon)
    daemon.wait_event(lambda each: each["capsule"] == "two" and each["event"] == "upgraded")
    daemon.wait_event(lambda each: each["capsule"] == "four" and each["event"] == "ready")
    assert states(daemon, "one") == ["starting", "ready"]
    assert states(daemon, "two").count("upgrading") == 1


def test_they_are_not_watched_otherwise(daemon: Daemon) -> None:
    """What has changed comes with the next reload."""
    daemon.capsule("one", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["one"])
    daemon.capsule("two", lives.sleeper(), subscribe=lives.QUIET)
    for _ in range(3):  # longer than a watcher would take
        daemon.act("one", "restart", wait="ready")
    assert set(instances(daemon)) == {"one"}
    assert reload(daemon)["added"] == ["two"]
