"""How an end is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.commands import ends
from capsuled.supervisor.control.shapes import JsonObject

from .running import EVIL, SHOWN

ENDED: JsonObject = {
    "time": "2026-01-31T12:00:00.000Z",
    "instance": "5d",
    "reason": "memory",
    "status": 99,
    "cpu_seconds": 0.25,
    "max_rss": 50 * 1024 * 1024,
    "limit": "process_memory",
    "value": 512 * 1024 * 1024,
    "backtrace": f"first\n{EVIL}",
    "ready_seconds": 12.5,
    "attempt": 3,
    "then": "it is started again after 2 s",
    "bus": {"published": 5, "refused": {"quota": 2}},
    "last_lines": ["one", EVIL],
}


def test_an_end() -> None:
    """First what operators ask, then the evidence with its units, then what is long; nothing that a terminal obeys."""
    told = list(ends.lines(ENDED))
    assert told[:10] == [
        "time:          2026-01-31T12:00:00.000Z",
        "instance:      5d",
        "attempt:       3",
        "reason:        memory",
        "then:          it is started again after 2 s",
        "status:        99",
        "cpu_seconds:   0.25",
        "max_rss:       50.0 MiB",
        "limit:         process_memory, 512.0 MiB",
        "ready_seconds: 12.5",
    ]
    assert told[10:] == [
        "bus:           published 5, refused (quota 2)",
        "backtrace:",
        "  first",
        "  " + SHOWN.removesuffix("\\n"),
        "last_lines:",
        "  one",
        f"  {SHOWN}",
    ]


def test_limits_of_time() -> None:
    """The value of a limit that is no size is seconds."""
    assert list(ends.lines({"limit": "watchdog", "value": 1.5})) == ["limit: watchdog, 1.5 s"]


def test_what_is_not_there_has_no_line() -> None:
    """A start that failed has neither lines nor a life on the bus."""
    assert list(ends.lines({"reason": "spawn-failed", "bus": {}, "last_lines": []})) == [
        "reason: spawn-failed"
    ]
    assert list(ends.lines({})) == []


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_nothing_that_a_terminal_obeys(ended: dict[str, str | list[str]]) -> None:
    """Whatever an end holds, each line of it is printable."""
    assert all(line.isprintable() for line in ends.lines(ended))
