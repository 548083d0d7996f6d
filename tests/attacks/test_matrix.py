"""What an escaped guest gets: each attack of the repertoire, with all layers on and with one missing."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from capsuled.supervisor.modes import LAYERS

from ..e2e import lives
from . import harness
from .expected import SEALED, SECCOMP_ALONE, TWO_WALLS, WITHOUT
from .harness import Attacked

NEVER = '[supervision]\nrestart = "never"\n'

CALLS: dict[str, tuple[tuple[str, str], ...]] = {
    "namespaces": (("CLONE_NEW", "EPERM"),),
    "landlock": (("landlock_create_ruleset", "ENOSYS"),),
    "seccomp": (("seccomp", "ENOSYS"),),
    "uid": (("setresuid", "EPERM"),),
}
"""Without these calls the supervisor finds out that a layer cannot be held."""

STEPS = {
    "root": ("empty root",),
    "capabilities": ("capability bounding set", "capabilities"),
    "rlimits": ("resource limits",),
    "addresses": ("address space",),
    "descriptors": ("close inherited descriptors",),
}
"""Without these steps of the plan a layer is not there, and nobody finds out."""


def attack(missing: str, names: Iterable[str]) -> dict[str, str]:
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="capsuled-") as folder:
        made = Attacked(Path(folder))
        made.calls = CALLS.get(missing, ())
        made.skipped = STEPS.get(missing, ())
        made.cgroup = missing != "cgroup"
        made.inherited = writer
        inode = os.fstat(writer).st_ino
        try:
            for name in names:
                made.capsule(name, harness.attacker(name, made.folder, inode), extra=NEVER)
            made.capsule("idle", lives.sleeper(), subscribe=lives.QUIET)
            made.start(arguments=["--insecure"] if missing == "seccomp" else [], wait_for=["idle"])
            held = {name for name, layer in made.of("idle")["isolation"].items() if layer["held"]}
            # Of the root nobody but root sees more than that seccomp, which comes after it, is there.
            assert missing not in held or (missing == "root" and not harness.ROOT), (
                "what is to be missing is there"
            )
            assert missing != "nothing" or held >= {*LAYERS} - {"uid", "cgroup"}
            return {name: made.outcome(name) for name in names}
        finally:
            made.close()
            os.close(reader)
            os.close(writer)


HARDLY = {"capabilities"} if harness.ROOT else {"uid"}
"""What cannot be left out here: root's capabilities go with its user, and nobody else has a user to lose."""


@pytest.mark.parametrize("missing", [each for each in WITHOUT if each not in HARDLY])
def test_no_attack_gets_through(missing: str, matrix: dict[str, dict[str, str]]) -> None:
    """Each attack is refused or ends the process as the table says, whichever other layer is missing."""
    matrix[missing] = attack(missing, SEALED)
    assert matrix[missing] == {**SEALED, **WITHOUT[missing]}


def test_without_seccomp(matrix: dict[str, dict[str, str]]) -> None:
    """Where seccomp is missing other layers still refuse what has two walls; the table names what has one."""
    found = attack("seccomp", (*TWO_WALLS, *SECCOMP_ALONE))
    matrix["seccomp"] = found
    assert [name for name in TWO_WALLS if found[name] == "THROUGH"] == []
    assert {name: found[name] for name in SECCOMP_ALONE} == dict.fromkeys(SECCOMP_ALONE, "THROUGH")


def test_the_harness_refuses_to_attack_from_shared_namespaces() -> None:
    """Nothing hostile starts where its mount namespace is the caller's."""
    done = subprocess.run(
        harness.guarded(["-c", "print('hostile')"]), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot attack: the mnt namespace is shared" in done.stderr
