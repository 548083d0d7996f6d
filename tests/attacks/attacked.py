"""A program: `capsuled` whose workers run on the broken engine, on a machine that may lack calls (see `without`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from capsuled.supervisor import spawn

sys.path.insert(0, str(Path(__file__).parents[2]))

run: Callable[[Sequence[str]], int] = import_module("tests.support.without").main


def main() -> int:
    broken = str(Path(__file__).with_name("broken_engine.py"))
    skipped = json.loads(sys.argv[1])["skipped"]
    spawn.WORKER = (sys.executable, "-I", "-B", "--", broken, *skipped)
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
