"""Workers and backbones that do what no honest one does: a script takes the place of the program.

The supervisor's side is real, and runs in the test's own process.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from capsuled.proto.reports import Report
from capsuled.supervisor import spawn
from capsuled.supervisor.blobs import Compiled
from capsuled.supervisor.bus import Bus
from capsuled.supervisor.compilation import Job
from capsuled.supervisor.compiling import Compiler
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.exits import Intent
from capsuled.supervisor.instance import Ending, Instance
from capsuled.supervisor.logbook import LogBook
from capsuled.supervisor.manifest import Limits, Manifest, parse

from ..support.machines import unconfined

DEADLINE = 30.0

_TAKE_ORDER = """
import os, socket, sys, time
from capsuled.proto import loglines, order as orders, reports
order = orders.decode(os.pread(0, os.fstat(0).st_size, 0))
control = socket.socket(fileno=order.descriptors.control)
log = socket.socket(fileno=order.descriptors.log)
"""

MANIFEST = """
[package]
name = "hostile"
version = "1.0.0"
[component]
file = "hostile.wasm"
hash = "sha256:{hash}"
[limits]
log_bytes_per_second = "{rate}"
[supervision]
stop_timeout = "200ms"
"""


class ReadyMade(Compiler):
    """Compiles nothing: the worker here is a script, which looks at no module."""

    def __init__(self) -> None:
        super().__init__(unconfined().confinement, unconfined().group)

    async def compile(self, job: Job, on_turn: Callable[[], None] = lambda: None) -> Compiled:
        on_turn()
        return Compiled("wasmer", b"")


class Hostile:
    """One instance whose worker is a script, and what has become of it."""

    def __init__(
        self, edges: Path, on_report: Callable[[Report], None] | None = None, *, rate: str = "64KiB"
    ) -> None:
        """`rate` is its `log_bytes_per_second`."""
        self.reports: list[Report] = []
        self.offered: list[JsonObject] = []
        self.bus = Bus(1 << 20, 1 << 20)
        self.book = LogBook("hostile", 100_000, 64 << 20, lambda _, line: self.offered.append(line))
        self.instance = Instance(
            manifest(rate),
            b"",
            {},
            edges,
            1,
            self.bus,
            ReadyMade(),
            unconfined(),
            self.book,
            lambda _, report: (on_report or self.reports.append)(report),
        )
        self.ending: Ending | None = None
        self._late = False

    def lines(self, stream: str) -> list[str]:
        return [str(line["message"]) for line in self.book.last(100_000) if line["stream"] == stream]

    async def run(self) -> Ending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_late)
            self.ending = await self.instance.run()
            nursery.cancel_scope.cancel()
        assert not self._late, f"it has not ended in {DEADLINE} s"
        assert self.ending is not None
        return self.ending

    async def _end_late(self) -> None:
        await trio.sleep(DEADLINE)
        self._late = True
        self.instance.kill(Intent.OPERATOR_KILL)


def manifest(rate: str = "64KiB") -> Manifest:
    return parse(MANIFEST.format(hash="0" * 64, rate=rate), "Capsule.toml", Limits(), False)


def worker(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """From now on workers are this script, which has `order`, `control` and `log`."""
    monkeypatch.setattr(spawn, "WORKER", (sys.executable, "-I", "-c", _TAKE_ORDER + script))


def backbone(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """From now on backbones are this script, which has `supervisor`, its socket."""
    head = "import os, signal, socket, struct, time\nsupervisor = socket.socket(fileno=0)\n"
    monkeypatch.setattr(spawn, "BACKBONE", (sys.executable, "-I", "-c", head + script))


@asynccontextmanager
async def running(bus: Bus) -> AsyncGenerator[trio.Nursery, None]:
    """A bus that is being run, and is ended with the block; it may not have started when the block begins."""
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            yield nursery
            nursery.cancel_scope.cancel()
