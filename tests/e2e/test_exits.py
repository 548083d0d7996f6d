"""How capsules end: each for its reason, with its evidence, through the real daemon. One supervisor runs them all."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from ..support import daemon as support
from ..support.daemon import Daemon
from ..support.guests import wat
from . import lives

NEVER = '[supervision]\nrestart = "never"\nready_timeout = "30s"\n'

HOARD = """[limits]
memory = "1MiB"
process_memory = "65MiB"
queue_bytes = "64MiB"
queue_messages = 10000
publish_bytes_per_second = "1GiB"
"""
CEILINGS = '[limits]\npublish_bytes_per_second = "1GiB"\n'

TRAPS = {
    "unreachable": "unreachable",
    "memory": "(drop (i32.load (i32.const 999999999)))",
    "division": "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
    "integer-overflow": "(drop (i32.div_s (i32.const -2147483648) (i32.const -1)))",
    "conversion": "(drop (i32.trunc_f32_s (f32.const nan)))",
}
"""Name of the capsule to what it runs into."""


@pytest.fixture(scope="module")
def stage() -> Generator[Daemon, None, None]:
    """A supervisor of a capsule for each kind of end."""
    with support.daemon() as made:
        made.capsule("returns", lives.returns(), extra=NEVER)
        made.capsule("always", lives.returns(), extra='[supervision]\nrestart = "on-failure"\n')
        made.capsule("exits", lives.exits(3), extra=NEVER)
        made.capsule("exits-0", lives.exits(0), extra=NEVER)
        made.capsule("exits-97", lives.exits(97), extra=NEVER)
        for name, body in TRAPS.items():
            made.capsule(f"trap-{name}", lives.traps(body), extra=NEVER)
        made.capsule("trap-stack", lives.recurses(), extra=NEVER)
        made.capsule("grower", lives.grower(), extra=NEVER + '[limits]\nmemory = "1MiB"\n')
        made.capsule(
            "hoarder", lives.hoarder(), publish=["hoard.all"], subscribe=["hoard.all"], extra=NEVER + HOARD
        )
        made.capsule("burner", lives.spinner(), extra=NEVER + '[limits]\ncpu_time = "1s"\n')
        made.capsule(
            "watched",
            lives.spinner(),
            extra='[supervision]\nrestart = "never"\nwatchdog = "1s"\nready_timeout = "30s"\n',
        )
        made.capsule(
            "patient", lives.sleeper(), subscribe=lives.QUIET, extra='[supervision]\nwatchdog = "200ms"\n'
        )
        made.capsule(
            "slow-to-load",
            lives.large(20_000),
            extra='[supervision]\nrestart = "never"\nwatchdog = "100ms"\nready_timeout = "60s"\n',
        )
        made.capsule(
            "late",
            lives.sleeper(says_ready=False),
            subscribe=lives.QUIET,
            extra='[supervision]\nrestart = "never"\nready_timeout = "2s"\n',
        )
        made.capsule(
            "by-started",
            lives.sleeper(says_ready=False),
            subscribe=lives.QUIET,
            extra='[supervision]\nready = "started"\n',
        )
        made.capsule("wrong-hash", lives.returns(), digest="0" * 64, extra=NEVER)
        made.capsule("no-module", b"this is no WebAssembly", extra=NEVER)
        made.capsule(
            "no-export", wat('(module (memory (export "memory") 1) (func (export "walk")))'), extra=NEVER
        )
        made.capsule(
            "no-import",
            wat(
                '(module (import "env" "first\\0aline" (func)) (memory (export "memory") 1) '
                '(func (export "run")))'
            ),
            extra=NEVER,
        )
        made.capsule(
            "wrong-type",
            wat(
                '(module (import "capsule" "ready" (func (param i64))) (memory (export "memory") 1) '
                '(func (export "run")))'
            ),
            extra=NEVER,
        )
        made.capsule("vanished", lives.returns(), extra=NEVER)
        (made.capsules / "vanished" / "vanished.wasm").unlink()
        made.start(configuration=CEILINGS)
        yield made
        assert made.stop() == 0, made.log()
        assert made.left() == []


def ended(stage: Daemon, name: str) -> dict[str, Any]:
    """Its last exit, once it is down; and there is no process of it any more."""
    found = stage.wait_state(name, "stopped")
    assert found["pid"] is None
    assert found["last_exit"] is not None, found
    return dict(found["last_exit"])


def test_a_guest_that_returns_ends_ok_and_stays_down(stage: Daemon) -> None:
    """A one-shot capsule is done when its `run` returns, and wanted up all the same."""
    end = ended(stage, "returns")
    assert (end["reason"], end["status"]) == ("ok", 0)
    assert stage.of("returns")["desired"] == "up"
    states = [each["event"] for each in stage.events() if each["capsule"] == "returns"]
    assert states == ["starting", "ready", "exited", "stopped"]


def test_a_return_is_no_failure(stage: Daemon) -> None:
    """`on-failure` does not start again what has returned."""
    assert ended(stage, "always")["reason"] == "ok"
    assert [each["event"] for each in stage.events() if each["capsule"] == "always"].count("starting") == 1


@pytest.mark.parametrize(
    ("name", "reason", "status"), [("exits", "nonzero", 3), ("exits-0", "ok", 0), ("exits-97", "nonzero", 97)]
)
def test_proc_exit(stage: Daemon, name: str, reason: str, status: int) -> None:
    """A guest's exit code is the evidence, also where it is one that workers use themselves."""
    end = ended(stage, name)
    assert (end["reason"], end["status"]) == (reason, status)


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_told_with_its_backtrace(stage: Daemon, name: str) -> None:
    """Each kind of trap ends the capsule with `trap`, its kind, a message and where it happened."""
    end = ended(stage, f"trap-{name}")
    assert end["reason"] == "trap"
    assert end["trap"], end
    assert end["message"], end
    assert "0x" in end["backtrace"] or "func" in end["backtrace"], end


def test_the_traps_are_told_apart(stage: Daemon) -> None:
    """No two of the kinds have one name."""
    kinds = [ended(stage, f"trap-{name}")["trap"] for name in (*TRAPS, "stack")]
    assert len(set(kinds)) == len(kinds), kinds


def test_a_stack_overflow_is_a_trap(stage: Daemon) -> None:
    """The worker outlives it for as long as it takes to say so."""
    assert ended(stage, "trap-stack")["reason"] == "trap"


def test_growing_is_refused_at_the_limit(stage: Daemon) -> None:
    """`memory = 1MiB` lets a guest have 16 pages of 64 KiB: it saw 16, and was refused the 17th."""
    end = ended(stage, "grower")
    assert (end["reason"], end["status"]) == ("nonzero", 16)


def test_the_process_has_a_limit_of_its_own(stage: Daemon) -> None:
    """What a guest's queue and its memory take beyond `process_memory` ends it for `memory`, with limit and value."""
    end = ended(stage, "hoarder")
    assert end["reason"] == "memory", end
    assert (end["limit"], end["value"]) == ("process_memory", 65 * 1024 * 1024)


def test_cpu_time_ends(stage: Daemon) -> None:
    """A guest that burns its CPU seconds ends for `cpu-time`, having used as many."""
    end = ended(stage, "burner")
    assert (end["reason"], end["limit"], end["value"]) == ("cpu-time", "cpu_time", 1)
    # The kernel counts for the limit by its ticks, and what it has used exactly.
    assert 0.5 < end["cpu_seconds"] < 3.0


def test_the_watchdog_kills_what_computes_for_ever(stage: Daemon) -> None:
    """A guest that computes and never calls its host is killed, and the reason says who did it."""
    end = ended(stage, "watched")
    assert (end["reason"], end["signal"], end["killed"]) == ("watchdog", "SIGKILL", True)
    assert (end["limit"], end["value"]) == ("watchdog", 1.0)


def test_the_watchdog_spares_what_waits(stage: Daemon) -> None:
    """A guest in a receive is alive, however long that takes: it has outlived its watchdog many times over."""
    ended(stage, "watched")  # takes a second and more, and the patient one's watchdog bites after 0.2
    found = stage.of("patient")
    assert (found["state"], found["last_exit"]) == ("ready", None)


def test_the_watchdog_watches_no_compiler(stage: Daemon) -> None:
    """A module that is compiled for longer than the watchdog allows has no guest yet: it starts, and ends."""
    end = ended(stage, "slow-to-load")
    assert end["reason"] == "ok", end
    assert stage.seconds_between("slow-to-load", "starting", "ready") > 0.1, (
        "what is to be tested was not met"
    )


def test_who_is_not_ready_in_time_is_killed(stage: Daemon) -> None:
    """`ready = "guest"`: one that never says so is killed for `not-ready`, with the limit."""
    end = ended(stage, "late")
    assert (end["reason"], end["signal"], end["killed"]) == ("not-ready", "SIGKILL", True)
    assert (end["limit"], end["value"]) == ("ready_timeout", 2.0)


def test_started_is_enough_where_the_manifest_says_so(stage: Daemon) -> None:
    """`ready = "started"`: a loaded module is ready, though its guest never says a word."""
    stage.wait_state("by-started", "ready")


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("wrong-hash", "load-error", ["sha256:" + "0" * 64]),
        ("no-module", "load-error", ["WebAssembly"]),
        ("no-export", "load-error", ["run", "_start"]),
        ("no-import", "load-error", ["env"]),
        ("wrong-type", "load-error", ["ready"]),
        ("vanished", "spawn-failed", ["vanished.wasm", "cannot read"]),
    ],
)
def test_what_cannot_be_loaded_says_why(stage: Daemon, name: str, reason: str, words: list[str]) -> None:
    """A module that is none, is another one, or wants what there is not: a reason, and a message that names it."""
    end = ended(stage, name)
    assert end["reason"] == reason, end
    for word in words:
        assert word in end["message"], end


def test_no_guest_writes_lines_into_our_log(stage: Daemon) -> None:
    """A newline in what a guest's module says does not make a line of the supervisor's."""
    ended(stage, "no-import")
    for line in stage.log().splitlines():
        assert line.startswith("time=20"), line


def test_why_tells_the_end_and_what_follows(stage: Daemon) -> None:
    """`why` has the newest end first, with its last lines, and a sentence about what happens next."""
    ended(stage, "exits")
    told = stage.get("/v1/capsules/exits/why")
    assert told["exits"][0]["reason"] == "nonzero"
    assert "last_lines" in told["exits"][0]
    assert told["next"] == "nothing until `capsulectl start exits`"


def test_all_of_it_has_disturbed_nobody(stage: Daemon) -> None:
    """The supervisor has not restarted its backbone, and its own log has no traceback."""
    for name in ("returns", "exits", "hoarder", "burner", "watched", "late"):
        ended(stage, name)
    assert stage.get("/v1/status")["backbone"]["restarts"] == 0
    assert "Traceback" not in stage.log()


def test_the_edges_of_ended_instances_are_gone(stage: Daemon) -> None:
    """As many sockets are in the folder as there are processes."""
    for name in ("returns", "exits", "hoarder", "burner", "watched", "late"):
        ended(stage, name)
    up = [each for each in stage.get("/v1/capsules")["capsules"] if each["pid"] is not None]
    assert len(os.listdir(stage.runtime / "edges")) == len(up)
