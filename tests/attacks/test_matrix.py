"""What an escaped guest gets: each attack of the repertoire, with all layers on and with one missing."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from . import harness
from .expected import SEALED, SECCOMP_ALONE, TWO_WALLS
from .harness import Attacked

NEVER = '[supervision]\nrestart = "never"\n'

BY_LAYER: dict[str, tuple[tuple[str, str], ...]] = {
    "nothing": (),
    "namespaces": (("CLONE_NEW", "EPERM"),),
    "landlock": (("landlock_create_ruleset", "ENOSYS"),),
    "seccomp": (("seccomp", "ENOSYS"),),
}


def attack(missing: str, names: Iterable[str]) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="capsuled-") as folder:
        made = Attacked(Path(folder))
        made.calls = BY_LAYER[missing]
        try:
            for name in names:
                made.capsule(name, harness.attacker(name, str(made.socket)), extra=NEVER)
            made.start(arguments=["--insecure"] if missing == "seccomp" else [])
            return {name: made.outcome(name) for name in names}
        finally:
            made.close()


@pytest.mark.parametrize("missing", ["nothing", "namespaces", "landlock"])
def test_no_attack_gets_through(missing: str, matrix: dict[str, dict[str, str]]) -> None:
    """Each attack is refused or ends the process as the table says, whichever other layer is missing."""
    matrix[missing] = attack(missing, SEALED)
    assert matrix[missing] == SEALED


def test_without_seccomp(matrix: dict[str, dict[str, str]]) -> None:
    """Where seccomp is missing other layers still refuse what has two walls; the table names what has one."""
    found = attack("seccomp", (*TWO_WALLS, *SECCOMP_ALONE))
    matrix["seccomp"] = found
    assert [name for name in TWO_WALLS if not found[name].startswith("refused ")] == []
    assert {name: found[name] for name in SECCOMP_ALONE} == dict.fromkeys(SECCOMP_ALONE, "THROUGH")


def test_the_harness_refuses_to_attack_from_shared_namespaces() -> None:
    """Nothing hostile starts where its mount namespace is the caller's."""
    done = subprocess.run(
        harness.guarded(["-c", "print('hostile')"]), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot attack: the mnt namespace is shared" in done.stderr
