"""What the supervisor counts, as OpenMetrics has it: one family for each count, its text, nothing asked or waited for.

https://prometheus.io/docs/specs/om/open_metrics_spec/ (1.0.0). A rule: it gets documents of the control contract and
makes text of them, so that a scrape and `/v1/bus` tell the same numbers.

No label has a value that a guest chooses: names are the manifests', codes, reasons and states are closed sets. Patterns
are no labels, because a guest may subscribe to ever new ones; nor are instances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeGuard

from capsuled.proto.control import State
from capsuled.supervisor.control.counts import Counts
from capsuled.supervisor.control.shapes import Json, JsonObject

Kind = Literal["gauge", "counter", "info"]
Value = int | float
Labels = Mapping[str, str]


class Sample(NamedTuple):
    labels: Labels
    value: Value


class Family(NamedTuple):
    """`name` is without a counter's `_total`; it ends with `_` and the unit, where there is one."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]
    unit: str = ""


class Process(NamedTuple):
    """A process of the supervisor's own."""

    name: str
    pid: int
    cpu_seconds: float | None
    memory: int | None
    """Resident, in bytes."""


class CapsuleFacts(NamedTuple):
    """What is known of one capsule without asking the backbone. `usage` is as the control contract has it."""

    name: str
    state: State
    wanted: bool
    attempt: int
    usage: JsonObject
    memory_limit: int
    process_memory_limit: int
    exits: Mapping[str, int]
    """Ends since the supervisor began, by reason."""


class Facts(NamedTuple):
    """Everything that a scrape tells, of one moment. `bus` is the document of `/v1/bus`, None without a backbone."""

    version: str
    mode: str
    uptime: float
    processes: Sequence[Process]
    capsules: Sequence[CapsuleFacts]
    backbone_up: bool
    backbone_restarts: int
    connections: Counts
    bus: JsonObject | None


LEDGER: tuple[tuple[str, Kind, str, str], ...] = (
    ("published", "counter", "published", "Messages that its guest published"),
    ("routed", "counter", "routed", "Messages of it that the backbone passed on"),
    ("lost", "counter", "lost", "Messages of it that were lost between its worker and the backbone"),
    ("received", "counter", "received", "Messages that its worker read from the backbone"),
    ("malformed", "counter", "malformed", "Messages that its worker read and that were no CBOR"),
    ("requests", "counter", "requests", "Requests that it made"),
    ("answered", "counter", "requests_answered", "Requests of it that were answered"),
    ("failed", "counter", "requests_failed", "Requests of it that ended without an answer"),
    ("waiting", "gauge", "requests_waiting", "Requests of it that wait for an answer"),
    ("late", "counter", "late", "What it said of requests or subscriptions that were over already"),
    ("queued", "gauge", "backbone_queued", "Messages that wait for it in the backbone"),
    ("host_calls", "counter", "host_calls", "Host calls of its guest"),
    ("logs_cut", "counter", "logs_cut", "Log lines of its guest that were cut by its rate"),
    ("retained", "gauge", "retained", "Messages of it that are kept for later subscribers"),
    ("retained_evicted", "counter", "retained_evicted", "Messages of it that were kept and had to go"),
)
"""Members of `/v1/bus`' capsules: key, kind, and what the family is called and tells."""

SUBSCRIPTIONS: tuple[tuple[str, Kind, str], ...] = (
    ("matched", "counter", "Messages that were routed to its subscriptions"),
    ("carried", "counter", "Messages that stood in its queues when this backbone began"),
    ("delivered", "counter", "Messages that its guest took"),
    ("dropped", "counter", "Messages that were lost from its worker's queues"),
    ("lagged", "counter", "Messages that were lost before they reached its worker"),
    ("left", "counter", "Messages that waited for it when a subscription ended"),
    ("queued", "gauge", "Messages that wait for its guest anywhere"),
)
"""Members of `/v1/bus`' subscriptions, which are summed up by capsule."""

SPINE: tuple[tuple[str, Kind, str], ...] = (
    ("published", "counter", "Messages that the operator's programs published on the spine"),
    ("prefixes", "gauge", "Prefixes that the operator's programs listen to on the spine"),
    ("taps", "gauge", "Taps that are open"),
    ("unpublished", "counter", "Events of the supervisor's that found no backbone"),
)


def text(families: Iterable[Family]) -> str:
    """The exposition: ASCII but for label values, sorted as given, with its end marked."""
    return "".join(line + "\n" for family in families for line in _lines(family)) + "# EOF\n"


def families(facts: Facts) -> Iterator[Family]:
    """All families, the supervisor's own first. Those without a sample are there too: a count may begin later."""
    yield from _supervisor(facts)
    yield from _capsules(facts.capsules)
    yield from _bus(facts.bus)


def _supervisor(facts: Facts) -> Iterator[Family]:
    yield Family(
        "capsuled", "info", "The supervisor", [Sample({"version": facts.version, "mode": facts.mode}, 1)]
    )
    yield _single("capsuled_uptime_seconds", "gauge", "Since the supervisor began", facts.uptime, "seconds")
    own = facts.processes
    yield Family(
        "capsuled_process_pid",
        "gauge",
        "Process id of each process of the supervisor's own",
        [Sample({"process": each.name}, each.pid) for each in own],
    )
    yield Family(
        "capsuled_process_cpu_seconds",
        "counter",
        "Processor time of each process of the supervisor's own",
        [Sample({"process": each.name}, each.cpu_seconds) for each in own if each.cpu_seconds is not None],
        "seconds",
    )
    yield Family(
        "capsuled_process_memory_bytes",
        "gauge",
        "Resident memory of each process of the supervisor's own",
        [Sample({"process": each.name}, each.memory) for each in own if each.memory is not None],
        "bytes",
    )
    yield Family(
        "capsuled_capsules",
        "gauge",
        "Capsules by state",
        [Sample({"state": state.value}, sum(c.state is state for c in facts.capsules)) for state in State],
    )
    yield _single("capsuled_backbone_up", "gauge", "1 while the backbone answers", int(facts.backbone_up))
    yield _single(
        "capsuled_backbone_restarts",
        "counter",
        "How often the backbone was started again",
        facts.backbone_restarts,
    )
    yield _single(
        "capsuled_control_connections",
        "gauge",
        "Connections to the control socket that are open",
        facts.connections.open,
    )
    yield _single(
        "capsuled_control_connections_refused",
        "counter",
        "Connections to the control socket that were refused: no level, or no place",
        facts.connections.refused,
    )


def _capsules(capsules: Sequence[CapsuleFacts]) -> Iterator[Family]:
    running = (State.STARTING, State.READY, State.STOPPING)
    yield _each("wanted", "1 when it is wanted up", capsules, lambda each: int(each.wanted))
    yield _each("up", "1 when it has a process", capsules, lambda each: int(each.state in running))
    yield _each("ready", "1 when it is ready", capsules, lambda each: int(each.state is State.READY))
    yield _each("attempt", "Starts in a row since it was last stable", capsules, lambda each: each.attempt)
    yield Family(
        "capsuled_capsule_exits",
        "counter",
        "How often its process has ended, by reason",
        [
            Sample({"capsule": each.name, "reason": reason}, count)
            for each in capsules
            for reason, count in sorted(each.exits.items())
        ],
    )
    yield _usage("cpu_seconds", "counter", "Processor time of its process", capsules, "seconds")
    yield _usage("memory", "gauge", "Linear memory of its guest", capsules, "bytes")
    yield _usage("process_memory", "gauge", "Resident memory of its process", capsules, "bytes")
    yield _usage("open_files", "gauge", "Open files of its process", capsules)
    yield _each(
        "memory_limit_bytes",
        "Linear memory that its guest may have",
        capsules,
        lambda each: each.memory_limit,
        unit="bytes",
    )
    yield _each(
        "process_memory_limit_bytes",
        "Memory that its process may have",
        capsules,
        lambda each: each.process_memory_limit,
        unit="bytes",
    )


def _bus(document: JsonObject | None) -> Iterator[Family]:
    entries = _members(document, "capsules")
    lines = _members(document, "subscriptions")
    spine = _table(document, "spine")
    balanced = [] if document is None else [Sample({}, int(document.get("balanced") is True))]
    yield Family("capsuled_ledger_balanced", "gauge", "1 while every message is accounted for", balanced)
    for key, kind, name, told in LEDGER:
        yield Family(f"capsuled_capsule_{name}", kind, told, list(_of_capsules(entries, key)))
    yield Family(
        "capsuled_capsule_retained_bytes",
        "gauge",
        "Size of the messages of it that are kept for later subscribers",
        list(_of_capsules(entries, "retained_bytes")),
        "bytes",
    )
    for key, told in (
        ("refused", "Calls of its guest that its worker refused, by code"),
        ("refused_by_backbone", "Messages of its worker that the backbone refused, by code"),
    ):
        yield Family(f"capsuled_capsule_{key}", "counter", told, list(_by_code(entries, key)))
    for key, kind, told in SUBSCRIPTIONS:
        yield Family(f"capsuled_capsule_{key}", kind, told, list(_summed(lines, key)))
    for key, kind, told in SPINE:
        value = spine.get(key)
        yield Family(f"capsuled_spine_{key}", kind, told, [Sample({}, value)] if _is_number(value) else [])
    yield Family(
        "capsuled_spine_refused",
        "counter",
        "Messages of the operator's programs that were refused, by reason",
        [
            Sample({"reason": reason}, count)
            for reason, count in _table(spine, "refused").items()
            if _is_number(count)
        ],
    )


# How samples are made.


def _single(name: str, kind: Kind, told: str, value: Value, unit: str = "") -> Family:
    return Family(name, kind, told, [Sample({}, value)], unit)


def _each(
    name: str,
    told: str,
    capsules: Sequence[CapsuleFacts],
    value: Callable[[CapsuleFacts], Value],
    *,
    unit: str = "",
) -> Family:
    samples = [Sample({"capsule": each.name}, value(each)) for each in capsules]
    return Family(f"capsuled_capsule_{name}", "gauge", told, samples, unit)


def _usage(key: str, kind: Kind, told: str, capsules: Sequence[CapsuleFacts], unit: str = "") -> Family:
    """What is not known is left out, and not told as nothing."""
    name = f"capsuled_capsule_{key}" if not unit or key.endswith(unit) else f"capsuled_capsule_{key}_{unit}"
    samples = [
        Sample({"capsule": each.name}, value) for each in capsules if _is_number(value := each.usage.get(key))
    ]
    return Family(name, kind, told, samples, unit)


def _of_capsules(entries: Sequence[JsonObject], key: str) -> Iterator[Sample]:
    for entry in entries:
        if _is_number(value := entry.get(key)):
            yield Sample({"capsule": str(entry.get("name"))}, value)


def _by_code(entries: Sequence[JsonObject], key: str) -> Iterator[Sample]:
    for entry in entries:
        for code, count in _table(entry, key).items():
            if _is_number(count):
                yield Sample({"capsule": str(entry.get("name")), "code": code}, count)


def _summed(lines: Sequence[JsonObject], key: str) -> Iterator[Sample]:
    """The sum over a capsule's lines; none where one of them is not known, for a counter must not seem to fall."""
    sums: dict[str, Value | None] = {}
    for line in lines:
        name, value = str(line.get("capsule")), line.get(key)
        before = sums.get(name, 0)
        sums[name] = before + value if before is not None and _is_number(value) else None
    for name, total in sums.items():
        if total is not None:
            yield Sample({"capsule": name}, total)


def _members(document: JsonObject | None, key: str) -> Sequence[JsonObject]:
    found = document.get(key) if document is not None else None
    if not isinstance(found, Sequence) or isinstance(found, str):
        return ()
    return [each for each in found if isinstance(each, Mapping)]


def _table(document: JsonObject | None, key: str) -> JsonObject:
    found = document.get(key) if document is not None else None
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Json) -> TypeGuard[Value]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# How they are written.


def _lines(family: Family) -> Iterator[str]:
    name = family.name
    yield f"# TYPE {name} {family.kind}"
    if family.unit:
        yield f"# UNIT {name} {family.unit}"
    yield f"# HELP {name} {_escaped(family.help)}."
    suffix = {"gauge": "", "counter": "_total", "info": "_info"}[family.kind]
    for labels, value in family.samples:
        given = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
        yield f"{name}{suffix}{{{given}}} {value}" if given else f"{name}{suffix} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
