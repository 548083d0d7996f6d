"""What is remembered of a capsule: written, read again, aged, and refused where it is no history."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from capsuled.proto.control import Reason
from capsuled.supervisor import history
from capsuled.supervisor.history import KEPT_EXITS, MAX_BYTES, ExitRecord, History, HistoryInvalid, Moment
from capsuled.supervisor.manifest import Limits, parse

NOW = Moment("boot", 1000.0)
TIME = datetime(2026, 1, 31, 12, 0, 0, 5000, tzinfo=timezone.utc)
EXIT = ExitRecord(
    TIME, "ab" * 16, Reason.TRAP, {"reason": "trap", "trap": "unreachable", "last_lines": ["x"]}
)
FULL = History(attempt=3, ages=(9.0, 4.5), failed="f" * 64, running="cd" * 16, exits=(EXIT,))


def test_what_is_written_is_read() -> None:
    """At the same moment it is the same; later its failures are older."""
    assert history.decode(history.encode(FULL, NOW), NOW) == FULL
    assert history.decode(history.encode(FULL, NOW), Moment("boot", 1060.0)).ages == (69.0, 64.5)


@pytest.mark.parametrize("later", [Moment("another", 5000.0), Moment("boot", 999.0)])
def test_failures_of_another_boot_are_forgotten(later: Moment) -> None:
    """The budget begins anew, and its ends are kept; also where the clock says that the boot was another."""
    read = history.decode(history.encode(FULL, NOW), later)
    assert read == History(running=FULL.running, exits=FULL.exits)


def stored(**changes: Any) -> bytes:
    return json.dumps({**json.loads(history.encode(FULL, NOW)), **changes}).encode()


FIRST = json.loads(stored())["exits"][0]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "EOF"),
        (b"\xff", "invalid"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "should be an object"),
        (stored(version=2), "version"),
        (stored(attempt=0), "attempt"),
        (stored(attempt="many"), "attempt"),
        (stored(failures=[1e999]), "failures.0"),
        (stored(seconds=-1), "seconds"),
        (stored(more=1), "more"),
        (stored(exits=[{}]), "exits.0"),
        (stored(exits=json.loads(stored())["exits"] * (KEPT_EXITS + 1)), "exits"),
        (stored(running="x" * 65), "running"),
        (stored(exits=[{**FIRST, "time": "0001-01-01T00:00:00+23:00"}]), "range"),
        (stored(exits=[{**FIRST, "evidence": {"value": float("nan")}}]), "JSON compliant"),
        (stored(boot="x" * MAX_BYTES), f"{MAX_BYTES} at most"),
    ],
)
def test_what_is_no_history(data: bytes, told: str) -> None:
    """Each is refused with what is wrong."""
    with pytest.raises(HistoryInvalid) as refused:
        history.decode(data, NOW)
    assert told.lower() in str(refused.value).lower()


def test_a_time_without_its_zone() -> None:
    exits = json.loads(stored())["exits"]
    exits[0]["time"] = "2026-01-31T12:00:00.005"
    with pytest.raises(HistoryInvalid, match="time zone"):
        history.decode(stored(exits=exits), NOW)


def test_what_is_written_is_bounded() -> None:
    """The oldest ends go where all of them are too much."""
    long = EXIT._replace(evidence={"reason": "trap", "last_lines": ["x" * (MAX_BYTES // 4)]})
    newest = EXIT._replace(instance="newest")
    data = history.encode(History(exits=(newest, *[long] * 10)), NOW)
    assert len(data) <= MAX_BYTES
    kept = history.decode(data, NOW).exits
    assert kept[0].instance == "newest"
    assert len(kept) == 4


MANIFEST = """
[package]
name = "echo"
version = "1.0.0"
[component]
file = "m.wasm"
[limits]
memory = "{memory}"
"""


def test_another_manifest_or_module_has_another_fingerprint() -> None:
    """And what only looks different has the same."""
    one, same, other = (
        parse(MANIFEST.format(memory=memory), "f", Limits(), True)
        for memory in ("64MiB", "65536KiB", "32MiB")
    )
    assert history.fingerprint(one, "") == history.fingerprint(same, "")
    assert len({history.fingerprint(each, module) for each in (one, other) for module in ("", "x")}) == 4
