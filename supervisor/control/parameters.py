"""What stands behind the question mark of a request, checked one rule at a time.

A parameter that is unknown is an error: a ``?wiat=ready`` that was passed over would answer before the work
is done, and say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TypeVar
from urllib.parse import parse_qsl

from capsuled.supervisor.control import durations
from capsuled.supervisor.control.errors import BadParameter, Malformed

MAX_PARAMETERS = 16
"""More than any route has."""

Parameters = Mapping[str, str]

T = TypeVar("T")

_FLAG = {"": True, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_TIME_RULE = "write a time as RFC 3339 has it, such as 2026-01-31T12:00:00Z (a + in it is %2B in a query)"


def parse(query: str, known: tuple[str, ...]) -> Parameters:
    """The parameters of `query` by name.

    Raises `Malformed` for a query that cannot be read, `BadParameter` for one that is unknown or twice there.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError as exc:
        raise Malformed(
            f"cannot read the query: write {MAX_PARAMETERS} parameters at most, in percent-encoded UTF-8"
        ) from exc
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            rule = f"this route knows {', '.join(known)}" if known else "this route takes no parameters"
            raise BadParameter(name, value, rule)
        if name in found:
            raise BadParameter(name, value, "give it once")
        found[name] = value
    return found


def flag(parameters: Parameters, name: str) -> bool:
    """Off when missing, on when it is there without a value."""
    text = parameters.get(name, "no")
    if text not in _FLAG:
        raise BadParameter(name, text, "write it alone, or with 1, true, yes, 0, false or no")
    return _FLAG[text]


def count(parameters: Parameters, name: str, default: int, most: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    # Ten digits hold any bound here, and int() of a longer text would take its time.
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise BadParameter(name, text, f"write a number from 0 to {most}")
    return int(text)


def seconds(parameters: Parameters, name: str) -> float | None:
    text = parameters.get(name)
    if text is None:
        return None
    try:
        return durations.parse(text)
    except ValueError as exc:
        raise BadParameter(name, text, durations.RULE) from exc


def time(parameters: Parameters, name: str) -> datetime | None:
    """An aware time in UTC."""
    text = parameters.get(name)
    if text is None:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise BadParameter(name, text, _TIME_RULE)
    day, clock, fraction, zone = match.groups()
    # Python 3.10 reads neither a Z nor a fraction of other than three or six digits.
    normal = f"{day}T{clock}.{(fraction or '').ljust(6, '0')[:6]}{'+00:00' if zone in 'Zz' else zone}"
    try:
        return datetime.fromisoformat(normal).astimezone(timezone.utc)
    except (ValueError, OverflowError) as exc:
        raise BadParameter(name, text, _TIME_RULE) from exc


def choice(parameters: Parameters, name: str, choices: Mapping[str, T]) -> T | None:
    text = parameters.get(name)
    if text is None:
        return None
    if text not in choices:
        raise BadParameter(name, text, f"write {' or '.join(choices)}")
    return choices[text]


def required(parameters: Parameters, name: str, rule: str) -> str:
    text = parameters.get(name)
    if not text:
        raise BadParameter(name, text, rule)
    return text
