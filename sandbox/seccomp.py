"""The system calls that a worker may make: tables, and the BPF program that the kernel runs before each call.

Two filters, one on top of the other; a call has to pass both.

*Stage 1* is put on before a byte of the untrusted module is read, for compiling still needs threads and executable
memory. *Stage 2* is the steady state: no new executable memory, no thread, no other limit. In both: nothing is
opened, connected, started, traced or signalled, and no memory is shared, which RLIMIT_DATA would not count.

What no table names ends the process (SIGSYS). What libraries merely try is refused with EPERM, so that they go on.

seccomp(2), linux/seccomp.h, linux/filter.h. A program sees the low words of 64-bit arguments apart from the high
ones; of all arguments looked at here the kernel itself takes the low word only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from capsuled.sandbox.syscalls import Machine

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS: the kernel refuses more."""


class Action(IntEnum):
    """What becomes of a call: SECCOMP_RET_*."""

    KILL = 0x8000_0000
    """SECCOMP_RET_KILL_PROCESS. KILL_THREAD would leave a process without the thread that held its locks."""
    EPERM = 0x0005_0001
    ENOSYS = 0x0005_0026
    ALLOW = 0x7FFF_0000


class Check(NamedTuple):
    """Holds when the bits of an argument that are in `mask` are those of `value`."""

    argument: int
    mask: int
    value: int


class Rule(NamedTuple):
    """What becomes of one system call: `action` when all checks of one alternative hold, else `otherwise`."""

    call: str
    action: Action = Action.ALLOW
    when: tuple[tuple[Check, ...], ...] = ((),)
    otherwise: Action = Action.EPERM


class Instruction(NamedTuple):
    """`struct sock_filter`."""

    code: int
    if_true: int
    if_false: int
    operand: int


# ── the tables ───────────────────────────────────────────────────────────────────────────────────

_WORD = 0xFFFF_FFFF

_STEADY = (
    # What a message costs, measured; these come first, for the kernel tries one rule after the other.
    *("futex", "read", "write", "poll", "ppoll", "epoll_wait", "epoll_pwait", "getpid", "recvfrom", "sendto"),
    *("clock_gettime", "madvise", "munmap", "epoll_ctl", "rt_sigprocmask", "pselect6", "getrandom", "close"),
    # A new connection of the backbone; what other C libraries use in place of the above; other clock sources.
    *("accept4", "setsockopt", "getsockopt", "getsockname", "getpeername", "shutdown", "recvmsg", "sendmsg"),
    *("eventfd2", "fstat", "lseek", "brk", "sched_yield", "gettid", "rseq", "set_robust_list"),
    *("clock_nanosleep", "nanosleep", "gettimeofday", "clock_getres", "restart_syscall"),
    # A crash is told by its own signal: the handler that writes where it was takes itself off first.
    *("rt_sigreturn", "rt_sigaction", "sigaltstack", "exit", "exit_group"),
)
"""Allowed in both stages, whatever the arguments. `rt_sigaction` can make a process deaf to nothing that matters:
its end is SIGKILL, or SIGSYS from here."""

_PROBED = (
    *("open", "openat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"),
    *(
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
    ),
    *("getrusage", "getuid", "geteuid", "getgid", "getegid", "getppid", "sched_getaffinity"),
    "mremap",  # realloc(3) copies when it is refused
)
"""Refused, and survived. It is true of every library here that it goes on without."""

_PROT_WRITE, _PROT_EXEC = 0x2, 0x4
_MAP_SHARED = 0x1  # also set in MAP_SHARED_VALIDATE
_MAP_GROWSDOWN = 0x100
_MAP_HUGETLB = 0x4_0000
_NO_EXEC = Check(2, _PROT_EXEC, 0)

# RLIMIT_DATA counts what is private, can be written, and is no stack (setrlimit(2)): memory that is anything else could
# be taken without a limit, and so could memory that was written and is made read-only then.
# Nor does it count huge pages that are only read, which belong to the operator's pool.
_COUNTED = Check(3, _MAP_SHARED | _MAP_GROWSDOWN | _MAP_HUGETLB, 0)
_WRITABLE = Check(2, _PROT_WRITE | _PROT_EXEC, _PROT_WRITE)

_THREAD_FLAGS = 0x003D_0F00
"""What pthread_create(3) gives to clone(2): VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID,
CHILD_CLEARTID."""
_CLONE_DETACHED = 0x0040_0000  # without effect; musl sets it
_A_THREAD = Check(0, _WORD & ~_CLONE_DETACHED, _THREAD_FLAGS)

_FCNTL = (1, 2, 3, 4)  # F_GETFD, F_SETFD, F_GETFL, F_SETFL
_PR_SET_NAME = 15
_SCHED_OTHER = 0
_SECCOMP_SET_MODE_FILTER = 1
_RLIMIT_NPROC, _RLIMIT_AS = 6, 9


def _both(pid: int) -> tuple[Rule, ...]:
    return (
        *(Rule(call) for call in _STEADY),
        Rule("fcntl", when=tuple((Check(1, _WORD, command),) for command in _FCNTL)),
        Rule("prctl", when=((Check(0, _WORD, _PR_SET_NAME),),)),
        Rule("tgkill", when=((Check(0, _WORD, pid),),), otherwise=Action.KILL),
        # ZeroMQ's threads abort the process when these fail while they start, and one that was made before the first
        # stage may get its first turn after the second (seen: a worker in a hundred on a busy machine). They read,
        # or set what is set already.
        Rule("sched_getparam"),
        Rule("sched_getscheduler"),
        Rule("sched_setscheduler", when=((Check(1, _WORD, _SCHED_OTHER),),)),
        Rule("clone3", Action.ENOSYS),  # its flags are in memory; the C library falls back to clone
        *(Rule(call, Action.EPERM) for call in _PROBED),
    )


def first_stage(pid: int) -> tuple[Rule, ...]:
    """While the module is read and compiled. `pid` is the process's own, as it sees it."""
    return (
        *_both(pid),
        Rule("mmap", when=((_COUNTED,),)),
        Rule("mprotect"),
        Rule("pread64"),
        Rule("clone", when=((_A_THREAD,),), otherwise=Action.KILL),
        # For what follows: no more processes, no more addresses, and the second stage.
        Rule(
            "prlimit64",
            when=tuple((Check(0, _WORD, 0), Check(1, _WORD, which)) for which in (_RLIMIT_NPROC, _RLIMIT_AS)),
        ),
        Rule("seccomp", when=((Check(0, _WORD, _SECCOMP_SET_MODE_FILTER),),), otherwise=Action.KILL),
    )


def second_stage(pid: int) -> tuple[Rule, ...]:
    """While the guest runs. `pid` is the process's own, as it sees it."""
    return (
        *_both(pid),
        Rule("mmap", when=((_NO_EXEC, _COUNTED),)),
        Rule("mprotect", when=((_WRITABLE,),)),
        # A library that wants a thread is told that there is none; a new process is no library's business.
        Rule("clone", Action.EPERM, when=((_A_THREAD,),), otherwise=Action.KILL),
        *(Rule(call, Action.EPERM) for call in ("prlimit64", "pread64")),
    )


# ── the program ──────────────────────────────────────────────────────────────────────────────────

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
"""BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K."""

_NR, _ARCH, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`. Both machines are little-endian: the low word of an argument comes first."""

_X32 = 0x4000_0000
"""__X32_SYSCALL_BIT: the other ABI of x86-64, with numbers of its own. No machine has numbers so high."""


def program(
    rules: Iterable[Rule], machine: Machine, default: Action = Action.KILL
) -> tuple[Instruction, ...]:
    """The program for these rules. A call of another architecture, or of x32, is `KILL` whatever they say.

    A rule for a call that this machine does not have is left out. Raises ValueError for a program that is too long.
    """
    made = [
        Instruction(_LOAD, 0, 0, _ARCH),
        Instruction(_EQUAL, 1, 0, machine.audit),
        _end(Action.KILL),
        Instruction(_LOAD, 0, 0, _NR),
        Instruction(_AT_LEAST, 0, 1, _X32),
        _end(Action.KILL),
    ]
    for rule in rules:
        number = machine.number(rule.call)
        if number is not None:
            block = _block(rule)
            # Every way through a block ends the program, so that the number is still loaded after one passed over.
            made += [Instruction(_EQUAL, 0, len(block), number), *block]
    made.append(_end(default))
    if len(made) > MAX_INSTRUCTIONS:
        raise ValueError(f"a seccomp program of {len(made)} instructions: {MAX_INSTRUCTIONS} at most")
    return tuple(made)


def encode(instructions: Sequence[Instruction]) -> bytes:
    """An array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *each) for each in instructions)


def _block(rule: Rule) -> list[Instruction]:
    block: list[Instruction] = []
    for alternative in rule.when:
        block += _alternative(alternative, rule.action)
        if not alternative:  # it always holds
            return block
    return [*block, _end(rule.otherwise)]


def _alternative(checks: Sequence[Check], action: Action) -> list[Instruction]:
    made: list[Instruction] = []
    for left, check in zip(range(len(checks) - 1, -1, -1), checks, strict=True):
        past = 3 * left + 1  # the checks that are left, and the action
        made += [
            Instruction(_LOAD, 0, 0, _ARGUMENTS + 8 * check.argument),
            Instruction(_AND, 0, 0, check.mask),
            Instruction(_EQUAL, 0, past, check.value),
        ]
    return [*made, _end(action)]


def _end(action: Action) -> Instruction:
    return Instruction(_RETURN, 0, 0, action)
