"""What stands behind the question mark."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.control import parameters
from capsuled.supervisor.control.errors import BadParameter, Malformed
from capsuled.supervisor.control.parameters import MAX_PARAMETERS, Parameters

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a", {"a": ""}),
        ("a=1&b=2", {"a": "1", "b": "2"}),
        ("a=%41+b%2B", {"a": "A b+"}),
        ("%61=x", {"a": "x"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("a==", {"a": "="}),
    ],
)
def test_parse(query: str, found: dict[str, str]) -> None:
    """Names and values are percent-decoded; a name alone has an empty value."""
    assert parameters.parse(query, ("a", "b")) == found


@pytest.mark.parametrize(
    ("query", "known", "sentence"),
    [
        ("wiat=ready", ("wait",), "parameter 'wiat' cannot be 'ready': this route knows wait"),
        ("a=1", (), "parameter 'a' cannot be '1': this route takes no parameters"),
        ("a=1&a=1", ("a",), "parameter 'a' cannot be '1': give it once"),
    ],
)
def test_a_parameter_is_known_and_given_once(query: str, known: tuple[str, ...], sentence: str) -> None:
    """One that is unknown or twice there is refused, with what would be right."""
    with pytest.raises(BadParameter) as refused:
        parameters.parse(query, known)
    assert refused.value.message == sentence


def test_parameters_are_bounded() -> None:
    """As many as the bound are looked at one by one; one more, and the query is not looked at."""
    names = tuple(f"p{n}" for n in range(MAX_PARAMETERS + 1))
    assert len(parameters.parse("&".join(names[:-1]), names)) == MAX_PARAMETERS
    with pytest.raises(Malformed, match=f"write {MAX_PARAMETERS} parameters at most"):
        parameters.parse("&".join(names), names)


def test_a_query_is_utf_8() -> None:
    """Percent-encoded bytes that are no UTF-8 are refused, not replaced."""
    with pytest.raises(Malformed, match="percent-encoded UTF-8"):
        parameters.parse("a=%ff", ("a",))


@pytest.mark.parametrize(
    ("text", "value"),
    [(None, False), ("", True), *((t, True) for t in ("1", "true", "yes"))]
    + [(t, False) for t in ("0", "false", "no")],
)
def test_flag(text: str | None, value: bool) -> None:
    """Off when missing, on when alone, else what the word says."""
    assert parameters.flag(_given(text), "x") is value


@pytest.mark.parametrize(("text", "value"), [(None, 7), ("0", 0), ("10", 10), ("007", 7)])
def test_count(text: str | None, value: int) -> None:
    """A whole number up to its bound, or the default."""
    assert parameters.count(_given(text), "x", 7, 10) == value


@pytest.mark.parametrize(("text", "value"), [(None, None), ("500ms", 0.5), ("2", 2.0)])
def test_seconds(text: str | None, value: float | None) -> None:
    """A duration, in seconds."""
    assert parameters.seconds(_given(text), "x") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31T13:00:00+01:00", NOON),
        ("2026-01-31T06:30:00-05:30", NOON),
        ("2026-01-31T12:00:00.5Z", NOON + timedelta(milliseconds=500)),
        ("2026-01-31T12:00:00.123456789Z", NOON + timedelta(microseconds=123456)),
    ],
)
def test_time(text: str | None, value: datetime | None) -> None:
    """A time of RFC 3339, in UTC whatever its zone."""
    found = parameters.time(_given(text), "x")
    assert found == value
    assert found is None or found.utcoffset() == timedelta(0)


CHOICES = {"ready": 1, "down": 2}


def _flag(given: Parameters) -> object:
    return parameters.flag(given, "x")


def _count(given: Parameters) -> object:
    return parameters.count(given, "x", 7, 10)


def _seconds(given: Parameters) -> object:
    return parameters.seconds(given, "x")


def _time(given: Parameters) -> object:
    return parameters.time(given, "x")


def _choice(given: Parameters) -> object:
    return parameters.choice(given, "x", CHOICES)


def _required(given: Parameters) -> object:
    return parameters.required(given, "x", "write the name of a capsule")


@pytest.mark.parametrize(
    ("read", "text", "rule"),
    [
        *((_flag, text, "write it alone") for text in ("2", "TRUE", "on")),
        *((_count, text, "write a number from 0 to 10") for text in ("11", "", "-1", "1.0", "٣", "0" * 11)),
        *((_seconds, text, "write 500ms") for text in ("0", "soon", "2d", "")),
        *(
            (_time, text, "write a time as RFC 3339 has it")
            for text in (
                *("", "yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z"),
                *("2026-02-30T12:00:00Z", "2026-01-31T25:00:00Z", "2026-01-31T12:00:00+99:00"),
                *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-01-31T12:00:00.Z"),
                "2026-01-31T12:00:00.1234567890Z",
            )
        ),
        *((_choice, text, "write ready or down") for text in ("up", "", "READY")),
        (_required, "", "write the name of a capsule"),
        (_required, None, "write the name of a capsule"),
    ],
)
def test_refuses_with_value_and_rule(
    read: Callable[[Parameters], object], text: str | None, rule: str
) -> None:
    """What a rule does not allow is named: the parameter, its value and the rule."""
    with pytest.raises(BadParameter) as refused:
        read(_given(text))
    assert refused.value.message.startswith("parameter 'x'")
    assert rule in refused.value.message
    assert refused.value.detail["value"] == text


def test_choice() -> None:
    """One of the choices, or None when missing."""
    assert parameters.choice({"x": "down"}, "x", CHOICES) == CHOICES["down"]
    assert parameters.choice({}, "x", CHOICES) is None


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=200))
def test_any_query_is_read_or_refused(query: str) -> None:
    """Whatever a target can hold behind its question mark, the answer is parameters or a refusal."""
    known = ("follow", "lines", "since", "wait", "timeout")
    try:
        found = parameters.parse(query, known)
    except (BadParameter, Malformed):
        return
    assert set(found) <= set(known)


def _given(text: str | None) -> Parameters:
    return {} if text is None else {"x": text}
