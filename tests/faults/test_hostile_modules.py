"""Modules that attack the compiler of a real supervisor: each ends by itself, and costs nobody else anything."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import trio

from capsuled.supervisor.compilation import Job
from capsuled.supervisor.compiling import Compiler

from ..e2e import lives
from ..support import mutations
from ..support.daemon import DEADLINE, Daemon, Watched
from .hostile import Hostile, worker

ENGINES = ["wasmer", "wasmtime"] if sys.version_info < (3, 11) else ["wasmtime"]

NEVER = '[supervision]\nrestart = "never"\n'

ENDS = ("load-error", "ok", "trap", "not-ready", "memory")
"""How a damaged guest may end: never by a signal of its engine's, and never as a defect of ours."""

SEEDS = range(40)
BOMBS = ("many locals", "wide types", "branch table", "long name", "many tables", "deep stack")


def compilers(daemon: Daemon) -> list[psutil.Process]:
    """Its compiler processes that run now."""
    return [each for each in daemon.children() if "capsuled.sandbox.compiler" in each.cmdline()]


def await_compilers(daemon: Daemon, count: int) -> list[psutil.Process]:
    """Wait for so many: no stream tells of them."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            if len(found := compilers(daemon)) == count:
                return found
        except psutil.NoSuchProcess:
            continue  # one has ended between two looks
    raise AssertionError(f"there are not {count} compilers after {DEADLINE} s; log: {daemon.log()}")


def ended_or_ready(capsule: dict[str, object]) -> bool:
    return bool(capsule["last_exit"] or capsule["ready"])


@pytest.mark.parametrize("engine", ENGINES)
def test_each_ends_alone(daemon: Daemon, engine: str) -> None:
    """Damaged modules and bombs are refused or run; the supervisor answers, and an honest capsule beside them lives."""
    hostile = {f"seed-{seed}": mutations.damaged(seed).wasm for seed in SEEDS}
    hostile |= {kind.replace(" ", "-"): mutations.bomb(kind) for kind in BOMBS}
    for name, wasm in hostile.items():
        daemon.capsule(name, wasm, engine=engine, extra=f'{NEVER}ready_timeout = "5s"\n')
    daemon.capsule("honest", lives.sleeper(), subscribe=lives.QUIET, engine=engine)
    daemon.start(wait_for=["honest"])
    pid = daemon.worker("honest")
    reasons = {
        name: (found["last_exit"] or {"reason": "ok"})["reason"]
        for name in hostile
        for found in [daemon.wait(name, ended_or_ready, timeout=90.0)]
    }
    assert {name: reason for name, reason in reasons.items() if reason not in ENDS} == {}
    assert "load-error" in reasons.values()
    assert daemon.worker("honest") == pid


STOPS: dict[str, tuple[Callable[[Daemon], object], str]] = {
    "stopped": (lambda daemon: daemon.act("slow", "stop", wait="down"), "cancelled"),
    "killed": (lambda daemon: daemon.act("slow", "kill", wait="down"), "killed-by-operator"),
    "late": (lambda daemon: daemon.ended("slow"), "not-ready"),
}


@pytest.mark.parametrize(("stop", "reason"), STOPS.values(), ids=STOPS)
def test_it_can_be_ended_while_it_is_compiled(
    daemon: Daemon, stop: Callable[[Daemon], object], reason: str
) -> None:
    """By the operator and by its own time limit: the reason is the usual one, and the compiler is gone."""
    daemon.capsule("slow", mutations.slow(), extra=f'{NEVER}ready_timeout = "3s"\n')
    daemon.start()
    watched = Watched(await_compilers(daemon, 1))
    stop(daemon)
    end = daemon.ended("slow")
    assert end["reason"] == reason
    if reason == "not-ready":
        assert (end["limit"], end["value"]) == ("ready_timeout", 3.0)
    assert watched.left(2.0) == []


def test_compilers_die_with_the_supervisor(daemon: Daemon) -> None:
    """Killed while two modules are compiled: nothing is left within two seconds."""
    for number in range(2):
        daemon.capsule(f"slow-{number}", mutations.slow(number), extra=f'{NEVER}ready_timeout = "60s"\n')
    daemon.start()
    await_compilers(daemon, 2)
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert daemon.left(2.0) == []


def test_who_waits_for_others_is_not_late(daemon: Daemon) -> None:
    """While two modules keep both compilers busy a third waits for longer than it may take itself, and starts."""
    for number in range(2):
        daemon.capsule(f"slow-{number}", mutations.slow(number), extra=f'{NEVER}ready_timeout = "4s"\n')
    daemon.capsule("waits", lives.sleeper(), subscribe=lives.QUIET, extra=f'{NEVER}ready_timeout = "2s"\n')
    module = daemon.capsules / "waits/waits.wasm"
    aside = module.rename(module.with_suffix(".aside"))
    daemon.start()
    assert daemon.ended("waits")["reason"] == "spawn-failed"  # not there yet: it comes behind the others
    await_compilers(daemon, 2)
    aside.rename(module)
    assert daemon.act("waits", "start", wait="ready").status == 200
    assert [daemon.ended(f"slow-{number}")["reason"] for number in range(2)] == ["not-ready"] * 2
    events = [each for each in daemon.events() if each["capsule"] == "waits"]
    (ready,) = (at(each) for each in events if each["event"] == "ready")
    started = max(at(each) for each in events if each["event"] == "starting")
    assert (ready - started).total_seconds() > 2.0


def at(event: dict[str, str]) -> datetime:
    return datetime.fromisoformat(event["time"].removesuffix("Z"))


@pytest.mark.parametrize(
    ("script", "forgotten"),
    [
        ("control.send(reports.encode(reports.Ended('load-error', message='x'))); os._exit(65)", 1),
        ("control.send(reports.encode(reports.Ended('trap', trap='memory'))); os._exit(70)", 0),
        ("control.send(reports.encode(reports.Ended('load-error', message='x'))); os._exit(0)", 0),
    ],
)
def test_what_does_not_load_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, forgotten: int
) -> None:
    """A worker that cannot load what is kept, as after an update of its engine, is believed when its status agrees."""
    jobs: list[Job] = []

    def forget(_compiler: Compiler, job: Job) -> None:
        jobs.append(job)

    monkeypatch.setattr(Compiler, "forget", forget)
    worker(monkeypatch, script)
    trio.run(Hostile(tmp_path).run)
    assert len(jobs) == forgotten
