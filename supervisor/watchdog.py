"""The watchdog: whether a guest computes for ever without calling its host.

Both sides of the question are read from outside, without asking the worker anything: host calls from its ledger
page, CPU time from the kernel. A guest that waits in a receive is alive, however long it waits.
"""

from __future__ import annotations

import psutil

from capsuled.proto.ledger import Claims

LOOKS = 4
"""Looks within the time that it allows."""

BURNING = 0.1
"""Part of a core that counts as computing. A spinning guest on a crowded machine gets no more than its share."""


class Watchdog:
    """Looks at one instance."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.interval = seconds / LOOKS
        self._calls = -1
        self._cpu = 0.0
        self._looked = 0.0
        self._alive = 0.0
        """When it was last seen to call its host, to wait, or to compute nothing."""

    def hung(self, pid: int | None, claims: Claims | None, now: float) -> bool:
        """Whether it has computed for the time allowed without a host call. `now` is monotonic, in seconds."""
        if pid is None:
            return False
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return False  # it has just ended
        used = times.user + times.system - self._cpu
        idle = used < BURNING * (now - self._looked)
        # A page that cannot be read tells of no host call: whoever spins may keep it in the middle of an update.
        calls = self._calls if claims is None else claims.host_calls
        waiting = claims is not None and claims.waiting
        if calls != self._calls or waiting or idle:
            self._alive = now
        self._calls, self._cpu, self._looked = calls, self._cpu + used, now
        return now - self._alive >= self._seconds
