"""What capsules do per second, from samples of what the control socket tells. A rule: it reads no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from capsuled.supervisor.control.shapes import Json, JsonObject


class Sample(NamedTuple):
    """`/v1/capsules` and `/v1/bus` of one moment; `bus` is None while no backbone can tell."""

    at: float
    """On a clock that never steps back. Seconds."""
    capsules: JsonObject
    bus: JsonObject | None


class Row(NamedTuple):
    """One capsule. None is what is not known, or not yet."""

    name: str
    state: str
    cpu: float | None
    """Percent of one core."""
    memory: int | None
    """Linear memory of its guest. Bytes."""
    process: int | None
    """Resident memory of its process. Bytes."""
    sent: float | None
    """Messages per second that it published."""
    got: float | None
    """Messages per second that its guest took."""
    queued: int | None
    """Messages that wait for it anywhere."""


class Column(NamedTuple):
    """How a column is called, which key sorts by it, and whether its highest value comes first."""

    field: str
    title: str
    key: str
    descending: bool


COLUMNS: tuple[Column, ...] = (
    Column("name", "name", "n", False),
    Column("state", "state", "s", False),
    Column("cpu", "cpu", "c", True),
    Column("memory", "memory", "m", True),
    Column("process", "process", "p", True),
    Column("sent", "sent/s", "t", True),
    Column("got", "got/s", "g", True),
    Column("queued", "queued", "u", True),
)

BY_TITLE: Mapping[str, Column] = {column.title: column for column in COLUMNS}
BY_KEY: Mapping[str, Column] = {column.key: column for column in COLUMNS}


class _Counted(NamedTuple):
    """Counts that only grow while `life` stays the same, and when they were taken."""

    life: Json
    seconds: float
    values: tuple[float | None, ...]


class Meter:
    """Takes samples in their order, and makes rows of each."""

    def __init__(self) -> None:
        self._used: dict[str, _Counted] = {}
        self._moved: dict[str, _Counted] = {}
        self._cpu: dict[str, float | None] = {}

    def take(self, sample: Sample) -> list[Row]:
        """A row for each capsule in the sample; a rate is None until there is one before it to compare with."""
        published = {
            str(each.get("name")): _number(each.get("published")) for each in _members(sample.bus, "capsules")
        }
        subscriptions: dict[str, list[JsonObject]] = {}
        for each in _members(sample.bus, "subscriptions"):
            subscriptions.setdefault(str(each.get("capsule")), []).append(each)
        epoch = None if sample.bus is None else sample.bus.get("epoch")
        rows: list[Row] = []
        used: dict[str, _Counted] = {}
        moved: dict[str, _Counted] = {}
        cpu: dict[str, float | None] = {}
        for capsule in _members(sample.capsules, "capsules"):
            name = str(capsule.get("name"))
            lines = subscriptions.get(name, ())
            used[name], cpu[name] = self._processor(name, capsule)
            counts = (published.get(name), _sum(lines, "delivered") if sample.bus is not None else None)
            moved[name] = now = _Counted(epoch, sample.at, counts)
            sent, got = _rates(self._moved.get(name), now)
            usage = _table(capsule, "usage")
            rows.append(
                Row(
                    name,
                    str(capsule.get("state")),
                    cpu[name],
                    _whole(usage.get("memory")),
                    _whole(usage.get("process_memory")),
                    sent,
                    got,
                    None if sample.bus is None else _whole(_sum(lines, "queued")),
                )
            )
        self._used, self._moved, self._cpu = used, moved, cpu
        return rows

    def _processor(self, name: str, capsule: JsonObject) -> tuple[_Counted, float | None]:
        # The supervisor looks at a process when it has time to, and says when that was: between two such looks the
        # same numbers come again, and what they gave the last time still holds.
        usage = _table(capsule, "usage")
        before = self._used.get(name)
        at = _time(usage.get("sampled_at"))
        now = _Counted(capsule.get("instance"), at or 0.0, (_number(usage.get("cpu_seconds")),))
        if at is None:
            return now, None
        if before is not None and before[:2] == now[:2]:
            return before, self._cpu.get(name)
        (cores,) = _rates(before, now)
        return now, None if cores is None else cores * 100


def ordered(rows: Sequence[Row], column: Column, *, backwards: bool) -> list[Row]:
    """By one column, by name among equals; what is not known comes last in any case."""

    def value(row: Row) -> float | str:
        found: float | str = getattr(row, column.field)
        return found

    by_name = sorted(rows, key=lambda row: row.name)
    known = [row for row in by_name if getattr(row, column.field) is not None]
    unknown = [row for row in by_name if getattr(row, column.field) is None]
    return sorted(known, key=value, reverse=column.descending is not backwards) + unknown


def _rates(before: _Counted | None, now: _Counted) -> tuple[float | None, ...]:
    """Growth per second of each value. None where it cannot be told: another life, no time, or a count set back."""
    if before is None or before.life != now.life or now.seconds <= before.seconds:
        return (None,) * len(now.values)
    seconds = now.seconds - before.seconds
    return tuple(
        None if old is None or new is None or new < old else (new - old) / seconds
        for old, new in zip(before.values, now.values, strict=True)
    )


def _sum(entries: Sequence[JsonObject], key: str) -> float | None:
    """None where one of them is not known: a part of it would be told as the whole."""
    values = [_number(entry.get(key)) for entry in entries]
    return None if None in values else sum(value for value in values if value is not None)


def _members(value: JsonObject | None, key: str) -> Sequence[JsonObject]:
    found = None if value is None else value.get(key)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return ()
    return [each for each in found if isinstance(each, Mapping)]


def _table(value: JsonObject, key: str) -> JsonObject:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: Json) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Json) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _time(value: Json) -> float | None:
    try:
        # CPython 3.10 does not know the Z.
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
