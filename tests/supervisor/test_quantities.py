"""Sizes, durations and numbers: what is read, what is refused and with what advice."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.quantities import (
    GIB,
    KIB,
    LONGEST,
    MIB,
    SHOWN,
    Count,
    Duration,
    Number,
    Quantity,
    Size,
    WholeSeconds,
    duration,
    format_duration,
    format_size,
    shown,
    size,
)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, 0),
        (65536, 65536),
        ("0", 0),
        ("65536", 65536),
        ("1KiB", KIB),
        ("64MiB", 64 * MIB),
        ("3GiB", 3 * GIB),
        ("999999999999999", 10**15 - 1),
    ],
)
def test_sizes(value: object, found: int) -> None:
    """A size is a number of bytes, or text with a binary unit or none."""
    assert size(value) == found


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("10MB", 'write "10MiB"'),
        ("10mb", 'write "10MiB"'),
        ("10 MiB", 'write "10MiB"'),
        ("5k", 'write "5KiB"'),
        ("5g", 'write "5GiB"'),
        ("1.5GiB", "whole number of bytes"),
        ("-1", "whole number of bytes"),
        ("1TiB", "whole number of bytes"),
        ("MiB", "whole number of bytes"),
        ("", "whole number of bytes"),
        ("1MiB\n", 'write "1MiB"'),
        ("٣MiB", "whole number of bytes"),
        ("1000000000000000", "whole number of bytes"),
        (-1, "whole number of bytes"),
        (1.0, "whole number of bytes"),
        (True, "whole number of bytes"),
        ([], "whole number of bytes"),
    ],
)
def test_no_sizes(value: object, advice: str) -> None:
    """What is no size is repeated, with what to write instead."""
    with pytest.raises(
        ValueError, match=re.escape(f"{shown(value)} is no size: ") + ".*" + re.escape(advice)
    ):
        size(value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, 0.0),
        (5, 5.0),
        ("0", 0.0),
        ("5", 5.0),
        ("500ms", 0.5),
        ("0.1ms", 0.0001),
        ("100ms", 0.1),
        ("5s", 5.0),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        (10**9 - 1, 1e9 - 1),
        ("999999999", 1e9 - 1),
    ],
)
def test_durations(value: object, found: float) -> None:
    """A duration is a whole number of seconds, or text with a unit or none."""
    assert duration(value) == found


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("5 s", 'write "5s"'),
        ("5sec", 'write "5s"'),
        ("2min", 'write "2m"'),
        ("10MS", 'write "10ms"'),
        ("1hour", 'write "1h"'),
        (0.5, 'write "500ms"'),
        (1.5, 'write "1500ms"'),
        (float("nan"), "whole number of seconds"),
        (float("inf"), "whole number of seconds"),
        ("1d", "whole number of seconds"),
        ("-1s", "whole number of seconds"),
        ("1000000000", "whole number of seconds"),
        (int(LONGEST), "whole number of seconds"),
        (-1, "whole number of seconds"),
        (False, "whole number of seconds"),
        ("", "whole number of seconds"),
        (None, "whole number of seconds"),
    ],
)
def test_no_durations(value: object, advice: str) -> None:
    """What is no duration is repeated, with what to write instead."""
    with pytest.raises(
        ValueError, match=re.escape(f"{shown(value)} is no duration: ") + ".*" + re.escape(advice)
    ):
        duration(value)


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (0, "0"),
        (1000, "1000"),
        (1024, "1KiB"),
        (64 * MIB, "64MiB"),
        (1536 * MIB, "1536MiB"),
        (2 * GIB, "2GiB"),
    ],
)
def test_format_size(bytes_: int, text: str) -> None:
    """The largest unit that gives a whole number is taken."""
    assert format_size(bytes_) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0001, "0.0001s"),
        (0.1, "100ms"),
        (0.5, "500ms"),
        (1.5, "1500ms"),
        (59.0, "59s"),
        (60.0, "1m"),
        (90.0, "90s"),
        (7200.0, "2h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    """The largest unit that gives a whole number is taken; below milliseconds it is a fraction."""
    assert format_duration(seconds) == text


@given(st.integers(0, 10**15 - 1))
def test_sizes_read_back(number: int) -> None:
    """Every size that is shown is read as the same number of bytes."""
    assert size(format_size(number)) == number


@given(st.integers(0, 10**9 - 1).map(lambda ms: ms / 1000) | st.floats(0, 10**6).map(lambda s: round(s, 9)))
def test_durations_read_back(seconds: float) -> None:
    """Every duration that is shown, down to nanoseconds, is read as the same seconds."""
    assert duration(format_duration(seconds)) == seconds


BOUNDS: list[tuple[Quantity, object, object, str, str]] = [
    (Size(KIB, MIB), "1KiB", 1023, "1023 is less than 1KiB", "from 1KiB to 1MiB"),
    (Size(KIB, MIB), "1MiB", MIB + 1, "1048577 is more than 1MiB", "from 1KiB to 1MiB"),
    (Size(KIB, MIB, KIB), "2KiB", 2049, "2049 is no multiple of 1KiB", '"3KiB"'),
    (Duration(0.01, 60.0), "10ms", "9ms", "'9ms' is less than 10ms", "from 10ms to 1m"),
    (Duration(0.01, 60.0), "1m", 61, "61 is more than 1m", "from 10ms to 1m"),
    (Duration(0.01, 60.0), "1m", 0, "0 is less than 10ms", "from 10ms to 1m"),
    (
        Duration(0.1, 60.0, off="no watchdog"),
        "0",
        "99ms",
        "'99ms' is less than 100ms",
        "or 0 for no watchdog",
    ),
    (
        WholeSeconds(1, 60.0, off="no limit"),
        "60s",
        "1500ms",
        "'1500ms' is no whole number of seconds",
        '"2s"',
    ),
    (WholeSeconds(1, 60.0, off="no limit"), 0, "61", "'61' is more than 1m", "or 0 for no limit"),
    (Count(1, 64), 1, 0, "0 is less than 1", "from 1 to 64"),
    (Count(1, 64), 64, 65, "65 is more than 64", "from 1 to 64"),
    (Count(1, 1), 1, 2, "2 is more than 1", "write 1"),
    (Count(1, 64), 64, 1.0, "1.0 is no whole number", "from 1 to 64"),
    (Count(1, 64), 64, True, "true is no whole number", "from 1 to 64"),
    (Count(1, 64), 64, "5", "'5' is no whole number", "from 1 to 64"),
    (Number(0.01, 64.0), 0.01, 0.009, "0.009 is less than 0.01", "from 0.01 to 64"),
    (Number(0.01, 64.0), 64, 64.5, "64.5 is more than 64", "from 0.01 to 64"),
    (Number(0.01, 64.0), 1, float("nan"), "nan is no number", "from 0.01 to 64"),
    (Number(0.01, 64.0), 1, float("inf"), "inf is more than 64", "from 0.01 to 64"),
    (Number(0.01, 64.0), 1, True, "true is no number", "from 0.01 to 64"),
    (Number(0.01, 64.0), 1, "1", "'1' is no number", "from 0.01 to 64"),
]


@pytest.mark.parametrize(("kind", "good", "bad", "rule", "advice"), BOUNDS)
def test_bounds(kind: Quantity, good: object, bad: object, rule: str, advice: str) -> None:
    """The edge itself is read; one past it is refused with the value, the edge and what to write."""
    kind.read(good)
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}.*{re.escape(advice)}"):
        kind.read(bad)


def test_whole_seconds_are_integers() -> None:
    """What the kernel takes in whole seconds is an int."""
    assert repr(WholeSeconds(1, 60.0).read("2s")) == "2"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("a\x1b", r"'a\x1b'"),
        ({}, "a table"),
        ([1], "a list"),
        ("x" * (SHOWN - 2), f"'{'x' * (SHOWN - 2)}'"),
        ("x" * (SHOWN - 1), f"'{'x' * (SHOWN - 1)}…"),
    ],
)
def test_shown(value: object, text: str) -> None:
    """A value is shown without control characters, and cut after `SHOWN` characters."""
    assert shown(value) == text
