"""The seccomp tables and their program, run by an interpreter of BPF."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.sandbox import seccomp, syscalls
from capsuled.sandbox.seccomp import Action, Check, Instruction, Rule
from capsuled.sandbox.syscalls import MACHINES, Machine

from ..support import bpf

PID = 1
STAGES = {"first": seccomp.first_stage(PID), "second": seccomp.second_stage(PID)}
PROGRAMS = {(m.name, s): seccomp.program(rules, m) for m in MACHINES.values() for s, rules in STAGES.items()}

both_machines = pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
both_stages = pytest.mark.parametrize("stage", STAGES)

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 3, 0x20, 0x4000
MAP_GROWSDOWN = 0x100
MAP_HUGETLB = 0x4_0000
THREAD = 0x003D_0F00  # as strace(1) shows it of pthread_create(3)

STEADY = [
    "read",
    "write",
    "close",
    "poll",
    "epoll_wait",
    "epoll_ctl",
    "recvfrom",
    "sendto",
    "futex",
    "getpid",
    "munmap",
    "madvise",
    "rt_sigprocmask",
    "pselect6",
    "getrandom",
    "exit",
    "exit_group",
    "ppoll",
    "epoll_pwait",
    "recvmsg",
    "sendmsg",
    "sched_yield",
    "gettid",
    "brk",
    "rt_sigreturn",
    "sigaltstack",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "fstat",
    "lseek",
    "restart_syscall",
    "eventfd2",
    "shutdown",
    "getsockopt",
    "getsockname",
    "getpeername",
    "rseq",
    "set_robust_list",
    "accept4",
    "setsockopt",
    "rt_sigaction",
    "gettimeofday",
    "clock_getres",
]
"""What a worker needs whatever the arguments: as measured, and what replaces it on other machines."""

PROBED = [
    "open",
    "openat",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getcwd",
    "getdents64",
    "statfs",
    "fstatfs",
    "socket",
    "connect",
    "ioctl",
    "uname",
    "sysinfo",
    "getrusage",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getppid",
    "sched_getaffinity",
    "mremap",
]

ENDING = ["capset", "pivot_root", "landlock_create_ruleset", "landlock_restrict_self"]
"""Known for sealing, and named by neither stage."""

CONDITIONAL = [
    "mmap",
    "mprotect",
    "fcntl",
    "prctl",
    "tgkill",
    "clone",
    "clone3",
    "seccomp",
    "prlimit64",
    "pread64",
]
SCHEDULING = ["sched_getparam", "sched_getscheduler", "sched_setscheduler"]


def verdict(machine: Machine, stage: str, call: str, *args: int) -> Action:
    """What becomes of a call."""
    number = machine.number(call)
    assert number is not None
    return Action(bpf.run(PROGRAMS[machine.name, stage], arch=machine.audit, nr=number, args=args))


def has(machine: Machine, call: str) -> bool:
    return machine.number(call) is not None


@both_machines
@both_stages
def test_every_known_call_is_in_one_of_the_tables(machine: Machine, stage: str) -> None:
    """What each known call comes to, without a look at arguments, is what the lists above say of it."""
    expected = {
        **dict.fromkeys(STEADY, Action.ALLOW),
        **dict.fromkeys(PROBED, Action.EPERM),
        **dict.fromkeys(ENDING, Action.KILL),
        **dict.fromkeys(SCHEDULING, Action.ALLOW),
    }
    assert {*expected, *CONDITIONAL} == set(syscalls.names())
    found = {
        call: {
            verdict(machine, stage, call, *(word,) * 6)
            for word in ((0,) if call in SCHEDULING else (0, 2**64 - 1))
        }
        for call in expected
        if has(machine, call)
    }
    assert found == {call: {action} for call, action in expected.items() if call in found}


CASES: list[tuple[str, tuple[int, ...], Action, Action]] = [
    # call, arguments, first stage, second stage
    ("mmap", (0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS), Action.ALLOW, Action.ALLOW),
    ("mmap", (0, 4096, PROT_READ, MAP_PRIVATE | MAP_NORESERVE), Action.ALLOW, Action.ALLOW),
    ("mmap", (0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS), Action.ALLOW, Action.EPERM),
    ("mmap", (0, 4096, PROT_EXEC, MAP_PRIVATE), Action.ALLOW, Action.EPERM),
    ("mmap", (0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS), Action.EPERM, Action.EPERM),
    ("mmap", (0, 4096, PROT_READ, MAP_SHARED), Action.EPERM, Action.EPERM),
    ("mmap", (0, 4096, PROT_READ, MAP_SHARED_VALIDATE | MAP_ANONYMOUS), Action.EPERM, Action.EPERM),
    ("mmap", (0, 4096, PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS), Action.EPERM, Action.EPERM),
    ("mmap", (0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_GROWSDOWN), Action.EPERM, Action.EPERM),
    ("mmap", (0, 4096, PROT_READ, MAP_PRIVATE | MAP_HUGETLB), Action.EPERM, Action.EPERM),
    ("mprotect", (0, 4096, PROT_READ | PROT_WRITE), Action.ALLOW, Action.ALLOW),
    ("mprotect", (0, 4096, PROT_WRITE), Action.ALLOW, Action.ALLOW),
    ("mprotect", (0, 4096, PROT_READ), Action.ALLOW, Action.EPERM),
    ("mprotect", (0, 4096, 0), Action.ALLOW, Action.EPERM),
    ("mprotect", (0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC), Action.ALLOW, Action.EPERM),
    ("mprotect", (0, 4096, PROT_READ | PROT_EXEC), Action.ALLOW, Action.EPERM),
    ("mprotect", (0, 4096, 0x0100_0000 | PROT_EXEC), Action.ALLOW, Action.EPERM),
    *(("fcntl", (3, command), Action.ALLOW, Action.ALLOW) for command in (1, 2, 3, 4)),
    *(("fcntl", (3, command), Action.EPERM, Action.EPERM) for command in (0, 5, 6, 8, 10, 1030, 1033)),
    ("fcntl", (3, 1 << 32 | 1033), Action.EPERM, Action.EPERM),
    ("prctl", (15,), Action.ALLOW, Action.ALLOW),
    *(("prctl", (option,), Action.EPERM, Action.EPERM) for option in (0, 1, 4, 14, 16, 22, 38, 2**32 - 1)),
    ("tgkill", (PID, 7, 6), Action.ALLOW, Action.ALLOW),
    *(("tgkill", (pid, 7, 6), Action.KILL, Action.KILL) for pid in (0, 2, 2**32 - 1, 2**31)),
    ("clone", (THREAD,), Action.ALLOW, Action.EPERM),
    ("clone", (THREAD | 0x0040_0000,), Action.ALLOW, Action.EPERM),
    ("clone", (17,), Action.KILL, Action.KILL),  # fork(3): SIGCHLD alone
    ("clone", (0x4111,), Action.KILL, Action.KILL),  # vfork(3)
    ("clone", (THREAD | 17,), Action.KILL, Action.KILL),
    *(
        ("clone", (THREAD | 1 << bit,), Action.KILL, Action.KILL)
        for bit in (12, 13, 15, 17, 24, 25, 26, 27, 28, 29, 30)
    ),
    *(
        ("clone", (THREAD & ~(1 << bit),), Action.KILL, Action.KILL)
        for bit in (8, 9, 10, 11, 16, 18, 19, 20, 21)
    ),
    ("clone3", (0, 88), Action.ENOSYS, Action.ENOSYS),
    ("sched_setscheduler", (0, 0), Action.ALLOW, Action.ALLOW),
    *(
        ("sched_setscheduler", (0, policy), Action.EPERM, Action.EPERM)
        for policy in (1, 2, 3, 6, 0x4000_0000)
    ),
    *(("prlimit64", (0, which), Action.ALLOW, Action.EPERM) for which in (6, 9)),
    *(("prlimit64", (0, which), Action.EPERM, Action.EPERM) for which in (0, 2, 5, 7)),
    ("prlimit64", (1, 6), Action.EPERM, Action.EPERM),
    ("seccomp", (1, 1), Action.ALLOW, Action.KILL),
    *(("seccomp", (operation,), Action.KILL, Action.KILL) for operation in (0, 2, 3)),
    ("pread64", (3, 0, 10), Action.ALLOW, Action.EPERM),
]


@both_machines
@pytest.mark.parametrize(("call", "args", "first", "second"), CASES)
def test_arguments_decide(
    machine: Machine, call: str, args: tuple[int, ...], first: Action, second: Action
) -> None:
    """At each border of an argument that is looked at, the call comes to what its rule says, in both stages."""
    assert (verdict(machine, "first", call, *args), verdict(machine, "second", call, *args)) == (
        first,
        second,
    )


@both_machines
@both_stages
@given(nr=st.integers(0, 2**32 - 1), args=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_what_is_not_named_kills(machine: Machine, stage: str, nr: int, args: list[int]) -> None:
    """A call without a rule ends the process, whatever its arguments."""
    rules = {machine.number(rule.call) for rule in STAGES[stage]}
    found = bpf.run(PROGRAMS[machine.name, stage], arch=machine.audit, nr=nr, args=args)
    assert nr in rules or found == Action.KILL


@both_machines
@both_stages
@pytest.mark.parametrize("arch", [0x4000_0003, 0xC000_003E, 0xC000_00B7, 0x4000_0028, 0, 2**32 - 1])
def test_a_foreign_architecture_kills(machine: Machine, stage: str, arch: int) -> None:
    """On x86-64 int 0x80 enters with the numbers of i386, and on aarch64 there is arm: no call passes by those."""
    killed = {bpf.run(PROGRAMS[machine.name, stage], arch=arch, nr=nr) for nr in range(460)}
    assert (killed == {Action.KILL}) == (arch != machine.audit)


@both_stages
@pytest.mark.parametrize("bit", [0x4000_0000, 0x8000_0000])
def test_x32_kills(stage: str, bit: int) -> None:
    """The other ABI of x86-64 is told by a bit in the number; with it no number passes, the negative ones neither."""
    machine = MACHINES["x86_64"]
    program = PROGRAMS[machine.name, stage]
    assert {bpf.run(program, arch=machine.audit, nr=bit | nr) for nr in range(600)} == {Action.KILL}


@both_machines
def test_the_second_stage_allows_nothing_that_the_first_does_not(machine: Machine) -> None:
    """The two are stacked, and the second is the narrower one for every call and every case above."""
    cases = [(call, args) for call, args, _, _ in CASES]
    for call, args in cases + [(call, (0,) * 6) for call in syscalls.names() if has(machine, call)]:
        if verdict(machine, "second", call, *args) is Action.ALLOW:
            assert verdict(machine, "first", call, *args) is Action.ALLOW, call


def test_any_alternative_and_all_of_its_checks() -> None:
    """A rule holds when all checks of one of its alternatives do, and is refused as it says otherwise."""
    machine = MACHINES["x86_64"]
    either = ((Check(0, 0xF, 1), Check(1, 0xFF00, 0x1200), Check(5, 0xFFFF_FFFF, 9)), (Check(2, 1, 1),))
    program = seccomp.program([Rule("read", Action.ENOSYS, either, Action.ALLOW)], machine, Action.EPERM)

    def becomes(*args: int) -> Action:
        return Action(bpf.run(program, arch=machine.audit, nr=0, args=args))

    assert becomes(0x31, 0x12FF, 0, 0, 0, 9) is Action.ENOSYS
    assert becomes(0, 0, 3) is Action.ENOSYS
    for args in ((0x32, 0x12FF, 0, 0, 0, 9), (0x31, 0x13FF, 0, 0, 0, 9), (0x31, 0x12FF, 0, 0, 0, 8)):
        assert becomes(*args) is Action.ALLOW
    assert Action(bpf.run(program, arch=machine.audit, nr=1)) is Action.EPERM


def test_a_call_that_the_machine_lacks_is_left_out() -> None:
    """`poll` has no number on aarch64: its rule makes no instruction there."""
    machine = MACHINES["aarch64"]
    assert seccomp.program([Rule("poll"), Rule("read")], machine) == seccomp.program([Rule("read")], machine)


def test_the_longest_program() -> None:
    """The kernel takes 4096 instructions; one rule more is refused here, with the number."""
    machine = MACHINES["x86_64"]
    most = (seccomp.MAX_INSTRUCTIONS - 7) // 2
    assert len(seccomp.program([Rule("read")] * most, machine)) == seccomp.MAX_INSTRUCTIONS - 1
    with pytest.raises(ValueError, match="4097 instructions: 4096 at most"):
        seccomp.program([Rule("read")] * (most + 1), machine)


def test_encoding() -> None:
    """An instruction is `struct sock_filter`: 16 bits, two times 8, and 32, in the machine's order."""
    encoded = seccomp.encode([Instruction(0x15, 1, 2, 0xC000_003E), Instruction(6, 0, 0, Action.ALLOW)])
    assert encoded == struct.pack("=HBBIHBBI", 0x15, 1, 2, 0xC000_003E, 6, 0, 0, 0x7FFF_0000)


def test_an_unknown_call_is_an_error() -> None:
    """A rule for a name that stands in no table raises, rather than being left out."""
    with pytest.raises(KeyError, match="opne"):
        seccomp.program([Rule("opne")], MACHINES["x86_64"])
