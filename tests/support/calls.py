"""A program: make system calls under the stages of seccomp, each in a process that is thrown away.

Standard input is JSON, a list of `[stage, number, arguments]`; stage 0 is none, 2 is both. Standard output is a list
of what became of each: the result as `0`, the errno as a negative number, or the name of the signal that ended it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence

from capsuled.sandbox import kernel, sealing, seccomp

_FAILED = 255
"""Exit status of a process that could not even try."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def outcome(stage: int, number: int, arguments: Sequence[int]) -> int | str:
    """What becomes of one call."""
    values = [ctypes.c_long(each) for each in arguments]
    pid = kernel.clone(0)
    if pid == 0:
        try:
            kernel.set_no_new_privileges()
            if stage:
                sealing.filter_calls(seccomp.first_stage)
            if stage == 2:
                sealing.filter_calls(seccomp.second_stage)
            failed = _syscall(ctypes.c_long(number), *values) < 0
            os._exit(ctypes.get_errno() if failed else 0)
        finally:
            os._exit(_FAILED)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code != _FAILED, f"call {number} could not be tried"
    return signal.Signals(-code).name if code < 0 else -code


if __name__ == "__main__":
    json.dump([outcome(*each) for each in json.load(sys.stdin)], sys.stdout)
