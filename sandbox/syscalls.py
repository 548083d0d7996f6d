"""Numbers of system calls, by name and machine: what the seccomp program and the raw calls need, and no others.

From the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h, which aarch64 uses.
A number is never changed: it is part of the kernel's interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Machine(NamedTuple):
    """One that we know the system calls of."""

    name: str
    """As uname(2) says it."""
    audit: int
    """AUDIT_ARCH_* of linux/audit.h: what the kernel tells a seccomp program."""
    column: int
    """In `_NUMBERS`."""

    def number(self, name: str) -> int | None:
        """Of a system call; None where this machine does not have it. Raises `KeyError` for a name unknown here."""
        return _NUMBERS[name][self.column]


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine("x86_64", 0xC000_003E, 0),
    "aarch64": Machine("aarch64", 0xC000_00B7, 1),
}


def names() -> tuple[str, ...]:
    """All system calls that are known here."""
    return tuple(_NUMBERS)


_NUMBERS: Mapping[str, tuple[int, int | None]] = {
    # Reading, writing and waiting.
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "fcntl": (72, 25),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_ctl": (233, 21),
    "eventfd2": (290, 19),
    "pselect6": (270, 72),
    "pread64": (17, 67),
    # Sockets that are open already.
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "accept4": (288, 242),
    "shutdown": (48, 210),
    "getsockopt": (55, 209),
    "setsockopt": (54, 208),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    # Memory.
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "mremap": (25, 216),
    "brk": (12, 214),
    # Threads, signals and the end.
    "futex": (202, 98),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "tgkill": (234, 131),
    "sched_yield": (24, 124),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "clone": (56, 220),
    "clone3": (435, 435),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_setscheduler": (144, 119),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # Time and chance.
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    # What libraries ask for.
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "socket": (41, 198),
    "connect": (42, 203),
    "ioctl": (16, 29),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sched_getaffinity": (204, 123),
    # What sealing itself needs.
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "seccomp": (317, 277),
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
}
"""x86-64 and aarch64; None where there is another call for it."""
