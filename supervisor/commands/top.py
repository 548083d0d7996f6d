"""`capsulectl top`: what capsules use and move, live on a terminal, and as one table elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from capsuled.proto.control import Exit
from capsuled.supervisor.commands import render
from capsuled.supervisor.commands.asking import refusal
from capsuled.supervisor.commands.client import Answer, Ask, CannotAsk, Client
from capsuled.supervisor.commands.rates import BY_KEY, BY_TITLE, COLUMNS, Column, Meter, Row, Sample, ordered
from capsuled.supervisor.control.shapes import JsonObject

INTERVAL = 2.0
"""Seconds between two looks: the supervisor samples each process about once a second."""

QUIT, REVERSE = "q", "r"

KEYS = "  ".join([*(f"{each.key} {each.title}" for each in COLUMNS), f"{REVERSE} reverse", f"{QUIT} quit"])

NUMBERS = [column.descending for column in COLUMNS]


def top(client: Client, given: argparse.Namespace) -> Exit:
    if given.once or given.json or not _is_terminal():
        return _once(client, given)
    return _live(client, given)


def _is_terminal() -> bool:
    # Here and not in `screen`, which imports rich.
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def _once(client: Client, given: argparse.Namespace) -> Exit:
    """One table of what passed between two looks."""
    meter = Meter()
    meter.take(_sample(client))
    time.sleep(given.interval)
    rows = ordered(meter.take(_sample(client)), BY_TITLE[given.sort], backwards=given.reverse)
    if given.json:
        print(json.dumps({"capsules": [row._asdict() for row in rows]}))
    else:
        render.table([column.title for column in COLUMNS], [_cells(row) for row in rows])
    return Exit.DONE


def _live(client: Client, given: argparse.Namespace) -> Exit:
    from capsuled.supervisor.commands import screen

    column, backwards = BY_TITLE[given.sort], bool(given.reverse)
    meter = Meter()
    rows: list[Row] = []
    due = time.monotonic()
    with screen.opened() as shown:
        while True:
            if time.monotonic() >= due:
                rows = meter.take(_sample(client))
                due = time.monotonic() + given.interval
            shown.show(
                screen.Page(
                    _title(rows, column, backwards=backwards),
                    [each.title for each in COLUMNS],
                    NUMBERS,
                    [_cells(row) for row in ordered(rows, column, backwards=backwards)],
                    KEYS,
                )
            )
            key = shown.key(due - time.monotonic())
            if key == QUIT:
                return Exit.DONE
            if key == REVERSE:
                backwards = not backwards
            elif chosen := BY_KEY.get(key):
                column, backwards = chosen, False


def _sample(client: Client) -> Sample:
    """Of now. Raises `CannotAsk`; of a supervisor that ended while it answered, as of one that is not there."""
    try:
        return _asked(client)
    except CannotAsk as error:
        if error.code is not Exit.FAILED:
            raise
        return _asked(client)


def _asked(client: Client) -> Sample:
    capsules, bus = client.ask_all([Ask("GET", "/v1/capsules"), Ask("GET", "/v1/bus")])
    found = _must(capsules)
    # While the backbone is being started again there is no ledger: all else is shown.
    ledger = None if isinstance(bus, Answer) and refusal(bus) else _must(bus)
    return Sample(time.monotonic(), found, ledger)


def _must(answer: Answer | CannotAsk) -> JsonObject:
    if isinstance(answer, CannotAsk):
        raise answer
    if refused := refusal(answer):
        raise CannotAsk(refused.message, refused.code)
    return answer.value


def _title(rows: Sequence[Row], column: Column, *, backwards: bool) -> str:
    states = Counter(row.state for row in rows)
    counted = ", ".join(f"{count} {render.text(state)}" for state, count in states.most_common())
    order = f"by {column.title}{', reversed' if backwards else ''}"
    return f"{len(rows)} capsules ({counted}), {order}" if rows else f"no capsules, {order}"


def _cells(row: Row) -> list[str]:
    return [
        render.text(row.name),
        render.text(row.state),
        "-" if row.cpu is None else f"{row.cpu:.1f}%",
        render.size(row.memory),
        render.size(row.process),
        "-" if row.sent is None else f"{row.sent:.1f}",
        "-" if row.got is None else f"{row.got:.1f}",
        render.text(row.queued),
    ]
