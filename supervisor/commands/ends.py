"""How an end of a capsule is told to people: what it was, what followed, then the evidence. A rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capsuled.supervisor.commands import render
from capsuled.supervisor.control.shapes import Json, JsonObject

FIRST = ("time", "instance", "attempt", "reason", "then")
"""What an operator asks first. What is not there has no line: a start that failed has no instance."""

LAST = ("bus", "backtrace", "last_lines")
"""What is long."""

SIZES = ("max_rss",)

SIZED_LIMITS = ("memory", "process_memory")
"""Limits whose value is in bytes; that of the others is in seconds."""

INDENT = "  "


def lines(ended: JsonObject) -> Iterator[str]:
    """A line for each fact in one column, and below them each list and each text of several lines."""
    keys = [key for key in FIRST if key in ended]
    keys += [key for key in ended if key not in (*FIRST, *LAST, "value")]
    keys += [key for key in LAST if ended.get(key)]
    width = max((len(render.text(key)) for key in keys), default=0) + 1
    for key in keys:
        below = _below(ended[key])
        name = f"{render.text(key)}:"
        if below:
            yield name
            yield from (f"{INDENT}{render.text(line)}" for line in below)
        else:
            yield f"{name:<{width}} {_value(key, ended)}"


def _value(key: str, ended: JsonObject) -> str:
    value = ended[key]
    if key in SIZES and isinstance(value, int):
        return render.size(value)
    if key == "limit" and "value" in ended:
        return f"{render.text(value)}, {_limit(value, ended['value'])}"
    return render.text(value)


def _limit(name: Json, value: Json) -> str:
    if name in SIZED_LIMITS and isinstance(value, int):
        return render.size(value)
    return f"{render.text(value)} s"


def _below(value: Json) -> Sequence[Json]:
    """The lines of what does not fit into one."""
    if isinstance(value, str):
        return value.splitlines() if "\n" in value.rstrip("\n") else ()
    return value if isinstance(value, Sequence) else ()
