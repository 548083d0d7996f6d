"""What is seen of a process from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from capsuled.supervisor import isolation
from capsuled.supervisor.cgroups import NO_GROUP
from capsuled.supervisor.isolation import NOT_CLONED, Expected
from capsuled.supervisor.modes import LAYERS, Layer

from ..support.machines import BARE

FULL = replace(BARE, user=5000, namespaces="all", landlock=True, seccomp=True)
EVERYTHING = Expected(os.getpid(), FULL, Layer(True, "seen before"), NO_GROUP)
NOTHING = Expected(os.getpid(), BARE, NOT_CLONED, NO_GROUP)


@pytest.mark.parametrize("expected", [EVERYTHING, NOTHING])
@pytest.mark.parametrize("pid", [os.getpid(), 1, 0x7FFF_FFFF])
def test_every_layer_is_named_and_says_why(pid: int, expected: Expected) -> None:
    """Whoever is looked at, the same layers are told, each with its reason."""
    layers = isolation.observe(pid, expected)
    assert tuple(layers) == LAYERS
    assert all(layer.why for layer in layers.values())


def test_a_process_that_has_ended_has_none() -> None:
    """It cannot be seen, and that is said; it is not taken for sealed."""
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    ended.wait()
    layers = isolation.observe(ended.pid, EVERYTHING._replace(session=ended.pid))
    assert not any(layer.held for layer in layers.values())
    assert all("cannot be seen" in layer.why for layer in layers.values())


def test_an_unsealed_process_is_not_taken_for_a_sealed_one() -> None:
    """Without a session of its own, limits or filters no layer is held, whatever it was told to do."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        layers = isolation.observe(
            process.pid, Expected(process.pid, FULL, isolation.namespaces(process.pid), NO_GROUP)
        )
        assert process.stdin is not None
        process.stdin.close()
    held = {name for name, layer in layers.items() if layer.held}
    assert held <= ({"capabilities"} if os.getuid() else set())


def test_our_own_namespaces_are_no_process_of_its_own() -> None:
    """A process in our namespaces shares all of them, and each is named."""
    found = isolation.namespaces(os.getpid())
    assert found == (False, f"own: none; shared: {', '.join(isolation.NAMESPACES)}")


def test_namespaces_that_cannot_be_seen() -> None:
    """A process that is not there has none."""
    held, why = isolation.namespaces(0x7FFF_FFFF)
    assert not held
    assert why.startswith("cannot be seen: ")
