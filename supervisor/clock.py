"""Wall-clock time as it is shown. What is measured or waited for uses a monotonic clock instead."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from functools import cache
from pathlib import Path


def now() -> datetime:
    """Aware, in UTC."""
    return datetime.now(timezone.utc)


def rfc3339(moment: datetime) -> str:
    """With milliseconds: ``2026-01-31T12:00:00.000Z``."""
    utc = moment.astimezone(timezone.utc)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}Z"


def since_boot() -> float:
    """Seconds since the machine was started, its sleep included: comparable between processes, and set by nobody
    (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """Which boot of the machine this is (random(4)); empty where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
