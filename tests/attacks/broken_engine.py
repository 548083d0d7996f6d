"""A program: a worker whose engine is broken open, so that its guest runs Python of ours.

The worker is the product's own, from its launch order to both stages of seccomp. Only what the engine hands the guest
differs: a log text `attack:NAME` runs the attack of that name, and what became of it is logged in its place.
The arguments are names of steps of the sealing plan: these are left out, and nobody finds out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from capsuled.proto.abi import MODULE
from capsuled.sandbox import sealing, worker
from capsuled.sandbox.engine import seam
from capsuled.sandbox.engine.code import Code
from capsuled.sandbox.engine.seam import Counter, Engine, Guest, GuestLimits, HostFunction, Imports

if __name__ == "__main__":
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[2]))  # -I leaves it out

attempt: Callable[[str], str] = import_module("tests.attacks.repertoire").attempt

PREFIX = b"attack:"


class BrokenEngine:
    """An engine that differs from `real` in its gate alone."""

    def __init__(self, real: Engine) -> None:
        self._real = real

    @property
    def name(self) -> str:
        return self._real.name

    def load(self, blob: bytes) -> Code:
        return self._real.load(blob)

    def instantiate(
        self, code: Code, imports: Imports, limits: GuestLimits, calls: Counter | None = None
    ) -> Guest:
        log = imports[MODULE, "log"]

        def gate(level: int, text: int, length: int) -> int:
            asked = guest.memory.read(text, length)
            if asked.startswith(PREFIX):
                said = attempt(asked[len(PREFIX) :].decode().strip())
                guest.memory.write(text, said.encode()[:length].ljust(length))
            return log.call(level, text, length)

        opened = {**imports, (MODULE, "log"): HostFunction(log.signature, gate)}
        guest = self._real.instantiate(code, opened, limits, calls)
        return guest


def break_open() -> None:
    """Let the worker load engines that are broken."""
    load = seam.load
    seam.load = lambda name: BrokenEngine(load(name))


def leave_out(names: Sequence[str]) -> None:
    """Have the worker not take these steps when it seals itself."""
    carry_out = sealing.carry_out
    sealing.carry_out = lambda steps, whom="worker": carry_out(
        (step for step in steps if step.name not in names), whom
    )


if __name__ == "__main__":
    break_open()
    leave_out(sys.argv[1:])
    worker.main()
