"""The raw calls of the C library that Python does not have. No other module of the project makes any.

Each wrapper says why the call is safe. All raise `OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import signal

_LIBC = ctypes.CDLL(
    None, use_errno=True
)  # the C library that this process runs on already: nothing is loaded

# prctl(2): `int prctl(int option, unsigned long arg2, …)`. Variadic, and it reads four arguments after the first for
# some options, which must be zero: all five are always given, with their widths declared.
_prctl = _LIBC.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38


def die_with_parent() -> None:
    """Have the kernel send this process SIGKILL when the thread that started it ends: prctl(2), PR_SET_PDEATHSIG.

    Safe: it takes a signal number and no pointer. It is cleared by a change of uid and by a set-id exec, so it comes
    after the former. A parent that died before it is not noticed: the caller has to look afterwards.
    """
    _call(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_no_new_privileges() -> None:
    """No execve of this process or its children gains privileges: prctl(2), PR_SET_NO_NEW_PRIVS.

    Safe: the only argument is 1, the others are zero as the manual demands; it cannot be undone.
    """
    _call(_PR_SET_NO_NEW_PRIVS, 1)


def _call(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
