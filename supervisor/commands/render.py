"""Tables and colour on a terminal, plain aligned columns elsewhere.

Names and log lines come from guests that are not trusted: whatever a terminal could take for a command is
shown as an escape. `rich` is imported only when there is a terminal to colour.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from capsuled.supervisor.control import reloading
from capsuled.supervisor.control.shapes import Json, JsonObject

STYLES: Mapping[str, str] = {
    "ready": "green",
    "up": "green",
    "allowed": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "warn": "yellow",
    "failed": "red",
    "denied": "red",
    "error": "red",
}
"""Words that have a colour, wherever a cell is just that word."""

Row = Sequence[Json]


def table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """One line per row under its headings."""
    cells = [[text(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
    else:
        _plain_table([column.upper() for column in columns], cells)


def facts(value: JsonObject) -> None:
    """``key: value`` for each member, lists and objects in one line each."""
    names = [text(key) for key in value]
    width = max(map(len, names), default=0) + 1
    for name, member in zip(names, value.values(), strict=True):
        print(f"{name + ':':<{width}} {text(member)}")


def plan(value: JsonObject) -> Iterator[str]:
    """A reload's plan: ``+ added``, ``- removed``, ``~ changed (why)``, ``! fault``, and how many stay as they are."""
    yield from (f"+ {text(name)}" for name in reloading.names(value, "added"))
    yield from (f"- {text(name)}" for name in reloading.names(value, "removed"))
    for each in reloading.members(value, "changed"):
        if isinstance(each, Mapping):
            yield f"~ {text(each.get('name'))} ({text(each.get('why'))})"
    yield f"= {len(reloading.members(value, 'unchanged'))} unchanged"
    for each in reloading.members(value, "faults"):
        if isinstance(each, Mapping):
            parts = [text(each[key]) for key in ("file", "key", "message") if each.get(key)]
            yield f"! {': '.join(parts)}"
    for name in reloading.names(value, "kept"):
        yield f"! {text(name)} goes on as it is: what its manifest says now has a fault"


def text(value: Json) -> str:
    """`value` for people, without anything that a terminal would obey."""
    if value is None or value in ("", (), [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return "".join(char if char.isprintable() else _escape(char) for char in value)
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, Mapping):
        return ", ".join(f"{text(key)} {_inner(member)}" for key, member in value.items())
    if isinstance(value, Sequence):
        return "; ".join(map(text, value))
    return str(value)


def size(value: int | None) -> str:
    """Bytes for people: ``48.2 MiB``."""
    if value is None:
        return "-"
    amount, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def _inner(value: Json) -> str:
    return f"({text(value)})" if isinstance(value, Mapping) and value else text(value)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column)
    for row in cells:
        # As Text, for a str would be read as rich's markup.
        grid.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(grid)
