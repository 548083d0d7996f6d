"""Lengths of time as operators write them: ``500ms``, ``5s``, ``2m``, ``1h``, or a number of seconds."""

from __future__ import annotations

import re

SHORTEST = 0.001
"""Shortest duration in seconds: no wait can be told from none below it."""

LONGEST = 24 * 3600.0
"""Longest duration in seconds: a wait that takes days is a mistake, and it holds one of the connections."""

RULE = "write 500ms, 5s, 2m, 1h or a number of seconds: a millisecond at least, a day at most"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_TEXT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)", re.ASCII)


def parse(text: str) -> float:
    """Seconds. Raises ValueError, whose message is the value and the rule."""
    match = _TEXT.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError(f"'{text}' is no duration: {RULE}")
    return seconds
