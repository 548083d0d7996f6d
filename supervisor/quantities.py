"""Sizes, durations and numbers as manifests and configurations write them, with their bounds.

A size is a whole number of bytes, ``65536``, or text with a binary unit, ``"64KiB"``. A duration is a whole
number of seconds, ``5``, or text with a unit, ``"500ms"``. Decimal units are refused and not guessed at:
people write ``MB`` for both 1000² and 1024² bytes, and a limit that is 5 % off is found much later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR

SHOWN = 60
"""Characters of a value that a sentence repeats: values come from files that nobody has checked yet."""

LONGEST = 1e9
"""Seconds that a number may be; nine digits, as in a text. Each key has a narrower bound of its own."""

SIZE_RULE = 'write "512KiB", "64MiB", "1GiB" or a whole number of bytes'
DURATION_RULE = 'write "500ms", "5s", "2m", "1h" or a whole number of seconds'

SIZE_PATTERN = r"^([0-9]{1,15})(KiB|MiB|GiB)?$"
"""Regular expression of a size as text, in the subset of the language that JSON Schema has as well."""

DURATION_PATTERN = r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?$"

_SIZE = re.compile(SIZE_PATTERN)
_DURATION = re.compile(DURATION_PATTERN)

_SIZE_UNITS = {"GiB": GIB, "MiB": MIB, "KiB": KIB}
_SECONDS = {"h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}

_LIKE_A_SIZE = re.compile(r"\s*([0-9]{1,15})\s*([KMG])(i?B)?\s*", re.IGNORECASE)
_LIKE_A_DURATION = re.compile(r"\s*([0-9]{1,9})\s*(ms|s|m|h)[a-z]*\s*", re.IGNORECASE)


def size(value: object) -> int:
    """Bytes. Raises ValueError, whose message is the value, the rule and what to write."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        if match := _SIZE.fullmatch(value):
            return int(match[1]) * _SIZE_UNITS.get(match[2], 1)
        if match := _LIKE_A_SIZE.fullmatch(value):
            raise ValueError(f'{shown(value)} is no size: write "{match[1]}{match[2].upper()}iB"')
    raise ValueError(f"{shown(value)} is no size: {SIZE_RULE}")


def duration(value: object) -> float:
    """Seconds. Raises ValueError, whose message is the value, the rule and what to write."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LONGEST:
        return float(value)
    if isinstance(value, str):
        if match := _DURATION.fullmatch(value):
            return float(Decimal(match[1]) * _SECONDS[match[2] or "s"])
        if match := _LIKE_A_DURATION.fullmatch(value):
            raise ValueError(f'{shown(value)} is no duration: write "{match[1]}{match[2].lower()}"')
    if isinstance(value, float) and 0 <= value < LONGEST:
        raise ValueError(f'{shown(value)} is no duration: write "{format_duration(value)}"')
    raise ValueError(f"{shown(value)} is no duration: {DURATION_RULE}")


def format_size(size: int) -> str:
    """The shortest text that `size` reads as exactly this many bytes: ``64MiB``, ``1000``."""
    for unit, factor in _SIZE_UNITS.items():
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def format_duration(seconds: float) -> str:
    """A text that `duration` reads as exactly these seconds, in the largest unit that gives a whole number.

    Zero is ``0s``. What is no whole number of milliseconds is written in seconds: ``0.0001s``.
    """
    exact = Decimal(repr(seconds))  # what float() reads back, and not the binary fraction's 50 digits
    for unit, factor in _SECONDS.items():
        if exact % factor == 0 and (exact or unit == "s"):
            return f"{exact / factor:.0f}{unit}"
    return f"{exact:f}s"


def shown(value: object) -> str:
    """`value` as a TOML file has it, cut after `SHOWN` characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


@dataclass(frozen=True)
class Size:
    """A size from `least` to `most` bytes, both included; `step` is a unit that it must be a multiple of."""

    least: int
    most: int
    step: int = 1

    def read(self, value: object) -> int:
        """Bytes. Raises ValueError with a sentence."""
        found = size(value)
        if found % self.step:
            raise ValueError(
                f"{shown(value)} is no multiple of {format_size(self.step)}: "
                f'write "{format_size((found // self.step + 1) * self.step)}"'
            )
        _check_range(value, found, self.least, self.most, self.show)
        return found

    def show(self, value: float) -> str:
        return format_size(int(value))

    def schema(self) -> dict[str, object]:
        """What JSON Schema can say of it: the bounds of a number, and the form of a text."""
        number: dict[str, object] = {"type": "integer", "minimum": self.least, "maximum": self.most}
        if self.step > 1:
            number["multipleOf"] = self.step
        return {"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, number]}


@dataclass(frozen=True)
class Duration:
    """A duration from `least` to `most` seconds, both included, or zero where `off` says what that means."""

    least: float
    most: float
    off: str = ""

    def read(self, value: object) -> float:
        """Seconds. Raises ValueError with a sentence."""
        found = duration(value)
        if not (self.off and found == 0):
            _check_range(value, found, self.least, self.most, self.show, self.off)
        return found

    def show(self, value: float) -> str:
        return format_duration(value)

    def schema(self) -> dict[str, object]:
        """What JSON Schema can say of it: the bounds of a number, and the form of a text."""
        least = 0 if self.off else -int(-self.least // 1)
        number = {"type": "integer", "minimum": least, "maximum": int(self.most)}
        return {"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, number]}


@dataclass(frozen=True)
class WholeSeconds(Duration):
    """A duration that the kernel takes in whole seconds."""

    def read(self, value: object) -> int:
        found = super().read(value)
        if found % 1:
            raise ValueError(f'{shown(value)} is no whole number of seconds: write "{int(found) + 1}s"')
        return int(found)


@dataclass(frozen=True)
class Count:
    """A whole number from `least` to `most`, both included."""

    least: int
    most: int

    def read(self, value: object) -> int:
        """The number. Raises ValueError with a sentence."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{shown(value)} is no whole number: write one from {self.least} to {self.most}")
        _check_range(value, value, self.least, self.most, self.show)
        return value

    def show(self, value: float) -> str:
        return f"{value:.0f}"

    def schema(self) -> dict[str, object]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`, both included; a fraction or not."""

    least: float
    most: float

    def read(self, value: object) -> float:
        """The number. Raises ValueError with a sentence."""
        if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
            bounds = f"{self.show(self.least)} to {self.show(self.most)}"
            raise ValueError(f"{shown(value)} is no number: write one from {bounds}")
        _check_range(value, value, self.least, self.most, self.show)
        return float(value)

    def show(self, value: float) -> str:
        return f"{value:g}"

    def schema(self) -> dict[str, object]:
        return {"type": "number", "minimum": self.least, "maximum": self.most}


Quantity = Size | Duration | Count | Number


def _check_range(
    value: object, found: float, least: float, most: float, show: Callable[[float], str], off: str = ""
) -> None:
    if least <= found <= most:
        return
    where = f"less than {show(least)}" if found < least else f"more than {show(most)}"
    allowed = f"one from {show(least)} to {show(most)}" if least < most else show(least)
    also = f", or 0 for {off}" if off else ""
    raise ValueError(f"{shown(value)} is {where}: write {allowed}{also}")
