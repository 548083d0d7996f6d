"""JSON as it travels."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.control import shapes
from capsuled.supervisor.control.shapes import Json

VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES))
def test_a_line_is_one_line_of_printable_ascii(value: dict[str, Json]) -> None:
    """Whatever a guest wrote, the line is printable ASCII up to its newline, and says the same."""
    line = shapes.line(value)
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line) == value


def test_half_a_surrogate_is_escaped() -> None:
    """Text that is no Unicode travels as an escape."""
    assert shapes.line({"a": "\ud800"}) == b'{"a":"\\ud800"}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_does_not_have_is_an_error(value: float) -> None:
    """NaN and the infinities are refused."""
    with pytest.raises(ValueError, match="Out of range"):
        shapes.line({"a": value})
