"""What is seen of a process from outside."""

from __future__ import annotations

import os
import subprocess
import sys

from capsuled.supervisor import isolation
from capsuled.supervisor.isolation import LATER

SEEN = {"process", "no_new_privs", "rlimits"}
LACKING = {"uid", "namespaces", "landlock", "seccomp", "cgroup"}


def test_every_layer_is_named_and_says_why() -> None:
    """Whoever is looked at, the same layers are told, each with its reason."""
    for layers in (isolation.observe(os.getpid()), isolation.observe(0x7FFF_FFFF), isolation.in_force()):
        assert set(layers) == SEEN | LACKING
        assert all(layer.why for layer in layers.values())


def test_a_process_that_has_ended_has_none() -> None:
    """It cannot be seen, and that is said; it is not taken for sealed."""
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    ended.wait()
    layers = isolation.observe(ended.pid)
    assert not any(layer.held for layer in layers.values())
    assert all("cannot be seen" in layer.why for layer in layers.values())


def test_an_unsealed_process_is_not_taken_for_a_sealed_one() -> None:
    """Without a session of its own, limits or no_new_privs no layer is held."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        layers = isolation.observe(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert not layers["process"].held
    assert not layers["no_new_privs"].held
    assert not layers["rlimits"].held


def test_what_this_version_lacks_is_never_held() -> None:
    """Not in force, and not by accident either."""
    assert all(isolation.in_force()[name] == (False, LATER) for name in LACKING)
