"""A part of the tests once more, as a user without privileges: where root runs them, isolation is another one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent

PARTS = (
    "tests/e2e/test_isolation.py",
    "tests/e2e/test_messages.py",
    "tests/faults/test_supervisor_gone.py",
    "tests/init/test_first_process.py",
    "tests/sandbox/test_seccomp_calls.py",
    "tests/supervisor/test_isolation.py",
)

if os.getuid() == 0:  # anybody else runs all of them without privileges as it is

    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("part", PARTS)
    def test_without_privileges(part: str) -> None:
        """The part passes, none of it skipped, as a user who is not root."""
        command = [
            "scripts/as_nobody",
            ".venv/bin/pytest",
            part,
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:skips",
        ]
        made = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False, timeout=600)
        assert made.returncode == 0, made.stdout[-5000:] + made.stderr[-1000:]
        assert " passed" in made.stdout
