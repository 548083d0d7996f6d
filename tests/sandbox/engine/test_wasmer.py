"""What is wasmer's own: the drain, and backtraces without end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from capsuled.sandbox.engine.seam import Guest, GuestTrap

Measure = Callable[..., subprocess.CompletedProcess[str]]
MakeGuest = Callable[..., Guest]


@pytest.fixture(scope="session")
def engine() -> str:
    """Wasmer alone."""
    return "wasmer"


def test_measure_sees_a_leak(measure: Measure) -> None:
    """Without the drain the measure of host calls is not flat: what it proves is the drain."""
    run = measure("wasmer", "from capsuled.sandbox.engine import wasmer; wasmer.DRAIN_CALLS = 10**9")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "not flat" in run.stderr


def test_backtrace_is_cut(make_guest: MakeGuest) -> None:
    """Of a trap 1 000 frames deep, 4096 characters are told: the innermost frames."""
    guest = make_guest(
        """(module (memory (export "memory") 1)
          (func $down (param $n i32)
            (if (i32.eqz (local.get $n)) (then unreachable))
            (call $down (i32.sub (local.get $n) (i32.const 1))))
          (func (export "run") (call $down (i32.const 1000))))"""
    )
    with pytest.raises(GuestTrap) as told:
        guest.call("run")
    assert len(told.value.backtrace) == 4096
    assert told.value.backtrace.count("at <unnamed>") > 50
