"""``python -I -B -m capsuled.sandbox.compiler``: compiles one module, and ends.

A module attacks the compiler before it attacks the host: compilers are large, and this one runs native code of its
own over whatever an author has sent. So it runs in a process that has nothing but a pipe that its order comes in on
(standard input), one for what it has made, and one for what its libraries print. What it makes is believed in nothing:
it is run in a worker that is sealed, as a guest is.
"""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from capsuled.proto import compiling
from capsuled.proto.compiling import CompileOrder
from capsuled.sandbox import kernel, loading, namespaces, sealing, seccomp
from capsuled.sandbox.engine import binary, seam
from capsuled.sandbox.engine.seam import EngineError, GuestLimits
from capsuled.sandbox.sealing import Step

ORDER_FD, OUTPUT_FD = 0, 1

READ_BYTES = 1024 * 1024

NO_DATA = 256 * 1024 * 1024
"""Bytes that a compiler may map beside its data: the stacks of its threads, code that cannot be written any more, and
what the C library sets aside for a thread's heap."""

SPARE_DESCRIPTORS = 16
"""The three that it has, and what the threads of its compiler need when they start."""


def main() -> NoReturn:
    """Take the order, seal the process, compile, answer. The exit status says what the answer is (`compiling`)."""
    order = take_order()
    try:
        compiler = seam.load_compiler(order.engine)  # while files can still be opened
    except EngineError as exc:
        _end(compiling.REJECTED, str(exc))
    try:
        sealing.carry_out(plan(order), "compiler")
    except sealing.SealingFailed as exc:
        _end(compiling.SEALING_FAILED, str(exc))
    try:
        blob = compile_module(compiler, order)
    except EngineError as exc:
        _end(compiling.REJECTED, str(exc))
    except MemoryError:
        _end(compiling.NO_MEMORY, "the compiler has reached its process_memory")
    except BaseException as exc:  # also wasmer's panics, which are no Exception
        _end(compiling.FAILED, f"{type(exc).__name__}: {exc}")
    _write(blob)
    os._exit(compiling.DONE)


def take_order() -> CompileOrder:
    """Read the order to its end, and put nothing in its place. Until it comes, this process waits."""
    data = bytearray()
    while part := os.read(ORDER_FD, READ_BYTES):
        data += part
    order = compiling.decode(bytes(data))
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, ORDER_FD)
    os.close(null)
    return order


def plan(order: CompileOrder) -> Iterator[Step]:
    """What this process gives up before it looks at the module, in this order: what a worker does (`sealing.plan`)."""
    wanted = order.confinement
    yield Step("die with the supervisor", kernel.die_with_parent)
    yield Step("supervisor is alive", _check_alive)
    if wanted.namespaces != "none":
        yield Step("namespaces", lambda: _go_on_in_clone(wanted.namespaces == "user"))
        yield Step("empty root", namespaces.empty_root)
    yield Step("resource limits", lambda: sealing.limit(rlimits(order)))
    yield Step("close inherited descriptors", lambda: sealing.close_all_but(()))
    yield from sealing.privileges(wanted.user, wanted.namespaces == "user")
    yield Step("die with the supervisor", kernel.die_with_parent)
    yield Step("supervisor is alive", _check_alive)
    if wanted.landlock:
        yield Step("landlock", sealing.confine_by_landlock)
    yield Step("address space", lambda: sealing.bound_addresses(order.process_memory + NO_DATA))
    if wanted.seccomp:
        yield Step("seccomp, first stage", lambda: sealing.filter_calls(seccomp.first_stage))


def _go_on_in_clone(user: bool) -> None:
    """Go on in namespaces, once the line that tells the supervisor so is written: nothing may come before it."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    namespaces.enter(user, lambda pid: _write(compiling.clone_line(pid)))
    os.close(tell)
    os.read(told, 1)  # nothing: what was started has ended, and with it the other end
    os.close(told)


def rlimits(order: CompileOrder) -> sealing.Limits:
    """RLIMIT_* of this process. The soft CPU limit is below the hard one: SIGXCPU says what happened."""
    return {
        resource.RLIMIT_DATA: (order.process_memory, order.process_memory),
        resource.RLIMIT_CPU: (order.cpu_seconds, order.cpu_seconds + 1),
        resource.RLIMIT_NOFILE: (SPARE_DESCRIPTORS, SPARE_DESCRIPTORS),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }


def compile_module(compiler: seam.Compiler, order: CompileOrder) -> bytes:
    """The blob of the order's module. Raises `ModuleRejected`, where it is not the one that the manifest means, too."""
    loading.verify(order.module, order.module_hash)
    loading.entry_of(binary.inspect(order.module), loading.OFFERED)
    return compiler.compile(order.module, loading.OFFERED, GuestLimits(order.memory))


def _check_alive() -> None:
    """The supervisor alone reads what is written here: without a reader it is gone (poll(2), POLLERR)."""
    poll = select.poll()
    poll.register(OUTPUT_FD, 0)
    if poll.poll(0):
        raise OSError("the supervisor is gone")


def _end(status: int, sentence: str) -> NoReturn:
    _write(compiling.cut(sentence).encode(errors="replace"))
    os._exit(status)


def _write(data: bytes) -> None:
    view = memoryview(data)
    with suppress(
        BrokenPipeError
    ):  # the supervisor is gone, or wants no more of it: the exit status says the rest
        while view:
            view = view[os.write(OUTPUT_FD, view) :]


if __name__ == "__main__":
    main()
