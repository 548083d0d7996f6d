"""Namespaces of the worker's own, and a root folder with nothing in it.

namespaces(7). A process cannot change its own pid namespace, so the worker goes on in a clone of itself: process 1 of
the new namespace and, by CLONE_PARENT, a child of the supervisor's all the same. What was started ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from capsuled.sandbox import kernel

OWN = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
"""Mounts, processes, network, System V memory, host name, control groups."""

_MOUNT_POINT = b"/proc"
"""Where the empty folder is mounted until it is the root: any folder does, and this one is there."""


def flags(user: bool) -> int:
    """For clone(2). With `user` a namespace of users as well, which lets a process without privileges have the rest."""
    return OWN | (kernel.CLONE_NEWUSER if user else 0)


def enter(user: bool, launched: Callable[[int], None]) -> None:
    """Go on in a clone of this process. `launched` is told its pid, in the process that stays behind and then ends.

    Raises `OSError` where there is more than one thread: a clone has only the one that calls, and the locks of all.
    """
    if len(threads := os.listdir("/proc/self/task")) != 1:
        raise OSError(f"there are {len(threads)} threads already: a clone would have one of them")
    ids = (os.getuid(), os.getgid())
    pid = kernel.clone(kernel.CLONE_PARENT | flags(user))
    if pid:
        launched(pid)
        os._exit(0)
    kernel.die_with_parent()
    if user:
        map_user(*ids)


def map_user(uid: int, gid: int) -> None:
    """Let this process, in a new namespace of users, be the user that it was. user_namespaces(7).

    Who has no privilege may map itself alone, and must give up setgroups(2) first. Needs /proc, and a process that
    is dumpable still.
    """
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def empty_root() -> None:
    """Put an empty folder, which cannot be written, in the place of the root. pivot_root(2).

    Only in mount and user namespaces of one's own. Nothing can be opened or imported from here on.
    """
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE, None)
    alone = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount(b"none", _MOUNT_POINT, b"tmpfs", alone, b"size=4k,nr_inodes=2,mode=555")
    os.chdir(_MOUNT_POINT)
    # The old root ends up on top of the new one, in the same place, and is taken away from there.
    kernel.pivot_root(b".", b".")
    kernel.unmount(b".", kernel.MNT_DETACH)
    os.chdir("/")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
