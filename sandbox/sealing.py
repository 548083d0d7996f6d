"""Sealing: what the process gives up before it reads a byte of the untrusted module, and before the guest runs.

Plans made first and carried out second, step by step, each with its own named failure. Any failure ends the process
with `reports.SEALING_FAILED`: nothing half-sealed ever runs a guest. Which layers there are the supervisor has found
out beforehand, in a process of its own (`probing`), and the order says it.
"""

from __future__ import annotations

import mmap
import os
import resource
import select
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from capsuled.proto.order import Order, WorkerLimits
from capsuled.sandbox import kernel, landlock, namespaces, seccomp
from capsuled.sandbox.supervisor import Supervisor

Limits = dict[int, tuple[int, int]]
"""RLIMIT_* to soft and hard value."""

SPARE_DESCRIPTORS = 16
"""What the worker itself holds beyond a guest's (who has none): its six inherited ones, ZeroMQ's six, epoll."""


_MAX_FD = 0x7FFF_FFFF
"""A descriptor is a C int. close_range(2), which Python calls where the kernel has it, does not mind the distance."""


STACK_BYTES = 2 * 1024 * 1024
"""A guest that overflows 8 MiB leaves a backtrace of 261 000 frames, 127 MiB to report it; 2 MiB need 46."""


ADDRESSES = 1 << 40
"""Bytes: above all that a process maps by itself (its engine reserves 6 GiB for the memory of a guest)."""

_MAP_NORESERVE = 0x4000


class SealingFailed(Exception):
    """A step could not be done; the message names it."""


class Step(NamedTuple):
    name: str
    act: Callable[[], None]


def plan(order: Order, supervisor: Supervisor) -> tuple[Step, ...]:
    """What is done before the worker listens, in the order in which it must be done. All is imported by then."""
    return tuple(_plan(order, supervisor))


def _plan(order: Order, supervisor: Supervisor) -> Iterator[Step]:
    wanted, descriptors = order.confinement, order.descriptors
    # At once, for what was started may be stopped or killed at any point from here.
    yield Step("die with the supervisor", kernel.die_with_parent)
    yield Step("supervisor is alive", lambda: _check_alive(descriptors.control))
    if wanted.namespaces != "none":
        user = wanted.namespaces == "user"
        yield Step("namespaces", lambda: namespaces.enter(user, supervisor.cloned))
        yield Step("wait for the supervisor", supervisor.await_proceed)
        yield Step("empty root", namespaces.empty_root)
    yield Step("resource limits", lambda: limit(rlimits(order.limits)))
    keep = (descriptors.module, descriptors.edge, descriptors.control, descriptors.log, descriptors.ledger)
    yield Step("close inherited descriptors", lambda: close_all_but(keep))
    yield from privileges(wanted.user, wanted.namespaces == "user")
    # Again, for a change of uid clears it. Then the look that closes the race: a supervisor that had died before the
    # call would never be noticed otherwise.
    yield Step("die with the supervisor", kernel.die_with_parent)
    yield Step("supervisor is alive", lambda: _check_alive(descriptors.control))
    if wanted.landlock:
        yield Step("landlock", confine_by_landlock)


def privileges(user: int | None, user_namespace: bool) -> Iterator[Step]:
    """Give up all privileges, and become `user` if it is one."""
    if user is not None or user_namespace:  # before the uid, which takes CAP_SETPCAP with it
        yield Step("capability bounding set", kernel.drop_bounding_set)
    if user is not None:
        yield Step("groups", lambda: os.setgroups([]))
        yield Step("group of its own", lambda: os.setresgid(user, user, user))
        yield Step("user of its own", lambda: os.setresuid(user, user, user))
    yield Step("capabilities", kernel.drop_capabilities)
    yield Step("no new privileges", kernel.set_no_new_privileges)
    yield Step("not dumpable", kernel.set_undumpable)


def before_module(order: Order) -> tuple[Step, ...]:
    """What is done once the backbone has greeted, by when ZeroMQ's threads are there, and before the module is read."""
    if not order.confinement.seccomp:
        return ()
    return (Step("seccomp, first stage", lambda: filter_calls(seccomp.first_stage)),)


def before_guest(order: Order) -> tuple[Step, ...]:
    """What is done once the engine has its threads, and before the guest's first instruction."""
    limits = order.limits
    # What the guest's own memory may grow by is mapped already, so that all the rest has to do with what is beside it.
    steps = (
        Step("no more processes", forbid_processes),
        Step("address space", lambda: bound_addresses(limits.process_memory - limits.memory)),
    )
    if not order.confinement.seccomp:
        return steps
    return (*steps, Step("seccomp, second stage", lambda: filter_calls(seccomp.second_stage)))


def carry_out(steps: Iterable[Step], whom: str = "worker") -> None:
    """Do the steps. Raises `SealingFailed` at the first that fails; it names `whom`."""
    for step in steps:
        try:
            step.act()
        except (OSError, ValueError) as exc:
            raise SealingFailed(f"cannot seal the {whom}: {step.name}: {exc}") from exc


def confine_by_landlock() -> None:
    """Handle all that this kernel's Landlock can, and allow nothing. It holds for threads that are started later."""
    kernel.landlock(landlock.attribute(kernel.landlock_abi()))


def filter_calls(rules: Callable[[int], tuple[seccomp.Rule, ...]]) -> None:
    """Put a stage of seccomp on every thread."""
    kernel.seccomp(seccomp.encode(seccomp.program(rules(os.getpid()), kernel.machine())))


def forbid_processes() -> None:
    """No thread or process from here on (RLIMIT_NPROC); the engine and ZeroMQ have started theirs.

    setrlimit(2): it counts all processes of the user, so that any number at all is above 0; it does not bind root.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def bound_addresses(more: int) -> None:
    """Map `more` bytes at most from here on (RLIMIT_AS): a stack that is made to grow and grow, and the page tables of
    what is mapped and only read, are memory that RLIMIT_DATA does not count."""
    soft = mapped() + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))


def mapped() -> int:
    """Bytes of addresses that this process has mapped, found out by what it still gets: there may be no /proc.

    Leaves the soft RLIMIT_AS high.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = ADDRESSES if hard == resource.RLIM_INFINITY else min(ADDRESSES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
    page = mmap.PAGESIZE
    fits, too_many = 0, ceiling // page + 1
    while too_many - fits > 1:
        tried = (fits + too_many) // 2
        try:
            # Without any access: neither memory nor swap is set aside for it.
            mmap.mmap(-1, tried * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, 0).close()
        except OSError:
            too_many = tried
        else:
            fits = tried
    return ceiling - fits * page


def rlimits(limits: WorkerLimits) -> Limits:
    """The limits of the worker process, from those of its manifest.

    Memory is RLIMIT_DATA at first, for the engine reserves 6 GiB of addresses; when it has, `bound_addresses` follows.
    The soft CPU limit is below the hard one, so that the death of it is SIGXCPU, which says what happened.
    """
    files = limits.open_files + SPARE_DESCRIPTORS
    found: Limits = {
        resource.RLIMIT_DATA: (limits.process_memory, limits.process_memory),
        resource.RLIMIT_STACK: (STACK_BYTES, STACK_BYTES),
        resource.RLIMIT_NOFILE: (files, files),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    if limits.cpu_time:
        found[resource.RLIMIT_CPU] = (limits.cpu_time, limits.cpu_time + 1)
    return found


def limit(limits: Limits) -> None:
    for which, (soft, hard) in limits.items():
        _, ceiling = resource.getrlimit(which)
        if ceiling == resource.RLIM_INFINITY:
            ceiling = hard
        # Where the system's own limit is tighter, that one stays.
        resource.setrlimit(which, (min(soft, ceiling), min(hard, ceiling)))


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor but 0, 1, 2 and `keep`. Ranges, so that the cost does not depend on RLIMIT_NOFILE."""
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _MAX_FD)


def _check_alive(control: int) -> None:
    """The other end of the control descriptor is the supervisor's alone: its hang-up is the supervisor's death."""
    poll = select.poll()
    poll.register(control, 0)
    if poll.poll(0):
        raise OSError("the supervisor is gone")
