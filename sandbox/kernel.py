"""The raw calls of the C library that Python does not have. No other module of the project makes any.

Each wrapper says why the call is safe. All raise `OSError` with the kernel's errno and the name of the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from functools import cache

from capsuled.sandbox.syscalls import MACHINES, Machine

_LIBC = ctypes.CDLL(None, use_errno=True)
# The C library that this process runs on already: nothing is loaded. PyDLL keeps the interpreter's lock, which a
# child of clone(2) must hold as os.fork's does.
_LIBC_LOCKED = ctypes.PyDLL(None, use_errno=True)

# prctl(2): `int prctl(int option, unsigned long arg2, …)`. Variadic, and it reads four arguments after the first for
# some options, which must be zero: all five are always given, with their widths declared.
_prctl = _LIBC.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int

# syscall(2): `long syscall(long number, …)`. All six arguments are always given, as the registers that they become.
_WIDE = (ctypes.c_long,) * 7
_syscall = _LIBC.syscall
_syscall.argtypes = _WIDE
_syscall.restype = ctypes.c_long
_syscall_locked = _LIBC_LOCKED.syscall
_syscall_locked.argtypes = _WIDE
_syscall_locked.restype = ctypes.c_long

# mount(2): `int mount(const char *source, *target, *type, unsigned long flags, const void *data)`; strings are read.
_mount = _LIBC.mount
_mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_mount.restype = ctypes.c_int
# umount2(2): `int umount2(const char *target, int flags)`.
_umount2 = _LIBC.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_umount2.restype = ctypes.c_int

# The interpreter's own steps around a fork, which os.fork takes too; no arguments, no result.
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _step in (_before_fork, _after_fork_parent, _after_fork_child):
    _step.argtypes = ()
    _step.restype = None

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

CLONE_PARENT = 0x0000_8000  # linux/sched.h
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x4000, 0x4_0000  # linux/mount.h
MNT_DETACH = 2  # umount2(2)

_CAPABILITY_VERSION_3 = 0x2008_0522  # linux/capability.h
_LAST_CAPABILITY = 63  # the sets have 64 bits

_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1  # linux/seccomp.h
_LANDLOCK_CREATE_RULESET_VERSION = 1  # linux/landlock.h


@cache  # a sealed process cannot ask
def machine() -> Machine:
    """This machine, with the numbers of its system calls. Raises `OSError` where they are not known."""
    name = os.uname().machine
    if name not in MACHINES or struct.calcsize("P") != 8:
        raise OSError(
            f"the system calls of {name} are not known here: {', '.join(MACHINES)} are, with 64 bits"
        )
    return MACHINES[name]


# ── life and death ───────────────────────────────────────────────────────────────────────────────


def die_with_parent() -> None:
    """Have the kernel send this process SIGKILL when the thread that started it ends: prctl(2), PR_SET_PDEATHSIG.

    Safe: it takes a signal number and no pointer. It is cleared by a change of uid and by a set-id exec, so it comes
    after the former. A parent that died before it is not noticed: the caller has to look afterwards.
    """
    _control("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal.SIGKILL)


def clone(flags: int) -> int:
    """A child like os.fork's, in the namespaces that the CLONE_NEW… flags say. 0 in the child, its pid in the parent.

    Safe: clone(2) without CLONE_VM and without a stack is a fork; the interpreter takes its own steps around it, and
    keeps its lock in between. The C library's handlers do not run, so the process must have one thread only.
    """
    number = _number("clone")
    _before_fork()
    # x86-64 and aarch64 both take the flags first, and the stack, which is null, second.
    pid = int(_syscall_locked(number, flags | signal.SIGCHLD, 0, 0, 0, 0, 0))
    code = ctypes.get_errno()
    if pid == 0:
        _after_fork_child()
        return 0
    _after_fork_parent()
    if pid < 0:
        raise _error("clone", code)
    return pid


# ── privileges ───────────────────────────────────────────────────────────────────────────────────


def set_no_new_privileges() -> None:
    """No execve of this process or its children gains privileges: prctl(2), PR_SET_NO_NEW_PRIVS.

    Safe: the only argument is 1, the others are zero as the manual demands; it cannot be undone.
    """
    _control("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def set_undumpable() -> None:
    """No core, and no look into this process for others of its user: prctl(2), PR_SET_DUMPABLE 0.

    Safe: numbers only. Its files in /proc become root's.
    """
    _control("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def drop_bounding_set() -> None:
    """Empty the capability bounding set: prctl(2), PR_CAPBSET_DROP, until the kernel knows no further capability.

    Safe: numbers only. It needs CAP_SETPCAP, so it comes before a change of uid.
    """
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _control("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
        except OSError as exc:
            if exc.errno == errno.EINVAL and capability:  # past the last one
                return
            raise


def drop_capabilities() -> None:
    """Leave nothing in the permitted, effective, inheritable and, by that, ambient sets: capset(2), version 3.

    Safe: the header and two times three words stand in buffers that live until the call returns; pid 0 is the caller.
    """
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    sets = ctypes.create_string_buffer(24)
    _call("capset", ctypes.addressof(header), ctypes.addressof(sets))


# ── the file system ──────────────────────────────────────────────────────────────────────────────


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes | None) -> None:
    """mount(2). Safe: strings that the kernel copies."""
    if _mount(source, target, kind, flags, options) != 0:
        raise _error(f"mount on {target.decode()}", ctypes.get_errno())


def unmount(target: bytes, flags: int) -> None:
    """umount2(2). Safe: a string that the kernel copies."""
    if _umount2(target, flags) != 0:
        raise _error(f"umount {target.decode()}", ctypes.get_errno())


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2). Safe: two strings that end with a null byte, in buffers that live until the call returns."""
    first, second = ctypes.create_string_buffer(new), ctypes.create_string_buffer(old)
    _call("pivot_root", ctypes.addressof(first), ctypes.addressof(second))


# ── Landlock and seccomp ─────────────────────────────────────────────────────────────────────────


def landlock_abi() -> int:
    """The version of Landlock that this kernel has. Raises `OSError`, ENOSYS or EOPNOTSUPP, where there is none.

    Safe: landlock_create_ruleset(2) with a null attribute of size 0 only asks.
    """
    return _call("landlock_create_ruleset", 0, 0, _LANDLOCK_CREATE_RULESET_VERSION)


def landlock(attribute: bytes) -> None:
    """Confine this thread, and those that it starts from now on, to the ruleset of this attribute without a rule.

    Safe: landlock_create_ruleset(2) reads as many bytes as it is told of a buffer that lives until it returns;
    landlock_restrict_self(2) takes numbers. It needs no_new_privs, and cannot be undone.
    """
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    ruleset = _call("landlock_create_ruleset", ctypes.addressof(buffer), len(attribute), 0)
    try:
        _call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def seccomp(program: bytes) -> None:
    """Put a filter on every thread of this process: seccomp(2), SECCOMP_SET_MODE_FILTER with TSYNC.

    Safe: `struct sock_fprog` and the instructions stand in buffers that live until the call returns, by when the
    kernel has checked and copied them. It needs no_new_privs, and cannot be undone.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    # `unsigned short len; struct sock_filter *filter;` with the pointer aligned.
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    )
    stuck = _call("seccomp", _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.addressof(header))
    if stuck:
        raise OSError(f"seccomp: thread {stuck} has a filter of its own")


# ── inside ───────────────────────────────────────────────────────────────────────────────────────


def _number(name: str) -> int:
    number = machine().number(name)
    if number is None:
        raise OSError(f"{name}: this machine has no such system call")
    return number


def _call(name: str, *arguments: int) -> int:
    result = int(_syscall(_number(name), *arguments, *(0,) * (6 - len(arguments))))
    if result < 0:
        raise _error(name, ctypes.get_errno())
    return result


def _control(name: str, option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        raise _error(f"prctl {name}", ctypes.get_errno())


def _error(name: str, code: int) -> OSError:
    return OSError(code, f"{name}: {os.strerror(code)}")
