"""What confines a worker, as the supervisor sees it from outside, on this machine and on ones that lack something."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from capsuled.supervisor import cgroups
from capsuled.supervisor.modes import LAYERS

from ..support.daemon import Daemon
from ..support.degraded import Calls, Degraded
from . import lives

ROOT = os.getuid() == 0
"""Only root has users of their own for its capsules to lose."""

with cgroups.opened(f"test {os.getpid()}") as groups:
    GROUPS = groups.usable
"""Whether this user can use control groups on this machine."""


@pytest.fixture
def degraded() -> Iterator[Degraded]:
    with TemporaryDirectory(prefix="capsuled-") as folder:
        made = Degraded(Path(folder))
        try:
            yield made
            if made.process is not None:
                assert made.stop() == 0, made.log()
            assert made.left() == []
        finally:
            made.close()


BY_LAYER: dict[str, Calls] = {
    "namespaces": (("CLONE_NEW", "EPERM"),),
    "root": (("pivot_root", "EPERM"),),
    "landlock": (("landlock_create_ruleset", "ENOSYS"),),
    "seccomp": (("seccomp", "ENOSYS"),),
    "capabilities": (("capset", "EPERM"),),
    "no_new_privs": (("NO_NEW_PRIVS", "EPERM"),),
    "rlimits": (("prlimit64", "EPERM"),),
    **({"uid": (("setresuid", "EPERM"),)} if ROOT else {}),
}
"""The calls without which a layer cannot be held, each refused as kernels and containers do it."""

ALWAYS_MISSING = {*(() if GROUPS else ("cgroup",)), *(() if ROOT else ("uid",))}

BEST = "B" if ALWAYS_MISSING else "A"
"""The best mode there can be here."""

FOLLOWS = {"namespaces": {"root"}}
"""Layers that cannot be there without another one."""


def run_one(daemon: Daemon, configuration: str = "", arguments: Iterable[str] = ()) -> None:
    daemon.capsule("one", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(configuration=configuration, wait_for=["one"], arguments=arguments)


def missing(layers: dict[str, dict[str, object]]) -> set[str]:
    assert tuple(layers) == LAYERS
    assert all(layer["why"] for layer in layers.values())
    return {name for name, layer in layers.items() if layer["held"] is not True}


def status_of(pid: int, thread: str = "") -> dict[str, str]:
    path = Path(f"/proc/{pid}/task/{thread}/status") if thread else Path(f"/proc/{pid}/status")
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in path.read_text().splitlines())
    }


def test_a_worker_is_sealed(daemon: Daemon) -> None:
    """Its status shows each layer held, and the kernel's files agree: uid, capabilities, seccomp on every thread."""
    run_one(daemon)
    one = daemon.of("one")
    assert missing(one["isolation"]) == ALWAYS_MISSING
    found = status_of(one["pid"])
    assert found["NSpid"].split() == [str(one["pid"]), "1"]
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")} == {"0" * 16}
    threads = [status_of(one["pid"], thread) for thread in os.listdir(f"/proc/{one['pid']}/task")]
    assert len(threads) > 1
    for thread in threads:
        assert (thread["NoNewPrivs"], thread["Seccomp"], thread["Seccomp_filters"]) == ("1", "2", "2")
        if ROOT:
            assert len({*thread["Uid"].split(), *thread["Gid"].split()}) == 1
            assert int(thread["Uid"].split()[0]) >= 0x7000_0000
            assert not thread["Groups"]
    if ROOT:
        assert os.listdir(f"/proc/{one['pid']}/root") == []


def test_two_workers_share_no_user(daemon: Daemon) -> None:
    """As root each has a number of its own, and another one after a restart; else they share the supervisor's."""
    for name in ("one", "two"):
        daemon.capsule(name, lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["one", "two"])
    first = status_of(daemon.of("one")["pid"])["Uid"]
    second = status_of(daemon.of("two")["pid"])["Uid"]
    assert (first != second) == ROOT
    assert daemon.act("one", "restart", wait="ready").status == 200
    assert (status_of(daemon.of("one")["pid"])["Uid"] in (first, second)) == (not ROOT)


def test_a_range_of_one_user(daemon: Daemon) -> None:
    """A second worker finds no number left: that is a failed start with a sentence, and disturbs nobody."""
    daemon.capsule("one", lives.sleeper(), subscribe=lives.QUIET)
    daemon.capsule("two", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(
        configuration='[isolation]\nusers = "1000000-1000000"', wait_for=[] if ROOT else ["one", "two"]
    )
    if ROOT:
        first = daemon.wait("one", lambda capsule: capsule["ready"] or capsule["last_exit"] is not None)
        started, left = ("one", "two") if first["ready"] else ("two", "one")
        refused = daemon.wait(left, lambda capsule: capsule["last_exit"] is not None)["last_exit"]
        assert refused["reason"] == "spawn-failed"
        assert "all 1 from 1000000 to 1000000 are in use: widen users in [isolation]" in refused["message"]
        assert status_of(daemon.wait_state(started, "ready")["pid"])["Uid"].split()[0] == "1000000"


def test_the_supervisor_says_what_it_can_hold(daemon: Daemon) -> None:
    """Its status has the mode and all layers, before any capsule runs; `strict` is content with it."""
    daemon.start(configuration='[isolation]\nrequired = "strict"')
    status = daemon.get("/v1/status")
    assert status["mode"] == BEST
    assert missing(status["isolation"]) == ALWAYS_MISSING


def test_without_control_groups(degraded: Degraded) -> None:
    """Where none are mounted it is mode B, which says so; and `strict` is content with that."""
    degraded.cgroup = False
    run_one(degraded, '[isolation]\nrequired = "strict"')
    status = degraded.get("/v1/status")
    assert (status["mode"], missing(status["isolation"])) == ("B", ALWAYS_MISSING | {"cgroup"})
    assert status["isolation"]["cgroup"]["why"] == "none are mounted that have memory, pids and cpu"
    assert missing(degraded.of("one")["isolation"]) == ALWAYS_MISSING | {"cgroup"}


def test_a_list_that_demands_control_groups(degraded: Degraded) -> None:
    """It is refused where there are none."""
    degraded.cgroup = False
    status, said = degraded.refused('[isolation]\nrequired = ["cgroup"]')
    assert (status, said.count(" is missing (")) == (1, 1)
    assert "cgroup is missing (none are mounted" in said


@pytest.mark.parametrize(
    ("layer", "mode"),
    [("namespaces", "C"), ("root", "C"), ("landlock", "C"), *([("uid", "B")] if ROOT else [])],
)
def test_the_mode_falls(degraded: Degraded, layer: str, mode: str) -> None:
    """A layer that the machine cannot hold is missed at the start, is told, and is missing around each capsule."""
    degraded.calls = BY_LAYER[layer]
    run_one(degraded)
    status = degraded.get("/v1/status")
    lost = {layer} | FOLLOWS.get(layer, set()) | ALWAYS_MISSING
    assert status["mode"] == mode
    assert missing(status["isolation"]) == lost
    # Without an empty root there is no use in namespaces, in whose /proc all would be seen.
    assert missing(degraded.of("one")["isolation"]) == lost | ({"namespaces"} if layer == "root" else set())
    assert f"mode {mode}" in degraded.log()


def test_neither_namespaces_nor_landlock(degraded: Degraded) -> None:
    """Mode D is told to be a single layer."""
    degraded.calls = (*BY_LAYER["namespaces"], *BY_LAYER["landlock"])
    run_one(degraded)
    assert degraded.get("/v1/status")["mode"] == "D"
    assert "mode D, single layer" in degraded.log()
    assert degraded.of("one")["isolation"]["seccomp"]["held"] is True


@pytest.mark.parametrize("errno", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("layer", ["namespaces", "root", "landlock"])
def test_strict_refuses(degraded: Degraded, layer: str, errno: str) -> None:
    """Below mode B it does not start: status 1, and one sentence with the layer's name."""
    degraded.calls = [(call, errno) for call, _ in BY_LAYER[layer]]
    status, said = degraded.refused('[isolation]\nrequired = "strict"')
    assert status == 1
    assert said.count("\n") == 1
    assert f"{layer} is missing (" in said


@pytest.mark.parametrize("layer", ["seccomp", "capabilities", "no_new_privs", "rlimits"])
def test_best_refuses_mode_e(degraded: Degraded, layer: str) -> None:
    """Where nothing holds a guest that breaks out, nothing runs: status 1, and one sentence with the layer's name."""
    degraded.calls = BY_LAYER[layer]
    status, said = degraded.refused()
    assert status == 1
    assert said.count("\n") == 1
    assert "this is mode E" in said
    assert f"{layer} is missing (" in said


def test_a_list_names_what_must_be_there(degraded: Degraded) -> None:
    """A layer that is named and missing is refused; one that is not named may be missing."""
    degraded.calls = BY_LAYER["landlock"]
    status, said = degraded.refused('[isolation]\nrequired = ["namespaces", "landlock"]')
    assert (status, said.count(" is missing (")) == (1, 1)
    assert "landlock is missing (" in said
    run_one(degraded, '[isolation]\nrequired = ["namespaces"]')


def test_insecure_is_shown_everywhere(degraded: Degraded) -> None:
    """Mode E runs on demand alone, and the log, the status and each capsule say that it is not isolated."""
    degraded.calls = BY_LAYER["seccomp"]
    run_one(degraded, arguments=["--insecure"])
    assert degraded.get("/v1/status")["mode"] == "E"
    assert "mode E, not isolated" in degraded.log()
    assert {"seccomp", "landlock"} <= missing(degraded.of("one")["isolation"])


@pytest.mark.parametrize(
    ("calls", "step"),
    [
        ("namespaces", "namespaces: "),
        ("root", "empty root: "),
        ("capabilities", "capabilities: "),
        ("no_new_privs", "no new privileges: "),
        ("landlock", "landlock: "),
        ("seccomp", "seccomp, first stage: "),
        *([("uid", "user of its own: ")] if ROOT else []),
    ],
)
def test_nothing_half_sealed_runs_a_guest(degraded: Degraded, calls: str, step: str) -> None:
    """A step that fails although it was found to be possible ends the worker, named, with no word of the guest's."""
    degraded.calls, degraded.believe = BY_LAYER[calls], True
    degraded.capsule("one", lives.sleeper(), subscribe=lives.QUIET)
    degraded.start()
    end = degraded.wait("one", lambda capsule: capsule["last_exit"] is not None)["last_exit"]
    # The compiler is the first that is to be sealed.
    if not ROOT and end["message"].startswith("cannot seal the compiler: namespaces: "):
        step = "namespaces: "  # what is believed is root's kind of namespaces
    assert (end["reason"], end["status"]) == ("spawn-failed", 97)
    assert end["message"].startswith(f"cannot seal the compiler: {step}")
    assert {line["stream"] for line in degraded.lines("one")} == {"supervisor"}


@pytest.mark.parametrize("life", ["sleeps", "spins", "is stopped"])
@pytest.mark.parametrize(
    ("calls", "cgroup", "mode"),
    [((), True, BEST), ((), False, "B"), (BY_LAYER["namespaces"], True, "C")],
    ids=["best", "B", "C"],
)
def test_nothing_outlives_the_supervisor(
    degraded: Degraded, calls: Calls, cgroup: bool, mode: str, life: str
) -> None:
    """SIGKILL of the supervisor takes each worker with it within a second, in each mode."""
    degraded.calls, degraded.cgroup = calls, cgroup
    wasm = lives.spinner() if life == "spins" else lives.sleeper()
    degraded.capsule("one", wasm, subscribe=lives.QUIET)
    degraded.start(wait_for=["one"])
    assert degraded.get("/v1/status")["mode"] == mode
    if life == "is stopped":
        os.kill(degraded.of("one")["pid"], signal.SIGSTOP)
    assert degraded.stop(signal.SIGKILL) == -signal.SIGKILL
    assert degraded.descendants
    assert degraded.left(timeout=1.0) == []


def test_usage_is_told_of_a_sealed_worker(daemon: Daemon) -> None:
    """Its memory and CPU time are seen from outside; its descriptors are counted by root alone."""
    run_one(daemon)
    usage = daemon.of("one")["usage"]
    assert usage["process_memory"] > 1_000_000
    assert (usage["open_files"] is None) != ROOT
