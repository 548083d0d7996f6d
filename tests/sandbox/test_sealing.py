"""Sealing: a plan made first and carried out second, and what is true of a process that has done it."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import replace
from typing import Any, cast

import pytest

from capsuled.proto import order as orders
from capsuled.proto.grants import Grants
from capsuled.proto.order import Confinement, Descriptors, Order, WorkerLimits
from capsuled.sandbox import sealing
from capsuled.sandbox.sealing import SealingFailed, Step
from capsuled.sandbox.supervisor import Supervisor

from ..support.machines import BARE

MIB = 1024 * 1024

LIMITS = WorkerLimits(
    memory=MIB,
    process_memory=300 * MIB,
    cpu_time=0,
    open_files=20,
    max_payload=1000,
    largest_payload=1000,
    publish_bytes_per_second=1000,
    publish_messages_per_second=1000,
    queue_messages=10,
    queue_bytes=1000,
    log_bytes_per_second=1000,
)


def order(descriptors: Descriptors, limits: WorkerLimits = LIMITS, confinement: Confinement = BARE) -> Order:
    return Order("name", bytes(16), "auto", descriptors, limits, Grants(), confinement)


class Told(Supervisor):
    """A supervisor that there is no descriptor to."""

    def __init__(self) -> None:
        pass


def with_cpu_time(seconds: int) -> WorkerLimits:
    return WorkerLimits(**{**LIMITS.__dict__, "cpu_time": seconds})


FULL = Confinement(user=5000, namespaces="all", landlock=True, seccomp=True)

ALIVE = ["die with the supervisor", "supervisor is alive"]
INSIDE = ["namespaces", "wait for the supervisor", "empty root"]
LIMITED = ["resource limits", "close inherited descriptors"]
BOUNDING = ["capability bounding set"]
USER = ["groups", "group of its own", "user of its own"]
UNPRIVILEGED = ["capabilities", "no new privileges", "not dumpable"]
LANDLOCK = ["landlock"]


@pytest.mark.parametrize(
    ("confinement", "names"),
    [
        (BARE, [*ALIVE, *LIMITED, *UNPRIVILEGED, *ALIVE]),
        (FULL, [*ALIVE, *INSIDE, *LIMITED, *BOUNDING, *USER, *UNPRIVILEGED, *ALIVE, *LANDLOCK]),
        (
            replace(FULL, user=None, namespaces="user"),
            [*ALIVE, *INSIDE, *LIMITED, *BOUNDING, *UNPRIVILEGED, *ALIVE, *LANDLOCK],
        ),
        (replace(FULL, user=None), [*ALIVE, *INSIDE, *LIMITED, *UNPRIVILEGED, *ALIVE, *LANDLOCK]),
        (
            replace(FULL, namespaces="none", landlock=False),
            [*ALIVE, *LIMITED, *BOUNDING, *USER, *UNPRIVILEGED, *ALIVE],
        ),
    ],
)
def test_the_steps_have_their_order(confinement: Confinement, names: list[str]) -> None:
    """The bounding set goes before the user who may drop it, and dying with the supervisor comes again after it."""
    steps = sealing.plan(order(Descriptors(3, 4, 5, 6, 7), confinement=confinement), Told())
    assert [step.name for step in steps] == names


def test_seccomp_comes_in_two_stages() -> None:
    """One before the module is read, one before the guest runs; without it there are still no more processes."""
    full, bare = (order(Descriptors(3, 4, 5, 6, 7), confinement=each) for each in (FULL, BARE))
    assert [step.name for step in sealing.before_module(full)] == ["seccomp, first stage"]
    assert [step.name for step in sealing.before_guest(full)] == [
        "no more processes",
        "address space",
        "seccomp, second stage",
    ]
    assert sealing.before_module(bare) == ()
    assert [step.name for step in sealing.before_guest(bare)] == ["no more processes", "address space"]


def test_making_the_plan_does_nothing() -> None:
    """The descriptors that it names need not even be there."""
    before = os.listdir("/proc/self/fd")
    sealing.plan(order(Descriptors(500, 501, 502, 503, 504), confinement=FULL), Told())
    assert os.listdir("/proc/self/fd") == before


def test_rlimits_have_the_manifests_values() -> None:
    """Soft and hard alike, so that nothing can be raised; nothing is written, dumped or locked."""
    assert sealing.rlimits(LIMITS) == {
        resource.RLIMIT_DATA: (300 * MIB, 300 * MIB),
        resource.RLIMIT_STACK: (2 * MIB, 2 * MIB),
        resource.RLIMIT_NOFILE: (36, 36),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }


@pytest.mark.parametrize(("seconds", "found"), [(0, None), (1, (1, 2)), (3600, (3600, 3601))])
def test_the_soft_cpu_limit_comes_first(seconds: int, found: tuple[int, int] | None) -> None:
    """So that SIGXCPU says what happened; 0 seconds are no limit."""
    assert sealing.rlimits(with_cpu_time(seconds)).get(resource.RLIMIT_CPU) == found


@pytest.mark.parametrize("error", [OSError(1, "not permitted"), ValueError("not allowed to raise")])
def test_a_failure_names_its_step_and_ends_the_plan(error: Exception) -> None:
    """What comes after it is not done."""
    done: list[str] = []

    def fail() -> None:
        raise error

    steps = (
        Step("first", lambda: done.append("first")),
        Step("second", fail),
        Step("third", lambda: done.append("third")),
    )
    with pytest.raises(SealingFailed) as caught:
        sealing.carry_out(steps)
    assert str(caught.value) == f"cannot seal the worker: second: {error}"
    assert done == ["first"]


# ── in a process of its own: none of it can be undone ────────────────────────────────────────────

PRELUDE = """
import json, os, resource, sys
from capsuled.proto import order as orders
from capsuled.sandbox import sealing
from capsuled.sandbox.sealing import SealingFailed
from capsuled.sandbox.supervisor import Supervisor
order = orders.decode(bytes.fromhex(sys.argv[1]))
supervisor = Supervisor(order.descriptors.control)
"""

LOOK = """
sealing.carry_out(sealing.plan(order, supervisor))
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
found = {
    "fds": [fd for fd in range(1000) if is_open(fd)],
    "status": open("/proc/self/status").read(),
    "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))
               for name in ("DATA", "STACK", "NOFILE", "FSIZE", "CORE", "MEMLOCK", "CPU")},
}
print(json.dumps(found))
"""

RACE = """
try:
    sealing.carry_out(sealing.plan(order, supervisor))
except SealingFailed as exc:
    print(json.dumps(str(exc)))
"""


class Inherited:
    """Six descriptors as a worker inherits them, and one that it must not keep."""

    def __init__(self) -> None:
        self.supervisor, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.others = [os.memfd_create(f"d{i}") for i in range(5)]
        module, edge, log, page, self.stray = self.others
        self.order = order(Descriptors(module, edge, self.control.fileno(), log, page), with_cpu_time(50))

    def run(self, code: str) -> Any:
        """What the code prints, as JSON, after the prelude, in a process that has all of them."""
        done = subprocess.run(
            [sys.executable, "-I", "-c", PRELUDE + code, orders.encode(self.order).hex()],
            pass_fds=(*self.others, self.control.fileno()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def close(self) -> None:
        self.supervisor.close()
        self.control.close()
        for fd in self.others:
            os.close(fd)


@pytest.fixture(scope="module")
def sealed() -> Any:
    """What a process sees of itself once it is sealed."""
    inherited = Inherited()
    try:
        return {**inherited.run(LOOK), "kept": inherited.order.descriptors, "stray": inherited.stray}
    finally:
        inherited.close()


def test_a_sealed_process_gains_no_privileges(sealed: Any) -> None:
    """The kernel's own word."""
    assert "NoNewPrivs:\t1" in sealed["status"].splitlines()


def test_a_sealed_process_has_its_limits(sealed: Any) -> None:
    """Those of the plan, or the system's where they are tighter."""
    wanted = sealing.rlimits(with_cpu_time(50))
    for name, (soft, hard) in sealed["limits"].items():
        number = cast(int, getattr(resource, f"RLIMIT_{name}"))
        _, ceiling = resource.getrlimit(number)
        ceiling = wanted[number][1] if ceiling == resource.RLIM_INFINITY else ceiling
        assert (soft, hard) == tuple(min(each, ceiling) for each in wanted[number])


ADDRESSES = """
import mmap
def size(): return int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
found, real = sealing.mapped(), size()
sealing.bound_addresses(8 << 20)
def take(size): mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0).close()
most = resource.getrlimit(resource.RLIMIT_AS)[1]
take(most - size())
refused = 0
try: take(most - size() + mmap.PAGESIZE)
except OSError as exc: refused = exc.errno
print(json.dumps([found, real, most, refused]))
"""


@pytest.mark.parametrize("hard", [None, 1 << 34])
def test_what_is_mapped_is_found_out_and_bounded(hard: int | None) -> None:
    """To the page, without /proc, whether or not the system has a limit of its own; one page more is refused."""
    tighter = f"resource.setrlimit(resource.RLIMIT_AS, ({hard}, {hard}))" if hard else ""
    code = f"import json, resource\n{tighter}\nfrom capsuled.sandbox import sealing\n{ADDRESSES}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        timeout=60,
        check=True,
    )
    found, real, most, refused = json.loads(done.stdout)
    assert abs(found - real) < MIB  # reading the other figure takes a little
    assert found < most <= found + 9 * MIB
    assert refused == errno.ENOMEM


def test_only_the_kept_descriptors_are_open(sealed: Any) -> None:
    """0, 1, 2 and those that the order names; the stray one, which was inherited too, is closed."""
    kept: Descriptors = sealed["kept"]
    named = {kept.module, kept.edge, kept.control, kept.log, kept.ledger}
    assert sealed["stray"] not in sealed["fds"]
    assert set(sealed["fds"]) == {0, 1, 2} | named


def test_a_supervisor_that_died_before_is_noticed() -> None:
    """Its end of the control descriptor is closed: the last step fails and says so."""
    inherited = Inherited()
    try:
        inherited.supervisor.close()
        assert inherited.run(RACE) == "cannot seal the worker: supervisor is alive: the supervisor is gone"
    finally:
        inherited.close()


PARENT = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-I", "-c", sys.argv[1], sys.argv[2]],
    pass_fds=tuple(map(int, sys.argv[3:])), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
os._exit(0)
"""

SLEEPER = """
sealing.carry_out(sealing.plan(order, supervisor))
print("sealed", flush=True)
import time
time.sleep(600)
"""


def test_a_sealed_process_dies_with_its_parent() -> None:
    """By the kernel's hand, at once: the descriptor that only it still holds is closed."""
    inherited = Inherited()
    reader, writer = os.pipe()
    try:
        # The pipe's write end is the log descriptor: it stays open until the sealed process is gone.
        held = inherited.order.descriptors
        named = Descriptors(held.module, held.edge, held.control, writer, held.ledger)
        sealed = order(named)
        subprocess.run(
            [sys.executable, "-I", "-c", PARENT, PRELUDE + SLEEPER, orders.encode(sealed).hex()]
            + [str(fd) for fd in (*inherited.others, inherited.control.fileno(), writer)],
            pass_fds=(*inherited.others, inherited.control.fileno(), writer),
            check=True,
            timeout=60,
        )
        os.close(writer)
        writer = -1
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        inherited.close()
