"""The life of a worker, from its launch order to its last report.

order taken → sealed → listening → greeted by the backbone → native code loaded → started → … → ended

What the guest does in between is its own affair; how it ended is the last report, and the exit status agrees with
it. The supervisor believes the status.
"""

from __future__ import annotations

import faulthandler
import os
from typing import NoReturn

from capsuled.proto import order as orders
from capsuled.proto import reports
from capsuled.proto.abi import INITIALIZE_EXPORT, RUN_EXPORT
from capsuled.proto.ledger import Total
from capsuled.proto.order import Order
from capsuled.proto.reports import Ended, Listening, Ready, Started
from capsuled.sandbox import loading, sealing, wasi
from capsuled.sandbox.edge import Edge
from capsuled.sandbox.engine import seam
from capsuled.sandbox.engine.seam import EngineError, Guest, GuestLimits, GuestTrap
from capsuled.sandbox.host import Host
from capsuled.sandbox.ipc import Ipc
from capsuled.sandbox.logs import Logs
from capsuled.sandbox.page import Page
from capsuled.sandbox.supervisor import Supervisor
from capsuled.sandbox.system import System

ORDER_FD = 0


def main() -> NoReturn:
    # Before the engine's first use or never: enabled later, the first out-of-bounds access of a guest kills us.
    faulthandler.enable()
    order = take_order()
    engine: seam.Engine | EngineError
    try:
        engine = seam.load(order.engine)  # while files can still be opened
    except EngineError as exc:
        engine = exc  # reported once there is somebody to report to
    supervisor = Supervisor(order.descriptors.control)
    try:
        sealing.carry_out(sealing.plan(order, supervisor))
    except sealing.SealingFailed as exc:
        supervisor.end(Ended("unsealed", message=reports.cut(str(exc))))
    try:
        Worker(order, supervisor).run(engine)
    except MemoryError:
        os._exit(reports.STATUS["memory"])  # not even the report found room: the status tells


def take_order() -> Order:
    """Read the launch order and put nothing in its place: nobody else is to read it."""
    order = orders.decode(os.pread(ORDER_FD, os.fstat(ORDER_FD).st_size, 0))
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, ORDER_FD)
    os.close(null)
    return order


class Worker:
    """Everything that one capsule needs in this process."""

    def __init__(self, order: Order, supervisor: Supervisor) -> None:
        descriptors, limits = order.descriptors, order.limits
        self._order = order
        self._page = Page.map(descriptors.ledger)
        self._supervisor = supervisor
        self._logs = Logs(descriptors.log, limits.log_bytes_per_second, self._page)
        edge = Edge(descriptors.edge, limits.largest_payload)
        self._ipc = Ipc(order, edge, self._supervisor, self._page)
        self._system = System(self._ipc, self._logs, lambda code: self.end(Ended("exit", code)))
        self._guest: Guest | None = None
        self._ready = False

    def run(self, engine: seam.Engine | EngineError) -> NoReturn:
        """Serve the guest until it ends."""
        self._supervisor.report(Listening())
        if not self._ipc.await_greeting():
            self.end(Ended("returned", message="stopped before it was started"))
        try:
            if isinstance(engine, EngineError):
                raise engine
            self._serve(engine)
        except sealing.SealingFailed as exc:
            self._supervisor.end(Ended("unsealed", message=reports.cut(str(exc))))
        except GuestTrap as trap:
            # After a stack overflow the interpreter may be damaged: nothing more than the report is safe.
            ended = Ended("trap", 0, trap.kind, reports.cut(str(trap)), reports.cut(trap.backtrace))
            if trap.kind == "stack":
                self._supervisor.end(ended)
            self.end(ended)
        except EngineError as exc:
            self.end(Ended("load-error", message=reports.cut(str(exc))))
        except MemoryError:
            self.end(Ended("memory", message="the worker has reached its process_memory"))
        except Exception as exc:
            # A defect of ours, told with its name; the process ends and the supervisor goes on.
            self.end(Ended("failed", message=reports.cut(f"{type(exc).__name__}: {exc}")))
        self.end(Ended("returned"))

    def end(self, ended: Ended) -> NoReturn:
        """Hand over what was published and logged, report, and end the process."""
        try:
            self._system.flush()
            self._ipc.say_bye()
            self._bring_up_to_date()
        except MemoryError:
            pass  # then its tail is lost: the report matters more
        self._supervisor.end(ended)

    def _serve(self, engine: seam.Engine) -> None:
        order = self._order
        sealing.carry_out(sealing.before_module(order))
        code = engine.load(_read_blob(order.descriptors.module))
        entry = loading.entry_of(code.info, loading.OFFERED)
        host = Host(
            self._ipc,
            self._logs,
            self._supervisor,
            self._page,
            order.config,
            self._be_ready,
            has_run_loop=entry == RUN_EXPORT,
        )
        imports = {**host.functions(), **wasi.functions(lambda: host.memory, self._system)}
        calls = self._page.slots[Total.HOST_CALLS : Total.HOST_CALLS + 1]
        guest = engine.instantiate(code, imports, GuestLimits(order.limits.memory), calls)
        host.memory = guest.memory
        self._guest = guest
        self._ipc.before_wait = self._bring_up_to_date
        sealing.carry_out(sealing.before_guest(order))
        self._supervisor.report(Started(engine.name))
        initialize = loading.has_initialize(code.info)
        del code  # megabytes, and the engine has made what it needs of them
        if initialize:
            guest.call(INITIALIZE_EXPORT)
        guest.call(entry)

    def _be_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self._supervisor.report(Ready())

    def _bring_up_to_date(self) -> None:
        """The figure of the page that no call keeps by itself."""
        if self._guest is not None:
            self._page.slots[Total.MEMORY] = self._guest.memory.size()


def _read_blob(fd: int) -> bytes:
    blob = os.pread(
        fd, os.lseek(fd, 0, os.SEEK_END), 0
    )  # fstat(2) would name a file, and no file may be named
    os.close(fd)
    return blob
