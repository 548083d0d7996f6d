"""The seccomp stages as the kernel carries them out: real calls, in processes that are thrown away."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from capsuled.sandbox import kernel

CALLS = Path(__file__).parent.parent / "support" / "calls.py"

MACHINE = kernel.machine()

KILLED_X86_64 = {
    "fork": 57,
    "vfork": 58,
    "execve": 59,
    "execveat": 322,
    "kill": 62,
    "tkill": 200,
    "rt_sigqueueinfo": 129,
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "process_madvise": 440,
    "kcmp": 312,
    "keyctl": 250,
    "add_key": 248,
    "request_key": 249,
    "bpf": 321,
    "perf_event_open": 298,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "userfaultfd": 323,
    "unshare": 272,
    "setns": 308,
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "chroot": 161,
    "chdir": 80,
    "memfd_create": 319,
    "memfd_secret": 447,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "pidfd_send_signal": 424,
    "pkey_mprotect": 329,
    "pkey_alloc": 330,
    "setuid": 105,
    "setgid": 106,
    "setresuid": 117,
    "setresgid": 119,
    "setgroups": 116,
    "capset": 126,
    "personality": 135,
    "setsid": 112,
    "setpgid": 109,
    "setrlimit": 160,
    "shmget": 29,
    "shmat": 30,
    "msgget": 68,
    "semget": 64,
    "mq_open": 240,
    "init_module": 175,
    "reboot": 169,
    "kexec_load": 246,
    "swapon": 167,
    "syslog": 103,
    "quotactl": 179,
    "acct": 163,
    "sethostname": 170,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "fanotify_init": 300,
    "inotify_init1": 294,
    "openat2": 437,
    "creat": 85,
    "unlink": 87,
    "mkdir": 83,
    "rename": 82,
    "chmod": 90,
    "truncate": 76,
    "bind": 49,
    "listen": 50,
    "accept": 43,
    "socketpair": 53,
    "pipe2": 293,
    "dup": 32,
    "dup3": 292,
    "splice": 275,
    "sendfile": 40,
    "copy_file_range": 326,
    "modify_ldt": 154,
    "arch_prctl": 158,
    "remap_file_pages": 216,
    "mlock": 149,
    "wait4": 61,
    "timer_create": 222,
    "vmsplice": 278,
    "clone_fork": 56,
    "landlock_create_ruleset": 444,
    "move_mount": 429,
    "fsopen": 430,
    "open_tree": 428,
    "mount_setattr": 442,
    "x32_read": 0x4000_0000,
    "x32_getpid": 0x4000_0027,
    "no_such_call": 4000,
}
"""What a guest that has broken out would want, and is ended for, in both stages."""

PROBED = [
    "openat",
    "newfstatat",
    "statx",
    "faccessat2",
    "readlinkat",
    "getcwd",
    "socket",
    "connect",
    "ioctl",
    "uname",
]

SHARED, PRIVATE_ANONYMOUS, RW, RWX = 0x21, 0x22, 3, 7

ARGUMENTS: list[tuple[str, tuple[int, ...], int | str, int | str]] = [
    # call, arguments, in the first stage, in the second
    ("getpid", (), 0, 0),
    ("mmap", (0, 4096, RW, PRIVATE_ANONYMOUS, -1, 0), 0, 0),
    ("mmap", (0, 4096, RWX, PRIVATE_ANONYMOUS, -1, 0), 0, -errno.EPERM),
    ("mmap", (0, 4096, RW, SHARED, -1, 0), -errno.EPERM, -errno.EPERM),
    ("fcntl", (0, 1), 0, 0),
    ("fcntl", (0, 0), -errno.EPERM, -errno.EPERM),
    ("prctl", (4, 0), -errno.EPERM, -errno.EPERM),
    ("tgkill", (1, 1, 0), "SIGSYS", "SIGSYS"),
    ("clone", (17, 0, 0, 0, 0), "SIGSYS", "SIGSYS"),
    ("clone3", (0, 88), -errno.ENOSYS, -errno.ENOSYS),
    ("sched_setscheduler", (0, 1, 0), -errno.EPERM, -errno.EPERM),
    ("prlimit64", (0, 7, 0, 0), -errno.EPERM, -errno.EPERM),
    ("prlimit64", (0, 6, 0, 0), 0, -errno.EPERM),
    ("seccomp", (1, 0, 0), -errno.EFAULT, "SIGSYS"),
    ("seccomp", (0, 0, 0), "SIGSYS", "SIGSYS"),
]


def outcomes(calls: Sequence[tuple[int, int, tuple[int, ...]]]) -> list[int | str]:
    """What becomes of these calls: stage, number, arguments. One process makes them all."""
    made = subprocess.run(
        [sys.executable, "-B", str(CALLS)],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    found: list[int | str] = json.loads(made.stdout)
    return found


def number(call: str) -> int:
    found = MACHINE.number(call)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("machine", ["x86_64"])
def test_what_no_table_names_ends_the_process(stage: int, machine: str) -> None:
    """Each call of the list ends the process with SIGSYS; without a filter none of them does."""
    if MACHINE.name != machine:
        assert (
            MACHINE.name == "aarch64"
        )  # the numbers are x86-64's; the interpreter's tests cover both machines
        return
    calls = [(stage, nr, (-1,) * 6) for nr in KILLED_X86_64.values()]
    assert dict(zip(KILLED_X86_64, outcomes(calls), strict=True)) == dict.fromkeys(KILLED_X86_64, "SIGSYS")


@pytest.mark.parametrize("stage", [1, 2])
def test_what_libraries_try_is_refused(stage: int) -> None:
    """Each call of the list comes back with EPERM, and the process goes on to say so."""
    found = outcomes([(stage, number(call), (-1,) * 6) for call in PROBED])
    assert dict(zip(PROBED, found, strict=True)) == dict.fromkeys(PROBED, -errno.EPERM)


def test_the_kernel_would_have_made_these_calls() -> None:
    """Without a filter the calls above are refused for their arguments or made: the filter is what the tests saw."""
    found = outcomes([(0, number(call), (-1,) * 6) for call in ("openat", "socket", "newfstatat")])
    assert set(found) <= {-errno.EBADF, -errno.EFAULT, -errno.EAFNOSUPPORT, -errno.EINVAL}
    assert outcomes([(0, number("clone3"), (0, 88)), (0, number("tgkill"), (1, 1, 0))]) != [
        "SIGSYS",
        "SIGSYS",
    ]


def test_arguments_decide() -> None:
    """Calls that are allowed with some arguments come to what each stage says of theirs."""
    calls = [(stage, number(call), args) for call, args, _, _ in ARGUMENTS for stage in (1, 2)]
    expected = [(call, args, each) for call, args, first, second in ARGUMENTS for each in (first, second)]
    found = [(call, args, each) for (call, args, _), each in zip(expected, outcomes(calls), strict=True)]
    assert found == expected
