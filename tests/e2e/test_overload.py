"""`scripts/overload` as an operator runs it, for a short while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/overload"


def test_a_short_overload() -> None:
    """Six seconds with everything that it breaks: all is accounted for, and it says what it has done."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--seconds", "6"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for wanted in (
        "killed the backbone",
        "stopped the process",
        "let it go on",
        "balanced, and nothing is left",
    ):
        assert wanted in done.stdout
