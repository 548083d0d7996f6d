"""Lengths of time as operators write them."""

from __future__ import annotations

import pytest

from capsuled.supervisor.control import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1ms", 0.001),
        ("500ms", 0.5),
        ("5s", 5.0),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("7", 7.0),
        ("0.25", 0.25),
        ("24h", 86400.0),
        ("0.001", durations.SHORTEST),
        ("86400", durations.LONGEST),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    """A number with its unit, seconds when it has none."""
    assert durations.parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0s",
        "0.9ms",
        "0.000999999",
        "86401",
        "24.1h",
        "86400.000000001",
        "-1s",
        "+1s",
        "1 s",
        " 1s",
        "1s\n",
        "1d",
        "1S",
        "s",
        ".5s",
        "5.",
        "1e3",
        "1h30m",
        "inf",
        "nan",
        "1_000",
        "٣s",
        "1234567890",
        "1.1234567890",
    ],
)
def test_refuses_with_value_and_rule(text: str) -> None:
    """Whatever is none, or out of bounds, is named together with the rule."""
    with pytest.raises(ValueError, match="is no duration: write 500ms") as refused:
        durations.parse(text)
    assert str(refused.value).startswith(f"'{text}'")
