"""What an escaped guest tries: one function for each attack, by name. It returns only where it got through.

All that they need is imported and looked up here, before the worker is sealed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = 4096
_LARGE = 600 * 1024 * 1024
"""Above any limit of the harness, and what was once obtained by MAP_SHARED under a limit of 256 MiB."""


_target = ["", ""]
"""What an attack is aimed at, where it needs to be told: the supervisor's folder, and the inode of a pipe that the
supervisor has inherited."""


def _call(number: int, *arguments: int) -> None:
    """A system call of x86-64. Raises `OSError` where it is refused."""
    if _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _raw(number: int, *arguments: int) -> Callable[[], object]:
    return lambda: _call(number, *arguments)


def _udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", 9))


def _stream(family: int, address: str | tuple[str, int]) -> Callable[[], object]:
    def connect() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.connect(address)

    return connect


def _below(*names: str) -> str:
    return os.path.join(_target[0], *names)


def _unix(*names: str) -> Callable[[], object]:
    """Connect to a socket of the supervisor's."""
    return lambda: _stream(socket.AF_UNIX, _below(*names))()  # noqa: PLW0108  (the folder is not known yet)


def _one_of(attempts: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """Whichever gets through first. Refused as the last of them."""

    def attempt() -> None:
        refused = OSError(errno.ENOENT, "there was nothing to try")
        for each in attempts:
            try:
                each()
            except OSError as exc:
                refused = exc
            else:
                return
        raise refused

    return attempt


def _open_to_write(path: str) -> Callable[[], object]:
    """Nothing is written."""
    return lambda: os.close(os.open(path, os.O_WRONLY))


def _inherited() -> None:
    for fd in range(3, 1024):
        try:
            if os.fstat(fd).st_ino == int(_target[1]):
                return
        except OSError:
            continue
    raise OSError(errno.EBADF, "it is not there")


def _write_file() -> None:
    with open("/tmp/capsuled-attack", "w") as file:
        file.write("x")


def _take(flags: int, protection: int, size: int) -> Callable[[], object]:
    """Memory, every page of it."""

    def take() -> None:
        with mmap.mmap(-1, size, flags, protection) as taken:
            for at in range(0, size, _PAGE):
                taken[at] = 1

    return take


def _take_and_protect() -> None:
    """Memory that was written, and cannot be written any more: RLIMIT_DATA does not count it."""
    part = 16 * 1024 * 1024
    for _ in range(_LARGE // part):
        taken = mmap.mmap(-1, part, _PRIVATE, _DATA)
        for at in range(0, part, _PAGE):
            taken[at] = 1
        where = ctypes.addressof(ctypes.c_char.from_buffer(taken))
        _kept.append(taken)
        if _libc.mprotect(ctypes.c_void_p(where), ctypes.c_size_t(part), mmap.PROT_READ) < 0:
            raise OSError(ctypes.get_errno(), "mprotect")


_kept: list[mmap.mmap] = []


def _grow_stack() -> None:
    """A stack may grow by RLIMIT_STACK, and so may each part of it that is cut off by another protection."""
    part = 2 * 1024 * 1024 - 64 * 1024
    low = (ctypes.c_void_p.in_dll(_libc, "__libc_stack_end").value or 0) & -_PAGE
    protection = mmap.PROT_WRITE
    for _ in range(_LARGE // part):
        low -= part
        ctypes.memset(low, 1, part if _cut else _PAGE)
        if _libc.mprotect(ctypes.c_void_p(low), ctypes.c_size_t(_PAGE), protection) < 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        _cut.append(low)
        protection ^= mmap.PROT_READ


_cut: list[int] = []


def _fill_page_tables() -> None:
    """One look at each 2 MiB of what is only read costs the kernel a page that no limit of the process counts."""
    step = 2 * 1024 * 1024
    with mmap.mmap(-1, _LARGE // _PAGE * step, _PRIVATE | _NO_RESERVE, mmap.PROT_READ) as mapped:
        for at in range(0, len(mapped), step):
            mapped[at]


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _mount() -> None:
    if _libc.mount(b"none", b"/", b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")


def _all_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    sets = (ctypes.c_uint32 * 6)(*[0xFFFF_FFFF] * 6)
    _call(126, ctypes.addressof(header), ctypes.addressof(sets))


_NO_RESERVE, _HUGE = 0x4000, 0x4_0000
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
_DATA = mmap.PROT_READ | mmap.PROT_WRITE
_CLONE_NEWUSER = 0x1000_0000

ATTACKS: Mapping[str, Callable[[], object]] = {
    "read-passwd": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "write-tmp": _write_file,
    "list-proc": lambda: os.listdir("/proc"),
    "own-maps": lambda: os.open("/proc/self/maps", os.O_RDONLY),
    "launch-order": lambda: os.open("/proc/1/fd/0", os.O_RDONLY),
    "tcp": _stream(socket.AF_INET, ("127.0.0.1", 9)),
    "udp": _udp,
    "control-socket": _unix("rt", "control.sock"),
    "spine-socket": _unix("rt", "spine", "pub"),
    # Whoever's: our own is a descriptor, and no more to be reached by its path than the others'.
    "sibling-edge": _one_of([_unix("rt", "edges", f"{number:08x}") for number in range(1, 200)]),
    "read-shadow": lambda: os.open("/etc/shadow", os.O_RDONLY),
    "write-state": lambda: os.open(_below("st", "attack"), os.O_WRONLY | os.O_CREAT),
    "read-manifest": lambda: os.open(_below("capsuled.toml"), os.O_RDONLY),
    "environ": lambda: os.open("/proc/1/environ", os.O_RDONLY),
    "core-pattern": _open_to_write("/proc/sys/kernel/core_pattern"),
    "leave-cgroup": _one_of(
        [_open_to_write(f"/sys/fs/cgroup/{each}cgroup.procs") for each in ("", "pids/", "unified/")]
    ),
    "inherited": _inherited,
    "unix-abstract": _stream(socket.AF_UNIX, "\0capsuled"),
    "fork": _fork,
    "execve": lambda: os.execv("/bin/sh", ["sh"]),
    "ptrace": _raw(101, 16, 2),
    "process-vm-readv": _raw(310, 1, 0, 0, 0, 0, 0),
    "kill-group": lambda: os.kill(0, signal.SIGTERM),
    "kill-parent": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "pidfd-open": _raw(434, 1, 0),
    "setuid": lambda: os.setuid(0),
    "capset": _all_capabilities,
    "mount": _mount,
    "unshare": _raw(272, _CLONE_NEWUSER),
    "setns": _raw(308, 0, 0),
    "pivot-root": _raw(155, 0, 0),
    "bpf": _raw(321, 0, 0, 0),
    "io-uring": _raw(425, 1, 0),
    "userfaultfd": _raw(323, 0),
    "keyctl": _raw(250, 0, 0),
    "perf-event": _raw(298, 0, 0, 0, 0, 0),
    "memfd": lambda: os.memfd_create("x"),
    "new-seccomp": _raw(317, 1, 0, 0),
    "dumpable": _raw(157, 4, 1),
    "no-pdeathsig": _raw(157, 1, 0),
    "map-executable": _take(_PRIVATE, _DATA | mmap.PROT_EXEC, _PAGE),
    "map-shared": _take(_SHARED, _DATA, _LARGE),
    "map-private": _take(_PRIVATE, _DATA, _LARGE),
    "map-read-only": _take_and_protect,
    "map-huge": lambda: mmap.mmap(-1, 2 * 1024 * 1024, _PRIVATE | _HUGE, mmap.PROT_READ),
    "grow-stack": _grow_stack,
    "page-tables": _fill_page_tables,
    "raise-limit": _raw(160, 7, 0),
    "sysv-shm": _raw(29, 0, _PAGE, 0o1600),
}


def attempt(asked: str) -> str:
    """Try an attack, `NAME=FOLDER:INODE`. What became of it: `refused ERRNO`, or `THROUGH`."""
    name, _, targets = asked.partition("=")
    _target[:] = targets.rsplit(":", 1)
    try:
        ATTACKS[name]()
    except MemoryError:
        return f"{name}: refused ENOMEM"
    except OSError as exc:
        return f"{name}: refused {errno.errorcode.get(exc.errno or 0, 'unknown')}"
    return f"{name}: THROUGH"
