"""The table of system calls."""

from __future__ import annotations

import os

import pytest

from capsuled.sandbox import kernel, syscalls
from capsuled.sandbox.syscalls import MACHINES, Machine


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_no_number_stands_twice(machine: Machine) -> None:
    """Two names with one number would give one call the other's rule."""
    numbers = [number for name in syscalls.names() if (number := machine.number(name)) is not None]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("openat", 257, 56),
        ("clone", 56, 220),
        ("poll", 7, None),
        ("seccomp", 317, 277),
        ("landlock_restrict_self", 446, 446),
        ("prlimit64", 302, 261),
    ],
)
def test_numbers(name: str, x86_64: int, aarch64: int | None) -> None:
    """Some numbers as everybody knows them, on both machines; None where the machine has another call for it."""
    assert MACHINES["x86_64"].number(name) == x86_64
    assert MACHINES["aarch64"].number(name) == aarch64


def test_this_machine() -> None:
    """The machine that this runs on is found by its name."""
    assert kernel.machine().name == os.uname().machine
