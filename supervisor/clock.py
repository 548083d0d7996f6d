"""Wall-clock time as it is shown. What is measured or waited for uses a monotonic clock instead."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """Aware, in UTC."""
    return datetime.now(timezone.utc)


def rfc3339(moment: datetime) -> str:
    """With milliseconds: ``2026-01-31T12:00:00.000Z``."""
    utc = moment.astimezone(timezone.utc)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}Z"
