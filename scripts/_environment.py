"""For the programs in this folder that need capsuled: they run in the project's environment, whoever starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def enter() -> None:
    """Go on in .venv, made or brought up to date first. Call it before anything of capsuled is imported."""
    if Path(sys.prefix).resolve() != TOP / ".venv":
        subprocess.run([TOP / "scripts/setup", "--quiet"], check=True)
        python = str(TOP / ".venv/bin/python")
        os.execv(python, [python, *sys.argv])
